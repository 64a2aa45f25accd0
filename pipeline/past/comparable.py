"""Which figures may stand side by side: those of the same extractor, count, real images, resolution and guidance.

A distance is a property of all of these, not of the model alone. Whoever shows figures of several reports beside each
other (tables, `ldm compare`, headlines) asks here first, and shows the reason instead where there is one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.errors import UserError

KEYS = {  # condition: how a difference reads
    "extractor": "features of two extractors ({} and {})",
    "images": "{} and {} images: the distance depends on the count",
    "resolution": "images of {} and {} pixels a side",
    "channels": "images of {} and {} channels",
    "real": "two sets of real images ({} and {})",
    "guidance": "guidance {} and {}",
}

UNTAUGHT = ("random",)  # kinds of extractors that were never trained


def conditions(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the figures of an evaluation rest on, from its report.json (or a stage's summary that holds them).

    guidance: None for images that were made elsewhere. Raises UserError for a report without them.
    """
    found = report.get("conditions")
    if not found:
        raise UserError("this evaluation does not say what its figures rest on; evaluate again with this version")
    return {key: found.get(key) for key in KEYS}


def why_not(first: Mapping[str, Any], second: Mapping[str, Any], varied: Collection[str] = ()) -> str | None:
    """The reason why figures under two conditions must not be put side by side, or None if they may.

    Keys that both have are compared. varied: keys that differ on purpose, as guidance does in a table over guidance.
    """
    for key, text in KEYS.items():
        if key in varied or key not in first or key not in second or first[key] == second[key]:
            continue
        if key == "guidance" and None in (first[key], second[key]):  # made elsewhere: nobody here knows
            continue
        return text.format(_short(first[key]), _short(second[key]))
    return None


def check(named: Mapping[str, Mapping[str, Any]], varied: Collection[str] = ()) -> None:
    """Refuse to compare: UserError naming the first two of `named` (name -> conditions) that are unlike, and why."""
    names = list(named)
    for name in names[1:]:
        reason = why_not(named[names[0]], named[name], varied)
        if reason:
            raise UserError(
                f"the figures of {names[0]} and {name} cannot be compared: {reason}; evaluate both in the same way"
            )


def text(found: Mapping[str, Any]) -> str:
    """The conditions in a few words, for a tag or a caption."""
    guidance = "" if found.get("guidance") is None else f", guidance {found['guidance']}"
    if found.get("resolution") is None:
        return f"{found['images']} texts a set, {found['extractor']}{guidance}"
    side = found["resolution"]  # of squares; of others HxW
    size = f"{side if isinstance(side, str) else f'{side}x{side}'}x{found['channels']}"
    return f"{found['images']} images a set of {size}, extractor {_short(found['extractor'])}{guidance}"


def verdict(figures: Mapping[str, Any], gap: Mapping[str, Any], kind: str) -> str | None:
    """Is it the autoencoder or the denoiser? In a few words, from report["frechet"] and report["gap"]; None without the
    three figures.

    What the samples are further from real images than other real images are is the whole gap; the same of the
    reconstructions is the autoencoder's part, that no denoiser can be better than. The Fréchet distance is no sum, so
    the part is a guide. kind: of the extractor; by features that nothing was learned for there is no saying.
    """
    if not {"real", "samples", "reconstructions"} <= figures.keys():
        return None
    if kind in UNTAUGHT:
        return "no verdict on autoencoder and denoiser: the features are untrained, and know nothing of the images"
    low, high = gap["interval"]
    if low <= 0:  # how large a gap the count would hide is in its upper end
        return (
            f"samples are not told from real images by this distance at this count: a gap of {gap['value']:.3g} "
            f"[{low:.3g}, {high:.3g}]"
        )
    part = min(1.0, max(0.0, figures["reconstructions"]["value"] - figures["real"]["value"]) / gap["value"])
    who = "mostly the denoiser" if part < 1 / 3 else "mostly the autoencoder" if part > 2 / 3 else "both networks"
    return f"the gap to real images is {who} (autoencoder: {part:.0%})"


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) and len(value) == 64 else value  # a digest
