"""A talk: what the model is told of it, which input is passed over, who cannot talk."""

from __future__ import annotations

import io

import pytest
from click.testing import CliRunner

from pipeline.applications import chat
from pipeline.errors import UserError
from tests.unit.pipeline.applications.text_models import model


@pytest.fixture(scope="module")
def talker():
    return model(told=True)


def test_replies_are_a_function_of_what_was_said(talker):
    said = ["Hello there", "Who AND what?", "x" * 40]
    found = list(chat.replies(talker, iter(said), seed=3))
    assert len(found) == 3 and list(chat.replies(talker, iter(said), seed=3)) == found
    assert list(chat.replies(talker, iter(said[:2]), seed=3)) == found[:2]
    asked = (talker.request(n=1, seed=3, prompts=[text]) for text in ("Hello there", "Bye"))
    one, two = (next(iter(talker.latents(request))) for request in asked)
    assert (one - two).abs().max() > 1e-5  # what was said matters


def test_it_is_told_the_last_turns_that_it_has_room_for(talker, monkeypatch):
    told = []

    def texts(self, request):
        told.append(request["prompts"])
        return ["so\x1b[31m"]

    monkeypatch.setattr(type(talker), "texts", texts)
    found = list(chat.replies(talker, iter(["one", "two AND three", "four"])))
    assert found == ["so [31m"] * 3  # no code that a terminal would obey
    assert told == [["one"], [["two AND three"]], ["so [31m // four"]]  # 23 bytes at most
    monkeypatch.setitem(talker.options, "before", 8)  # as much as it read in training, whatever it could
    assert list(chat.replies(talker, iter(["one", "two", "three"]))) and told[-1] == ["three"]


def test_a_terminal_gets_nothing_that_it_would_obey(talker, monkeypatch):
    from jobs.chat import command

    hostile = "say\x1b]0;x\x07 \x9b2J\u202eevil\u202c \u2066a\u2069 שלום \u200f fine\n"
    monkeypatch.setattr("pipeline.generate.folder.load_pretrained", lambda name, root: talker)
    monkeypatch.setattr(type(talker), "texts", lambda self, request: [hostile])
    shown = CliRunner().invoke(command, ["words"], input=b"hello\n")
    assert shown.exit_code == 0, shown.output
    assert shown.output == "say ]0;x 2Jevil a שלום \u200f fine\n"  # marks that only set a direction stay


@pytest.mark.parametrize(
    ("content", "lines", "said"),
    [
        (b"a\n\n b\t c \x1b[2J\r\nlast", ["a", "b c [2J", "last"], 0),
        (b"\xff\xfe\nso\n", ["so"], 1),
        (b"x" * 200_000 + b"\nnext\n", ["x" * chat.LINE, "next"], 1),
        (b"so\xff" + b"x" * 200_000 + b"\nnext\n", ["next"], 2),
        (b"", [], 0),
        ("é".encode() * chat.LINE + b"\n", ["é" * (chat.LINE // 2)], 1),
    ],
)
def test_lines_of_any_input(content, lines, said):
    complaints: list[str] = []
    assert list(chat.lines_of(io.BytesIO(content), complaints.append)) == lines and len(complaints) == said


def test_who_cannot_talk_says_so_before_a_line_is_asked_for(talker):
    with pytest.raises(UserError, match="trained without a text before"):
        chat.replies(model(told=False), iter([]))
    with pytest.raises(UserError, match="steps: 0 given"):
        chat.replies(talker, iter([]), steps=0)
