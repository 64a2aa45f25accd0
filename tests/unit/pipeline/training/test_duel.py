"""The adversarial loss against plain autograd; a bad step of either network leaves both; the guard and the weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from models import adversarial
from pipeline.schema.stages import Adversarial
from pipeline.schema.training import Training
from pipeline.training.duel import Duel, Fight
from pipeline.training.ranks import open_ranks

CPU = torch.device("cpu")
BATCH = 4


class Net(nn.Module):
    """Something with a last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.last_layer = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last_layer(torch.tanh(self.first(x)))


def settings(**more: Any) -> Training:
    return Training(**({"batch_size": BATCH, "steps": 10, "learning_rate": 1e-2, "half_lives": (16,)} | more))


def make(training: Training, **options: Any) -> tuple[Net, Fight]:
    torch.manual_seed(0)
    model, opponent = Net(), adversarial.Discriminator(1, width=8, layers=1)
    fight = Fight(opponent, Adversarial(**({"weight": 0.5, "width": 8, "layers": 1} | options)), training, CPU)
    fight.watch(model.last_layer)
    return model, fight


def images(position: int) -> torch.Tensor:
    return torch.randint(0, 256, (BATCH, 1, 8, 8), generator=torch.Generator().manual_seed(position), dtype=torch.uint8)


def in_floats(batch: dict[str, Any]) -> torch.Tensor:
    return batch["images"].float() / 127.5 - 1


def test_value_and_gradient_are_those_of_the_sum_of_both_losses() -> None:
    model, fight = make(settings(), adaptive=False)
    x = in_floats({"images": images(0)})
    out = model(x)
    view = out.view_as(out)
    loss, parts = fight.against((view - x).abs().mean(), view)
    loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    assert all(p.grad is None for p in fight.network.parameters()) and parts["adversarial_weight"] == 0.5
    model.zero_grad()
    out = model(x)
    plain = (out - x).abs().mean() + 0.5 * adversarial.generator_loss(fight.network(out))
    plain.backward()
    torch.testing.assert_close(loss, plain)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-7)


def test_the_weight_is_the_ratio_in_the_last_layer_and_counts_from_the_next_step() -> None:
    model, fight = make(settings())
    x = in_floats({"images": images(0)})
    for part in x.split(2):  # two micro-batches, whose gradients are averaged before their norm is taken
        out = model(part)
        view = out.view_as(out)
        loss, parts = fight.against((view - part).abs().mean(), view)
        assert parts["adversarial_weight"] == 0 and loss == (out - part).abs().mean()
    fight.settle(open_ranks(), bad=False)
    out, weights = model(x), model.last_layer.weight
    (towards,) = torch.autograd.grad((out - x).abs().mean(), weights, retain_graph=True)
    (away,) = torch.autograd.grad(adversarial.generator_loss(fight.network(out)), weights)
    assert fight.weight.item() == pytest.approx(0.5 * (towards.norm() / (away.norm() + 1e-4)).item(), rel=1e-4)


def duel(stage: int, **options: Any) -> Duel:
    """Both engines; the batch says whose loss is not finite."""
    training = settings(zero_stage=stage)
    model, fight = make(training, **options)
    at_fault = [""]

    def loss(network: nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        at_fault[0] = batch.get("bad", "")
        x, out = in_floats(batch), network(in_floats(batch))
        view = out.view_as(out)
        distance = (view - x).abs().mean() * (torch.inf if at_fault[0] == "autoencoder" else 1.0)
        value, parts = fight.against(distance, view) if fight.on(batch["position"]) else (distance, {})
        return {"loss": value, **parts}

    def other_loss(network: nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        losses = fight.loss(network, batch)
        return losses | {"loss": losses["loss"] * (torch.nan if at_fault[0] == "discriminator" else 1.0)}

    engine = Duel(model, loss, training, open_ranks(), fight)
    engine.rival.loss = other_loss
    return engine


def everything(engine: Duel) -> dict[str, torch.Tensor]:
    saved = engine.saved
    state = {f"{k}/{i}": t.clone() for k, ts in saved.slots(engine.averages).items() for i, t in enumerate(ts)}
    state |= {f"step/{i}": saved.state(flat)["step"].clone() for i, flat in enumerate(saved.flats[: saved.trainable])}
    return state | {"weight": engine.fight.weight.clone()}


@pytest.mark.parametrize("stage", (0, 2))
@pytest.mark.parametrize("whose", ("autoencoder", "discriminator"))
def test_a_bad_step_of_either_leaves_both_bit_for_bit(stage: int, whose: str) -> None:
    engine = duel(stage)
    for step in range(5):
        before, bad = everything(engine), step == 2
        batch = {"images": images(step), "position": step * BATCH, "bad": whose if bad else ""}
        stats = engine.step(batch, step * BATCH)
        after = everything(engine)
        different = [key for key in before if not torch.equal(before[key], after[key])]
        assert stats.skipped == bad
        assert different == [] if bad else len(different) > 10, (step, different)
    engine.close()


def test_before_the_start_the_discriminator_stands_still() -> None:
    engine = duel(0, start=2)
    before = {name: p.detach().clone() for name, p in engine.fight.network.named_parameters()}
    for step in range(3):
        stats = engine.step({"images": images(step), "position": step * BATCH}, step * BATCH)
        moved = any(not torch.equal(before[name], p) for name, p in engine.fight.network.named_parameters())
        assert moved == ("discriminator_loss" in stats.parts) == (step == 2)
    assert engine.state()["weight"] > 0
    engine.close()


def test_a_checkpoint_holds_each_weight_of_both_once() -> None:
    engine = duel(2)
    names = {f"autoencoder.{n}" for n, _ in engine.partition.module.named_parameters()}
    names |= {f"discriminator.{n}" for n, _ in engine.fight.network.named_parameters()}
    assert set(engine.saved.shapes) == names
    flats = [piece.flat for piece in engine.saved.owned]
    assert flats == sorted(flats)  # a slot that has fewer flats holds a leading part of them
    assert sum(piece.numel for piece in engine.saved.owned) == sum(
        p.numel() for module in (engine.partition.module, engine.fight.network) for p in module.parameters()
    )
    engine.close()
