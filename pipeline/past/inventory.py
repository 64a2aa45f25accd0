"""What lies under a root: artifacts, their sizes, who uses what; and what nothing refers to any more.

An artifact is referred to by a run that exists in the tracker, by a registered model, or by an artifact that is. A run
counts as gone only if the tracker says that it was deleted: one that is down, or never heard of it, says nothing.
Nothing that another process may be writing is ever removed.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifacts import Lease, lease_holder
from pipeline.data import tokens
from pipeline.errors import UserError
from pipeline.files import read_json, sha256_file
from pipeline.past import history
from pipeline.past.history import Past
from pipeline.schema.names import STAGES
from pipeline.tracking.links import resolve_uri


@dataclass(frozen=True)
class Item:
    """An artifact's folder. state: finished, unfinished, writing, or damaged. bytes: its files; work_bytes: its
    checkpoints, leases and spools. used_by: names of runs and of artifacts that it went into. made_ms: when it was
    finished or last begun. manifest: empty unless finished. recipe: of one that is trained also before its end."""

    stage: str
    fingerprint: str
    path: Path
    state: str
    bytes: int
    work_bytes: int
    made_ms: int
    used_by: list[str]
    manifest: dict[str, Any] = field(repr=False)
    recipe: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.fingerprint}"

    @property
    def content(self) -> str:
        return str(self.manifest.get("content", ""))[:12]


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())


def items(root: str | Path) -> list[Item]:
    """All artifacts under a root, in the order of stages, then by age."""
    root = Path(root).absolute()
    folders = [p for p in root.glob("artifacts/*/*") if p.is_dir() and p.parent.name in STAGES]
    pasts = history.pipelines(root)
    manifests = {folder: _manifest(folder) for folder in folders}
    recipes = {folder: _recipe(folder, manifests[folder]) for folder in folders}
    found = [_item(folder, manifests, recipes, pasts) for folder in folders]
    return sorted(found, key=lambda item: (STAGES.index(item.stage), item.made_ms, item.fingerprint))


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    try:
        manifest: dict[str, Any] = read_json(path)
        return manifest if isinstance(manifest["files"], dict) else {"damaged": True}
    except (ValueError, KeyError, TypeError):
        return {"damaged": True}


def _recipe(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Of an artifact without a manifest as its training wrote it down at its start; empty where there is none."""
    if "recipe" in manifest:
        return dict(manifest["recipe"])
    try:
        return dict(read_json(folder / "work" / "recipe.json")["recipe"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _item(
    folder: Path, manifests: dict[Path, dict[str, Any]], recipes: dict[Path, dict[str, Any]], pasts: Iterable[Past]
) -> Item:
    manifest, stage = manifests[folder], folder.parent.name
    users = [f"{past.name} ({past.key[:6]})" for past in pasts if past.folders.get(stage) == folder]
    for other, theirs in manifests.items():
        made = any((i["stage"], i["fingerprint"]) == (stage, folder.name) for i in theirs.get("inputs", {}).values())
        if made or _holds_base(manifest, recipes[other]):
            users.append(f"{other.parent.name}/{other.name[:6]}")
    newest = folder / "manifest.json" if manifest else folder / "work"
    work = size(folder / "work")
    state = "damaged" if manifest.get("damaged") else "finished" if manifest else "unfinished"
    if state == "unfinished" and holder(folder / "work" / "lease"):
        state = "writing"
    made_ms = int((newest if newest.exists() else folder).stat().st_mtime * 1000)
    return Item(stage, folder.name, folder, state, size(folder) - work, work, made_ms, users, manifest, recipes[folder])


def holder(lease: Path) -> str | None:
    """Who may be writing, in words, by the newest lease in a folder; None if nobody does."""
    told = lease_holder(lease)
    return None if told is None else f"process {told.get('pid')} on {told.get('host')} since {told.get('since')}"


# ---- what nothing refers to ------------------------------------------------------------------------------------------


TOKENIZERS = "tokenizers"  # folder of what `data/tokens.py` trains: made again of the same text, bit for bit
FEATURES = "features"  # folder of the pool of `ldm features`: a file's record names the model it was made by
POOLS = {"latents": "encode", "conditions": "conditions"}  # folder of shards -> the stage whose artifacts list them
LOOSE = (FEATURES, TOKENIZERS, "tracking", "extractors", "cache")  # folders that verbs write to without a lease
IDLE = 600.0  # seconds since the last change, after which nobody writes what lies half-made in these


@dataclass(frozen=True)
class Garbage:
    """Something that may go. kind: artifact, run, latents, conditions, features, tokenizers, set-aside or temporary.
    why: what says so."""

    kind: str
    path: Path
    bytes: int
    why: str


@dataclass(frozen=True)
class Tracked:
    """What the tracker refers to. gone: keys of pipelines whose run was deleted there. models: fingerprints of the
    diffusion artifacts of registered models. trouble: why it could not be asked, empty if it could."""

    gone: frozenset[str]
    models: frozenset[str]
    trouble: str = ""


def ask_tracker(root: str | Path, uri: str | None = None) -> Tracked:
    """Ask the tracker which runs were deleted and which models are registered."""
    uri = resolve_uri(root, uri)
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite") and not database.exists():
        return Tracked(frozenset(), frozenset(), f"{database} is not there")
    from pipeline.tracking.mlflow_calls import Down, Refused
    from pipeline.tracking.mlflow_store import MlflowStore

    known = {past.key: history.run_ids(root, past.run_key) for past in history.pipelines(root)}
    try:
        store = MlflowStore(uri, Path(root).absolute())
        gone = {key for key, ids in known.items() if ids and all(store.deleted(run) for run in ids)}
        return Tracked(frozenset(gone), frozenset(store.model_tags("ldm.diffusion")))
    except (Down, Refused) as error:
        return Tracked(frozenset(), frozenset(), str(error))


def garbage(root: str | Path, tracked: Tracked, keep: Sequence[str] = ()) -> list[Garbage]:
    """What nothing refers to, largest first. Reads only. `keep`: artifacts (STAGE/FINGERPRINT) to keep in any case, as
    those that configs of other roots pin: they are not seen from here."""
    root = Path(root).absolute()
    pasts, known = history.pipelines(root), items(root)
    unknown = set(keep) - {item.name for item in known}
    if unknown:
        raise UserError(f"--keep {', '.join(sorted(unknown))}: no such artifact under {root}; `ldm ls` lists them")
    alive = [past for past in pasts if past.key not in tracked.gone or holder(past.folder / "spool" / "lease")]
    kept = referred(known, alive, tracked.models, keep)
    found = [
        Garbage("artifact", item.path, item.bytes + item.work_bytes, _why(item, pasts))
        for item in known
        if item.path not in kept
    ]
    living = {past.key for past in alive}
    for folder in root.glob("pipelines/*"):
        if folder.name in tracked.gone and folder.name not in living:
            found.append(Garbage("run", folder, size(folder), "its run was deleted in the tracker"))
    for pool in POOLS:
        found += _pooled(root, pool, [item for item in known if item.path in kept])
    found += _features(root, [item for item in known if item.path in kept])
    found += _tokenizers(root, [item for item in known if item.path in kept])
    for folder in root.glob("set-aside/*/*"):
        base = any(_holds_base(_manifest(folder), item.recipe) for item in known if item.path in kept)
        if folder.name.split("-")[0] not in tracked.models and not base:
            found.append(Garbage("set-aside", folder, size(folder), "moved away by --rebuild, and made again since"))
    for path in [
        *root.glob("artifacts/*/*/**/*.tmp"),
        *(path for pool in POOLS for path in root.glob(f"{pool}/*.tmp")),
        *(path for pool in LOOSE for path in root.glob(f"{pool}/*.tmp") if _idle(path)),
    ]:
        owner = Path(*path.parts[: len(root.parts) + 3])
        gone_with = any(path.is_relative_to(entry.path) for entry in found)
        if not gone_with and not (owner.is_dir() and holder(owner / "work" / "lease")) and not running(root):
            found.append(Garbage("temporary", path, size(path), "left by a process that was killed"))
    return sorted(found, key=lambda entry: (-entry.bytes, entry.path))


def referred(known: list[Item], alive: Iterable[Past], models: Collection[str], keep: Collection[str]) -> set[Path]:
    """Folders of the artifacts that are used by living runs, held by a writer, registered, or named by `keep`; with all
    that these were made of."""
    kept = {folder for past in alive for folder in past.folders.values()}
    kept |= {item.path for item in known if item.name in keep or holder(item.path / "work" / "lease")}
    for item in known:
        inputs = item.manifest.get("inputs", {}).values()
        made_of = {made["fingerprint"] for made in inputs if made["stage"] == "diffusion"}
        if item.fingerprint in models or (item.stage in ("evaluate", "register") and made_of & set(models)):
            kept.add(item.path)
    waiting = [item for item in known if item.path in kept]
    while waiting:
        user = waiting.pop()
        made_of = {(made["stage"], made["fingerprint"]) for made in user.manifest.get("inputs", {}).values()}
        for source in known:
            needed = (source.stage, source.fingerprint) in made_of or _holds_base(source.manifest, user.recipe)
            if needed and source.path not in kept:
                kept.add(source.path)
                waiting.append(source)
    return kept


def _holds_base(manifest: dict[str, Any], recipe: dict[str, Any]) -> bool:
    """Whether an artifact holds the weights that a training of this recipe began with: without these an adapter is
    nothing, a training cannot go on, and a config cannot be run again."""
    begun = recipe.get("training", {}).get("init_from")
    return bool(begun) and any(file["sha256"] == begun for file in manifest.get("files", {}).values())


def _why(item: Item, pasts: Iterable[Past]) -> str:
    runs = [past.name for past in pasts if past.folders.get(item.stage) == item.path]
    if runs:
        return f"{item.state}; used by deleted runs only ({', '.join(sorted(set(runs)))})"
    return f"{item.state}; no run names it"


def _pooled(root: Path, pool: str, kept: Iterable[Item]) -> list[Garbage]:
    """Files of a pool that no kept artifact lists. None while one is unfinished: its list is not yet there."""
    stage = POOLS[pool]
    makers = [item for item in kept if item.stage == stage]
    if any(not item.manifest for item in makers):
        return []
    listed: set[str] = set()
    for item in makers:
        listed |= {Path(shard["file"]).stem for shard in read_json(item.path / "shards.json")["shards"]}
    return [
        Garbage(pool, path, size(path), f"no {stage} artifact that is kept lists it")
        for path in sorted(root.glob(f"{pool}/*"))
        if path.suffix in (".tar", ".safetensors", ".json") and path.stem not in listed
    ]


def _features(root: Path, kept: Iterable[Item]) -> list[Garbage]:
    """Files of features of no model that is kept here, and those whose record is missing or damaged: never read."""
    models = {item.fingerprint for item in kept if item.stage == "diffusion"}
    files = [p for p in sorted(root.glob(f"{FEATURES}/*")) if p.suffix in (".json", ".safetensors")]
    found = []
    for path in files:
        made_by = _maker(path.with_suffix(".json"))
        if made_by is not None and made_by not in models:
            found.append(Garbage(FEATURES, path, size(path), "of no model that is kept here"))
        elif made_by is None and _idle(path):
            found.append(Garbage(FEATURES, path, size(path), "left by a process that was killed"))
    return found


def _tokenizers(root: Path, kept: Sequence[Item]) -> list[Garbage]:
    """Tokenizers of no autoencoder that is kept, each of which has its own copy: told from others by their bytes. None
    while a kept one is unfinished, which reads it from here."""
    makers = [item for item in kept if item.stage == "autoencoder"]
    if any(not item.manifest for item in makers):
        return []
    used = {file["sha256"] for item in makers for name, file in item.manifest["files"].items() if name == tokens.FILE}
    files = [path for path in sorted(root.glob(f"{TOKENIZERS}/*.json")) if _idle(path)]
    why = "of no autoencoder that is kept"
    return [Garbage(TOKENIZERS, path, size(path), why) for path in files if sha256_file(path) not in used]


def _maker(record: Path) -> str | None:
    """The diffusion artifact that a record of features names; None where there is nothing sound."""
    try:
        return str(read_json(record)["diffusion"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _idle(path: Path) -> bool:
    """Whether nobody has written to a file or folder for a while."""
    return time.time() - path.stat().st_mtime > IDLE


# ---- removing --------------------------------------------------------------------------------------------------------


def running(root: str | Path) -> str | None:
    """A pipeline that may be running now, in words; None if none is."""
    for folder in sorted(Path(root).absolute().glob("pipelines/*/spool/lease")):
        who = holder(folder)
        if who:
            return f"pipeline {folder.parents[1].name}, {who}"
    return None


def remove(root: str | Path, entries: Iterable[Garbage], said: Callable[[Garbage], None] = lambda entry: None) -> int:
    """Remove what `garbage` found; returns the bytes that were freed.

    Raises UserError, before anything is removed, while a run may be going on under this root: it may be about to use
    what looks unused. A folder is renamed first, so that what is half removed is never taken for whole.
    """
    root = Path(root).absolute()
    busy = running(root)
    if busy:
        raise UserError(f"{root}: {busy} may be running; wait for its end, then remove")
    freed = 0
    for entry in entries:
        if entry.kind == "artifact":
            with Lease(entry.path / "work" / "lease"):  # refuses if somebody took it since
                _remove(root, entry.path)
        else:
            _remove(root, entry.path)
        freed += entry.bytes
        said(entry)
    return freed


def _remove(root: Path, path: Path) -> None:
    if path.is_file():
        path.unlink(missing_ok=True)
        return
    away = root / "set-aside" / "removing" / f"{path.name}-{secrets.token_hex(4)}"
    away.parent.mkdir(parents=True, exist_ok=True)
    path.rename(away)
    shutil.rmtree(away)
    for folder in (away.parent, away.parent.parent):
        if not any(folder.iterdir()):
            folder.rmdir()
