"""Filling gaps of a text: what is known of it, what is kept, and that the denoiser is pulled to what is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.conditioning import Conditions
from models.diffusion import known_tokens
from models.diffusion.process import make_path
from pipeline.errors import UserError
from pipeline.generate.infill import HOW, infill, parsed
from tests.unit.pipeline.applications.text_models import model

PATH = make_path(kind="rectified_flow")


@pytest.fixture(scope="module")
def writer():
    return model(told=False)


def shown(given) -> tuple[str, str]:
    """Letters of the tokens, `-` an END; k known, i inner, . neither."""
    letters = "".join("-" if token == 0 else chr(token - 1) for token in given.tokens)
    return letters, "".join("k" if k else "i" if i else "." for k, i in zip(given.known, given.inner, strict=True))


@pytest.mark.parametrize(
    ("text", "letters", "kinds"),
    [
        ("The ___ sat.", "The--- sat.-----", "kkkiiikkkkkk...."),
        ("___ sat", "--- sat---------", "iiikkkkk........"),
        ("The cat ___", "The cat---------", "kkkkkkk........."),
        ("a ___ b_____c", "a--- b---c------", "kiiikkiiikk....."),
        ("0123456 ___90abcd", "0123456---90abcd", "kkkkkkkiiikkkkkk"),
    ],
)
def test_what_is_known_of_a_text(writer, text, letters, kinds):
    assert shown(parsed(writer, text, gap=3)) == (letters, kinds)


def test_what_cannot_be_filled_is_one_line(writer):
    for text, gap, line in (
        ("no gap __ here", 3, "nothing is missing"),
        ("0123456 ___90abcd", 4, "17 tokens with its gaps, and the model's passages have 16"),
        ("0123456789abcdef___", 4, "16 tokens with its gaps"),
        ("a ___ b", 10**12, "1000000000003 tokens with its gaps"),  # no memory is taken for them
    ):
        with pytest.raises(UserError, match=line):
            parsed(writer, text, gap)


def test_a_student_fills_no_gaps(monkeypatch):
    student = model(told=False)
    monkeypatch.setitem(student.options, "student", {"steps": 2})
    with pytest.raises(UserError, match="is a student, whose answers are no means; give its teacher"):
        parsed(student, "a ___ b", 3)


def test_known_tokens_come_back_as_they_were(writer):
    given = parsed(writer, "The ___ sat.", 3)
    request = writer.request(n=3, seed=5, **{**HOW, "steps": 3})
    found = infill(writer, given, request)
    assert len(found) == 3 and all(text.startswith("The") and text.endswith(" sat.") for text in found)
    assert infill(writer, given, request) == found
    assert infill(writer, given, writer.request(n=1, seed=5, **{**HOW, "steps": 3})) == found[:1]


def test_a_model_that_was_always_told_something_is_told_something(monkeypatch, capsys):
    from jobs.inpaint import write

    talker = model(told=True)
    monkeypatch.setattr("pipeline.generate.folder.load_pretrained", lambda name, root: talker)
    how = {"seed": 0, "root": Path(), "steps": 2}
    write("words", "a ___ b", 2, 1, {}, **how)  # its `drop` is 0.1
    monkeypatch.setitem(talker.options, "condition", {**talker.options["condition"], "drop": 0})
    with pytest.raises(UserError, match=r"knows no text of which nothing is told .* say --set"):
        write("words", "a ___ b", 2, 1, {}, **how)
    write("words", "a ___ b", 2, 1, {"caption": "what?"}, **how)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_answers_are_pulled_to_what_is_known_and_no_further():
    """Latents z [n, 2, 3] that say token 1 at place i as far as z[:, 0, i] is large: half of them are known."""

    def decode(z):
        return torch.stack([torch.zeros_like(z[:, 0]), 4 * z[:, 0]], -1)  # [n, L, V]

    def answer(x, t, condition: Conditions):
        return torch.full_like(x, -0.5)

    tokens, known = torch.ones(2, 3, dtype=torch.int64), torch.tensor([[True, False, True]] * 2)
    denoise = known_tokens.held(answer, PATH, lambda _: decode, tokens, known, steps=40)
    x = torch.zeros(2, 2, 3)
    far, near = (denoise(x, torch.full((2,), t), {}) for t in (1.0, 0.2))
    torch.testing.assert_close(far[:, :, 1], x[:, :, 1] - 0.5)  # what nothing is known of stays
    torch.testing.assert_close(far[:, 1], x[:, 1] - 0.5)
    # the minimum of (z + 1/2)^2 / (2 r^2) + log(1 + exp(-4 z)): (z + 1/2) / r^2 = 4 / (1 + exp(4 z))
    for found, level in ((far, float("inf")), (near, 0.25)):
        r2 = 1.0 if level == float("inf") else level**2 / (1 + level**2)
        z = found[0, 0, 0].double()
        assert abs(float((z + 0.5) / r2 - 4 / (1 + torch.exp(4 * z)))) < 0.15
    assert far[0, 0, 0] > near[0, 0, 0] > -0.5
