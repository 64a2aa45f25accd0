"""Guidance as algebra on a denoiser that is a formula."""

from __future__ import annotations

import pytest
import torch

from models.diffusion.guidance import autoguided, composed, guided, only, within
from models.diffusion.process import RectifiedFlow


def denoise(x, t, condition):
    return x * t[:, None] + condition["class"][:, None]


X, T = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.5, 0.25])
CONDITION, NULL = {"class": torch.tensor([3, 5])}, {"class": torch.tensor([10, 10])}


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("null", [NULL, {"class": torch.tensor([10])}], ids=["a row each", "one row"])
def test_guided_is_null_plus_scaled_difference(scale, null):
    expected = denoise(X, T, NULL) + scale * (denoise(X, T, CONDITION) - denoise(X, T, NULL))
    torch.testing.assert_close(guided(denoise, scale, null)(X, T, CONDITION), expected)


def test_scale_one_costs_nothing_and_others_one_call():
    assert guided(denoise, 1.0, NULL) is denoise
    sizes = []

    def counting(x, t, condition):
        sizes.append(len(x))
        return denoise(x, t, condition)

    guided(counting, 3.0, NULL)(X, T, CONDITION)
    assert sizes == [4]


def test_autoguidance_leads_away_from_the_weaker_network():
    weak_calls = []

    def weak(x, t, condition):
        weak_calls.append(len(x))
        return 0.5 * denoise(x, t, condition)

    strong = denoise(X, T, CONDITION)
    found = autoguided(denoise, weak, 3.0)(X, T, CONDITION)
    torch.testing.assert_close(found, 0.5 * strong + 3.0 * (strong - 0.5 * strong))
    assert weak_calls == [2]  # conditional both, no doubled batch
    assert autoguided(denoise, weak, 1.0) is denoise


def test_guidance_only_within_its_noise_levels():
    """On the straight path sigma / alpha = t / (1 - t): 1 at t = 1/2, 3 at t = 3/4."""
    limited = within(guided(denoise, 2.0, NULL), denoise, RectifiedFlow(), 0.5, 1.0)
    for t, on in ((0.25, False), (0.4, True), (0.5, True), (0.75, False), (1.0, False)):
        times = torch.full((2,), t)
        expected = guided(denoise, 2.0, NULL)(X, times, CONDITION) if on else denoise(X, times, CONDITION)
        torch.testing.assert_close(limited(X, times, CONDITION), expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rescaled_guidance_brings_the_deviation_back(share):
    strong = denoise(X, T, CONDITION)
    plain = guided(denoise, 4.0, {"class": torch.tensor([-1, -2])})(X, T, CONDITION)
    found = guided(denoise, 4.0, {"class": torch.tensor([-1, -2])}, share)(X, T, CONDITION)
    whole = plain * (strong.std(1) / plain.std(1))[:, None]
    torch.testing.assert_close(found, share * whole + (1 - share) * plain)
    if share == 1.0:
        torch.testing.assert_close(found.std(1), strong.std(1))


def two(x, t, condition):
    """A denoiser of two conditions that do not add up."""
    return x * t[:, None] + (condition["class"] * (1.0 + condition["age"]))[:, None]


BOTH = {"class": torch.tensor([3.0, 5.0]), "age": torch.tensor([0.5, 0.25])}
NEITHER = {"class": torch.tensor([1.0]), "age": torch.tensor([0.0])}


def test_composed_adds_the_scaled_difference_of_each_condition():
    terms = [(2.0, only(BOTH, ["class"], NEITHER)), (0.5, only(BOTH, ["age"], NEITHER))]
    null = {name: value.expand(2) for name, value in NEITHER.items()}
    plain = two(X, T, null)
    expected = plain + 2.0 * (two(X, T, {**null, "class": BOTH["class"]}) - plain)
    expected = expected + 0.5 * (two(X, T, {**null, "age": BOTH["age"]}) - plain)
    torch.testing.assert_close(composed(two, terms, NEITHER)(X, T, BOTH), expected)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_one_term_of_all_conditions_is_plain_guidance(rescale):
    found = composed(two, [(3.0, BOTH)], NEITHER, rescale)(X, T, BOTH)
    torch.testing.assert_close(found, guided(two, 3.0, NEITHER, rescale)(X, T, BOTH))


def test_what_belongs_to_a_condition_goes_with_it():
    condition = {"caption": torch.ones(2, 3), "caption/length": torch.tensor([3, 3]), "class": torch.tensor([0, 1])}
    null = {"caption": torch.zeros(1, 3), "caption/length": torch.tensor([1]), "class": torch.tensor([9])}
    told = only(condition, {"caption"}, null)
    assert told["caption/length"].tolist() == [3, 3] and told["class"].tolist() == [9, 9]
