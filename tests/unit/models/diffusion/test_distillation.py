"""A student's jumps where the flow is a formula: of Gaussian data it carries x along rays from the mean.

For x0 ~ N(m, s^2) the walk through x at t goes at s through alpha_s m + (x - alpha m) V(s) / V(t), V^2 = alpha^2 s^2 +
sigma^2.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.diffusion import distillation
from models.diffusion.denoiser import Conditions, denoiser
from models.diffusion.gaussian import gaussian_denoiser
from models.diffusion.grids import grid, walk
from models.diffusion.guidance import guided
from models.diffusion.objectives import convert
from models.diffusion.process import EDM, RectifiedFlow, VariancePreserving, like
from models.diffusion.samplers import sample

PATHS = [RectifiedFlow(), VariancePreserving("cosine"), EDM()]
MEAN, SPREAD = 0.4, 0.7


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


def jump_of(x: torch.Tensor, t: torch.Tensor, path, times: torch.Tensor) -> torch.Tensor:
    """The x0 whose step of DDIM from t to the next of `times` ends on the walk through x."""
    after = times[[int((times - float(each)).abs().argmin()) + 1 for each in t]].to(x)
    a, b, alpha, sigma = (like(f(s), x) for s in (t, after) for f in (path.alpha, path.sigma))
    spread = ((alpha * SPREAD).square() + sigma.square()).sqrt() / ((a * SPREAD).square() + b.square()).sqrt()
    end = alpha * MEAN + spread * (x - a * MEAN)
    return (end - sigma / b * x) / (alpha - sigma / b * a)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_who_makes_the_teachers_jumps_has_no_loss(path, steps: int) -> None:
    prediction = "v" if isinstance(path, EDM) else "velocity"
    noise = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    times = grid("few", steps, path)
    assert len(times) == steps + 1 and times[-1] == 0 and (times.diff() < 0).all()
    teacher = Network(lambda x, t: mean_of(x, t, path), path, prediction)
    right = Network(lambda x, t: jump_of(x, t, path, times), path, prediction)

    way, lead = walk(steps, path), denoiser(teacher, path, prediction)

    def loss(student: nn.Module) -> torch.Tensor:
        return distillation.loss(denoiser(student, path, prediction), steps, lead, way, noise, {}, path)

    assert loss(right).shape == (64,)
    assert loss(right).mean() < 0.1 * loss(teacher).mean()  # what is left is the error of a walk of ten steps
    points = distillation.walk(lead, way, noise, {}, path)[:: (len(way) - 1) // steps]
    assert len(points) == len(times)

    def found(x: torch.Tensor, t: torch.Tensor, told: Conditions | None = None) -> torch.Tensor:
        """What makes the step of DDIM end on the walk."""
        k = int((times - float(t[0])).abs().argmin())
        b, a = path.sigma(times[k]), path.alpha(times[k])
        r = path.sigma(times[k + 1]) / b
        return ((points[k + 1] - r * points[k]) / (path.alpha(times[k + 1]) - r * a)).float()

    ends = sample("few", found, path, points[0], times, {}, lambda step: noise)
    torch.testing.assert_close(ends, points[-1], rtol=0, atol=1e-4)
    one = Network(found, path, prediction)
    assert steps > 1 or float(loss(one).mean()) < 1e-8


def test_jumps_are_of_equally_many_steps_of_a_walk_of_ten_or_more() -> None:
    for steps in range(1, 9):
        whole, jumps = walk(steps, EDM()), grid("few", steps, EDM())
        assert 10 <= len(whole) - 1 < 10 + steps and torch.equal(jumps, whole[:: (len(whole) - 1) // steps])


def test_guidance_of_the_teacher_is_in_what_is_learned() -> None:
    """Told 1 the teacher says 1, told nothing 0: guided by 3 its walk ends at 3."""
    path = RectifiedFlow()
    teacher = Network(lambda x, t: torch.zeros_like(x), path, "velocity")
    teacher.forward = lambda x, clock, told: convert(  # type: ignore[method-assign]
        "x0", "velocity", like(told["class"].float(), x).expand_as(x), x, clock, path
    )
    noise, told = torch.randn(4, 1, 2, 2), {"class": torch.ones(4, dtype=torch.int64)}
    null = {"class": torch.zeros(1, dtype=torch.int64)}
    lead = guided(denoiser(teacher, path, "velocity"), 3.0, null)
    points = distillation.walk(lead, walk(2, path), noise, told, path)
    torch.testing.assert_close(points[-1], torch.full_like(noise, 3.0))
