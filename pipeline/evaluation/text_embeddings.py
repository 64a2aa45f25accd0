"""Texts as vectors, for distances between sets of them: by MiniLM where it is installed, else by the judge's states.

Distances are `metrics/frechet.py`'s, `metrics/kernel.py`'s and `metrics/mauve.py`'s; the encoder is that of captions
(`data/text_encoders.py`). Which one it was is part of what figures rest on.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.data import text_encoders, tokens
from pipeline.evaluation.metrics import frechet, kernel
from pipeline.evaluation.metrics.mauve import mauve

if TYPE_CHECKING:
    import torch

    from models.baselines.autoregressive import Model

Array = np.ndarray[Any, np.dtype[Any]]
TOKENS = 128  # of a text that MiniLM reads
BATCH = 64


class Embedder(NamedTuple):
    """name: what figures say that they rest on. of: texts -> float64 [n, d], each of root mean square 1."""

    name: str
    of: Callable[[Sequence[str]], Array]


def embedder(judge: Model | None, tokenizer: tokens.Tokenizer, device: torch.device) -> Embedder | None:
    """MiniLM, or the mean of the judge's last states over the tokens of a text; None where neither is there."""
    if name := frozen_name():
        frozen = text_encoders.Frozen(text_encoders.identified({"kind": "minilm"}), TOKENS, device)
        return Embedder(
            name,
            lambda texts: scaled(np.stack([one.pooled for one in frozen(texts)[0]]).astype(np.float64)),
        )
    if judge is None:
        return None
    weights = hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in judge.state_dict().values()))
    name = f"states of the judge {weights.hexdigest()[:12]}"
    return Embedder(name, lambda texts: scaled(_states(judge, tokenizer, texts)))


def frozen_name(memory: Path | None = None) -> str | None:
    """Of MiniLM what figures say that they rest on; None where it is not there. memory: as of `identified`."""
    return f"minilm {text_encoders.identified({'kind': 'minilm'}, memory)['digest'][:12]}" if installed() else None


def installed() -> bool:
    """Whether MiniLM and what runs it are there."""
    return all(importlib.util.find_spec(name) for name in (text_encoders.PACKAGE, "transformers"))


def scaled(vectors: Array) -> Array:
    """Vectors [n, d] of root mean square 1: the kernel's a.b / d is then the cosine of two texts."""
    rms = np.sqrt(np.square(vectors).mean(1, keepdims=True))
    found: Array = vectors / np.maximum(rms, 1e-12)
    return found


def _states(judge: Model, tokenizer: tokens.Tokenizer, texts: Sequence[str]) -> Array:
    import torch

    from models.baselines import autoregressive as gpt

    device = next(judge.parameters()).device
    rows = torch.from_numpy(tokens.rows(tokenizer, texts, judge.config.length).tokens).to(device)
    return np.concatenate([gpt.states(judge, part).cpu().numpy() for part in rows.split(BATCH)]).astype(np.float64)


def distances(
    sets: Mapping[str, Array], n: int, *, extractor: str, real: str, resamples: int, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """({frechet, kernel, mauve: {real, and each other set: a figure}}, reasons of those that cannot be had), at n texts
    a set. sets: `train` and `held_out`, whose distance is `real`, and others, compared with `held_out`."""
    found: dict[str, dict[str, Any]] = {"frechet": {}, "kernel": {}, "mauve": {}}
    missing: dict[str, str] = {}
    held_out = sets["held_out"][:n]
    others = {"real" if name == "train" else name: rows[:n] for name, rows in sets.items() if name != "held_out"}
    for kind in found:
        try:
            for name, rows in others.items():
                if kind == "mauve":
                    found[kind][name] = mauve(rows, held_out, seed)
                elif kind == "kernel":
                    found[kind][name] = kernel.figure(rows, held_out, extractor=extractor, real=real).json()
                else:
                    how: dict[str, Any] = {"extractor": extractor, "real": real, "resamples": resamples, "seed": seed}
                    found[kind][name] = frechet.figure(rows, held_out, **how).json()
        except ValueError as error:  # no figure means anything without its baseline
            found[kind], missing[kind] = {}, str(error)
    return found, missing
