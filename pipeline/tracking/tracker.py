"""The tracker as training sees it: a spool of lines on disk that costs microseconds and never fails for a network.

Knows files, not MLflow: `shipper.py`, another process, reads the spools, and sends them by `mlflow_store.py`. Points
come from `training/loop.py`; copies of a stage's curves at its pipeline's run are `mirror.py`'s. A spool line is one
JSON object; every line has `run` (the run key), `kind` and `ts_ms` (when it happened).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, many
from pipeline.files import SOURCE, atomic_path
from pipeline.tracking.links import public_uri, read_store, resolve_uri, tracking_folder
from pipeline.tracking.spool import process_identity, spool_ends, spool_files, spool_stem, whole_lines

if TYPE_CHECKING:
    import numpy as np


# ---- the spool, written


class Spool:
    """Appends what happens in one run to `<folder>/<run key>.<token>.jsonl`; the same process or its successor may
    open it again. `metrics` and `image` leave out steps that are there already, so a resumed run doubles nothing.

    `run` is the run key: one name for ever for this run (as `diffusion/<fingerprint>/<attempt>`). `token` is the
    lease token.
    """

    def __init__(self, folder: str | Path, run: str, token: int) -> None:
        self.folder, self.run, self.token = Path(folder), run, token
        self._last: dict[str, int] = {}  # metric or image key -> last step spooled
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{spool_stem(run)}.{token:08d}.jsonl"
        mine = sorted(self.folder.glob(f"{spool_stem(run)}.*.jsonl"))
        ends = spool_ends(mine)  # one look: what is written in the meantime by one that was superseded does not count
        for other, end in ends.items():
            self._remember(other, end)
        size = path.stat().st_size if path.exists() else 0
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._write(b"\n")  # close what a kill tore: readers pass over it
        if path not in mine:
            self._append("open", follows={older.name: end for older, end in ends.items() if older < path})

    def __reduce__(self) -> tuple[type[Spool], tuple[Path, str, int]]:
        return Spool, (self.folder, self.run, self.token)  # to a worker: it opens the file itself

    def _remember(self, path: Path, end: int) -> None:
        for _, event in whole_lines(path, 0, end):
            if event and event["kind"] in ("metrics", "image"):
                for key in event.get("values", {f"image {event.get('key')}": None}):
                    self._last[key] = max(event["step"], self._last.get(key, event["step"]))

    def _append(self, kind: str, **fields: Any) -> None:
        event = {"run": self.run, "kind": kind, "ts_ms": time.time_ns() // 1_000_000, **fields}
        self._write(json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        """One write at the end of the file: a kill tears at most the last line."""
        if os.write(self._file, line) != len(line):
            raise OSError(f"{self.folder}: the disk took only part of a line; free some space and run again")

    def _is_new(self, key: str, step: int) -> bool:
        if step <= self._last.get(key, -1):
            return False
        self._last[key] = step
        return True

    def start(
        self,
        name: str,
        parent: str | None = None,
        tags: Mapping[str, object] | None = None,
        params: Mapping[str, object] | None = None,
        experiment: str = "ldm",
        steps: int | None = None,
        group: str | None = None,
    ) -> None:
        """The run begins, or goes on after a stop. `parent` is a run key. `steps` is the last step there will be: by
        it the parent's mirror of this run's curves is thinned evenly. Call it in the process whose life is the run's.
        `group` is the run key of a sweep that the pages show this run under, without mirroring its curves there.
        """
        self._append(
            "start",
            name=name,
            parent=parent,
            tags={k: str(v) for k, v in (tags or {}).items()},
            params={k: str(v) for k, v in (params or {}).items()},
            experiment=experiment,
            steps=steps,
            **({"group": group} if group else {}),
            writer=process_identity(os.getpid()),
        )

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Values at a step. What is not finite is spooled by name and drawn as a gap."""
        new = {k: float(v) for k, v in values.items() if self._is_new(k, step)}
        if new:
            written: dict[str, float | str] = {k: v if math.isfinite(v) else str(v) for k, v in new.items()}
            self._append("metrics", step=int(step), values=written)

    def image(self, key: str, image: np.ndarray, step: int, cells: Sequence[str] = ()) -> None:
        """A picture, uint8 [H, W, 3] or [H, W, 1], under `key` (`samples/ema`) at `step`. Kept beside the spool.

        cells: where it is a square of pictures, what each is of, row by row.
        """
        from PIL import Image

        if image.dtype != "uint8" or image.ndim != 3 or image.shape[2] not in (1, 3):
            raise ValueError(f"image {key}: expected uint8 [H, W, 1 or 3], got {image.dtype} {list(image.shape)}")
        if not self._is_new(f"image {key}", step):
            return
        path = self.folder / "images" / f"{spool_stem(key)}-{step:09d}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(temporary, format="png")
        more = {"cells": list(cells)} if cells else {}
        self._append("image", key=key, step=int(step), path=str(path.absolute()), **more)

    def tags(self, values: Mapping[str, object]) -> None:
        """More tags, or new values of them: world size, devices, fingerprints."""
        self._append("tags", tags={k: str(v) for k, v in values.items()})

    def file(self, path: str | Path, artifact_path: str = "") -> None:
        """A file to be kept with the run, in the folder `artifact_path` of its artifacts. It must stay where it is."""
        self._append("file", path=str(Path(path).absolute()), artifact_path=artifact_path)

    def note(self, markdown: str) -> None:
        """The run's description, verdict first. `{{run:KEY}}` and `{{model:KEY}}` (KEY: the key of a run, or of the run
        that registered a model) become links as soon as these exist, e.g. `[2 autoencoder]({{run:autoencoder/ab12}})`;
        `{{config:KEY}}` leads to the config of the pipeline that the run is part of.
        """
        self._append("note", markdown=markdown)

    def dataset(self, name: str, digest: str, source: str) -> None:
        """The data set that the run reads: its name, content digest (hex) and where it lies."""
        self._append("dataset", name=name, digest=digest, source=source)

    def adopt(self, run: str, folder: str | Path) -> None:
        """Copy the curves of a cached stage (run key, its spool folder) into this run, as its mirror would have."""
        self._append("adopt", of=run, folder=str(Path(folder).absolute()))

    def model(
        self, folder: str | Path, name: str, alias: str, description: str, tags: Mapping[str, object] | None = None
    ) -> None:
        """Register the model folder (`generate/folder.py`) as a new version of `name`, and point `alias` at it.

        A folder of the same content is registered once. `description` may hold the placeholders of `note`.
        """
        self._append(
            "model",
            folder=str(Path(folder).absolute()),
            name=name,
            alias=alias,
            description=description,
            tags={k: str(v) for k, v in (tags or {}).items()},
        )

    def uses(self, model: str) -> None:
        """The run has used the model that the run of this key has registered: it is shown with that version."""
        self._append("uses", of=model)

    def end(self, status: str = "FINISHED") -> None:
        """The run ends: FINISHED, FAILED or KILLED. The spool is on disk when this returns."""
        self._append("end", status=status)
        os.fsync(self._file)


# ---- the shipper's process


def left(root: str | Path, uri: str) -> int:
    """How many whole lines of the spools are not yet in the tracker."""
    offsets = read_store(root, uri).get("offsets", {})
    pipelines, stages = spool_files(root)
    return sum(
        sum(1 for _ in whole_lines(path, offsets.get(str(path.relative_to(root)), 0), end))
        for path, end in spool_ends(pipelines + stages).items()
    )


def left_message(root: str | Path, uri: str, lines: int) -> str:
    """The one line that tells what did not reach the tracker, why, and what to type."""
    why = read_store(root, uri).get("trouble") or "it was slow"
    where = public_uri(uri)
    return f"tracker {where}: {many(lines, 'line')} not sent yet ({why}); nothing is lost, `ldm mlflow sync` sends them"


def refused(root: str | Path, uri: str) -> int:
    """How many lines the tracker has refused, and are kept to be tried again."""
    return sum(entry["lines"] for entry in read_store(root, uri).get("kept", []))


def refused_message(root: str | Path, uri: str) -> str:
    """The one line that tells what the tracker refuses, and why."""
    why = list(dict.fromkeys(entry["why"] for entry in read_store(root, uri).get("kept", [])))
    more = f" (and {many(len(why) - 1, 'other reason')}: tracking/shipper.log)" if len(why) > 1 else ""
    return (
        f"tracker {public_uri(uri)}: refused {many(refused(root, uri), 'line')}: {why[0]}{more}; they are kept, "
        "`ldm mlflow sync` tries again"
    )


@dataclass(frozen=True)
class Shipper:
    """A running shipper. It ends by itself when this process is gone or has closed its standard input."""

    root: Path
    uri: str
    process: subprocess.Popen[bytes]
    deadline_s: float

    def drain(self) -> int:
        """Let it send the rest and end, `deadline_s` seconds at most; how many lines are left (see `left_message`)."""
        assert self.process.stdin is not None
        self.process.stdin.close()  # end of file: a last drain, then it leaves
        try:
            self.process.wait(self.deadline_s)
        except subprocess.TimeoutExpired:
            self.process.kill()  # replay is idempotent: killing it loses and doubles nothing
            self.process.wait()
        return left(self.root, self.uri)


def _shipper_command(root: Path, deadline_s: float, *more: str) -> list[str]:
    words = ["--root", str(root), "--drain-seconds", str(deadline_s), *more]
    return [sys.executable, "-m", "pipeline.tracking.shipper", *words]


def _shipper_environment(uri: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return os.environ | own | {"MLFLOW_TRACKING_URI": uri}  # not in the command line: it may hold a password


def start(root: str | Path, uri: str | None = None, deadline_s: float = 60.0) -> Shipper:
    """Start the shipper of `root` in a process of its own (its log: `<root>/tracking/shipper.log`). Returns at once.

    deadline_s: seconds that it has for the rest, when it is drained or this process is gone.
    """
    root, uri = Path(root).absolute(), resolve_uri(root, uri)
    folder = tracking_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "shipper.log"
    mode = "ab" if log.exists() and log.stat().st_size < 1 << 20 else "wb"
    with open(log, mode) as output:
        process = subprocess.Popen(
            _shipper_command(root, deadline_s, "--parent", str(os.getpid())),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=_shipper_environment(uri),
            cwd=folder,
            start_new_session=True,  # Ctrl-C is for us: the shipper sends the rest first
        )
    return Shipper(root, uri, process, deadline_s)


def sync(root: str | Path, uri: str | None = None, deadline_s: float = 600.0) -> dict[str, int]:
    """Send everything that is left, repair runs whose writer was killed, and count: {"sent", "left", "refused"}.

    What was refused before is tried again; `refused` is what the tracker does not take now either, and is kept.

    UserError if the tracker cannot be reached, with the reason and how many lines stay behind.
    """
    root, uri = Path(root).absolute(), resolve_uri(root, uri)
    folder = tracking_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    before = left(root, uri) + refused(root, uri)
    with open(folder / "shipper.log", "ab") as output:
        done = subprocess.run(
            _shipper_command(root, deadline_s),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_shipper_environment(uri),
            cwd=folder,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"the shipper failed: {(folder / 'shipper.log').read_text()[-2000:]}")
    after = left(root, uri)
    if after:
        raise UserError(left_message(root, uri, after) + f"; details in {folder / 'shipper.log'}")
    return {"sent": before - refused(root, uri), "left": after, "refused": refused(root, uri)}


def fetch_model(uri: str, root: str | Path = "runs", tracking_uri: str | None = None) -> Path:
    """The local folder (config.json, weights) of `models:/NAME@ALIAS` or `models:/NAME/VERSION`; downloaded if need be.

    UserError if there is no such model.
    """
    from pipeline.tracking.mlflow_store import download_model

    return download_model(uri, resolve_uri(root, tracking_uri), root)
