"""Averages by half-life and by relative length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import ema
from models.ema import Array


def test_half_life_is_in_samples_whatever_the_batch():
    for batch in (1, 8, 64):
        average = [torch.ones(3)]
        for _ in range(256 // batch):
            ema.update(average, [torch.zeros(3)], ema.decay(batch, 256.0))
        torch.testing.assert_close(average[0], torch.full((3,), 0.5), rtol=1e-5, atol=0)


def test_a_still_weight_leaves_its_average_bit_equal_and_dtypes_mix():
    live = [torch.randn(5, generator=torch.Generator().manual_seed(0)).bfloat16()]
    average = [live[0].float()]
    ema.update(average, live, 0.999)
    assert average[0].dtype == torch.float32 and torch.equal(average[0], live[0].float())


def test_parameters_and_empty_lists():
    layer = torch.nn.Linear(2, 2)
    averages = [torch.zeros_like(p) for p in layer.parameters()]
    ema.update(averages, list(layer.parameters()), 0.75)
    torch.testing.assert_close(averages[0], 0.25 * layer.weight.detach())
    assert not averages[0].requires_grad
    ema.update([], [], 0.5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="half_life"):
        ema.decay(0, 10.0)
    with pytest.raises(ValueError, match="zip"):
        ema.update([torch.zeros(1)], [], 0.5)


# ---- power functions -------------------------------------------------------------------------------------------------


def test_the_exponent_gives_the_profile_its_length():
    """Standard deviation of tau^gamma over (0, 1], by quadrature."""
    tau = (np.arange(200_000) + 0.5) / 200_000
    for length in (0.02, 0.05, 0.1, 0.2, 0.28):
        weight = tau ** ema.exponent(length)
        mean = np.average(tau, weights=weight)
        assert np.average((tau - mean) ** 2, weights=weight) ** 0.5 == pytest.approx(length, rel=1e-4)
    assert ema.exponent(0.05) == pytest.approx(16.97, abs=0.01) and ema.exponent(0.1) == pytest.approx(6.94, abs=0.01)
    for bad in (0.0, -0.1, ema.LONGEST, 1.0):
        with pytest.raises(ValueError, match="length: expected"):
            ema.exponent(bad)


def shares(steps: int, length: float) -> Array:
    """What each of `steps` equal steps has in the average: integrals of the profile."""
    edges = (np.arange(steps + 1) / steps) ** (ema.exponent(length) + 1)
    return np.diff(edges)


def trajectory(steps: int) -> Array:
    """Weights [steps, 500] that drift, walk and shake."""
    random = np.random.default_rng(0)
    tau = np.arange(1, steps + 1)[:, None] / steps
    drift = 3 * random.normal(size=500) * (1 - np.exp(-8 * tau * random.uniform(0.2, 3, 500)))
    walk = 0.3 * np.cumsum(random.normal(size=(steps, 500)), 0) / steps**0.5
    return random.normal(size=500) + drift + walk + 0.02 * random.normal(size=(steps, 500))


def test_steps_add_up_to_the_integral_of_the_profile():
    weights = trajectory(60)
    average = [torch.full((500,), 7.0)]  # the first step forgets it
    for step in range(60):
        ema.update(average, [torch.from_numpy(weights[step])], ema.power_decay(8, 8 * (step + 1), 0.1))
    torch.testing.assert_close(average[0].double(), torch.from_numpy(shares(60, 0.1) @ weights), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="samples"):
        ema.power_decay(8, 4, 0.1)


def stored(steps: int, count: int) -> tuple[Array, Array, Array]:
    """Times (in steps) and lengths of stored averages, and what each step has in each of them: [steps, n]."""
    times = np.repeat(np.round(np.arange(1, count + 1) * steps / count), 2)
    lengths = np.tile([0.05, 0.1], count)
    columns = [np.pad(shares(int(t), s), (0, steps - int(t))) for t, s in zip(times, lengths, strict=True)]
    return times, lengths, np.stack(columns, 1)


def algorithm_3(times: Array, lengths: Array, end: int, length: float) -> Array:
    """EDM2's own fit: the inner products of profiles in closed form, and one linear system."""

    def products(ta: Array, ga: Array, tb: Array, gb: Array) -> Array:
        power = np.where(ta < tb, gb, -ga)
        return (ga + 1) * (gb + 1) * (ta / tb) ** power / ((ga + gb + 1) * np.maximum(ta, tb))

    gammas = np.array([ema.exponent(s) for s in lengths])
    among = products(times[:, None], gammas[:, None], times[None], gammas[None])
    return np.linalg.solve(among, products(times, gammas, np.float64(end), np.float64(ema.exponent(length))))


@pytest.mark.parametrize("length", (0.03, 0.075, 0.15, 0.2))
def test_another_length_from_stored_ones(length: float):
    """Nearer than EDM2's own fit, where training drifts and walks; factors of sum 1; misfit is what it says."""
    steps, weights = 512, trajectory(512)
    times, lengths, columns = stored(steps, 16)
    x, misfit = ema.fit(times, lengths, steps, length, 1)
    wanted = shares(steps, length)
    assert x.sum() == pytest.approx(1, abs=1e-12)
    assert misfit == pytest.approx(np.abs(np.cumsum(columns @ x - wanted)).max(), abs=1e-12) and misfit < 0.02
    theirs = algorithm_3(times, lengths, steps, length)
    errors = [np.linalg.norm((columns @ each - wanted) @ weights) / np.linalg.norm(wanted @ weights)
              for each in (x, theirs)]  # fmt: skip
    assert errors[0] < 2e-4 and errors[0] < errors[1] / 4


def test_a_length_that_was_kept_is_itself():
    times, lengths, _ = stored(320, 32)
    for length, place in ((0.05, -2), (0.1, -1)):
        x, misfit = ema.fit(times, lengths, 320, length, 1)
        assert x[place] == 1 and np.count_nonzero(x) == 1 and misfit == 0
    x, _ = ema.fit(times[:1] * 0 + 320.0, lengths[:1], 320, 0.2, 1)  # one alone is all there is
    assert x.tolist() == [1]
