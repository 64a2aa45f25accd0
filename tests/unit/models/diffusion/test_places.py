"""Latents of unequal length in one batch: loss, guidance and sampling give each sample what it gets alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.conditioning import PLACES, Conditions
from models.diffusion import distillation, objectives, samplers
from models.diffusion.denoiser import build_network, denoiser
from models.diffusion.grids import grid, walk
from models.diffusion.guidance import autoguided, composed, guided, only
from models.diffusion.process import RectifiedFlow

PATH, LENGTHS, LONGEST, CHANNELS = RectifiedFlow(), (4, 6, 1), 6, 2
OPTIONS = {"kind": "dit", "width": 16, "depth": 2, "heads": 2, "patch": 1}


@pytest.fixture(scope="module")
def network() -> Any:
    """Filled with numbers, so that everything has an effect."""
    torch.manual_seed(0)
    found = build_network(OPTIONS, "class", CHANNELS, (LONGEST,), 3)
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.3)
    return found.requires_grad_(False)


def batch(content: float) -> tuple[Tensor, Tensor, Conditions]:
    """x0 and noise [3, C, L], with `content` where nothing is, and what they are told."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(3, CHANNELS, LONGEST, generator=generator) for _ in range(2))
    places = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]
    x0, noise = (torch.where(places[:, None], x, content) for x in (x0, noise))
    return x0, noise, {"class": torch.tensor([0, 1, 2]), PLACES: places}


def alone(i: int, *values: Tensor) -> list[Tensor]:
    """Sample i without its padding."""
    return [value[i : i + 1, :, : LENGTHS[i]] for value in values]


@pytest.mark.parametrize("terms", [{}, {"cosine": 0.5, "contrastive": 0.1}, {"weighting": "min_snr"}], ids=str)
def test_the_loss_is_a_mean_over_what_is_there(network, terms):
    t = torch.tensor([0.2, 0.5, 0.9])
    losses = []
    for content in (0.0, 50.0):
        x0, noise, told = batch(content)
        losses.append(objectives.loss(network, x0, noise, t, told, PATH, "velocity", **terms))
    assert torch.equal(*losses)
    for i in range(3):
        own = (*alone(i, x0, noise), t[i : i + 1], {"class": told["class"][i : i + 1]})
        torch.testing.assert_close(losses[0][i : i + 1], objectives.loss(network, *own, PATH, "velocity", **terms))


def test_no_gradient_comes_from_the_padding(network):
    x0, noise, told = batch(3.0)
    x0.requires_grad_(True)
    objectives.loss(network, x0, noise, torch.full((3,), 0.5), told, PATH, "v").sum().backward()
    assert torch.equal(x0.grad != 0, told[PLACES][:, None].expand_as(x0))


def test_the_loss_of_a_student(network):
    x0, noise, told = batch(2.0)
    student = denoiser(network, PATH, "velocity")
    how = (student, 2, guided(student, 2.0, network.null(1)), walk(2, PATH))
    found = distillation.loss(*how, noise, told, PATH)
    for i in range(3):
        own = (alone(i, x0, noise)[1], {"class": told["class"][i : i + 1]})
        torch.testing.assert_close(found[i : i + 1], distillation.loss(*how, *own, PATH), rtol=1e-4, atol=1e-7)


def guidances(network: Any) -> dict[str, Any]:
    plain, null = denoiser(network, PATH, "velocity"), network.null(1)

    def weak(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        return 0.5 * plain(x, t, condition)

    def term(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        terms = [(1.5, only(condition, {"class"}, null))]
        return composed(plain, terms, null, 0.3)(x, t, condition)

    return {
        "none": plain,
        "guided": guided(plain, 2.0, null, rescale=0.7),
        "composed": term,
        "autoguided": autoguided(plain, weak, 2.0, rescale=0.7),
    }


@pytest.mark.parametrize("name", ["none", "guided", "composed", "autoguided"])
@pytest.mark.parametrize("sampler", ["heun", "ddpm"])
def test_samples_are_those_that_each_length_gives_alone(network, sampler, name):
    lead, times = guidances(network)[name], grid("uniform", 3, PATH)
    generator = torch.Generator().manual_seed(5)
    fresh = [torch.randn(3, CHANNELS, LONGEST, generator=generator) for _ in range(3)]
    found = []
    for content in (0.0, 9.0):
        _, noise, told = batch(content)
        found.append(samplers.sample(sampler, lead, PATH, noise, times, told, fresh.__getitem__))
    assert torch.equal(*(torch.where(told[PLACES][:, None], x, 0.0) for x in found))
    for i in range(3):
        (x,), own = alone(i, noise), {"class": told["class"][i : i + 1]}
        steps = [alone(i, step)[0] for step in fresh]
        wanted = samplers.sample(sampler, lead, PATH, x, times, own, steps.__getitem__)
        torch.testing.assert_close(alone(i, found[0])[0], wanted, atol=1e-4, rtol=1e-4)


def test_where_nothing_is_comes_out_as_zero(network):
    _, noise, told = batch(9.0)
    z = samplers.euler(denoiser(network, PATH, "v"), PATH, noise, grid("uniform", 2, PATH), told)
    assert not torch.where(told[PLACES][:, None], 0.0, z).any()
