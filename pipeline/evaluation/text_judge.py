"""The judge of text, and the yardstick beside it: a small autoregressive model of the training passages.

It is trained once for a text, its tokens and its shape, and kept in the pool of extractors. Of replies it is told the
text before (`before`, a text each). The network and its loop are in `models/baselines/autoregressive.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import tokens
from pipeline.errors import UserError
from pipeline.files import digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from models.baselines.autoregressive import Model
    from pipeline.schema.stages import TextJudge

FORMAT = 2  # raise it when another judge would come out
PREFIX = 64  # tokens of the text before, at most, and the END behind it
LOOKS = 10  # lines that a training prints


def judge_of(
    section: TextJudge,
    tokenizer: tokens.Tokenizer,
    train: Sequence[str],
    vocabulary: int,
    length: int,
    pool: Path,
    seed: int,
    device: torch.device,
    before: Sequence[str] | None = None,
    half: bool = False,
) -> Model:
    """The judge of these passages: from the pool, or trained and put there, in bf16 if half. UserError where it did not
    learn."""
    import torch

    from models.baselines import autoregressive as gpt
    from pipeline.networks import load_weights, save_weights

    config = gpt.Config(vocabulary, length, section.width, section.depth, section.heads)
    found = tokens.rows(tokenizer, train, length).tokens
    how: list[Any] = [section.steps, section.batch_size, section.learning_rate, seed]
    shape, prefix = {key: value for key, value in asdict(config).items() if key != "prefix"}, None
    if before is not None:
        longest = max(map(len, tokenizer.ids(before)))
        config = replace(config, prefix=min(PREFIX, longest + 1))
        prefix = _prefix(tokenizer, before, config.prefix).to(device)
        how.append(digest([config.prefix, prefix.tolist()]))
    how += ["bf16"] if half else []  # so that those of fp32 are found as they were
    path = pool / f"gpt-{digest([FORMAT, shape, digest(found.tolist()), *how])[:16]}.safetensors"
    if path.exists():
        model = gpt.Model(config)
        load_weights(model, path)
        return model.eval().to(device)
    rows = torch.from_numpy(found).to(device)
    losses: list[float] = []

    def say(step: int, loss: float) -> None:
        losses.append(loss)
        if step % max(1, section.steps // LOOKS) == 0 or step == section.steps:
            print(f"evaluate: judge, step {step} of {section.steps}: loss {loss:.3g} nats a token", flush=True)

    model = gpt.train(config, rows, section.steps, section.batch_size, section.learning_rate, seed, say, prefix, half)
    if not np.isfinite(losses[-1]):
        raise UserError("`evaluate.judge`: its loss is not finite; give a smaller `learning_rate`")
    pool.mkdir(parents=True, exist_ok=True)
    save_weights(path, model.state_dict())
    return model


def perplexity(
    judge: Model, tokenizer: tokens.Tokenizer, texts: Sequence[str], before: Sequence[str] | None = None
) -> float:
    """Of texts, a token, their ends included."""
    return perplexity_of(judge, tokenizer, tokens.rows(tokenizer, texts, judge.config.length).tokens, before)


def perplexity_of(
    judge: Model, tokenizer: tokens.Tokenizer, rows: tokens.Array, before: Sequence[str] | None = None
) -> float:
    """Of tokens int64 [n, L]."""
    import torch

    from models.baselines import autoregressive as gpt

    device = next(judge.parameters()).device
    return gpt.perplexity(judge, torch.from_numpy(rows).to(device), prefix=_told(judge, tokenizer, before))


def write(
    judge: Model,
    tokenizer: tokens.Tokenizer,
    count: int,
    seed: int,
    batch: int = 100,
    before: Sequence[str] | None = None,
) -> list[str]:
    """Texts that the judge makes: text i is a function of seed, i, and the text before it."""
    import torch

    from models.baselines import autoregressive as gpt
    from pipeline.data.order import Draw, draw_batch

    spec, device = [Draw("token", "uniform", (judge.config.length,))], next(judge.parameters()).device
    prefix = _told(judge, tokenizer, before)
    found: list[str] = []
    for start in range(0, count, batch):
        end = min(start + batch, count)
        uniform: Any = draw_batch(seed, "judge", range(start, end), spec)["token"]
        told = None if prefix is None else prefix[start:end]
        made = gpt.sample(judge, torch.as_tensor(np.asarray(uniform)).to(device), prefix=told)
        found += tokens.texts(tokenizer, made.cpu().numpy())
    return found


def _told(judge: Model, tokenizer: tokens.Tokenizer, before: Sequence[str] | None) -> Tensor | None:
    device = next(judge.parameters()).device
    return None if before is None else _prefix(tokenizer, before, judge.config.prefix).to(device)


def _prefix(tokenizer: tokens.Tokenizer, before: Sequence[str], length: int) -> Tensor:
    """The last tokens of each text, int64 [n, length]: END before them, and one behind."""
    import torch

    found = torch.full((len(before), length), tokens.END, dtype=torch.int64)
    for row, ids in zip(found, tokenizer.ids(before), strict=True):
        if last := ids[-(length - 1) :] if length > 1 else []:
            row[-1 - len(last) : -1] = torch.tensor(last)
    return found
