"""Classes as they are asked for: a number of one that was found, and names or numbers as people give them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from pipeline.errors import UserError


class Label(int):
    """The number of a class that was found: a request that comes back is not read as names again."""


def class_number(value: int | str, names: Sequence[str]) -> int:
    """A class by name, or by number (from 0) where no class has that name: with classes 1 to 12, 2 and "2" are the
    class "2". Blanks around a name do no harm. UserError where there is none such."""
    if isinstance(value, Label) and value < len(names):
        return int(value)
    for name in (str(value), str(value).strip()):
        if name in names:
            return list(names).index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    raise UserError(f"class {value!r} is neither one of the names ({shown}) nor a number from 0 to {len(names) - 1}")


def class_numbers(values: int | str | Sequence[int | str] | None, names: Sequence[str]) -> list[int]:
    """The classes that a request asks for, in turn: those given, or all. UserError where a model has none of them."""
    every: list[int] = [Label(number) for number in range(len(names))]
    if values is None:
        return every
    if isinstance(values, int | str | Integral):
        values = [values]
    if not names and len(values) == 0:  # a request of this model that comes back
        return []
    if not names:
        raise UserError("classes: this model has no class condition; leave them out")
    return [Label(class_number(value, names)) for value in values] or every
