"""What a model is told besides the class: prompts, attributes, maps, scales of each; checked, and as tensors.

A value's form is `data/condition_values.py`'s; what guidance makes of the tensors is in `sampling.py`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from models.conditioning import Conditions
from models.registry import nearest
from pipeline.data import caption_shards, condition_values
from pipeline.data import maps as map_values
from pipeline.data.captions import captions_of, cleaned, cut
from pipeline.data.text_encoders import Embedding, Frozen
from pipeline.errors import UserError
from pipeline.generate.prompts import kept, pieces, said

Options = Mapping[str, Any]


def names(options: Options) -> list[str]:
    """The conditions of a model by name: class, attributes, caption, maps; empty where it knows none."""
    condition = options["condition"]
    told = ["class"] if condition["kind"] == "class" else []
    told += [*condition.get("attributes", {}), *(["caption"] if condition.get("caption") else [])]
    return [*told, *condition.get("spatial", {})]


def checked(
    options: Options,
    prompts: str | Sequence[str | Sequence[str]] | None = None,
    negative: str | Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    scales: Mapping[str, float] | None = None,
    maps: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The part of a request that these make, plain JSON values: each a list that images take in turn; nothing of what
    is not given. UserError for what the model does not know."""
    condition, request = options["condition"], dict[str, Any]()
    if prompts is not None or negative is not None:
        if not condition.get("caption"):
            which = "negative" if prompts is None else "prompt"
            raise UserError(f"{which}: this model was trained without captions; leave it out")
        given = [prompts] if isinstance(prompts, str) else prompts or []
        several = [pieces("" if prompt is None else prompt) for prompt in given]  # None is not told, as elsewhere
        against = [negative] if isinstance(negative, str) else negative or []
        for text in [*itertools.chain(*several), *against]:
            if not isinstance(text, str):
                raise UserError(f"prompt: {text!r}: expected a text")
            if "empty" in condition["caption"]:
                continue  # its tokens are counted when it is read
            _row("prompt", lambda text=text: condition_values.caption_row(condition["caption"], text))
        request |= {"prompts": [kept(each) for each in several]} if several else {}
        request |= {} if negative is None else {"negative": negative if isinstance(negative, str) else list(negative)}
    known = condition.get("attributes", {})
    chosen: dict[str, list[Any]] = {}
    for name, value in (attributes or {}).items():
        if name not in known:
            hint = nearest(name, known) if known else "this model knows no attributes"
            raise UserError(f"set: no attribute {name!r}; {hint}")
        one = not isinstance(value, list) or (known[name]["kind"] == "multi_label" and not _nested(value))
        chosen[name] = [value] if one else list(value)
        for each in chosen[name]:
            _row("set", lambda name=name, each=each: condition_values.row(name, known[name], each))
        chosen[name] = [_plain(known[name], each) for each in chosen[name]]
    request |= {"attributes": chosen} if chosen else {}
    request |= {"maps": packed_maps(condition.get("spatial", {}), maps)} if maps else {}
    for name, scale in (scales or {}).items():
        if name not in names(options):
            there = names(options)
            raise UserError(f"scale: no condition {name!r}; {nearest(name, there) if there else 'this model has none'}")
        if not isinstance(scale, (int, float)) or not math.isfinite(scale):
            raise UserError(f"scale: {name}={scale}: expected a number (1 is as trained, 0 not told)")
    return {**request, **({"scales": dict(scales)} if scales else {})}


def count(request: Mapping[str, Any]) -> int:
    """Images that it takes to show each value that a request lists."""
    return max([len(request.get("prompts", [])), *map(len, request.get("attributes", {}).values()),
                *map(len, request.get("maps", {}).values())], default=0)  # fmt: skip


def of_request(request: Mapping[str, Any]) -> list[str]:
    """The conditions that a request tells anything of, by name."""
    found = ["class"] if request.get("classes") else []
    found += [name for name, values in request.get("attributes", {}).items() if any(v is not None for v in values)]
    found += ["caption"] if any(said(prompt) for prompt in request.get("prompts", [])) else []
    return [*found, *(name for name, values in request.get("maps", {}).items() if any(v is not None for v in values))]


def of_rows(request: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """A request of the images with these numbers: what it lists for images to take in turn, a value each."""
    taken: dict[str, Any] = {}
    for name in ("classes", "prompts", "negative"):
        if isinstance(values := request.get(name), list) and values:
            taken[name] = [values[i % len(values)] for i in rows]
    for name in ("attributes", "maps"):
        if name in request:
            taken[name] = {key: [each[i % len(each)] for i in rows] for key, each in request[name].items()}
    return {**request, **taken}


def composes(request: Mapping[str, Any]) -> bool:
    """Whether a prompt is of several pieces."""
    return any(len(pieces(prompt)) > 1 for prompt in request.get("prompts", []))


def composed(
    options: Options,
    request: Mapping[str, Any],
    rows: Sequence[int],
    device: torch.device,
    known: Mapping[str, Embedding] | None = None,
) -> tuple[list[Conditions], Conditions]:
    """`conditions`, once for each piece of the prompts: they differ in the caption only. Of images whose prompt has
    fewer pieces the others are what stands for none, which adds nothing."""
    prompts, negative = request.get("prompts", [""]), request.get("negative") or ""
    most = max(len(pieces(prompt)) for prompt in prompts)
    own = of_rows(request, rows)
    split = [pieces(prompt) for prompt in own.get("prompts", [""] * len(rows))]
    against = own["negative"] if isinstance(negative, list) else [negative] * len(rows)
    found = []
    for place in range(most):
        texts = [each[place] if place < len(each) else other for each, other in zip(split, against, strict=True)]
        found.append(conditions(options, {**own, "prompts": texts}, range(len(rows)), device, known))
    return [told for told, _ in found], found[0][1]


def conditions(
    options: Options,
    request: Mapping[str, Any],
    rows: Sequence[int],
    device: torch.device,
    known: Mapping[str, Embedding] | None = None,
) -> tuple[Conditions, Conditions]:
    """The conditions of the images with the numbers `rows` of a request whose prompts are texts, and what stands for
    none of them, one row.

    What is not told is null; the negative prompt stands in the null in place of the empty caption: where there are
    several of them, the caption's null has a row each as well. known: of a frozen text encoder, what `read` gives.
    """
    condition = options["condition"]
    told: dict[str, list[Any]] = {}
    null: dict[str, list[Any]] = {}
    if condition["kind"] == "class":
        nothing, labels = len(options["classes"]), request["classes"] or [len(options["classes"])]
        told["class"], null["class"] = [np.int64(labels[i % len(labels)]) for i in rows], [np.int64(nothing)]
    for name, own in condition.get("attributes", {}).items():
        values = request.get("attributes", {}).get(name, [None])
        told[name] = [condition_values.row(name, own, values[i % len(values)]) for i in rows]
        null[name] = [condition_values.row(name, own, None)]
    for name, own in condition.get("spatial", {}).items():
        given = request.get("maps", {}).get(name, [None])
        chosen = [given[i % len(given)] for i in rows]
        told[name] = [map_values.row(None if one is None else map_values.taken(one, own), own) for one in chosen]
        null[name] = [map_values.row(None, own)]
    if own := condition.get("caption"):
        prompts, negative = request.get("prompts", [""]), request.get("negative") or ""
        texts = [prompts[i % len(prompts)] for i in rows]
        against = [negative[i % len(negative)] for i in rows] if isinstance(negative, list) else [negative]
        found = [_rows(own, text, known or {}) for text in (*texts, *against)]
        for name in found[0]:
            told[name] = [row[name] for row in found[: len(texts)]]
            null[name] = [row[name] for row in found[len(texts) :]]
    return _tensors(told, device), _tensors(null, device)


def packed_maps(known: Mapping[str, Options], maps: Mapping[str, Any]) -> dict[str, list[str | None]]:
    """The maps of a request, as `data.maps.packed` has them, a list each. known: options by name. UserError for another
    name, and for what is no picture."""
    found: dict[str, list[str | None]] = {}
    for name, given in maps.items():
        if name not in known:
            hint = nearest(name, known) if known else "this model knows no pictures"
            raise UserError(f"map: no spatial condition {name!r}; {hint}")
        found[name] = []
        for one in given if isinstance(given, (list, tuple)) else [given]:
            try:
                found[name].append(None if one is None else map_values.packed(map_values.taken(one, known[name])))
            except ValueError as error:
                raise UserError(f"map: {name}: {error}") from None
        if not found[name]:
            raise UserError(f"map: {name}: no picture given")
    return found


def _rows(caption: Options, text: str, known: Mapping[str, Embedding]) -> dict[str, Any]:
    """The rows by name of a prompt."""
    if "empty" not in caption:
        return {"caption": condition_values.caption_row(caption, text)}
    return caption_shards.rows(caption, known[cleaned(text)] if cleaned(text) else None)


def read(
    options: Options, request: Mapping[str, Any], device: torch.device, known: Mapping[str, Embedding]
) -> Mapping[str, Embedding]:
    """What the model's frozen text encoder gives for the prompts of a request, each once; it is asked for those alone
    that are not known. Empty for a model without such an encoder."""
    caption = options["condition"].get("caption")
    if not caption or "empty" not in caption:
        return {}
    negative = request.get("negative") or []  # no piece of it is a term: it is read as it stands
    texts = {cleaned(piece) for prompt in request.get("prompts", []) for piece in pieces(prompt)}
    texts |= {cleaned(text) for text in (negative if isinstance(negative, list) else [negative])}
    at_hand = {text: known[text] for text in texts if text in known}
    new = sorted(text for text in texts if text and text not in known)
    if not new:
        return at_hand
    found, longer = encoder_of(json.dumps(caption["encoder"]), caption["tokens"], str(device))(new)
    if longer:
        print(f"prompt: {longer} are longer than the {caption['tokens']} tokens that the model reads: cut", flush=True)
    return {**at_hand, **dict(zip(new, found, strict=True))}


@lru_cache(maxsize=1)
def encoder_of(encoder: str, limit: int, device: str) -> Frozen:
    """A text encoder in memory, of its options as JSON."""
    return Frozen(json.loads(encoder), limit, device)


def of_samples(options: Options, metas: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of `Generator.request` that tell a model what samples of its data set are told: `metas` are their
    columns. A caption that was cut for training is cut here as well; one with the word AND is one piece."""
    condition, several = options["condition"], list(metas)
    known = condition.get("attributes", {})
    told: dict[str, Any] = {}
    if known:
        told["attributes"] = {
            name: [_plain(own, meta.get(own.get("column", name))) for meta in several] for name, own in known.items()
        }
    if own := condition.get("caption"):
        texts = [(captions_of(meta.get("caption")) or [""])[0] for meta in several]
        trained = "empty" not in own
        texts = [cut(text, own["tokens"] - 1).decode() for text in texts] if trained else texts
        told["prompts"] = [kept([text]) for text in texts]
    return told


def part(told: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """What `of_samples` gives, of some of the samples."""
    return {name: each for name, each in of_rows(told, rows).items() if name in ("attributes", "maps", "prompts")}


def _tensors(rows: Mapping[str, list[Any]], device: torch.device) -> Conditions:
    return {name: torch.from_numpy(np.stack(each)).to(device) for name, each in rows.items()}


def words(told: Mapping[str, Any], count: int) -> list[str]:
    """What each of the first `count` images of `of_samples` is told, for people; empty where a model knows a class at
    most."""
    return [_in_words(part(told, [i])) for i in range(count)] if told else []


def _in_words(told: Mapping[str, Any]) -> str:
    values = {name: values[0] for name, values in told.get("attributes", {}).items() if values[0] is not None}
    shown = [
        f"{name}: {value:g}"
        if isinstance(value, float)
        else f"{name}: {', '.join(value) or 'none'}"
        if isinstance(value, list)
        else f"{name}: {value}"
        for name, value in values.items()
    ]
    return "; ".join([said(prompt) for prompt in told.get("prompts", []) if prompt] + shown) or "(told nothing)"


def _plain(options: Options, value: Any) -> Any:
    """A value as a request has it: JSON, None for none. UserError for a number that is out of the range."""
    if options["kind"] == "continuous":
        try:
            return condition_values.number(value, options["range"])
        except ValueError as error:
            raise UserError(f"{options.get('column', 'a value')}: {error}; mend it") from None
    if options["kind"] == "categorical":
        return condition_values.label(value)
    return condition_values.labels(value, options.get("separator", ","))


def _nested(values: list[Any]) -> bool:
    """Whether a list is of lists of labels, one an image (or None), not one list of labels."""
    return any(isinstance(value, list) or value is None for value in values)


def _row(what: str, make: Any) -> None:
    try:
        make()
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None
