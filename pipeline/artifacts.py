"""What a finished stage leaves on disk: its folder, fingerprint, manifest, content digest, and who may write it.

    <root>/artifacts/<stage>/<fingerprint>/
        manifest.json        written last: no manifest, no artifact
        ...                  the stage's files, all listed in the manifest with bytes and SHA-256
        work/                scratch of the writer: leases, checkpoints, spool; no part of the content

*Fingerprint*: what was asked for: stage, format, inputs' fingerprints and the stage's `recipe(config)`, less the keys
that decide on speed alone (`schema/section.py`); a stage is skipped where a whole artifact has it (`stages/graph.py`).
*Content*: what came out (digests of the files). Two trainings of one recipe have one fingerprint, maybe two contents.
"""

from __future__ import annotations

import os
import platform
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import UserError
from pipeline.files import digest, read_json, sha256_file, write_json

FORMAT = 1  # raised when a stage's files change their meaning: old artifacts are then simply other artifacts
BEAT = 5.0  # seconds between two renewals of a lease
TELL_AFTER = 10.0  # seconds of waiting for another process until it is said
DEAD_AFTER = 60.0  # seconds without one after which a holder is taken for dead, and itself stops
TAKEN_OVER = "the lease was taken over by another process"
LIBRARIES = ("torch", "deepspeed", "ray", "mlflow", "webdataset", "numpy", "pillow")


def fingerprint(stage: str, recipe: dict[str, Any], inputs: dict[str, str]) -> str:
    """The first 16 hex digits of SHA-256 over all that decides on a result; `inputs`: their fingerprints."""
    return digest({"stage": stage, "format": FORMAT, "recipe": recipe, "inputs": inputs})[:16]


@dataclass(frozen=True)
class Artifact:
    """A finished artifact."""

    stage: str
    fingerprint: str
    path: Path
    content: str
    recipe: dict[str, Any] = field(repr=False)
    summary: dict[str, Any] = field(repr=False)
    inputs: dict[str, dict[str, str]] = field(repr=False)
    manifest: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.stage}/{self.fingerprint} (content {self.content[:12]})"

    @classmethod
    def load(cls, path: str | Path, stage: str | None = None) -> Artifact:
        """The artifact in a folder. Raises UserError if it is unfinished, not of `stage` (where that is given), or a
        file is missing or of another size."""
        path = Path(path).absolute()
        try:
            manifest = read_json(path / "manifest.json")
            for name, entry in manifest["files"].items():
                size = (path / name).stat().st_size
                if size != entry["bytes"]:
                    raise UserError(
                        f"{path / name}: {size} bytes, expected {entry['bytes']}; move {path} away and run again"
                    )
            keys = ("stage", "fingerprint", "content", "recipe", "summary", "inputs")
            if stage not in (None, manifest["stage"]):
                raise UserError(f"{path}: an artifact of the stage {manifest['stage']}; give one of {stage}")
            return cls(path=path, manifest=manifest, **{key: manifest[key] for key in keys})
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: missing; no finished artifact is at {path}") from None
        except (KeyError, ValueError, TypeError, AttributeError):
            raise UserError(f"{path}/manifest.json: not a manifest; move {path} away and run again") from None

    def verify(self) -> list[str]:
        """Hash every file again; returns the names of those that differ."""
        return [
            name for name, entry in self.manifest["files"].items() if sha256_file(self.path / name) != entry["sha256"]
        ]


class Store:
    """The artifacts under one root folder, which all nodes share."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def create(self) -> None:
        """Make the root folder if need be."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"`run.root`: {self.root} cannot be made ({error.strerror}); give another folder") from None

    def folder(self, stage: str, fingerprint: str) -> Path:
        return self.root / "artifacts" / stage / fingerprint

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """The finished artifact, or None. One that is damaged is a UserError: nothing is repaired silently."""
        folder = self.folder(stage, fingerprint)
        return Artifact.load(folder) if (folder / "manifest.json").exists() else None

    def all(self) -> Iterator[Artifact]:
        for manifest in sorted(self.root.glob("artifacts/*/*/manifest.json")):
            yield Artifact.load(manifest.parent)

    @contextmanager
    def write(
        self,
        stage: str,
        fingerprint: str,
        recipe: dict[str, Any],
        inputs: dict[str, Artifact],
        if_busy: Literal["refuse", "wait"] = "refuse",
    ) -> Iterator[Writer]:
        """Hold the lease on an artifact while it is written. Raises UserError if another process holds it."""
        folder = self.folder(stage, fingerprint)
        try:
            (folder / "work").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be created ({error.strerror}); give a writable `run.root`") from None
        with Lease(folder / "work" / "lease", if_busy) as lease:
            yield Writer(stage, fingerprint, folder, recipe, inputs, lease)

    def set_aside(self, artifact: Artifact) -> Path:
        """Move an artifact to `<root>/set-aside/`, so that it is made again; gives the new place."""
        name = f"{artifact.fingerprint}-{artifact.content[:8]}-{secrets.token_hex(2)}"
        target = self.root / "set-aside" / artifact.stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Lease(artifact.path / "work" / "lease"):  # nobody writes it
            return artifact.path.rename(target)


@dataclass(frozen=True)
class Writer:
    """The right to write one artifact."""

    stage: str
    fingerprint: str
    path: Path
    recipe: dict[str, Any]
    inputs: dict[str, Artifact]
    lease: Lease

    @property
    def work(self) -> Path:
        """Scratch that survives a restart and is no part of the content."""
        return self.path / "work"

    @property
    def token(self) -> int:
        """Raised by each takeover; part of every checkpoint's name."""
        return self.lease.token

    def input_contents(self) -> dict[str, str]:
        """Content digests of the inputs, by name."""
        return {name: artifact.content for name, artifact in self.inputs.items()}

    def finish(self, summary: dict[str, Any]) -> Artifact:
        """List and hash all files, write the manifest last, and return the artifact."""
        files = {}
        for file in sorted(p for p in self.path.rglob("*") if p.is_file()):
            name = file.relative_to(self.path).as_posix()
            if name.startswith("work/") or name.endswith(".tmp") or name == "manifest.json":
                continue
            files[name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        self.lease.check()
        write_json(
            self.path / "manifest.json",
            {
                "stage": self.stage,
                "format": FORMAT,
                "fingerprint": self.fingerprint,
                "content": digest({name: entry["sha256"] for name, entry in files.items()}),
                "recipe": self.recipe,
                "inputs": {
                    name: {"stage": a.stage, "fingerprint": a.fingerprint, "content": a.content, "path": str(a.path)}
                    for name, a in self.inputs.items()
                },
                "summary": summary,
                "files": files,
                "libraries": versions(),
                "revision": revision(),
                "host": socket.gethostname(),
            },
        )
        return Artifact.load(self.path)


def check_inputs(artifact: Artifact, inputs: dict[str, Artifact]) -> None:
    """Refuse an artifact that was made of other contents than those at hand (same recipe, trained again)."""
    for name, given in inputs.items():
        made = artifact.inputs.get(name, {})
        if made.get("content") != given.content:
            raise UserError(
                f"{artifact.path}: made with {name} {made.get('stage')}/{made.get('fingerprint')} "
                f"(content {str(made.get('content'))[:12]}), but this run's {name} is {given.name}; "
                f"run again with --rebuild {artifact.stage}, or bring the old {name} back"
            )


def versions() -> dict[str, str]:
    """Versions of the libraries whose change can change a result."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def revision() -> str:
    """The source's git revision, with '+' where files were changed since; 'unknown' outside a checkout, unless
    LDM_REVISION names it (a job that runs in a copy of the sources, an image)."""
    given = os.environ.get("LDM_REVISION")
    if given:
        return given
    try:
        here = Path(__file__).parent
        command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+"]
        return subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


# ---- lease -----------------------------------------------------------------------------------------------------------


def lease_file(folder: Path, token: int) -> Path:
    """Where the holder of the lease with this token is named. That of `token + 1` is there: another has taken over."""
    return folder / f"{token:06d}.json"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _pid_namespace() -> str:
    """Which process ids mean which processes: containers of one host share its name and boot, not its ids."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "unknown"


def _started(pid: int) -> str | None:
    """When a process of this host started (kernel ticks): tells a living holder from a reused pid. None: not alive."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def lease_holder(folder: Path) -> dict[str, Any] | None:
    """Who holds the lease in a folder: what its file says, None if it was released or its process is gone for certain.

    Looks only, and takes nothing. A holder on another machine, or in another container, counts as alive.
    """
    newest = max(folder.glob("*.json"), default=None, key=lambda path: int(path.stem))
    if newest is None:
        return None
    try:
        told: dict[str, Any] = read_json(newest)
    except ValueError:
        told = {}  # created, but not yet written
    here = {"host": socket.gethostname(), "boot": _boot(), "pids": _pid_namespace()}
    same = all(told.get(key) == value for key, value in here.items())
    gone = told.get("released") or (same and _started(told["pid"]) != told["started"])
    return None if gone else told


class Lease:
    """One writer: the file with the highest number in a folder names the holder, and is created exclusively.

    Clocks of two machines are never compared: a rival watches the holder's `beat` change, by its own monotonic clock.
    """

    def __init__(self, folder: Path, if_busy: Literal["refuse", "wait"] = "refuse") -> None:
        self.folder, self.if_busy, self.token = folder, if_busy, 0
        self._stop, self._lost = threading.Event(), ""
        self._me: dict[str, Any] = {
            "host": socket.gethostname(),
            "boot": _boot(),
            "pids": _pid_namespace(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "slurm_restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "beat": 0,
            "released": False,
        }

    def __enter__(self) -> Lease:
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            newest = max((int(p.stem) for p in self.folder.glob("*.json")), default=0)
            if newest:
                self._wait_for(newest)
            self.token = newest + 1
            try:
                os.close(os.open(self._file(self.token), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                continue  # somebody else was faster: look at them
            break
        self._renew()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if not self._lost and self.folder.exists():
            self._me["released"] = True
            with suppress(OSError):  # a full disk: what was raised before says more, and a dead holder is seen
                self._renew()

    def check(self) -> None:
        """Raise if the lease was lost: what is written now would be ignored. Looks anew."""
        if not self._lost and self._file(self.token + 1).exists():
            self._lost = TAKEN_OVER
        if self._lost:
            raise UserError(f"{self.folder}: {self._lost}; this process stops")

    def _file(self, token: int) -> Path:
        return lease_file(self.folder, token)

    def _renew(self) -> None:
        self._me["beat"] += 1
        write_json(self._file(self.token), self._me)

    def _beat(self) -> None:
        renewed = time.monotonic()
        while not self._stop.wait(BEAT):
            try:
                if self._file(self.token + 1).exists():
                    self._lost = TAKEN_OVER
                    return
                self._renew()
                renewed = time.monotonic()
            except OSError as error:
                if time.monotonic() - renewed > DEAD_AFTER:
                    self._lost = f"the lease could not be renewed for {DEAD_AFTER:.0f} s ({error.strerror})"
                    return

    def _read(self, token: int) -> dict[str, Any]:
        try:
            holder = read_json(self._file(token))
            return holder if isinstance(holder, dict) else {}
        except (OSError, ValueError):
            return {}  # created, but not yet written

    def _wait_for(self, token: int) -> None:
        """Return when the holder has released the lease or is dead. UserError if it lives and we must not wait."""
        seen, since = self._read(token).get("beat"), time.monotonic()
        began, told = since, False
        while True:
            holder = self._read(token)
            if holder.get("released"):
                return
            if all(holder.get(key) == self._me[key] for key in ("host", "boot", "pids")):
                if holder.get("pid") == os.getpid() or _started(holder["pid"]) != holder["started"]:
                    return  # same machine: we can see that it is gone
                alive = True
            elif holder.get("slurm_job") and holder.get("slurm_job") == self._me["slurm_job"]:
                if holder.get("slurm_restart", 0) < self._me["slurm_restart"]:
                    return  # our own job before it was requeued
                alive = True
            else:
                alive = holder.get("beat") != seen
            who = (
                f"{self.folder.parent.parent}: being written by process {holder.get('pid')} on {holder.get('host')}"
                f" (Slurm job {holder.get('slurm_job') or 'none'}) since {holder.get('since')}"
            )
            if alive and self.if_busy == "refuse":
                raise UserError(f"{who}; wait for it, or run again with --if-busy wait")
            if not told and time.monotonic() - began > TELL_AFTER:
                told = True
                print(f"{who}; waiting for it", flush=True)
            if holder.get("beat") != seen:
                seen, since = holder.get("beat"), time.monotonic()
            if time.monotonic() - since > DEAD_AFTER:
                return
            time.sleep(min(1.0, BEAT))  # poll of a file that another machine writes: nothing to be notified by
