"""From data to noise and back: against the flow, which is a formula for Gaussian data, and round trips."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from models.diffusion.denoiser import denoiser
from models.diffusion.gaussian import gaussian_denoiser
from models.diffusion.grids import grid, time_grid
from models.diffusion.guidance import guided
from models.diffusion.inversion import exact_inverse, inverse, renoised
from models.diffusion.process import EDM, RectifiedFlow, add_noise
from models.diffusion.samplers import SAMPLERS, ddim, dpmpp_sde
from tests.unit.models.diffusion.problems import GAUSSIAN, MIXTURE, PATHS, WHITE, Law, normal, standard_errors

ORDERS = {"euler": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2}


def drawn(law, n=50):
    return law.draw(n, torch.Generator().manual_seed(0))


def flow(path, x0, t):
    """Where the flow of Gaussian data has x0 at t: along an eigenvector of variance v, sqrt(alpha^2 v + sigma^2) over
    sqrt(v) times as far from the mean."""
    mean, (values, vectors) = GAUSSIAN.means[0], torch.linalg.eigh(GAUSSIAN.covariances[0])
    alpha, sigma = path.alpha(t), path.sigma(t)
    factor = ((alpha**2 * values + sigma**2) / values).sqrt()
    return (alpha * mean + ((x0.flatten(1) - mean) @ vectors * factor) @ vectors.T).reshape(x0.shape)


def size(x):
    return float(x.square().mean().sqrt())


def steps_of(name, path, steps):
    """Those that know noise levels only have their order on a grid of these."""
    return grid("karras" if name in ("ddim", "dpmpp_2m") else "auto", steps, path)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_flow_and_round_trip_have_the_samplers_order(name, path):
    counts, errors, trips = [64, 128], [], []
    if name == "euler" and path in (PATHS[1], PATHS[3], PATHS[4]):  # sigma like sqrt(t) is steep
        counts = [256, 512]
    prior, x = GAUSSIAN.denoiser(path), drawn(GAUSSIAN)
    for steps in counts:
        times = steps_of(name, path, steps)
        found = inverse(SAMPLERS[name], prior, path, x, times, {})
        errors.append(size(found - flow(path, x, times[0])) / float(path.sigma(times[0])))
        trips.append(size(SAMPLERS[name](prior, path, found, times, {}) - x))
    for measured in (errors, trips):
        slope = math.log(measured[0] / measured[-1]) / math.log(counts[-1] / counts[0])
        assert slope > ORDERS[name] - 0.25, measured
    assert trips[-1] < {1: 0.1, 2: 0.01}[ORDERS[name]]


# ddim knows a path by its noise levels only, so one grid of levels is one for all
@pytest.mark.parametrize(("kind", "path"), [("karras", RectifiedFlow()), *(("auto", path) for path in PATHS)], ids=str)
def test_exact_inverse_is_led_back(kind, path):
    """50 steps: a hundredth of the tolerance leaves less than a twentieth. 2 to 3 evaluations a step leave less than a
    fiftieth of what the plain inversion leaves."""
    prior, x, times = MIXTURE.denoiser(path), drawn(MIXTURE), grid(kind, 50, path)

    def trip(start):
        return size(ddim(prior, path, start, times, {}) - x) / float(x.std())

    asked = []
    counted = lambda *given: asked.append(1) or prior(*given)  # noqa: E731
    left = [trip(exact_inverse(prior, path, x, times, {}, tolerance)) for tolerance in (1e-2, 1e-4, 1e-6)]
    assert all(a > 20 * b for a, b in itertools.pairwise(left)), left
    plain = trip(inverse(ddim, prior, path, x, times, {}))
    assert plain > 0.03 and trip(exact_inverse(counted, path, x, times, {})) < 0.02 * plain
    assert 100 <= len(asked) <= 130


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_steep_steps_are_led_back(path):
    """Data of two points, nearly: a little noise more makes the other one of it, and the step of 20 is many times as
    steep as for white data."""
    law = Law([0.5, 0.5], [-torch.ones(4).double(), torch.ones(4).double()], [1e-3 * torch.eye(4).double()] * 2)
    prior, x, times = law.denoiser(path), drawn(law), grid("karras", 20, path)
    left = (ddim(prior, path, exact_inverse(prior, path, x, times, {}), times, {}) - x).flatten(1).square().mean(1)
    assert float(left.sqrt().max()) < 0.01 * float(x.std())


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_one_iteration_is_exact_for_white_data(path):
    """The first h is one over the step's derivative there. 5 steps, whatever their length."""
    prior, x, times = WHITE.denoiser(path), drawn(WHITE), grid("karras", 5, path)
    found = exact_inverse(prior, path, x, times, {}, 0.0, 1)
    torch.testing.assert_close(ddim(prior, path, found, times, {}), x, rtol=1e-8, atol=1e-8)


def test_steps_may_more_than_double_the_noise():
    """12 steps from a level of 0.002 to 80. The usual iteration, y <- (x_s - b D) / a, goes to infinity."""
    path, x = RectifiedFlow(), drawn(GAUSSIAN)
    prior, times = GAUSSIAN.denoiser(path), grid("karras", 12, path)
    found = exact_inverse(prior, path, x, times, {})
    assert size(ddim(prior, path, found, times, {}) - x) < 1e-3
    s, t = times[-3], times[-4]
    assert float(t / s) > 2
    a = path.sigma(s) / path.sigma(t)
    b = path.alpha(s) - path.alpha(t) * a
    y, moves = x, []
    for _ in range(8):
        new = (x - b * prior(y, t.expand(len(x)), {})) / a
        moves.append(size(new - y))
        y = new
    assert moves[-1] > 2 * moves[0]


@pytest.mark.parametrize("path", [PATHS[1], EDM()], ids=str)
def test_guided_round_trip(path):
    """Data of two classes, guidance 4, 50 steps: 1 percent for what the guided sampler makes, and for 9 of 10 images of
    the data, which it would not make; the plain inversion is off by far more."""
    parts = [gaussian_denoiser(m, c, path) for m, c in zip(MIXTURE.means, MIXTURE.covariances, strict=True)]
    both = MIXTURE.denoiser(path)

    def told(x, t, condition):
        answers = torch.stack([*(part(x, t, {}) for part in parts), both(x, t, {})])
        return answers[condition["class"], torch.arange(len(x))]

    x, times = drawn(MIXTURE), grid("auto", 50, path)
    condition = {"class": torch.arange(len(x)) % 2}
    denoise = guided(told, 4.0, {"class": torch.tensor([2])})
    made = ddim(denoise, path, path.sigma(times[0]) * normal(len(x), 0)(0), times, condition)
    for image, share in ((made, 1.0), (x, 0.9)):
        found = exact_inverse(denoise, path, image, times, condition)
        trip = (ddim(denoise, path, found, times, condition) - image).flatten(1).square().mean(1).sqrt()
        assert float(torch.quantile(trip, share)) < 0.01 * float(image.std())
        plain = inverse(ddim, denoise, path, image, times, condition)
        assert size(ddim(denoise, path, plain, times, condition) - image) > 0.02


class Small(nn.Module):
    """x [n, 1, 2, 2], t [n] -> the velocity."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 4))

    def forward(self, x, t, condition):
        return self.net(torch.cat([x.flatten(1), t[:, None]], 1)).reshape(x.shape)


def test_round_trip_of_a_trained_network():
    """In float32, 50 steps: below 1 percent of the data's deviation, and below 0.01 with a tolerance of 1e-6."""
    torch.manual_seed(0)
    path, network, images = RectifiedFlow(), Small(), drawn(MIXTURE, 4096).float()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(200):
        x0 = images[torch.arange(step * 256, step * 256 + 256) % 4096]
        eps, t = torch.randn_like(x0), torch.rand(256)
        loss = (network(add_noise(path, x0, eps, t), t, {}) - (eps - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    denoise, x, times = denoiser(network, path, "velocity"), images[:200], time_grid(50)
    with torch.no_grad():
        left = []
        for tolerance in (1e-4, 1e-6):
            found = exact_inverse(denoise, path, x, times, {}, tolerance)
            assert found.dtype == torch.float32
            left.append(size(ddim(denoise, path, found, times, {}) - x) / float(x.std()))
        heun = SAMPLERS["heun"](denoise, path, inverse(SAMPLERS["heun"], denoise, path, x, times, {}), times, {})
        plain = ddim(denoise, path, inverse(ddim, denoise, path, x, times, {}), times, {})
    assert left[0] < 0.01 and left[1] < 1e-4, left
    assert size(heun - x) < 0.01 * float(x.std()) and size(plain - x) > 0.02 * float(x.std())


@pytest.mark.parametrize("name", ["exact", *SAMPLERS])
def test_evaluations_and_condition(name):
    seen = []

    def denoise(x, t, condition):
        seen.append((t.shape, t.dtype, condition["class"].tolist()))
        return 0.5 * x

    x, condition = torch.ones(2, 3, 4, 4), {"class": torch.tensor([1, 2])}
    times = grid("karras", 6, RectifiedFlow())
    if name == "exact":
        end = exact_inverse(denoise, RectifiedFlow(), x, times, condition, 0.0, 3)
    else:
        end = inverse(SAMPLERS[name], denoise, RectifiedFlow(), x, times, condition)
    assert end.shape == x.shape and end.dtype == torch.float32
    assert seen == [((2,), torch.float32, [1, 2])] * {"exact": 18, "heun": 11}.get(name, 6)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("name", ["exact", *SAMPLERS])
def test_walks_may_begin_above_no_noise(name, path):
    """Of x at times[-1] > 0, which has noise already."""
    times = path.at(torch.tensor([4.0, 3.6, 3.2, 2.8, 2.5, 2.2, 2.0], dtype=torch.float64))
    prior, x = GAUSSIAN.denoiser(path), drawn(GAUSSIAN)
    begun = flow(path, x, times[-1])
    walk = SAMPLERS.get(name, ddim)
    if name == "exact":
        found = exact_inverse(prior, path, begun, times, {})
    else:
        found = inverse(walk, prior, path, begun, times, {})
    most = 0.2 if ORDERS.get(name) == 1 else 0.01
    assert size(walk(prior, path, found, times, {}) - begun) < most * float(path.alpha(times[-1]))


@pytest.mark.parametrize("path", [PATHS[0], EDM()], ids=str)
def test_renoised_data_are_led_back_to_data(path):
    """SDEdit's start has the law of x at its time: a stochastic sampler makes data of it, for any image of the data."""
    x0, noise = drawn(MIXTURE, 4000), normal(4000, 1)
    levels = torch.linspace(1.0, 0.05 ** (1 / 7), 20, dtype=torch.float64) ** 7 * 0.7
    times = path.at(torch.cat([levels, levels.new_zeros(1)]))
    x = renoised(path, x0, noise(0), times[0])
    torch.testing.assert_close(x, path.alpha(times[0]) * x0 + path.sigma(times[0]) * normal(4000, 1)(0))
    assert standard_errors(dpmpp_sde(MIXTURE.denoiser(path), path, x, times, {}, noise), MIXTURE) < 3
    assert renoised(path, x0.float(), noise(0).float(), times[0]).dtype == torch.float32  # as a network takes it
