"""Text through every stage: from files to a model that writes, stopped and gone on with, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import Artifact
from pipeline.files import read_json, sha256_file
from tests.integration.modality import is_equal_bit_for_bit_once_stopped, is_refused_by_verbs_of_images

CONFIG = """\
run: {{name: small, root: {root}}}
data:
  source: {{kind: text, path: {folder}, class_from: folder, passage: 48}}
  shard_size: 32
  split: {{val_fraction: 0.3}}
autoencoder:
  model: {{kind: text, tokens: bpe, vocabulary: 300, length: 48, latents: 12, latent_channels: 4, width: 16, depth: 1,
          heads: 2, noise_from: 0, noise: 0.5, causal: 1}}
  training: {{precision: fp32, optimizer: muon, steps: 4, batch_size: 8, save_every: 2, half_lives: [100],
             learning_rate: 1e-2}}
diffusion:
  backbone: {{kind: dit, width: 16, depth: 1, heads: 2, patch: 1}}
  condition: {{kind: class}}
  training: {{precision: fp32, steps: 4, batch_size: 8, save_every: 2, half_lives: [100]}}
evaluate: {{samples: 8, steps: 2, batch_size: 8, noise_left: 0.4, judge: {{width: 16, depth: 1, heads: 2, steps: 3}}}}
cluster: {{workers: 1, threads: 1}}
tracking: {{deadline: 1}}
"""
WORDS = ("old", "river", "ran", "past", "quiet", "town", "grey", "birds", "sang", "of", "rain", "wind", "in", "may")


def write(folder: Path, root: Path) -> None:
    """small.yaml, and two genres of six documents each."""
    rng = np.random.default_rng(0)
    for i in range(12):
        sentences = [" ".join(rng.choice(WORDS, 6)).capitalize() + "." for _ in range(6)]
        file = folder / "texts" / "ab"[i % 2] / f"{i:02d}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n\n".join(sentences), encoding="utf-8")
    (folder / "small.yaml").write_text(CONFIG.format(root=root, folder=folder / "texts"))


@pytest.fixture
def small(small):
    """Text in place of images."""
    write(small.folder, small.root)
    return small


def test_from_files_to_a_model_that_writes(small, monkeypatch):
    from pipeline.evaluation import text_embeddings
    from pipeline.generate import load_pretrained

    monkeypatch.setattr(text_embeddings, "installed", lambda: False)  # states of the judge: MiniLM takes seconds

    said = small.run("run")
    assert said.code == 0, said.err
    assert said.out.count("passages/s") >= 5 and "images/s" not in said.out
    ingest, autoencoder, encode, diffusion, evaluate, register = (
        Artifact.load(small.manifests(stage)[0].parent)
        for stage in ("ingest", "autoencoder", "encode", "diffusion", "evaluate", "register")
    )
    assert ingest.summary["classes"] == ["a", "b"] and len((ingest.path / "passages.txt").read_text().splitlines()) > 30
    assert encode.summary["shape"] == [4, 12] and diffusion.summary["gaussian_loss"] > 0
    assert 0 <= autoencoder.summary["val_tokens"] <= 1
    report = read_json(evaluate.path / "report.json")
    assert {"entropy", "distinct_2", "words", "fd", "kd", "mauve"} <= set(report["text"]) | set(report["missing"])
    assert set(report["text"]["class_right"]) == {"samples", "real", "yardstick"}
    assert set(report["text"]["perplexity"]) == {"samples", "real", "yardstick"}
    assert min(report["text"]["perplexity"].values()) > 1
    assert len((evaluate.path / "samples.jsonl").read_text().splitlines()) == 8
    assert sha256_file(register.path / "model" / "tokenizer.json") == sha256_file(autoencoder.path / "tokenizer.json")

    request = {"n": 3, "seed": 1, "steps": 2, "batch_size": 2, "noise_left": 0.4}
    found = []
    for place in (diffusion.path, register.path / "model"):
        model = load_pretrained(place, "cpu", small.root)
        assert (model.defaults["noise_left"] == 0.4) == (place != diffusion.path)
        clear, left = (next(model.latents(model.request(**{**request, "noise_left": level}))) for level in (0, 0.4))
        assert not np.array_equal(clear, left)
        texts = model.texts(model.request(**request))
        assert len(texts) == 3 and all(isinstance(text, str) for text in texts)
        assert model.texts(model.request(**{**request, "n": 1}), 2) == texts[2:] or model.classes
        back = model.decode_texts(model.encode_texts(["The old river.", ""]))
        assert len(back) == 2
        found.append(texts)
    assert found[0] == found[1]

    out = small.folder / "samples"
    said = small.ldm("sample", str(register.path / "model"), "--out", str(out), "-n", "2", "--steps", "2")
    assert said.code == 0, said.err
    said = small.ldm("sample", str(register.path / "model"), "--out", str(out), "--add", "-n", "1", "--steps", "2")
    assert said.code == 0, said.err
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["000000.txt", "000001.txt", "000002.txt"]
    assert [line["class"] for line in lines[:2]] == ["a", "b"] and lines[0]["seed"] == 0
    assert all((out / line["file"]).read_text() == f"{line['text']}\n" for line in lines)
    assert [entry["index"] for entry in read_json(out / "samples.json")["images"]] == [0, 1, 2]

    said = small.run("run")
    assert said.code == 0 and all(len(small.manifests(stage)) == 1 for stage in ("ingest", "autoencoder", "evaluate"))

    is_refused_by_verbs_of_images(small, str(register.path / "model"), "text")
    said = small.run("solvers")
    assert said.code == 2 and "text has no images" in said.err, said.err


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_stopped_and_gone_on_with_is_equal_bit_for_bit(small, stage, monkeypatch):
    is_equal_bit_for_bit_once_stopped(small, stage, monkeypatch)


def test_what_does_not_go_with_text_is_one_line(small):
    for *given, line in (
        (
            "autoencoder.model={kind: kl}",
            "autoencoder.training.optimizer=adamw",
            "kind text and source text go together",
        ),
        ("autoencoder.model.latents=7", "latents: expected a divisor of length 48"),
        ("autoencoder.model.noise_from=1", "noise_from: expected a number from 0 to noise 0.5, got 1"),
        ("evaluate.noise_left=-1", "`evaluate.noise_left`"),
        ("autoencoder.loss.ssim=1", "`autoencoder.loss.ssim` is of images"),
        ("data.augment.flip=true", "`augment` is of images"),
        ("latents.views=[as_is, flip]", "are of images"),
        ("diffusion.backbone={kind: unet, preset: tiny}", "unet takes latents of two sides"),
        ("data.source.class_from='('", "no regular expression"),
        (f"data.source.path={small.folder / 'none'}", "does not exist"),
    ):
        said = small.run("run", "--dry-run", *given)
        assert said.code == 2 and line in said.err and len(said.err.strip().splitlines()) == 1, said.err
