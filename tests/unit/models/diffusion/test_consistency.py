"""Consistency where the flow is a formula: of Gaussian data it carries x along rays from the mean.

For x0 ~ N(m, s^2) the walk through x at t ends at f(x, t) = m + s (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2).
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from models.diffusion import consistency
from models.diffusion.denoiser import Conditions
from models.diffusion.gaussian import gaussian_denoiser
from models.diffusion.grids import grid
from models.diffusion.objectives import convert, predict
from models.diffusion.process import EDM, RectifiedFlow, VariancePreserving, add_noise, like, noise_level
from models.diffusion.samplers import few

PATHS = [RectifiedFlow(), VariancePreserving("cosine"), EDM()]
MEAN, SPREAD = 0.4, 0.7


def end(x: torch.Tensor, t: torch.Tensor, path) -> torch.Tensor:
    """Where the flow ends."""
    alpha, sigma = like(path.alpha(t), x), like(path.sigma(t), x)
    return MEAN + SPREAD * (x - alpha * MEAN) / (alpha.square() * SPREAD**2 + sigma.square()).sqrt()


class Network(nn.Module):
    """Gives the prediction whose x0 is `x0_of(x, t)`; the paths here tell it t as it is, or a clock to turn back."""

    def __init__(self, x0_of, path, prediction: str) -> None:
        super().__init__()
        self.x0_of, self.path, self.prediction = x0_of, path, prediction

    def forward(self, x: torch.Tensor, clock: torch.Tensor, condition: Conditions) -> torch.Tensor:
        t = clock
        if isinstance(self.path, EDM):
            level = EDM.SIGMA_MIN * (EDM.SIGMA_MAX / EDM.SIGMA_MIN) ** clock.double()
            t = (level / EDM.SIGMA_MAX).to(x.dtype)
            x = x / like(self.path.scale(t), x)
        return convert("x0", self.prediction, self.x0_of(x, t), x, t, self.path)


def mean_of(x: torch.Tensor, t: torch.Tensor, path) -> torch.Tensor:
    """The best denoiser."""
    flat = gaussian_denoiser(torch.tensor([MEAN]), torch.tensor([[SPREAD**2]]), path)
    return flat(x.reshape(-1, 1), t.repeat_interleave(x[0].numel()), {}).reshape(x.shape)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_loss_of_where_the_flow_ends_vanishes_with_the_gap(path) -> None:
    prediction = "v" if isinstance(path, EDM) else "velocity"
    generator = torch.Generator().manual_seed(0)
    x0 = MEAN + SPREAD * torch.randn(256, 1, 2, 2, generator=generator)
    noise = torch.randn(256, 1, 2, 2, generator=generator)
    t = path.at(torch.exp(torch.linspace(-1.5, 1.5, 256)))
    right = Network(lambda x, t: end(x, t, path), path, prediction)
    wrong = Network(lambda x, t: mean_of(x, t, path), path, prediction)
    assert torch.allclose(
        predict(wrong, add_noise(path, x0, noise, t), t, {}, path).mean(), torch.zeros(()), atol=0.5
    )  # the double of a network is one

    def loss(student: nn.Module, progress: float) -> float:
        given = (x0, noise, t, {}, {}, path, prediction, progress)
        return float(consistency.loss(student, wrong, 1.0, *given).mean())

    values = [loss(right, stage / consistency.HALVINGS) for stage in range(2, 8)]
    assert all(b < 0.75 * a for a, b in itertools.pairwise(values)), values
    assert values[-1] < 0.1 * loss(wrong, 0.99)  # the denoiser itself is no consistency function


def test_pairs_come_closer_in_equal_parts_of_the_training() -> None:
    path = EDM()
    t = path.at(torch.tensor([1e-3, 0.5, 40.0], dtype=torch.float64))
    level = noise_level(path, t)
    early, middle, late = (noise_level(path, consistency.earlier(t, path, p)) / level for p in (0.0, 0.5, 1.0))
    assert early[0] == 0 and early[2] == pytest.approx(0.5, abs=1e-6)
    assert late[2] == pytest.approx(1 - 1 / 256, abs=1e-6)
    assert late[0] == pytest.approx(1 - 5 / 256, abs=1e-3)  # larger steps where there is little noise
    assert (early <= middle).all() and (middle < late).all() and (late < 1).all()
    with pytest.raises(ValueError, match="x0 is free where there is no noise"):
        consistency.check_prediction("x0")


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_jumps_give_the_law_of_the_data(path, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    times = grid("few", steps, path)
    assert len(times) == steps + 1 and times[-1] == 0 and (times.diff() < 0).all()
    x = torch.randn(200_000, 1, generator=generator, dtype=torch.float64) * path.sigma(times[0])
    x = x + path.alpha(times[0]) * MEAN
    fresh = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(steps)]
    out = few(lambda x, t, c: end(x, t, path), path, x, times, {}, lambda step: fresh[step])
    assert float(out.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(out.std()) == pytest.approx(SPREAD, rel=0.01)
    assert math.isfinite(float(out.abs().max()))
