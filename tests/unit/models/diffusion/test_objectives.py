"""Conversions as identities, weights as ratios of errors, the loss against a direct computation."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.diffusion.objectives import (
    PREDICTIONS,
    WEIGHTINGS,
    Times,
    convert,
    loss,
    min_snr_weight,
    predict,
    solve,
    target,
    weight,
)
from models.diffusion.process import EDM, SCHEDULES, RectifiedFlow, VariancePreserving, add_noise, noise_level

PATHS = [RectifiedFlow(), *map(VariancePreserving, SCHEDULES), EDM()]


def draw(n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    x0, eps = (torch.randn(n, 2, 3, 3, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return x0, eps


@settings(deadline=None, max_examples=60)
@given(
    t=st.floats(1e-3, 1 - 2e-3),  # nearer to 1 zero terminal SNR leaves alpha below the floor
    path=st.sampled_from(PATHS),
    pair=st.sampled_from(list(itertools.product(PREDICTIONS, PREDICTIONS))),
)
def test_conversion_is_an_identity_float64(t, path, pair):
    source, to = pair
    x0, eps = draw(2, torch.float64)
    times = torch.tensor([t, 0.5], dtype=torch.float64)
    x = add_noise(path, x0, eps, times)
    p = target(source, x0, eps, times, path)
    q = convert(source, to, p, x, times, path)
    torch.testing.assert_close(q, target(to, x0, eps, times, path), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(convert(to, source, q, x, times, path), p, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("prediction", ["v", "velocity"])
def test_v_and_velocity_solve_stably_over_all_times_float32(path, prediction):
    t = torch.linspace(1e-6, 1, 257)
    x0, eps = draw(257, torch.float32)
    x = add_noise(path, x0, eps, t)
    back = solve(prediction, target(prediction, x0, eps, t, path), x, t, path)
    # five roundings of numbers of size 4: 1e-6 of the size; on EDM, x and sigma are up to 80 times as large
    size = torch.maximum(path.sigma(t), torch.ones_like(t))[:, None, None, None]
    assert torch.all((back[0] - x0).abs() < 5e-6 * size)
    assert torch.all((back[1] - eps).abs() < 5e-6)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_eps_and_x0_lose_float32_digits_only_by_their_divisor(path, prediction):
    t = torch.linspace(0.01, 0.99, 257)
    x0, eps = draw(257, torch.float32)
    x = add_noise(path, x0, eps, t)
    back = solve(prediction, target(prediction, x0, eps, t, path), x, t, path)
    divisor = (path.alpha(t) if prediction == "eps" else path.sigma(t))[:, None, None, None]
    size = torch.maximum(path.sigma(t), torch.ones_like(t))[:, None, None, None]  # of x: 80 at most, on EDM
    assert torch.all((back[0] - x0).abs() * divisor < 1e-6 * size)
    assert torch.all((back[1] - eps).abs() * divisor < 1e-6 * size)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_both_ends_are_finite(path, prediction, end):
    """Also where the answer is not determined: eps says nothing of x0 where alpha = 0."""
    x0, eps = draw(3, torch.float32)
    t = torch.full((3,), end)
    x = add_noise(path, x0, eps, t)
    p = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    for answer in solve(prediction, p, x, t, path):
        assert torch.isfinite(answer).all()
    for weighting in WEIGHTINGS:
        assert torch.isfinite(weight(weighting, prediction, t, path)).all()
    if end == 0.0 and prediction != "x0":
        torch.testing.assert_close(solve(prediction, p, x, t, path)[0], x0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_min_snr_gives_every_prediction_the_same_loss(path):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    x0, eps = draw(50, torch.float64)
    x = add_noise(path, x0, eps, t)
    wrong = x0 + 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    snr = (path.alpha(t) / path.sigma(t)).square()
    expected = snr.clamp(max=5.0) * (wrong - x0).square().flatten(1).mean(1)
    for prediction in PREDICTIONS:
        error = convert("x0", prediction, wrong, x, t, path) - target(prediction, x0, eps, t, path)
        weighted = weight("min_snr", prediction, t, path) * error.square().flatten(1).mean(1)
        torch.testing.assert_close(weighted, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_edm_weight_is_one_plus_snr_on_x0(path):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    x0, eps = draw(50, torch.float64)
    x = add_noise(path, x0, eps, t)
    wrong = x0 + 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = (1 + (path.alpha(t) / path.sigma(t)).square()) * (wrong - x0).square().flatten(1).mean(1)
    for prediction in PREDICTIONS:
        error = convert("x0", prediction, wrong, x, t, path) - target(prediction, x0, eps, t, path)
        weighted = weight("edm", prediction, t, path) * error.square().flatten(1).mean(1)
        torch.testing.assert_close(weighted, expected, rtol=1e-9, atol=1e-12)


def test_v_on_the_edm_path_is_the_preconditioning_of_its_paper():
    """Karras et al. 2022, equation 7 and table 1 at sigma_data = 1: D = c_skip x + c_out F(c_in x), and its loss."""
    path, sigma = EDM(), torch.tensor([0.01, 0.5, 1.0, 7.0, 60.0], dtype=torch.float64)
    t, s = path.at(sigma), sigma[:, None, None, None]
    x0, eps = draw(5, torch.float64)
    x = x0 + s * eps
    c_skip, c_out, c_in = 1 / (s**2 + 1), s / (s**2 + 1).sqrt(), 1 / (s**2 + 1).sqrt()

    def network(x, t, condition):
        return -torch.tanh(x)  # F = -v

    found = solve("v", predict(network, x, t, {}, path), x, t, path)[0]
    expected = c_skip * x + c_out * torch.tanh(c_in * x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    # equation 8: lambda c_out^2 (F - (x0 - c_skip x) / c_out)^2 with lambda = (sigma^2 + 1) / sigma^2
    effective = (x0 - c_skip * x) / c_out
    torch.testing.assert_close(-target("v", x0, eps, t, path), effective, rtol=1e-9, atol=1e-9)
    value = loss(network, x0, eps, t, {}, path, "v", "edm").double()
    expected = (torch.tanh(c_in * x) - effective).square().flatten(1).mean(1)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight("edm", "v", t, path), torch.ones_like(t))


def test_min_snr_for_eps_is_the_papers_formula():
    path, t = VariancePreserving("linear"), torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    snr = (path.alpha(t) / path.sigma(t)).square()
    torch.testing.assert_close(min_snr_weight("eps", t, path), snr.clamp(max=5.0) / snr)
    torch.testing.assert_close(min_snr_weight("v", t, path), snr.clamp(max=5.0) / (snr + 1))


def test_times():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    path = RectifiedFlow()
    assert torch.equal(Times()(u, path), u)
    t = Times("logit_normal", mean=-0.4, std=1.3)(u, path)
    torch.testing.assert_close(Times("edm", mean=-0.4, std=1.3)(u, path), t)
    for path in PATHS:
        levels = noise_level(path, Times("edm", mean=-0.5, std=1.2)(u, path)).log()
        assert abs(float(levels.mean()) + 0.5) < 1e-3 and abs(float(levels.std()) - 1.2) < 1e-3
    assert t.min() > 0 and t.max() < 1 and torch.all(torch.diff(t) > 0)
    logits = torch.logit(t)
    assert abs(float(logits.mean()) + 0.4) < 1e-3 and abs(float(logits.std()) - 1.3) < 1e-3
    with pytest.raises(ValueError, match="logit_normal"):
        Times("lognormal")
    with pytest.raises(ValueError, match="std"):
        Times("logit_normal", std=0.0)


class Constant(nn.Module):
    """Predicts 0.5 everywhere and remembers what it was given."""

    def forward(self, x, t, condition):
        self.seen = x, t
        return torch.full_like(x, 0.5).bfloat16()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_the_mean_square_a_sample_in_float32(prediction):
    path = RectifiedFlow()
    x0, eps = draw(4, torch.float64)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    network = Constant()
    value = loss(network, x0, eps, t, {}, path, prediction)
    assert value.shape == (4,) and value.dtype == torch.float32
    assert network.seen[0].dtype == network.seen[1].dtype == torch.float32
    expected = (0.5 - target(prediction, x0, eps, t, path)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    weighted = loss(network, x0, eps, t, {}, path, prediction, "min_snr")
    torch.testing.assert_close(weighted.double(), expected * min_snr_weight(prediction, t, path), rtol=1e-5, atol=1e-6)


def test_terms_beside_the_square_are_what_their_papers_say():
    path, (x0, eps) = RectifiedFlow(), draw(64, torch.float32)
    x0 = x0 - x0.mean(0)  # latents and noise have mean 0
    eps, t = eps - eps.mean(0), torch.linspace(0.1, 0.9, 64)

    class Network(nn.Module):
        def forward(self, x, t, condition):
            return x.tanh()

    given = (Network(), x0, eps, t, {}, path, "velocity")
    p, y = predict(Network(), add_noise(path, x0, eps, t), t, {}, path), eps - x0
    cosine = ((p * y).sum(1) / (p.norm(dim=1) * y.norm(dim=1))).mean(dim=(1, 2))
    torch.testing.assert_close(loss(*given, cosine=0.5), loss(*given) + 0.5 * (1 - cosine), rtol=1e-5, atol=1e-5)
    # against the targets of all others, one after another: the same but for what no network can change
    others = torch.stack([(p - y.roll(k, 0)).square().mean(dim=(1, 2, 3)) for k in range(64)]).mean(0)
    constant = y.square().mean()
    torch.testing.assert_close(
        loss(*given, contrastive=0.05), loss(*given) - 0.05 * (others - constant), rtol=1e-4, atol=1e-5
    )


def test_unknown_names_are_refused():
    x, t = torch.zeros(1, 1), torch.full((1,), 0.5)
    with pytest.raises(ValueError, match="velocity"):
        solve("noise", x, x, t, RectifiedFlow())
    with pytest.raises(ValueError, match="min_snr"):
        weight("snr", "eps", t, RectifiedFlow())
