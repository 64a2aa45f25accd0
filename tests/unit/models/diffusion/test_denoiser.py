"""Network and denoiser put together."""

from __future__ import annotations

import pytest
import torch

from models.diffusion.denoiser import build_network, denoiser, start_time
from models.diffusion.gaussian import gaussian_denoiser
from models.diffusion.grids import grid, time_grid
from models.diffusion.guidance import guided
from models.diffusion.objectives import PREDICTIONS, convert, target
from models.diffusion.process import EDM, SCHEDULES, RectifiedFlow, VariancePreserving, add_noise
from models.diffusion.samplers import heun

PATHS = [RectifiedFlow(), *map(VariancePreserving, SCHEDULES), EDM()]
TINY = {"kind": "dit", "width": 24, "depth": 1, "heads": 3, "patch": 2}


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_is_a_perfect_denoiser(path, prediction):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(3, 2, 4, 4, generator=generator), torch.randn(3, 2, 4, 4, generator=generator)
    t = torch.tensor([0.2, 0.5, 0.7])
    x = add_noise(path, x0, eps, t)
    denoise = denoiser(lambda _x, _t, _c: target(prediction, x0, eps, t, path), path, prediction)
    torch.testing.assert_close(denoise(x, t, {}), x0, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_sampling_is_stable_in_float32_whatever_is_predicted(path, prediction):
    """An ideal network that gives any of the predictions: at t = 0 the data's covariance comes out."""
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.8]])
    ideal = gaussian_denoiser(torch.zeros(2), covariance, path)

    def network(x, t, condition):
        if path == EDM():  # undo what the network is told: log sigma for the time, x in units of its deviation
            t = path.at(path.SIGMA_MIN * (path.SIGMA_MAX / path.SIGMA_MIN) ** t)
            x = x / path.scale(t)[:, None]
        return convert("x0", prediction, ideal(x, t, condition), x, t, path)

    times = grid("auto", 100, path, start_time(path, prediction))
    x = path.sigma(times[0]) * torch.eye(2)
    ends = heun(denoiser(network, path, prediction), path, x, times, {})
    assert ends.dtype == torch.float32
    torch.testing.assert_close(ends.T @ ends, covariance, rtol=0, atol=3e-3)


@pytest.mark.parametrize("condition", ["class", "none"])
def test_from_options_to_samples(condition):
    torch.manual_seed(0)
    network = build_network(TINY, condition, channels=2, size=4, classes=3, activation_checkpointing=True).eval()
    path = RectifiedFlow()
    labels = {"class": torch.tensor([0, 2])} if condition == "class" else {}
    denoise = guided(denoiser(network, path, "velocity"), 2.0, network.null(2))
    x = torch.randn(2, 2, 4, 4)
    with torch.no_grad():
        end = heun(denoise, path, x, time_grid(3), labels)
    torch.testing.assert_close(end, x, rtol=1e-5, atol=1e-5)  # a new DiT predicts velocity 0
    assert network.backbone.activation_checkpointing


def test_unknown_prediction_and_condition():
    with pytest.raises(ValueError, match="prediction"):
        denoiser(torch.nn.Identity(), RectifiedFlow(), "noise")
    with pytest.raises(ValueError, match="condition"):
        build_network(TINY, "text", channels=2, size=4)
