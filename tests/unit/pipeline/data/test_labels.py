"""One rule makes class names of labels, whoever wrote them; what it did is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.labels import Labels, class_names
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (1, "1"), (1.0, "1"), ("1.0", "1"), ("1", "1"), ("1,0", "1"), (" 1.00 ", "1"), (-0.0, "0"), ("-0.0", "0"),
        (1.5, "1.5"), ("1.5", "1.5"), ("1,000", "1,000"), ("01", "01"), ("1.0.0", "1.0.0"), (True, "True"),
        (" cat\u00a0", "cat"), ("cat", "cat"), ("", None), ("  ", None), (None, None), (float("nan"), None),
        (0, "0"), (False, "False"), (1e300, str(int(1e300))),
    ],
)  # fmt: skip
def test_the_rule(value: Any, label: str | None) -> None:
    assert Labels("c")(value, "t:1") == label


@pytest.mark.parametrize("value", [["x", "y"], {"x": 1}, ("x",)])
def test_a_list_is_no_label(value: Any) -> None:
    with pytest.raises(UserError, match=r"t\.csv:7: column 'kind' holds (a list|an object) .*one class"):
        Labels("kind")(value, "t.csv:7")


def test_an_empty_label_can_be_a_class_and_what_was_done_is_told() -> None:
    labels = Labels("kind", empty="unknown")
    assert [labels(value, "") for value in ("", " a", 1.0, True, "b")] == ["unknown", "a", "1", "True", "b"]
    notes = labels.notes()
    assert [sum(words in note for note in notes) for words in
            ("1 sample with an empty label: class 'unknown'", "blanks taken off around 1 label", "1 label such as 1.0",
             "mixes numbers, text, true and false")] == [1, 1, 1, 1]  # fmt: skip
    clean = Labels("kind")
    assert [clean(value, "") for value in ("a", "b c")] == ["a", "b c"] and clean.notes() == []


def test_numbers_have_names(tmp_path: Path) -> None:
    labels = Labels("label", names=["cat", "dog"])
    assert [labels(value, "") for value in (0, "1", 1.0, -1, None)] == ["cat", "dog", "dog", None, None]
    for value in (2, -2, "cat"):
        with pytest.raises(UserError, match="none of the 2 classes"):
            labels(value, "t:1")
    for name, content in (
        ("n.json", json.dumps(["cat", "dog"])),
        ("m.json", json.dumps({"1": "dog", "0": "cat"})),
        ("n.txt", "cat\ndog\n\n"),
    ):
        (tmp_path / name).write_text(content)
        assert class_names(str(tmp_path / name)) == ["cat", "dog"]
    for name, content in (("a.json", "{"), ("b.json", '{"1": "a"}'), ("c.json", "[1]"), ("d.txt", "a\na\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=name):
            class_names(str(tmp_path / name))
