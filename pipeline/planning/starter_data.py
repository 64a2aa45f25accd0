"""What a first config says of the data: how many images, which are held out, how many may be broken, what is lost."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

from pipeline.data.assign import untrained
from pipeline.data.held_out import held_out
from pipeline.data.limit import chosen as chosen_places
from pipeline.errors import UserError, by_reason, many
from pipeline.planning.look import Found

QUICK = 4000  # images of a quick config, of a million pixels at most; fewer of larger ones
FEWEST = 16  # images that are worth a config
BROKEN = ("undecodable", "truncated", "wrongly named", "missing", "duplicate")  # to leave these out loses no picture
MOST_BROKEN = 0.2  # of the images; where more are broken someone should look


def choose_limit(found: Found) -> int | None:
    """Images of a quick config: what is read within a minute or so on two cores. None: all."""
    pixels = sorted(width * height for width, height in found.sizes)
    limit = max(QUICK // 8, min(QUICK, int(QUICK * 1e6 / pixels[len(pixels) // 2])))
    return limit if found.count + (found.held_out or 0) > limit else None


def shortened(found: Found, limit: int) -> Found:
    """What is left of the images with `data.limit`, by ingest's own rule."""
    held = found.held_out or 0
    share = limit / (found.count + held)
    if held or len(found.labels) != len(found.keys):
        places = chosen_places(found.keys, [None] * len(found.keys), max(1, limit - round(share * held)))
    else:
        places = chosen_places(found.keys, [(None, label) for label in found.labels], limit)
    groups = found.groups and (found.groups[0], [found.groups[1][place] for place in places])
    keys = [found.keys[place] for place in places]
    labels = [found.labels[place] for place in places] if len(found.labels) == len(found.keys) else []
    rest = round(share * held) if held else None
    return replace(found, count=len(keys), keys=keys, labels=labels, groups=groups, held_out=rest)


def choose_split(found: Found, quick: bool = False) -> tuple[str, int, int, float | None]:
    """(the `split` section, training images, held-out images), counted with ingest's own rule; the share held out."""
    if found.held_out is not None:
        return "{by: source}" if found.own else "{by: shards}", found.count, found.held_out, None
    wanted = max(min(found.count // 5, 64), min(found.count // 10, 256 if quick else 5000))
    column, values = found.groups or (None, found.keys)
    fraction = max(0.02, round(wanted / found.count, 2))
    while fraction < 0.6:
        val = sum(held_out(value, fraction) for value in values)
        if val >= max(2, wanted // 2) and len(values) - val >= FEWEST // 2:
            by = f"by: column, column: {yaml_text(column)}" if column else "by: key"
            return f"{{{by}, val_fraction: {fraction:g}}}", len(values) - val, val, fraction
        fraction = round(fraction + 0.01, 2)
    raise UserError(f"{many(found.count, 'image')} cannot be split into training and held-out ones; give more")


def choose_quarantine(found: Found) -> float:
    """A bound above the share of broken images that were met; the default where hardly any were.

    It is not raised where pictures would be lost that someone wants, or where so many are broken that someone should
    look: then ingest refuses, which `about_losses` says before.
    """
    looked = max(1, found.looked)
    broken = sum(found.problems[reason] for reason in BROKEN) / looked
    lost = sum(found.problems.values()) / looked - broken
    return 0.01 if broken <= 0.005 or broken > MOST_BROKEN or lost > 0.005 else math.ceil(150 * broken + 1) / 100


def about_losses(found: Found, fraction: float | None) -> list[str]:
    """What is not taken, what is broken, which classes are never trained on: a line each. fraction: the share held out,
    None where tars say what is."""
    lines = [f"Not taken from the source: {found.left_out}."] if found.left_out else []
    bad, limit = sum(found.problems.values()), choose_quarantine(found)
    if bad:
        refused = bad > limit * found.looked
        end = "ingest will refuse them: mend them, or raise `data.max_quarantine` yourself" if refused else "left out"
        reasons = by_reason(found.problems)
        lines.append(f"Of {many(found.looked, 'image')} looked at {bad:,} cannot be used ({reasons}), {end}.")
    values = found.groups[1] if found.groups else found.keys
    if fraction is not None and len(values) == len(found.labels):
        counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for label, value in zip(found.labels, values, strict=True):
            if label is not None:
                counts[held_out(value, fraction)][label] += 1
        alone = untrained(*counts)
        lines += [f"{alone}."] if alone else []
    return [line.replace("\n", " ") for line in lines]


def yaml_text(value: Any) -> str:
    """A string as YAML, quoted where it must be; a number as it is."""
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (list, tuple)):
        return json.dumps(value, ensure_ascii=False)
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z][\w./ -]*", text) and text.lower() not in (
        "true",
        "false",
        "null",
        "yes",
        "no",
        "on",
    )
    return text if plain and text == text.strip() else json.dumps(text, ensure_ascii=False)
