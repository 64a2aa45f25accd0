"""The judge of text, and the yardstick beside it: a small autoregressive model of the training passages.

It is trained once for a text, its tokens and its shape, and kept in the pool of extractors. The network and its loop
are in `models/baselines/autoregressive.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import tokens
from pipeline.errors import UserError
from pipeline.files import digest

if TYPE_CHECKING:
    import torch

    from models.baselines.autoregressive import Model
    from pipeline.schema.stages import TextJudge

FORMAT = 1  # raise it when another judge would come out
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
) -> Model:
    """The judge of these passages: from the pool, or trained and put there. UserError where it did not learn."""
    import torch

    from models.baselines import autoregressive as gpt
    from pipeline.networks import load_weights, save_weights

    config = gpt.Config(vocabulary, length, section.width, section.depth, section.heads)
    found = tokens.rows(tokenizer, train, length).tokens
    how = [section.steps, section.batch_size, section.learning_rate, seed]
    path = pool / f"gpt-{digest([FORMAT, asdict(config), digest(found.tolist()), *how])[:16]}.safetensors"
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

    model = gpt.train(config, rows, section.steps, section.batch_size, section.learning_rate, seed, say)
    if not np.isfinite(losses[-1]):
        raise UserError("`evaluate.judge`: its loss is not finite; give a smaller `learning_rate`")
    pool.mkdir(parents=True, exist_ok=True)
    save_weights(path, model.state_dict())
    return model


def perplexity(judge: Model, tokenizer: tokens.Tokenizer, texts: Sequence[str]) -> float:
    """Of texts, a token, their ends included."""
    import torch

    from models.baselines import autoregressive as gpt

    device = next(judge.parameters()).device
    return gpt.perplexity(judge, torch.from_numpy(tokens.rows(tokenizer, texts, judge.config.length).tokens).to(device))


def write(judge: Model, tokenizer: tokens.Tokenizer, count: int, seed: int, batch: int = 100) -> list[str]:
    """Texts that the judge makes: text i is a function of seed and i."""
    import torch

    from models.baselines import autoregressive as gpt
    from pipeline.data.order import Draw, draw_batch

    spec, device = [Draw("token", "uniform", (judge.config.length,))], next(judge.parameters()).device
    found: list[str] = []
    for start in range(0, count, batch):
        uniform: Any = draw_batch(seed, "judge", range(start, min(start + batch, count)), spec)["token"]
        made = gpt.sample(judge, torch.as_tensor(np.asarray(uniform)).to(device))
        found += tokens.texts(tokenizer, made.cpu().numpy())
    return found
