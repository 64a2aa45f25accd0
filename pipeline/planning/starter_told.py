"""What a first config tells the model besides the class: captions, where most images have one; other columns are
proposed in comments, to be switched on by hand.

What a column's values are is looked at by `look.py`; what the keys mean is in `schema/conditions.py`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pipeline.data.captions import cleaned
from pipeline.data.own_split import COLUMN as SPLIT
from pipeline.planning.look import Found
from pipeline.planning.starter_data import yaml_text
from pipeline.schema.conditions import RESERVED

USUAL = 0.5  # share of the images that have a caption, from which the model is told it
TOKENS = (128, 256)  # of a caption: the usual, and the most that is proposed
VALUES = 50  # of an attribute that is proposed, at most
NUMBERS = 10  # different numbers, up to which they are values and not a range
SEPARATORS = (";", "|")  # of labels
COLUMNS = 12  # that are proposed, at most


def captioned(found: Found) -> bool:
    """Whether most images have a caption."""
    return sum(map(bool, found.captions)) > USUAL * max(1, len(found.captions))


def condition_lines(found: Found, classes: bool) -> list[str]:
    """The section `condition`, with its reasons; one line where there is nothing but a class, or not even that."""
    attributes, caption = _attributes(found), _caption(found)
    reason = "a tenth is trained without class, for guidance" if classes else "no classes to condition on"
    if not attributes and not caption:
        return [f"  condition: {'{kind: class, drop: 0.1}' if classes else '{kind: none}'}   # {reason}"]
    told = captioned(found)
    lines = ["  condition:   # what the model is told of an image", f"    kind: {'class' if classes else 'none'}"]
    if classes or told:
        lines.append("    drop: 0.1   # a tenth is trained without any of it, for guidance")
    if classes and told:
        lines.append("    class_drop: 0.1   # and a tenth without the class alone, so that a caption may stand alone")
    if caption:
        lines.append(f"    {'' if told else '# '}{caption}")
    if not told and caption:
        lines.append("    # (with `tokens: cross` in the backbone above)")
    if attributes:
        lines += ["    # Columns that it could be told as well: take away `# ` from `attributes` and from a line.",
                  "    # attributes:", *(f"    #   {line}" for line in attributes)]  # fmt: skip
    return lines


def _caption(found: Found) -> str:
    """The line of captions, where there are any."""
    sizes = sorted(len(text.encode("utf-8", "replace")) for text in found.captions if text)
    if not sizes:
        return ""
    usual, most = TOKENS
    wanted = sizes[len(sizes) * 95 // 100] + 1  # a byte each, and the beginning
    tokens = usual if wanted <= usual else min(most, 8 * math.ceil(wanted / 8))
    cut = sum(size >= tokens for size in sizes)
    share = len(sizes) / len(found.captions)
    end = f"; {cut:,} are cut" if cut else ""
    return (
        f"caption: {{tokens: {tokens}}}   # {share:.0%} of the images have one: half of them up to "
        f"{sizes[len(sizes) // 2]} bytes, the longest {sizes[-1]:,}{end}"
    )


def _attributes(found: Found) -> list[str]:
    """A line for each column that could be an attribute."""
    columns = list(dict.fromkeys(column for meta in found.metas for column in meta))
    left_out = {SPLIT, "caption", *([found.groups[0]] if found.groups else [])}
    lines = []
    for column in columns:
        values = [meta.get(column) for meta in found.metas]
        proposed = None if column in left_out else proposal(value for value in values if not _missing(value))
        if proposed is not None:
            options, reason = proposed
            missing = sum(map(_missing, values)) / len(values)
            name = re.sub(r"[^A-Za-z0-9_]+", "_", column).strip("_")[:64]
            name = name if name[:1].isalpha() and name not in RESERVED else f"the_{name}"[:64]
            options |= {"column": yaml_text(column)} if name != column else {}
            text = ", ".join(f"{key}: {value}" for key, value in options.items())
            more = f"; {missing:.0%} have none" if missing >= 0.005 else ""
            lines.append(f"{name}: {{{text}}}   # {reason}{more}")
    return [*lines[:COLUMNS], *([f"... and {len(lines) - COLUMNS} more"] if len(lines) > COLUMNS else [])]


def proposal(values: Iterable[Any]) -> tuple[dict[str, Any], str] | None:
    """A column's options and a reason, by its values, none of them missing; None where it is no attribute."""
    known = list(values)
    if any(isinstance(value, (dict, bytes)) for value in known):
        return None
    if known and all(isinstance(value, list) for value in known):
        labels = Counter(cleaned(str(label)) for value in known for label in value)
        return ({"kind": "multi_label"}, _of_values(labels)) if 2 <= len(labels) <= VALUES else None
    if any(isinstance(value, list) for value in known):
        return None
    counts = Counter(cleaned(str(value)) for value in known)
    numbers = _numbers(known)
    if numbers and len(counts) > NUMBERS:
        low, high = min(numbers), max(numbers)
        whole = all(number == int(number) for number in numbers)
        if whole and len(set(numbers)) == len(numbers):  # numbers of rows, or of things
            return None
        return {"kind": "continuous", "range": f"[{_plain(low)}, {_plain(high)}]"}, f"{len(counts):,} numbers"
    for separator in SEPARATORS:
        labels = Counter(label for text in counts for piece in text.split(separator) if (label := cleaned(piece)))
        if any(separator in text for text in counts) and 2 <= len(labels) <= min(VALUES, len(counts)):
            return {"kind": "multi_label", "separator": f'"{separator}"'}, _of_values(labels)
    if 2 <= len(counts) <= VALUES and 2 * len(counts) <= len(known):
        return {"kind": "categorical"}, _of_values(counts)
    return None


def _of_values(counts: Counter[str]) -> str:
    shown = ", ".join(value[:24] for value, _ in counts.most_common(4))
    return f"{len(counts)} values: {shown}" + (", ..." if len(counts) > 4 else "")


def _numbers(values: list[Any]) -> list[float]:
    """The values as numbers; none where one is not, or is not finite."""
    try:
        found = [float(value) for value in values if not isinstance(value, bool)]
    except (TypeError, ValueError):
        return []
    return found if len(found) == len(values) and all(map(math.isfinite, found)) else []


def _plain(number: float) -> str:
    return repr(number).removesuffix(".0")


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value != value
