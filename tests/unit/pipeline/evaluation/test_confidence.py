"""Temperature: found again where it is known. The confidence asked for: what a share of unseen real images reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.evaluation import confidence


def test_the_temperature_of_known_probabilities_is_found() -> None:
    random = np.random.Generator(np.random.Philox(0))
    logits = random.standard_normal((4000, 5)) * 2
    true = np.array([random.choice(5, p=np.exp(row)) for row in confidence.log_probabilities(logits, 1.0)])
    for temperature in (0.3, 1.0, 4.0):
        assert confidence.temperature_of(logits * temperature, true) == pytest.approx(temperature, rel=0.1)


def test_the_least_confidence_is_what_a_share_of_unseen_images_reach(tmp_path: Path) -> None:
    random, numbers = np.random.Generator(np.random.Philox(1)), np.repeat(np.arange(2), 40)
    images = (60 + 100 * numbers[:, None, None, None] + random.integers(-50, 50, (80, 8, 8, 1))).astype(np.uint8)
    how = {"steps": 40, "seed": 0, "flip": True}
    made = confidence.fit(images, numbers, ["dark", "light"], tmp_path, least=None, share=0.75, **how)  # type: ignore
    assert made.facts["unseen_images"] == 16 and made.facts["train_images"] == 64
    assert made.facts["accuracy"] == 1.0 and 0.7 <= made.facts["share_of_real"] <= 0.8
    assert made.of(images, 0).max() < 0.97  # 16 of 16 right is no certainty
    assert (made.of(images[:40], 0) > 0.5).all() and (made.of(images[:40], 1) < 0.5).all()
    with pytest.raises(UserError, match=r"light \(3\)"):
        confidence.check(numbers[:43], ["dark", "light"], None, 0.9)
    with pytest.raises(UserError, match="all images are dark"):
        confidence.check(numbers[:40], ["dark"], None, 0.9)
