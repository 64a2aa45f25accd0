"""Weights of a trained network for one that is told more, or of other classes: what is taken, is new, is left.

What is new has no effect at first: conditioners begin as zero, the attention by which a caption comes in ends in a
product that does, and a class that was not known begins as the null class: for that one the network knows what to do,
as it does not for a vector that it never met. Where the weights come from is left to `pipeline/tasks/begin.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from models.conditioning import width_of

BESIDE = "channels beside the latents"
JOINS = {  # modules by which a backbone takes a condition in, that begin with no effect -> in words
    "cross": "attention to the caption",
    "cross_attentions": "attention to the caption",
    "embed_beside": BESIDE,
    "conv_in_beside": BESIDE,
    "align_head": "head of the alignment",  # has an effect on training alone
}
SHOWN = 8  # names in a line
LONE, PART = "conditioner.", "conditioner.parts.of_"  # a class that is all that a network is told; one of several

ANOTHER = "caption: it is read by another encoder there; give `diffusion.condition.caption` as it was, or none"

Told = Mapping[str, Any]  # of a condition: {kind, values}, {kind, range}, or empty where nothing is known


@dataclass
class Carried:
    """weights: the network's whole state. taken, new, left: in words. begun: names of the parameters that are not the
    other network's, at least not in all rows: who trains but a few of them has to train these."""

    weights: dict[str, Tensor]
    taken: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    begun: set[str] = field(default_factory=set)

    def lines(self) -> Iterator[str]:
        """A line for each that there is."""
        for what in ("taken", "new", "left"):
            if found := getattr(self, what):
                yield f"{what}: {', '.join(found)}"


def carry(network: nn.Module, theirs: Mapping[str, Tensor], ours: Told, other: Told | None = None) -> Carried:
    """The weights `theirs` of another network, for `network`, whose own first weights stand where these have none.

    ours, other: options (latent, condition, classes, as `build_network` takes them). Where `other` is not known, rows
    go by number. ValueError, naming it, for what does not fit: latents, backbone, what reads a caption.
    """
    channels = ((other or {}).get("latent") or {}).get("channels")
    if channels not in (None, ours["latent"]["channels"]):
        raise ValueError(
            f"latents of {channels} channels there, of {ours['latent']['channels']} here; give the autoencoder that it "
            "was trained with (`autoencoder.from`)"
        )
    if _read_otherwise(ours, other):
        raise ValueError(ANOTHER)
    carried = Carried({name: value.clone() for name, value in network.state_dict().items()})
    here, there = _by_part(carried.weights), _by_part(theirs)
    maps = other is None or _maps(ours) == _maps(other)
    _backbone(carried, theirs, here.pop("", {}), there.pop("", {}), maps)
    for part, names in here.items():
        both = [
            (carried.weights[names[name]], theirs[there[part][name]]) for name in names.keys() & there.get(part, {})
        ]
        known = len(both) == len(names) and len(both) == len(there[part])
        what, before = _told(part, ours), _told(part, other)
        alike = known and all(mine.shape == value.shape for mine, value in both)
        if part == "caption" and part in there and not alike:
            raise ValueError(ANOTHER)
        if known and "table.weight" in names and what.get("range") is None:
            _table(carried, theirs, part, names, there.pop(part), what.get("values"), before.get("values"))
        elif alike and what.get("range") == before.get("range", what.get("range")):
            there.pop(part)
            carried.taken.append(part)
            for mine, value in both:
                mine.copy_(value)
        else:  # a new one, or one of another kind or range, whose numbers meant something else
            carried.new.append(part)
            carried.begun |= set(names.values())
            if part == "class":
                carried.weights[names["table.weight"]].zero_()  # as nothing: it was told of no class
    carried.left += there
    return carried


def plain(name: str) -> str:
    """A name in a network's state, as of one that is told several conditions: a lone class goes by another there."""
    lone = name.startswith(LONE) and not name.startswith(PART)
    return f"{PART}class.{name.removeprefix(LONE)}" if lone else name


def _by_part(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Condition ("" for the backbone) -> {name within it: whole name}."""
    parts: dict[str, dict[str, str]] = {}
    for name in names:
        part, rest = "", name
        if name.startswith(LONE):
            part, _, rest = plain(name).removeprefix(PART).partition(".")
        parts.setdefault(part, {})[rest] = name
    return parts


def _told(part: str, options: Told | None) -> Told:
    if part == "class":
        names = (options or {}).get("classes")
        return {"values": names} if isinstance(names, Sequence) else {}
    return dict(((options or {}).get("condition", {}).get("attributes") or {}).get(part, {}))


def _read_otherwise(ours: Told, other: Told | None) -> bool:
    """Whether both read captions, by encoders that differ in what is known of both."""
    captions = [((options or {}).get("condition") or {}).get("caption") or {} for options in (ours, other)]
    if {} in captions:
        return False
    mine, theirs = ({**caption.get("encoder", {}), "tokens": caption.get("tokens")} for caption in captions)
    same = ("kind", "digest", "width", "depth", "heads")  # and as many tokens, where each has a learned place
    places = ("tokens",) if mine.get("kind") == "trained" else ()
    return any(mine[key] != theirs[key] for key in (*same, *places) if key in mine and key in theirs)


def _maps(options: Told) -> dict[str, Any]:
    """Channels of the spatial conditions, by name: what the channels beside the latents are, in the order of names."""
    spatial = (options.get("condition") or {}).get("spatial") or {}
    guess = {"/guess": True} if options.get("self_conditioning") else {}  # no map, but beside the latents as these are
    return {**{name: width_of(own) for name, own in spatial.items()}, **guess}


def _joins(names: Iterable[str]) -> set[str]:
    """What these parameters of a backbone take in, in words; nothing of those that every backbone has."""
    return {JOINS[piece] for name in names for piece in name.split(".") if piece in JOINS}


def _backbone(
    carried: Carried, theirs: Mapping[str, Tensor], here: Mapping[str, str], there: Mapping[str, str], same_maps: bool
) -> None:
    """same_maps: whether channels beside the latents, where there are as many, mean the same here and there."""
    both = here.keys() & there.keys()
    unlike = {name for name in both if _shape(theirs, there, name) != _shape(carried.weights, here, name)}
    other_maps = {name for name in both if _joins([name]) == {BESIDE} and (name in unlike or not same_maps)}
    wrong = [
        f"{name} is {_shape(theirs, there, name)} there and {_shape(carried.weights, here, name)} here"
        for name in sorted((unlike - other_maps) | {name for name in here.keys() ^ there.keys() if not _joins([name])})
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(f"another backbone: {wrong[0]}{more}; give `diffusion.backbone` as it was trained")
    new = (here.keys() - there.keys()) | other_maps
    for name in here.keys() - new:
        carried.weights[here[name]].copy_(theirs[there[name]])
    for name in other_maps:  # of numbers that meant something else
        carried.weights[here[name]].zero_()
    carried.begun |= {here[name] for name in new}
    carried.taken.append("backbone")
    carried.new += sorted(_joins(new))
    carried.left += sorted(_joins((there.keys() - here.keys()) | other_maps))


def _shape(tensors: Mapping[str, Tensor], names: Mapping[str, str], name: str) -> str:
    return str(list(tensors[names[name]].shape)) if name in names else "not"


def _table(
    carried: Carried,
    theirs: Mapping[str, Tensor],
    part: str,
    here: Mapping[str, str],
    there: Mapping[str, str],
    names: Sequence[str] | None,
    known: Sequence[str] | None,
) -> None:
    """Values by name: a row each and the null row after them (one of several), or a column each beside a vector of its
    own for what is not told (any number of them)."""
    several = "untold.weight" in here
    mine, value = (weights[names_["table.weight"]] for weights, names_ in ((carried.weights, here), (theirs, there)))
    target, source = (mine.T, value.T) if several else (mine, value)  # [values (+ 1), width]
    nulls = 0 if several else 1
    count, before = len(target) - nulls, len(source) - nulls
    names = names or [str(number) for number in range(count)]
    if known is None:  # by number, where there are equally many
        known = names if count == before else []
    if several:
        carried.weights[here["untold.weight"]].copy_(theirs[there["untold.weight"]])
    else:
        target.copy_(source[-1:].expand_as(target))
    for row, name in enumerate(names):
        if name in known:
            target[row].copy_(source[list(known).index(name)])
    found, new, left = (
        [name for name in one if (name in other) == wanted]
        for one, other, wanted in ((names, known, True), (names, known, False), (known, names, False))
    )
    if list(names) != list(known):
        carried.begun.add(here["table.weight"])
    carried.taken.append(part if not new else f"{part} ({_some(found)})" if found else f"{part} (of what is not told)")
    carried.new += [f"{part} ({_some(new)})"] * bool(new)
    carried.left += [f"{part} ({_some(left)})"] * bool(left)


def _some(names: Sequence[str]) -> str:
    """The first of many names, and how many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return " ".join(map(str, names[:SHOWN])) + more
