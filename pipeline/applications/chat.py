"""A talk with a model of replies (`data.source.before`): what was said goes in, turn by turn, a reply comes out.

A model is told as many of the last turns as it read in training (`data/turns.py`). How replies are sampled is
`generate/`'s business; what a terminal does is `jobs/chat.py`'s.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.data.captions import cleaned
from pipeline.data.turns import joined
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.generate.generator import Generator

LINE = 65_536  # bytes of a line that are read; the rest of it is passed over


def room(generator: Generator) -> tuple[int, Callable[[str], int]]:
    """How much of what was said a model is told, and what measures that: bytes of a text, or the tokens of a frozen
    encoder. UserError for a model that is told no text before."""
    from pipeline.generate import told

    name = generator.about.get("name", "this model")
    if generator.tokenizer is None:
        raise UserError(f"chat: is for models of text, and {name} is of images")
    caption = generator.options["condition"].get("caption")
    if not caption:
        raise UserError(f"chat: {name} was trained without a text before (`data.source.before`), and cannot reply")
    if before := generator.options.get("before"):  # of what is more a frozen encoder reads the beginning, as it did
        return before, lambda text: len(text.encode())
    if "empty" not in caption:
        return caption["tokens"] - 1, lambda text: len(text.encode())
    frozen = told.encoder_of(json.dumps(caption["encoder"]), caption["tokens"], str(generator.device))
    return frozen.limit, lambda text: len(frozen.tokenizer(text)["input_ids"])


def replies(generator: Generator, lines: Iterator[str], seed: int = 0, **how: Any) -> Iterator[str]:
    """A reply to each line, told all that both have said. Reply k is a function of (seed + k, what was said). how: as
    of `Generator.request`. UserError for what the model does not take, before a line is asked for."""
    limits = room(generator)
    generator.request(n=1, seed=seed, prompts=[[""]], **how)  # checks what is asked for
    return _replies(generator, limits, lines, seed, how)


def _replies(
    generator: Generator, limits: tuple[int, Callable[[str], int]], lines: Iterator[str], seed: int, how: dict[str, Any]
) -> Iterator[str]:
    turns: list[str] = []
    for number, line in enumerate(lines):
        turns.append(line)
        turns.append(reply(generator, turns, limits, seed + number, **how))
        yield turns[-1]


def reply(
    generator: Generator, turns: Sequence[str], limits: tuple[int, Callable[[str], int]], seed: int, **how: Any
) -> str:
    """What the model says to these turns; limits: as `room` gives them."""
    said = joined(turns, *limits)
    request = generator.request(n=1, seed=seed, prompts=[[said]], **{"batch_size": 1, **how})  # one piece, AND or not
    return cleaned(generator.texts(request)[0])


def lines_of(file: BinaryIO, say: Callable[[str], None]) -> Iterator[str]:
    """The lines of a file that hold text, cleaned, up to its end. `say` is told what is wrong: what is no UTF-8
    is passed over, one that is too long is cut."""
    while line := file.readline(LINE):
        whole = line.endswith(b"\n") or len(line) < LINE
        while not whole:
            rest = file.readline(LINE)
            whole = rest.endswith(b"\n") or len(rest) < LINE
        cut = len(line) == LINE and not line.endswith(b"\n")
        if cut:
            say(f"the line is longer than {LINE:,} bytes: its beginning is taken")
        try:
            text = cleaned(codecs.getincrementaldecoder("utf-8")().decode(line, not cut))  # no character in part
        except UnicodeDecodeError:
            say("the line is no UTF-8: it is passed over")
            continue
        if text:
            yield text
