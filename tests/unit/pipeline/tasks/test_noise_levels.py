"""The validation loss by noise level: each sample in its bin, and a picture of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.diffusion.objectives import Times
from models.diffusion.process import EDM
from pipeline.tasks import noise_levels


def test_every_sample_counts_in_its_own_bin() -> None:
    u = torch.tensor([0.01, 0.1, 0.13, 0.99, 0.999], dtype=torch.float64)
    values, weight = torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    total, count = noise_levels.sums(u, values, weight).tolist()
    found = noise_levels.named(total, count)
    assert found == {"val_loss_level_1": 2.0, "val_loss_level_2": 5.0, "val_loss_level_8": 7.0}
    assert sum(total) == pytest.approx(float((values * weight).sum()))
    edges = noise_levels.levels(Times("edm", mean=0.3, std=1.0), EDM())
    assert len(edges) == 9 and edges == sorted(edges) and edges[4] == pytest.approx(np.exp(0.3), rel=1e-6)
    shown = noise_levels.picture(found, edges)
    assert shown.shape == (400, 720, 3) and shown.dtype == np.uint8
    blue = (shown == (0x4A, 0x7F, 0xB5)).all(2).sum(0)  # by column: the bars
    assert 0 < blue[60] < blue[640] and blue[300] == 0
