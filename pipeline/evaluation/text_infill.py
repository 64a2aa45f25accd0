"""How well is the middle of a text written that was taken out? The judge's perplexity of held-out passages whose middle
third is written anew, beside that of the passages themselves, and of some with the middle of another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import tokens
from pipeline.evaluation import text_judge
from pipeline.generate.infill import HOW, Given, written

if TYPE_CHECKING:
    from models.baselines.autoregressive import Model
    from pipeline.generate.generator import Generator

LEAST = 9  # tokens of a passage whose middle is taken out


def perplexity(
    model: Generator,
    texts: Sequence[str],
    judge: Model,
    asked: Mapping[str, Any],
    before: Sequence[str] | None = None,
) -> dict[str, float]:
    """Of whole passages: `samples` with the middle as the model writes it, `real`, and `random`; `passages`, how many
    these are. asked: what the model is asked, for as many; before: of replies the texts before. ValueError where no two
    passages are long enough."""
    assert model.tokenizer is not None
    rows = tokens.rows(model.tokenizer, texts, model.autoencoder.length).tokens
    lengths = np.array([tokens.length_of(row) for row in rows])
    chosen = np.flatnonzero(lengths >= LEAST).tolist()
    if len(chosen) < 2:
        raise ValueError(f"no two of {len(texts)} held-out passages have {LEAST} tokens or more")
    given, random = [], rows.copy()
    for place, i in enumerate(chosen):
        gap = slice(lengths[i] // 3, 2 * lengths[i] // 3)
        known = np.arange(len(rows[i])) <= lengths[i]
        inner = np.zeros(len(known), bool)
        inner[gap], known[gap] = True, False
        given.append(Given(np.where(known, rows[i], tokens.END), known, inner))
        other = rows[chosen[(place + 1) % len(chosen)]]
        other = other[: tokens.length_of(other)]
        random[i, gap] = np.resize(other[len(other) // 3 :], gap.stop - gap.start)
    taken = {key: [value[i % len(value)] for i in chosen] if key in ("classes", "prompts") and value else value
             for key, value in asked.items()}  # fmt: skip
    sets = {"samples": written(model, given, taken), "real": rows[chosen], "random": random[chosen]}
    told = None if before is None else [before[i] for i in chosen]
    found = {name: text_judge.perplexity_of(judge, model.tokenizer, of, told) for name, of in sets.items()}
    return {**found, "passages": len(chosen)}


def request(model: Generator, count: int, seed: int, told: Mapping[str, Any], **how: Any) -> dict[str, Any]:
    """What `perplexity` asks: classes and prompts of the passages, by name, where the model is told these."""
    found = model.request(n=count, seed=seed, **told, **{**how, "sampler": HOW["sampler"]})
    return found if "classes" in told else {**found, "classes": []}
