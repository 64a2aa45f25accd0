"""Captions read as cached embeddings, against a frozen encoder that runs in each step; bytes on disk.

The encoder has MiniLM's shape (6 layers of 384, 22 M parameters) and random weights; the denoiser is dit-xs/2 on
4x16x16 latents, attending to the captions, in plain torch, forward and backward, on this process's thread. Captions
have 6 to 20 words, all different.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import Figure, interleave, ratio

from models.conditioning.text import LENGTH, POOLED
from models.diffusion.denoiser import build_network
from pipeline.data import caption_shards
from pipeline.data.array_files import mapped
from pipeline.data.text_encoders import Frozen, identified

SAMPLES, BATCH, TOKENS = 1024, 64, 24
WORDS = [f"word{i}" for i in range(1000)]


def measure(rounds: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder), rounds)


def _measure(folder: Path, rounds: int) -> list[Figure]:
    encoder = _encoder(folder / "encoder")
    frozen, draw = Frozen(encoder, TOKENS), np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, draw.integers(6, 21))) for _ in range(SAMPLES)]
    record = caption_shards.write(folder, encoder, TOKENS, [[text] for text in texts], frozen)
    arrays = mapped(folder / record["file"])
    options = {"tokens": TOKENS, "encoder": encoder, "empty": caption_shards.packed(frozen([""])[0][0])}
    backbone = {"kind": "dit", "preset": "dit-xs/2", "tokens": "cross"}
    network = build_network(backbone, "none", 4, 16, caption=options)

    def cached() -> list[dict[str, Any]]:
        chosen = draw.integers(0, SAMPLES, BATCH)
        return [caption_shards.rows(options, caption_shards.read(arrays, int(i), 0.0)) for i in chosen]

    def encoded() -> list[dict[str, Any]]:
        found, _ = frozen([texts[i] for i in draw.integers(0, SAMPLES, BATCH)])
        return [caption_shards.rows(options, embedding) for embedding in found]

    def step(rows: list[dict[str, Any]]) -> None:
        condition = {name: torch.from_numpy(np.stack([r[name] for r in rows])) for name in ("caption", POOLED, LENGTH)}
        network(torch.randn(BATCH, 4, 16, 16), torch.rand(BATCH), condition).square().mean().backward()

    def each(rows: Callable[[], list[dict[str, Any]]], trains: bool) -> Callable[[], float]:
        def once() -> float:
            if trains:
                step(rows())
            else:
                rows()
            return BATCH

        return once

    variants = {"cached": each(cached, False), "encoded": each(encoded, False), "step": each(cached, True)}
    seconds = interleave(variants | {"step with encoder": each(encoded, True)}, rounds)
    return [
        ratio("captions: samples a CPU second, cached over encoded", seconds["encoded"], seconds["cached"]),
        ratio("captions: a step that encodes over one that reads", seconds["step with encoder"], seconds["step"]),
        Figure("captions: bytes on disk over embeddings", record["bytes"] / record["payload"], "times", "<= 1.02"),
    ]


def _encoder(folder: Path) -> dict[str, Any]:
    """A network of MiniLM's shape in a folder, and its options."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    transformers.BertModel(transformers.BertConfig(**shape)).save_pretrained(folder)
    return identified({"kind": "transformers", "path": str(folder)})
