"""Labels as people and programs write them, and the one rule that makes class names of them.

A label is a class's name as text. Blanks around it are taken off; a whole number is written without a fraction (1, 1.0
and "1.0", or "1,0" as a spreadsheet in German writes it, are one class); true and false are True and False, and no
numbers. Nothing, blanks and NaN are no label: the image has no class, or the one that `data.source.empty_label` names.
A list is refused, since a sample has one class.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.data.listing import existing
from pipeline.data.values import whole_text
from pipeline.errors import UserError, many
from pipeline.files import read_json

WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))(?:\.0+|,00?)")  # 1.0, 1,0: no 1,000, which is a thousand


class Labels:
    """Makes class names of one column's values, and counts what it had to do to them."""

    def __init__(self, column: str, empty: str | None = None, names: Sequence[str] | None = None) -> None:
        """empty: the class of images whose label is empty; None: they have no class. names: of the classes 0, 1, ...,
        where the source holds numbers and knows what they mean; -1 is then an empty label."""
        self.column, self.empty, self.names = column, empty, names
        self._did: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()

    def __call__(self, value: Any, where: str) -> str | None:
        """The class of an image, or None. `where` (file and line) is for messages. UserError for what is no label."""
        label = self._text(value, where)
        if label is not None and self.names is not None:
            label = self._named(label, where)
        if label is None:
            self._did["empty"] += 1
            return self.empty
        return label

    def _text(self, value: Any, where: str) -> str | None:
        if value is None or value != value:
            return None
        if isinstance(value, str):
            self._kinds["text"] += 1
            label = whole_text(value).strip()
            self._did["blanks"] += label != value and bool(label)
            whole = WHOLE.fullmatch(label)
            self._did["fractions"] += whole is not None
            return ("0" if whole[1] == "-0" else whole[1]) if whole else label or None
        if isinstance(value, (bool, int, float)):
            kind = "true and false" if isinstance(value, bool) else "numbers"
            self._kinds[kind] += 1
            self._did["fractions"] += isinstance(value, float) and value.is_integer()
            return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        kind = "a list" if isinstance(value, (list, tuple)) else "an object"
        raise UserError(
            f"{where}: column {self.column!r} holds {kind} ({str(value)[:60]}) as a label; a sample has one class: "
            "give one label a row, or name another column in `data.source.label`"
        )

    def _named(self, label: str, where: str) -> str | None:
        """The name of a class number; None for -1, as published sets mark images without a class."""
        assert self.names is not None
        if not re.fullmatch(r"-?\d+", label) or not -1 <= int(label) < len(self.names):
            raise UserError(
                f"{where}: label {label} is none of the {len(self.names)} classes that have names (0 to "
                f"{len(self.names) - 1}); correct the labels or the names"
            )
        return None if label == "-1" else self.names[int(label)]

    def notes(self) -> list[str]:
        """What was done to labels, each in a line; nothing where they were clean."""
        shown = f"column {self.column!r}"
        means = "no class" if self.empty is None else f"class {self.empty!r}"
        key = " (of `kind: table`, `data.source.empty_label` names one)" if self.empty is None else ""
        told = {
            "empty": f"{shown}: {many(self._did['empty'], 'sample')} with an empty label: {means}{key}",
            "blanks": f"{shown}: blanks taken off around {many(self._did['blanks'], 'label')}",
            "fractions": f"{shown}: {many(self._did['fractions'], 'label')} such as 1.0 read as whole numbers, 1",
        }
        lines = [line for what, line in told.items() if self._did[what]]
        if len(self._kinds) > 1:
            lines.append(
                f"{shown} mixes {', '.join(sorted(self._kinds))}: a label is a class by its text (1 and 1.0 are '1', "
                "true is 'True')"
            )
        return lines


def class_names(given: Sequence[str] | str | None) -> list[str] | None:
    """The names of classes 0, 1, ...: a list, or a file with one: JSON (a list, or numbers -> names), else one a line.

    Raises UserError for a file that holds no such thing, and for names that are not all different.
    """
    if given is None or not isinstance(given, str):
        names, where = (None if given is None else list(given)), "`data.source.class_names`"
    else:
        path, where = existing(given), given
        try:
            found = read_json(path) if path.suffix == ".json" else path.read_text("utf-8-sig").splitlines()
        except ValueError as error:
            raise UserError(f"{path}: no class names can be read ({error}); give a JSON list, or one a line") from None
        if isinstance(found, dict) and {*found} == {str(i) for i in range(len(found))}:
            found = [found[str(i)] for i in range(len(found))]
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise UserError(f'{path}: expected a JSON list of class names, {{"0": name, ...}}, or one name a line')
        names = [name.strip() for name in found if name.strip()]
    repeated = [name for name, count in Counter(names or ()).items() if count > 1]
    if repeated:
        raise UserError(f"{where}: {repeated[0]!r} names more than one class; give each its own name")
    return names
