"""Replies through every stage: from a table of turns to a talk in the terminal, and what does not go together."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest

from pipeline.artifacts import Artifact
from pipeline.data.turns import joined
from pipeline.files import read_json
from tests.integration.test_text import WORDS

CONFIG = """\
run: {{name: small, root: {root}}}
data:
  source: {{kind: text, path: {file}, column: reply, before: context, document: talk, label: mood, passage: 40,
           before_bytes: 60}}
  shard_size: 64
  split: {{val_fraction: 0.4}}
autoencoder:
  model: {{kind: text, tokens: bytes, vocabulary: 257, length: 40, latents: 10, latent_channels: 4, width: 16, depth: 1,
          heads: 2}}
  training: {{precision: fp32, steps: 2, batch_size: 8, half_lives: [100]}}
diffusion:
  backbone: {{kind: dit, width: 16, depth: 1, heads: 2, patch: 1, tokens: cross}}
  self_conditioning: true
  condition: {{kind: class, caption: {{tokens: 64, encoder: {{kind: trained, width: 16, depth: 1, heads: 2}}}}}}
  training: {{precision: fp32, steps: 2, batch_size: 8, half_lives: [100]}}
evaluate: {{samples: 60, steps: 2, batch_size: 60, guidance: 2, infill: 4,
           judge: {{width: 16, depth: 1, heads: 2, steps: 2}}}}
cluster: {{workers: 1, threads: 1}}
tracking: {{deadline: 1}}
"""


@pytest.fixture
def small(small):
    """Forty talks of six turns, in place of images."""
    rng = np.random.default_rng(0)
    with open(small.folder / "talks.jsonl", "w") as file:
        for talk in range(40):
            turns = [" ".join(rng.choice(WORDS, 4)) for _ in range(6)]
            for i in range(1, 6):
                row = {"context": turns[:i], "reply": turns[i], "talk": f"t{talk}"}
                file.write(json.dumps({**row, "mood": ["glad", "sad", None][i % 3]}) + "\n")
    small.config.write_text(CONFIG.format(root=small.root, file=small.folder / "talks.jsonl"))
    return small


def test_from_turns_to_a_talk(small, monkeypatch):
    from pipeline.evaluation import text_embeddings, text_scores

    monkeypatch.setattr(text_embeddings, "installed", lambda: False)  # states of the judge
    measured, evaluate = [], text_scores.evaluate
    monkeypatch.setattr(text_scores, "evaluate", lambda *given: measured.append(given) or evaluate(*given))
    said = small.run("run")
    assert said.code == 0, said.err
    (*_, told, (_, before)) = measured[0]
    assert told["prompts"] == before  # sample i replies to what held-out reply i does, some of which have no class
    report = read_json(next(small.root.glob("artifacts/evaluate/*/report.json")))
    for name in ("reply_auc", "perplexity", "fd", "kd", "mauve"):
        assert set(report["text"][name]) - {"replies"} == {"samples", "real", "yardstick"}, report["missing"]
    assert set(report["text"]["infill_perplexity"]) == {"samples", "real", "random", "passages"}
    assert "states of the judge " in report["conditions"]["extractor"]
    lines = (next(small.root.glob("artifacts/evaluate/*/samples.jsonl"))).read_text().splitlines()
    assert set(json.loads(lines[0])) == {"before", "text", "class", "real"}
    assert {"embeddings"} & set(read_json(small.manifests("evaluate")[0])["recipe"]) == set()
    turns = [json.loads(line) for line in (small.folder / "talks.jsonl").read_text().splitlines()]
    known = {(joined(row["context"], 60), row["reply"]) for row in turns}
    assert {(row["before"], row["real"]) for row in map(json.loads, lines)} <= known

    model = str(Artifact.load(small.manifests("register")[0].parent).path / "model")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n\n\xff\nbye")))
    said = small.ldm("chat", model, "--steps", "2")
    assert said.code == 0 and said.out.count("\n") == 2 and said.err.count("no UTF-8") == 1, said.err
    said = small.ldm("inpaint", model, "--text", "old ___ ran", "-n", "2")
    assert said.code == 0 and all(line.startswith("old") and line.endswith(" ran") for line in said.out.splitlines())
    for words, line in (
        (("--text", "old"), "nothing is missing"),
        (("--text", "a ___", "--pad", "2"), "leave these out"),
        ((), "give images and --out, or --text"),
    ):
        said = small.ldm("inpaint", model, *words)
        assert said.code == 2 and line in said.err, said.err


def test_what_does_not_go_together_is_one_line(small):
    for *given, line in (
        ("data.source.before=null", "name its column (`data.source.before`)"),
        ("data.source.before_bytes=64", "give at least 65"),
        ("data.source.before=turns", "no column 'turns'"),
        ("diffusion.backbone.tokens=none", "does not attend to a caption's tokens"),
    ):
        said = small.run("run", "--dry-run", *given)
        assert said.code == 2 and line in said.err and len(said.err.strip().splitlines()) == 1, said.err
