"""The words of a prompt, and which of the tokens that a model is given belong to each.

How a caption becomes tokens is left to `pipeline/data/captions.py` and `pipeline/data/text_encoders.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from pipeline.data.captions import cleaned
from pipeline.generate import told

WORD = re.compile(r"\w+(?:['’-]\w+)*")  # letters and digits, and what joins them: "don't", "twenty-one"


class Word(NamedTuple):
    """A word as it was written, the places of its tokens, rising, and the prompt without it."""

    text: str
    tokens: list[int]
    without: str


def words_of(options: Mapping[str, Any], text: str, device: torch.device) -> list[Word]:
    """The words of a prompt that a model of these options reads, in order; words of which it reads no token are left
    out. Begin, end, padding and punctuation belong to none. UserError where a tokenizer does not say where in the text
    its tokens lie."""
    caption, text = options["condition"]["caption"], cleaned(text)
    if not text:
        return []
    if "empty" in caption:
        encoder = told.encoder_of(json.dumps(caption["encoder"]), caption["tokens"], str(device))
        places = encoder.places(text)[: caption["tokens"]]
    else:  # BEGIN, then a token a byte
        places = [None, *(at for at, letter in enumerate(text) for _ in letter.encode("utf-8", "replace"))]
    found = []
    for word in WORD.finditer(text):
        tokens = [i for i, at in enumerate(places) if at is not None and word.start() <= at < word.end()]
        rest = cleaned(text[: word.start()] + text[word.end() :])
        found += [Word(word.group(), tokens, rest)] if tokens else []
    return found
