"""What was made of what, by content: from image shards to scores, and from one image to all models that saw it.

Reads manifests and indices under a root (and pinned artifacts where they lie). A consumer's manifest records the
content of its inputs; where an input holds something else by now, the graph says so.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import Artifact, Store
from pipeline.data.generated import marked
from pipeline.data.index import Index
from pipeline.errors import UserError, many
from pipeline.files import read_json
from pipeline.past import history
from pipeline.schema.names import STAGES

SHOWN = 12  # hex digits of a content digest
SHARDS = 4  # shards that are named; the rest is counted


# ---- what a person names ---------------------------------------------------------------------------------------------


def artifacts_of(root: str | Path, text: str, uri: str | None = None) -> tuple[str, list[Artifact]]:
    """(title, artifacts in the order of stages) of what `text` names: a model (`models:/NAME@ALIAS`, or its folder), an
    artifact (its folder, `STAGE/FINGERPRINT`, or a fingerprint's first characters), or a run.

    With all that they were made of. Raises UserError for what is none of these.
    """
    store = Store(root)
    if text.startswith("models:") or (Path(text) / "config.json").is_file():
        return _of_model(store, text, uri)
    if (Path(text) / "manifest.json").is_file():
        chosen = [Artifact.load(text)]
    else:
        chosen = [a for a in store.all() if len(text) >= history.SHORTEST_KEY and _is_named(a, text)]
    if len(chosen) > 1:
        raise UserError(f"{text}: {len(chosen)} artifacts begin so: {', '.join(a.name for a in chosen)}")
    if chosen:
        return chosen[0].name, upstream(chosen, everything(store))
    past = history.find(root, text)
    made = [Artifact.load(f) for f in past.folders.values() if (f / "manifest.json").exists()]
    return f"run {history.describe(past)}", upstream(made, everything(store))


def _is_named(artifact: Artifact, text: str) -> bool:
    return f"{artifact.stage}/{artifact.fingerprint}".startswith(text) or artifact.fingerprint.startswith(text)


def _of_model(store: Store, text: str, uri: str | None) -> tuple[str, list[Artifact]]:
    """The artifacts that a model's own record names, by content. UserError if none of them is here."""
    from pipeline.tracking.tracker import fetch_model

    folder = fetch_model(text, store.root, uri) if text.startswith("models:") else Path(text)
    about = read_json(folder / "config.json")
    recorded: dict[str, dict[str, str]] = about.get("lineage") or {}
    known = everything(store)
    by_content = {a.content: a for a in known}
    found = [by_content[entry["content"]] for entry in recorded.values() if entry["content"] in by_content]
    if not found:
        names = ", ".join(f"{stage}/{entry['fingerprint']}" for stage, entry in recorded.items()) or "nothing"
        raise UserError(f"{text}: made of {names}, none of which lies under {store.root}; give its --root")
    whole = [a for a in store.all() if a.stage == "register" and _made_of(a, recorded)]
    return f"model {text} ({about.get('name', '')})", upstream([*found, *whole], known)


def _made_of(artifact: Artifact, recorded: dict[str, dict[str, str]]) -> bool:
    """Whether an artifact's inputs are exactly the recorded contents."""
    return {n: i["content"] for n, i in artifact.inputs.items()} == {n: e["content"] for n, e in recorded.items()}


def everything(store: Store) -> list[Artifact]:
    """All finished artifacts of a root, those set aside, and those elsewhere that these were made of; each once."""
    found: dict[tuple[str, str], Artifact] = {}
    folders = [
        path.parent
        for pattern in ("artifacts", "set-aside")
        for path in store.root.glob(f"{pattern}/*/*/manifest.json")
    ]
    while folders:
        artifact = Artifact.load(folders.pop(0))
        if (artifact.fingerprint, artifact.content) not in found:
            found[artifact.fingerprint, artifact.content] = artifact
            folders += [folder for made in artifact.inputs.values() if (folder := place(artifact, made))]
    return in_order(found.values())


def in_order(artifacts: Iterable[Artifact]) -> list[Artifact]:
    return sorted(artifacts, key=lambda a: (STAGES.index(a.stage), a.fingerprint))


def parents(artifact: Artifact, known: Sequence[Artifact]) -> list[Artifact]:
    """What an artifact was made of, by content: its inputs, and the artifact whose weights it began with."""
    contents = {made["content"] for made in artifact.inputs.values()}
    begun = artifact.recipe.get("training", {}).get("init_from")
    return [
        other
        for other in known
        if other.content in contents or (begun and begun in {f["sha256"] for f in other.manifest["files"].values()})
    ]


def upstream(artifacts: Sequence[Artifact], known: Sequence[Artifact]) -> list[Artifact]:
    """The artifacts and all that they were made of, each once, in the order of stages. What is gone is left out."""
    found: dict[tuple[str, str], Artifact] = {}
    waiting = list(artifacts)
    while waiting:
        artifact = waiting.pop()
        if (artifact.fingerprint, artifact.content) not in found:
            found[artifact.fingerprint, artifact.content] = artifact
            waiting += parents(artifact, known)
    return in_order(found.values())


def place(consumer: Artifact, made: dict[str, str]) -> Path | None:
    """Where an input lies: beside its consumer (a root that was moved or copied), else where it was; None if gone."""
    beside = consumer.path.parents[1] / made["stage"] / made["fingerprint"]
    return next((p for p in (beside, Path(made["path"])) if (p / "manifest.json").exists()), None)


# ---- the graph -------------------------------------------------------------------------------------------------------


Headline = Callable[[Artifact], str]  # the verdict of an artifact in one line, as its stage says it


def tree(title: str, artifacts: Sequence[Artifact], headline: Headline, every_shard: bool = False) -> str:
    """The graph as text, a block an artifact, inputs before consumers."""
    lines = [title]
    for artifact in artifacts:
        lines += ["", *_block(artifact, headline, every_shard)]
    return "\n".join(lines)


def _block(artifact: Artifact, headline: Headline, every_shard: bool) -> list[str]:
    lines = [
        f"{artifact.stage}  {artifact.fingerprint}  content {artifact.content[:SHOWN]}",
        f"    {headline(artifact)}",
    ]
    if artifact.stage == "ingest":
        lines.append(f"    from source of digest {artifact.recipe['source'][:SHOWN]}")
        lines += _shards(artifact, every_shard)
    for name, made in artifact.inputs.items():
        lines.append(
            f"    from {name} {made['fingerprint']}  content {made['content'][:SHOWN]}{_state(artifact, made)}"
        )
    begun = artifact.recipe.get("training", {}).get("init_from")
    if begun:
        how = "adapts the" if artifact.recipe["training"].get("lora") else "began with"
        lines.append(f"    {how} weights of digest {begun[:SHOWN]}")
    return [*lines, f"    at {artifact.path}"]


def _state(consumer: Artifact, made: dict[str, str]) -> str:
    """What became of an input since: nothing to say if it is still the same."""
    folder = place(consumer, made)
    if folder is None:
        return "  (gone)"
    now = read_json(folder / "manifest.json")["content"]
    return "" if now == made["content"] else f"  (made again since: {folder} now holds {now[:SHOWN]})"


def _shards(artifact: Artifact, every: bool) -> list[str]:
    shards = read_json(artifact.path / "index.json")["shards"]
    shown = shards if every else shards[:SHARDS]
    lines = [
        f"    shard {s['name']}  sha256 {s['sha256'][:SHOWN]}  {s['train']:,} + {s['val']:,} images"
        + (f" ({s['generated']:,} generated)" if s.get("generated") else "")
        + f"  {s['location']}"
        for s in shown
    ]
    return lines + (
        [f"    ... and {many(len(shards) - len(shown), 'more shard')} (--shards)"] if len(shown) < len(shards) else []
    )


# ---- one image -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where an image lies: split is train, val or quarantine (then `detail` says why it is not used); of one that a
    model made `detail` says which."""

    artifact: Artifact
    key: str
    split: str
    shard: str = ""
    label: str = ""
    detail: str = ""


def places(known: Sequence[Artifact], key: str) -> list[Place]:
    """All places of an image in ingested data, by its key as the source names it (a path without its extension).

    An image that was left out as a copy of another is followed to that other. Raises UserError if no data has it.
    """
    found: list[Place] = []
    data = [a for a in known if a.stage == "ingest"]
    for artifact in data:
        wanted, done = [key], set()
        while wanted:
            name = wanted.pop()
            if name in done:
                continue
            done.add(name)
            found += _in_shards(artifact, name)
            for entry in _quarantine(artifact, name):
                found.append(Place(artifact, name, "quarantine", detail=f"{entry['reason']}: {entry['detail']}"))
                same = entry["detail"].partition("the same bytes as ")[2]
                wanted += [same] if same and same != "an earlier image" else []
    if not found:
        raise UserError(f"{key}: no image of that key in {len(data)} data sets{_example(data)}")
    return found


def _in_shards(artifact: Artifact, key: str) -> Iterator[Place]:
    index = read_json(artifact.path / "index.json")
    for number, shard in enumerate(index["shards"]):
        rows = np.load(artifact.path / f"{shard['name']}.rows.npy", mmap_mode="r")
        for place in np.flatnonzero(rows["key"] == key.encode()):
            label, split = int(rows["label"][place]), ("train", "val")[int(rows["split"][place])]
            detail = _maker(artifact, number, int(place)) if shard.get("generated") and split == "train" else ""
            yield Place(artifact, key, split, shard["name"], index["classes"][label] if label >= 0 else "", detail)


def _maker(artifact: Artifact, shard: int, row: int) -> str:
    """Which model made a training image, in words; empty for a real one."""
    index = Index.open(artifact.path, "train")
    meta = index.meta(index.samples_of(shard)[row])
    name, content = str(meta.get("model") or "a model"), str(meta.get("content") or "")[:SHOWN]
    said = f"{name} (content {content})" if content not in name else name
    return f"generated by {said}" if marked(meta) else ""


def _quarantine(artifact: Artifact, key: str) -> list[dict[str, str]]:
    import json

    with open(artifact.path / "quarantine.jsonl") as file:
        entries = [json.loads(line) for line in file]
    return [entry for entry in entries if entry["key"] == key or entry["key"].endswith(f": {key}")]


def _example(data: Sequence[Artifact]) -> str:
    for artifact in data:
        for shard in read_json(artifact.path / "index.json")["shards"]:
            rows = np.load(artifact.path / f"{shard['name']}.rows.npy", mmap_mode="r")
            if len(rows):
                return f"; keys look like {bytes(rows['key'][0]).decode()}"
    return ""


def downstream(source: Artifact, known: Sequence[Artifact]) -> list[Artifact]:
    """All artifacts that an artifact went into, by content, in the order of stages: as an input, or as weights to begin
    with (`init_from`)."""
    found = {(source.fingerprint, source.content): source}
    grew = True
    while grew:
        new = [a for a in known if (a.fingerprint, a.content) not in found and _any_in(parents(a, known), found)]
        found |= {(a.fingerprint, a.content): a for a in new}
        grew = bool(new)
    return [artifact for artifact in in_order(found.values()) if artifact is not source]


def _any_in(artifacts: Iterable[Artifact], found: Container[tuple[str, str]]) -> bool:
    return any((a.fingerprint, a.content) in found for a in artifacts)


def uses(root: str | Path, key: str) -> str:
    """Which trained artifacts and models an image went into, as text."""
    links, known = model_links(root), everything(Store(root))
    lines: list[str] = []
    for place in places(known, key):
        where = f"ingest/{place.artifact.fingerprint}"
        if place.split == "quarantine":
            lines.append(f"{place.key}: left out of {where} ({place.detail})")
            continue
        how = "it went into" if place.split == "train" else "held out, so it was measured with, and not trained on, by"
        label = f", class {place.label}" if place.label else ""
        made = f", {place.detail}" if place.detail else ""
        lines.append(f"{place.key}{made}: {place.split} split of {where}, shard {place.shard}{label}; {how}")
        for artifact in downstream(place.artifact, known):
            text = f"  {artifact.stage}/{artifact.fingerprint}  content {artifact.content[:SHOWN]}"
            if artifact.stage == "register":
                version = links.get(str(artifact.summary.get("run")), "")
                text += f"  model {artifact.summary['uri']}" + (f"  {version}" if version else "")
            lines.append(text)
        if not lines[-1].startswith("  "):
            lines.append("  nothing yet")
    return "\n".join(lines)


def model_links(root: str | Path) -> dict[str, str]:
    """Registered versions by the key of the run that made them: `version 2`, as far as the shipper has noted them."""
    path = Path(root) / "tracking" / "state.json"
    stores: list[dict[str, Any]] = list(read_json(path)["stores"].values()) if path.exists() else []
    links = {key: link for store in stores for key, link in store["models"].items()}
    return {key: f"version {link.rpartition('/')[2]}" for key, link in links.items()}
