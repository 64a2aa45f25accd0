"""Which tokens belong to which word of a prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.generate import told
from pipeline.generate.words import words_of

CPU = torch.device("cpu")
BYTES: dict[str, Any] = {"condition": {"caption": {"tokens": 40, "encoder": {"kind": "trained"}}}}


def of(text: str, options: dict[str, Any] = BYTES) -> list[tuple[str, list[int]]]:
    return [(word.text, word.tokens) for word in words_of(options, text, CPU)]


def test_the_bytes_of_a_word_are_its_tokens() -> None:
    assert of("a hat,  red") == [("a", [1]), ("hat", [3, 4, 5]), ("red", [8, 9, 10])]  # as cleaned: one blank
    assert of("né à!") == [("né", [1, 2, 3]), ("à", [5, 6])]  # two bytes a letter
    assert [word for word, _ in of("don't, twenty-one - x_y")] == ["don't", "twenty-one", "x_y"]
    assert of("") == [] and of(" ,;") == []


def test_a_prompt_without_a_word_is_the_rest_of_it() -> None:
    assert [word.without for word in words_of(BYTES, "a hat,  a coat", CPU)] == [
        "hat, a coat", "a , a coat", "a hat, coat", "a hat, a",
    ]  # fmt: skip
    assert [word.without for word in words_of(BYTES, "hat", CPU)] == [""]


def test_of_an_encoder_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoder:
        def places(self, text: str) -> list[int | None]:
            assert text == "a turban, red"
            return [None, 0, 2, 4, 8, 10, None]  # begin, a, tur, ban, the comma, red, end

    monkeypatch.setattr(told, "encoder_of", lambda *_: Encoder())
    options: dict[str, Any] = {"condition": {"caption": {"tokens": 32, "encoder": {}, "empty": {}}}}
    assert of("a turban, red", options) == [("a", [1]), ("turban", [2, 3]), ("red", [5])]
    options["condition"]["caption"]["tokens"] = 3  # the rest is not read
    assert of("a turban, red", options) == [("a", [1]), ("turban", [2])]
