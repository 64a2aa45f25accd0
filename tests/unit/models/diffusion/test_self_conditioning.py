"""Self-conditioning: who is told a guess, what is remembered of a walk, and that it is a network as before without."""

from __future__ import annotations

import pytest
import torch

from models.conditioning import GUESS
from models.diffusion import self_conditioning
from models.diffusion.denoiser import build_network, denoiser
from models.diffusion.guidance import composed, guided
from models.diffusion.objectives import loss
from models.diffusion.process import make_path

BACKBONE = {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 1}
PATH = make_path(kind="rectified_flow")


def network(guesses: bool = True):
    torch.manual_seed(0)
    found = build_network(BACKBONE, "none", 3, [6], self_conditioning=guesses).eval()
    torch.manual_seed(1)
    with torch.no_grad():  # by name: both networks get the same values of what both have
        for name, value in sorted(found.named_parameters()):
            if "beside" not in name:
                value.copy_(0.3 * torch.randn_like(value))
    return found


def drawn(n: int = 4):
    torch.manual_seed(2)
    return torch.randn(n, 3, 6), torch.randn(n, 3, 6), torch.linspace(0.2, 0.9, n).double()


def test_it_begins_as_a_network_that_is_told_none():
    x, _, t = drawn()
    plain, told = network(False), network()
    assert {name for name in told.state_dict()} - {name for name in plain.state_dict()} == {
        "backbone.embed_beside.weight"
    }
    torch.testing.assert_close(told(x, t.float(), {GUESS: x}), plain(x, t.float(), {}))
    with torch.no_grad():
        told.backbone.embed_beside.weight.normal_()
    assert (told(x, t.float(), {GUESS: x}) - told(x, t.float(), {})).abs().max() > 0.1
    torch.testing.assert_close(told(x, t.float(), {GUESS: torch.zeros_like(x)}), told(x, t.float(), {}))


def test_half_of_the_samples_are_told_their_own_first_answer():
    (x0, noise, t), model = drawn(), network()
    with torch.no_grad():
        model.backbone.embed_beside.weight.normal_()
    u = torch.tensor([0.1, 0.9, 0.49, 0.51], dtype=torch.float64)
    guess = self_conditioning.told(model, x0, noise, t, {}, PATH, "velocity", u)[GUESS]
    t32 = t.float()
    x = (1 - t32).view(-1, 1, 1) * x0 + t32.view(-1, 1, 1) * noise
    first = denoiser(model, PATH, "velocity")(x, t32, {})
    torch.testing.assert_close(guess[[0, 2]], first[[0, 2]].detach())
    assert not guess[[1, 3]].any() and not guess.requires_grad
    whole = self_conditioning.told(model, x0, noise, t, {}, PATH, "velocity")
    torch.testing.assert_close(whole[GUESS], first.detach())
    losses = loss(model, x0, noise, t, whole, PATH, "velocity")
    losses.sum().backward()
    assert model.backbone.embed_beside.weight.grad.abs().max() > 0


def test_a_walk_is_told_what_it_has_answered_and_another_walk_is_not():
    seen = []

    def answer(x, t, condition):
        seen.append(condition[GUESS].clone())
        return x + 1

    walk = self_conditioning.remembering(answer)
    x = torch.ones(2, 3, 6)
    for t in (1.0, 0.5, 0.5, 0.25, 1.0):
        walk(x * t, torch.full((2,), t), {})
    assert [float(guess.mean()) for guess in seen] == [0, 2, 1.5, 1.5, 0]
    walk(x[:1], torch.full((1,), 0.5), {})
    assert not seen[-1].any()


@pytest.mark.parametrize("scale", [2.0, 0.0])
def test_guidance_gives_all_terms_the_guess(scale):
    seen = {}

    def answer(x, t, condition):
        seen["guess"] = condition[GUESS]
        return x

    x, t, null = torch.randn(2, 3, 6), torch.full((2,), 0.5), {"class": torch.tensor([9])}
    told = {"class": torch.tensor([1, 2])}
    with_guess = {**told, GUESS: torch.randn(2, 3, 6)}
    guided(answer, scale, null)(x, t, with_guess)
    torch.testing.assert_close(seen["guess"], torch.cat([with_guess[GUESS]] * 2))
    composed(answer, [(scale, told), (1.0, told)], null)(x, t, with_guess)
    torch.testing.assert_close(seen["guess"], torch.cat([with_guess[GUESS]] * 3))
