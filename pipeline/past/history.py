"""What past runs left on disk, read back: pipelines, their stages, params, curves and pictures. Reads files only.

A pipeline is found by its spool (`tracking.py` writes it), so this needs no tracker, and works while one is down.
What is compared is in `compare.py`, what nothing refers to in `inventory.py`, what came of what in `lineage.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.schema.names import STAGES
from pipeline.tracking.spool import spool_ends, spool_stem, surely_dead, whole_lines

STAGE_RUN = re.compile(r"\{\{run:([a-z_]+/[0-9a-f]{16}(?:/[0-9a-f]+)?)\}\}")  # links of a note (runs.py)
KEY_LENGTH = 16
SHORTEST_KEY = 4  # characters of a key that may stand for all of it


@dataclass(frozen=True)
class Past:
    """One pipeline. stages: stage -> run key (`STAGE/FINGERPRINT/ATTEMPT`) of what it used or made, the latest each.

    folders: the stage's artifact (which may be unfinished, gone, or under another root if it was pinned).
    status: FINISHED, FAILED, KILLED or RUNNING. started_ms, ended_ms: first and last sign of life.
    """

    root: Path
    key: str
    name: str
    status: str
    started_ms: int
    ended_ms: int
    params: dict[str, str] = field(repr=False)
    stages: dict[str, str] = field(repr=False)
    folders: dict[str, Path] = field(repr=False)

    @property
    def run_key(self) -> str:
        return f"pipeline/{self.key}"

    @property
    def folder(self) -> Path:
        return self.root / "pipelines" / self.key

    def summary(self, stage: str) -> dict[str, Any] | None:
        """The summary of a stage's finished artifact, None if there is none."""
        path = self.folders[stage] / "manifest.json" if stage in self.folders else None
        return dict(read_json(path)["summary"]) if path and path.exists() else None

    def spools(self, stage: str) -> list[Path]:
        """The stage's spools, oldest first; also where `--rebuild` moved them."""
        key = self.stages[stage]
        kept = [self.folders[stage], *self.root.glob(f"set-aside/{stage}/{key.split('/')[1]}-*")]
        return sorted(p for folder in kept for p in (folder / "work" / "spool").glob(f"{spool_stem(key)}.*.jsonl"))


def events(files: list[Path]) -> Iterator[dict[str, Any]]:
    """The lines that count of spools of one run, oldest spool first."""
    for path, end in spool_ends(sorted(files)).items():
        for _, event in whole_lines(path, 0, end):
            if event:
                yield event


def pipelines(root: str | Path) -> list[Past]:
    """All pipelines under a root, oldest first."""
    root = Path(root).absolute()
    children: dict[str, dict[str, str]] = {}  # pipeline's run key -> stage -> run key
    for path in sorted(root.glob("artifacts/*/*/work/spool/*.jsonl")):
        for event in events([path]):
            if event["kind"] == "start" and event.get("parent"):
                children.setdefault(event["parent"], {})[path.parts[-5]] = event["run"]
    found = [read(folder, children) for folder in root.glob("pipelines/*") if any(folder.glob("spool/*.jsonl"))]
    return sorted((p for p in found if p), key=lambda past: past.started_ms)


def read(folder: Path, children: dict[str, dict[str, str]] | None = None) -> Past | None:
    """The pipeline of a folder `<root>/pipelines/KEY`; None if its spool holds no start, or is no pipeline's: a table
    of solvers, a sweep, what a verb has made.

    `children`: by pipeline, what stages say of their parent: it names a stage that was stopped before its end.
    """
    root, start, status, times = folder.parents[1], None, "RUNNING", []
    stages: dict[str, str] = dict((children or {}).get(f"pipeline/{folder.name}", {}))
    elsewhere: dict[str, Path] = {}
    for event in events(list(folder.glob("spool/*.jsonl"))):
        times.append(event["ts_ms"])
        if event["kind"] == "start":
            start, status = event, "RUNNING"
        elif event["kind"] == "end":
            status = event["status"]
        elif event["kind"] == "adopt":
            stages[event["of"].split("/")[0]] = event["of"]
            elsewhere[event["of"]] = Path(event["folder"]).parents[1]
        elif event["kind"] == "note":
            stages |= {key.split("/")[0]: key for key in STAGE_RUN.findall(event["markdown"])}
    if start is None or not start["run"].startswith("pipeline/"):
        return None
    if status == "RUNNING" and surely_dead(start["writer"]):
        status = "KILLED"
    folders = {}
    stages = {stage: stages[stage] for stage in sorted(stages, key=_place)}
    for stage, key in stages.items():
        here = root / "artifacts" / stage / key.split("/")[1]
        folders[stage] = here if here.exists() else elsewhere.get(key, here)
    return Past(root, folder.name, start["name"], status, times[0], times[-1], start["params"], stages, folders)


def _place(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def find(root: str | Path, text: str) -> Past:
    """The pipeline that a person means: its name, its key or the first characters of it, the id of its MLflow run, or
    its folder `ROOT/pipelines/KEY`. Of several runs of a name the one that finished is meant, which is said.

    Raises UserError where there is none, or more than one.
    """
    if Path(text).is_dir() and Path(text).parent.name == "pipelines":
        there = read(Path(text).absolute())
        if there:
            return next(past for past in pipelines(there.root) if past.key == there.key)
    known = pipelines(root)
    ids = {past.key for past in known if text in run_ids(root, past.run_key)}
    starts = {past.key for past in known if len(text) >= SHORTEST_KEY and past.key.startswith(text)}
    named = {past.key for past in known if past.name == text}
    finished = {past.key for past in known if past.key in named and past.status == "FINISHED"}
    for keys in (ids, starts, named):
        if keys is named and len(named) > 1 == len(finished):
            others = ", ".join(f"{past.key} {past.status}" for past in known if past.key in named - finished)
            print(f"{text}: taken is {min(finished)}, which finished; of the same name: {others}", flush=True)
            keys = finished
        if len(keys) == 1:
            return next(past for past in known if past.key in keys)
        if keys:
            several = "; ".join(describe(past) for past in known if past.key in keys)
            raise UserError(f"{text}: {len(keys)} runs are meant by that; give a key: {several}")
    there_are = "; ".join(describe(past) for past in known[-10:]) or "none"
    raise UserError(f"{text}: no run of that name, key or MLflow id under {Path(root)}; there are: {there_are}")


def run_ids(root: str | Path, run_key: str) -> list[str]:
    """Ids of a run in MLflow, a tracker each, as far as the shipper has noted them."""
    path = Path(root) / "tracking" / "state.json"
    stores = read_json(path)["stores"].values() if path.exists() else []
    return [store["runs"][run_key]["id"] for store in stores if run_key in store["runs"]]


def describe(past: Past) -> str:
    """A pipeline in a few words: key, name, when, how it ended."""
    return f"{past.key} {past.name} ({when(past.started_ms)}, {past.status})"


def when(ms: int) -> str:
    """A time stamp in this machine's time, to the minute."""
    import time

    return time.strftime("%Y-%m-%d %H:%M", time.localtime(ms / 1000))


Curve = list[tuple[int, float]]  # (step, value), steps ascending


def curves(past: Past) -> dict[str, Curve]:
    """All metrics of all stages by name (`diffusion/val_loss`), in full. What was not finite is NaN.

    A step that is told twice (a stage that was rolled back) counts as it was told last.
    """
    points: dict[str, dict[int, float]] = {}
    for stage in past.stages:
        for event in events(past.spools(stage)):
            if event["kind"] == "metrics":
                for name, value in event["values"].items():
                    points.setdefault(name, {})[event["step"]] = value if isinstance(value, float) else float("nan")
    return {name: sorted(values.items()) for name, values in sorted(points.items())}


def pictures(past: Past) -> dict[str, list[tuple[int, Path]]]:
    """All pictures of all stages by key (`samples/ema`): (step, PNG file), steps ascending; files that are gone are
    left out."""
    found: dict[str, dict[int, Path]] = {}
    for stage in past.stages:
        for event in events(past.spools(stage)):
            if event["kind"] == "image":
                name = Path(event["path"]).name
                places = [
                    Path(event["path"]),
                    past.folders[stage] / "work" / "spool" / "images" / name,
                ]  # a copied root
                path = next((place for place in places if place.exists()), None)
                if path:
                    found.setdefault(event["key"], {})[event["step"]] = path
    return {key: sorted(steps.items()) for key, steps in sorted(found.items())}


def cells(past: Past) -> dict[str, list[str]]:
    """Of pictures that are squares of samples what each sample was told, by key; none of a model told a class at
    most."""
    every = (event for stage in past.stages for event in events(past.spools(stage)) if event["kind"] == "image")
    return {event["key"]: event["cells"] for event in every if event.get("cells")}


def told(past: Past) -> str:
    """What the run's model is told of an image: `class, expression, age, caption, mask`; `nothing`."""
    start = "diffusion.condition."
    names = ["class"] if past.params.get(f"{start}kind", "class") == "class" else []
    for kind in ("attributes", "caption", "spatial"):
        keys = [key.split(".") for key in past.params if key.startswith(f"{start}{kind}.")]
        names += dict.fromkeys(kind if kind == "caption" else key[3] for key in keys)
    return ", ".join(names) or "nothing"
