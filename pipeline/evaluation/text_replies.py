"""Do replies go with what was said before? A judge of pairs ranks each above random real replies: AUC.

The judge is `models/pairs.py` over vectors of texts (`text_embeddings.py`), trained on training pairs, whose score is
how much likelier a reply is behind this text than anywhere: a reply that would do anywhere gains nothing by that. It is
kept in the pool of extractors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.files import digest

if TYPE_CHECKING:
    from pipeline.evaluation.text_embeddings import Embedder

FORMAT = 1  # raise it when another judge would come out
PAIRS, EACH = 20_000, 40  # training pairs, at most; for each reply that is ranked: a quick look is quick
STEPS = 1000
FEWEST = 50  # training pairs, or held-out ones, below which nothing is said


def ranked(
    embed: Embedder,
    train: tuple[Sequence[str], Sequence[str]],
    before: Sequence[str],
    sets: Mapping[str, Sequence[str]],
    pool: Path,
    seed: int,
) -> dict[str, float]:
    """AUC of each set of replies to the texts `before`, among them `real`, the real ones; `replies`, how many
    of each. train: texts before and replies of the training split, as `before` empty where there is none. ValueError
    where there are too few."""
    import torch

    from models import pairs

    rows = [i for i, text in enumerate(before) if text]
    if len(rows) < FEWEST:
        raise ValueError(f"{len(rows)} held-out replies have a text before; at least {FEWEST} are needed")
    judge = _judge(embed, *train, min(PAIRS, EACH * len(rows)), pool, seed)

    def vectors(texts: Sequence[str]) -> Any:
        return torch.from_numpy(embed.of([texts[i] for i in rows])).float()

    said, real = vectors(before), vectors(sets["real"])
    found = {name: pairs.above(judge, said, vectors(texts), real) for name, texts in sets.items()}
    return {**found, "replies": len(rows)}


def _judge(embed: Embedder, before: Sequence[str], replies: Sequence[str], most: int, pool: Path, seed: int) -> Any:
    """The judge of these pairs, of the first `most`: from the pool, or trained and put there."""
    import torch

    from models import pairs
    from pipeline.networks import load_weights, save_weights

    rows = [i for i, text in enumerate(before) if text][:most]
    if len(rows) < FEWEST:
        raise ValueError(f"{len(rows)} training passages have a text before; at least {FEWEST} are needed")
    said, answered = [before[i] for i in rows], [replies[i] for i in rows]
    width = embed.of(said[:1]).shape[1]
    path = pool / f"pairs-{digest([FORMAT, embed.name, width, said, answered, STEPS, seed])[:16]}.safetensors"
    if path.exists():
        model = pairs.Pairs(width)
        load_weights(model, path)
        return model.eval()
    print(f"evaluate: a judge of replies learns from {len(rows):,} training pairs", flush=True)
    which = np.unique(np.array(answered, object), return_inverse=True)[1]
    texts_of, answers = (torch.from_numpy(embed.of(texts)).float() for texts in (said, answered))
    model = pairs.train(texts_of, answers, torch.from_numpy(which.reshape(-1)), STEPS, seed)
    pool.mkdir(parents=True, exist_ok=True)
    save_weights(path, model.state_dict())
    return model
