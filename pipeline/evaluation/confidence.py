"""How sure a judge is that an image is of the class asked for, as a probability that holds for real images.

The judge (`judges.py`) is trained on a part of the real images; on the rest, which it has not seen, a temperature is
fitted (Guo et al. 2017), and the confidence is read off that a share of them reach for their own class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from pipeline.data.pictures import Images
from pipeline.errors import UserError
from pipeline.evaluation import judges

Array = np.ndarray[Any, np.dtype[Any]]
BACK = 5  # one real image of a class in five is not shown to the judge
LEAST = 5  # real images of a class
TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Confidence:
    """least: the confidence that is asked for; facts: temperature, accuracy, log losses, what least rests on; plain
    JSON values."""

    judge: judges.Trained
    temperature: float
    least: float
    facts: dict[str, Any]

    def of(self, images: Images, value: int) -> Array:
        """The probability float64 [n] that uint8 images [n, H, W, C] are of class `value`."""
        found: Array = np.exp(log_probabilities(_logits(self.judge, images), self.temperature)[:, value])
        return found


def fit(
    images: Images,
    numbers: Array,
    classes: Sequence[str],
    pool: Path,
    *,
    least: float | None,
    share: float,
    steps: int,
    seed: int,
    flip: bool,
) -> Confidence:
    """Train a judge of the classes on real images uint8 [n, H, W, C] with numbers int64 [n], and calibrate it on those
    it has not seen.

    least: the confidence asked for, or None: what `share` of the unseen images reach. UserError for classes with too
    few images.
    """
    check(numbers, classes, least, share)
    random, unseen = np.random.Generator(np.random.Philox(seed)), np.zeros(len(numbers), bool)
    for number in range(len(classes)):
        rows = random.permutation(np.flatnonzero(numbers == number))
        unseen[rows[: max(1, len(rows) // BACK)]] = True
    columns: Mapping[str, Any] = {"class": {"kind": "categorical", "column": "class", "values": list(classes)}}
    told = {"class": numbers[~unseen].astype(np.int64)}
    judge = judges.of_columns(images[~unseen], told, columns, pool, steps, seed, flip)
    logits, true = _logits(judge, images[unseen]), numbers[unseen]
    temperature = temperature_of(logits, true)
    reached = np.exp(-losses(logits, true, temperature))
    asked = float(np.quantile(reached, 1 - share)) if least is None else least
    facts = {
        "judge": judge.digest,
        "train_images": int((~unseen).sum()),
        "unseen_images": int(unseen.sum()),
        "temperature": temperature,
        "accuracy": float((logits.argmax(1) == true).mean()),
        "log_loss": float(losses(logits, true, temperature).mean()),
        "log_loss_uncalibrated": float(losses(logits, true, 1.0).mean()),
        "least": asked,
        "share_of_real": float((reached >= asked).mean()),
    }
    return Confidence(judge, temperature, asked, facts)


def check(numbers: Array, classes: Sequence[str], least: float | None, share: float) -> None:
    """UserError for classes with too few images to fit a confidence, and for shares that are none."""
    if least is not None and not 0 <= least <= 1:
        raise UserError(f"least: {least:g} given, expected a probability from 0 to 1")
    if not 0 < share <= 1:
        raise UserError(f"share: {share:g} given, expected more than 0 and at most 1")
    counts = np.bincount(numbers, minlength=len(classes))
    few = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if count < LEAST]
    if few or len(classes) < 2:
        what = f"too few images of {', '.join(few[:5])}" if few else f"all images are {classes[0]}"
        raise UserError(
            f"DATA: {what}; a confidence is fitted on two classes or more, {LEAST} real images each at least"
        )


def temperature_of(logits: Array, true: Array) -> float:
    """T that minimises the mean of -sum_k q_k log softmax(logits / T)_k: logits [n, K], true int64 [n]. It is convex in
    1 / T, so there is one minimum (Guo et al. 2017, section 4.2).

    q: 1 of the true class and 0 of others, but for one more image of each (Platt 1999, section 2.2): a judge that makes
    no mistake on n images would be sure without bound, T = 0.
    """
    n, k = logits.shape
    q = np.full((n, k), 1 / (n + k))
    q[np.arange(n), true] = (n + 1) / (n + k)

    def loss(log: float) -> float:
        return -float((q * log_probabilities(logits, np.exp(log))).sum(1).mean())

    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def losses(logits: Array, true: Array, temperature: float) -> Array:
    """-log softmax(logits / T)[true], float64 [n]."""
    found: Array = -log_probabilities(logits, temperature)[np.arange(len(true)), true]
    return found


def log_probabilities(logits: Array, temperature: float) -> Array:
    """log softmax(logits / T), float64 [n, K]."""
    found: Array = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return found


def _logits(judge: judges.Trained, images: Images) -> Array:
    return judges.answers(judge, images)["class"]
