"""The engine against a plain PyTorch loop, and its parts that are pure functions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import registry
from pipeline.errors import UserError
from pipeline.schema.training import Training
from pipeline.training.arithmetic import largest_micro_batch, learning_rate, micro_batches, resolve_precision
from pipeline.training.engine import Engine
from pipeline.training.ranks import Ranks, open_ranks

CPU = torch.device("cpu")
VQ = {"kind": "vq", "width": 8, "multipliers": (1, 2), "blocks": 1, "latent_channels": 2, "groups": 4,
      "attention": False, "codes": 6, "restarts": 2, "half_life": 10}  # fmt: skip


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.LayerNorm(16), nn.Linear(16, 5))


def loss(module: nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    value = F.mse_loss(module(batch["x"]), batch["x"])
    return {"loss": value, "double": 2 * value.detach()}


def batch_at(position: int) -> dict[str, Any]:
    return {"x": 3 * torch.randn(8, 5, generator=torch.Generator().manual_seed(position)), "position": position}


def settings(**more: Any) -> Training:
    base = {"batch_size": 8, "steps": 10, "learning_rate": 1e-2, "weight_decay": 0.1, "warmup": 2, "schedule": "cosine",
            "half_lives": (16,), "zero_stage": 0, "clip": 0.5}  # fmt: skip
    return Training(**(base | more))


def plain(training: Training, steps: int) -> tuple[list[float], list[float], nn.Module, list[torch.Tensor]]:
    """A loop in bare PyTorch: losses, norms, the network, its average."""
    model = net()
    matrices, vectors = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, betas=training.betas, eps=training.eps)
    average = [p.detach().clone() for p in model.parameters()]
    losses, norms = [], []
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = learning_rate(training, step * 8)
        value = loss(model, batch_at(step * 8))["loss"]
        adam.zero_grad()
        value.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), training.clip or math.inf)))
        adam.step()
        for mean, parameter in zip(average, model.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 1 - 0.5 ** (8 / 16))
        losses.append(value.item())
    return losses, norms, model, average


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
@pytest.mark.parametrize("micro", (8, 2))
def test_equals_a_plain_loop(stage: int, micro: int) -> None:
    training = settings(zero_stage=stage, micro_batch=micro)
    losses, norms, model, average = plain(training, 6)
    engine = Engine(net(), loss, training, open_ranks())
    stats = [engine.step(batch_at(8 * i), 8 * i, flags=(i == 3,)) for i in range(6)]
    assert [s.loss for s in stats] == pytest.approx(losses, rel=1e-5)
    assert [s.grad_norm for s in stats] == pytest.approx(norms, rel=1e-5)
    assert [s.parts["double"] for s in stats] == pytest.approx([2 * value for value in losses], rel=1e-5)
    assert [s.flags for s in stats] == [(i == 3,) for i in range(6)]
    live, ema = engine.export("live"), engine.export("ema")
    for (name, parameter), mean in zip(model.named_parameters(), average, strict=True):
        torch.testing.assert_close(live[name], parameter.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ema[name], mean, rtol=1e-4, atol=1e-6)
    engine.close()


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
def test_looking_at_the_average_changes_nothing(stage: int) -> None:
    plainly = Engine(net(), loss, settings(zero_stage=stage), open_ranks())
    first = [plainly.step(batch_at(8 * i), 8 * i).loss for i in range(5)]
    plainly.close()
    watched = Engine(net(), loss, settings(zero_stage=stage), open_ranks())
    second = []
    for i in range(5):
        second.append(watched.step(batch_at(8 * i), 8 * i).loss)
        with watched.weights("ema") as module, torch.no_grad():
            assert not watched.partition.module.training
            seen = loss(module, batch_at(0))["loss"].item()
        average = net()
        average.load_state_dict(watched.export("ema"))
        assert seen == pytest.approx(loss(average, batch_at(0))["loss"].item(), rel=1e-6)
    assert first == second
    watched.close()


def test_bf16_on_a_cpu_keeps_fp32_weights() -> None:
    training = settings(precision="bf16", zero_stage=2, micro_batch=4)
    engine = Engine(net(), loss, training, open_ranks())
    losses = [engine.step(batch_at(8 * i), 8 * i).loss for i in range(6)]
    assert losses == pytest.approx(plain(training, 6)[0], rel=0.02)
    assert losses != pytest.approx(plain(training, 6)[0], rel=1e-6)
    assert all(master.dtype == torch.float32 for master in engine.partition.masters())
    engine.close()


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
@pytest.mark.parametrize("precision", ("fp32", "bf16"))
def test_what_is_exported_is_fp32_bit_for_bit(stage: int, precision: str) -> None:
    model = net()
    model.append(nn.Linear(5, 3).requires_grad_(False))
    frozen = model[-1].weight.detach().clone()
    training = settings(zero_stage=stage, precision=precision)
    engine = Engine(model, lambda module, batch: {"loss": module(batch["x"]).square().mean()}, training, open_ranks())
    for i in range(3):
        engine.step(batch_at(8 * i), 8 * i)
    for which, owned in (("live", engine.partition.masters()), ("ema", engine.averages["average-16"])):
        exported = engine.export(which)
        trained = torch.cat([value.flatten() for name, value in exported.items() if not name.startswith("4.")])
        masters = torch.cat([flat.flatten() for flat in owned])
        masters = masters[masters != 0]  # padding, in another order of parameters
        assert torch.equal(trained[trained != 0].sort().values, masters.sort().values)
        assert exported["2.weight"].shape == (16,) and exported["0.weight"].shape == (16, 5)
        assert torch.equal(exported["4.weight"], frozen)
    lossless = all(torch.equal(value, value.bfloat16().float()) for value in engine.export("live").values())
    assert not lossless
    engine.close()


def test_the_loss_scale_cancels_and_halves() -> None:
    """The arithmetic of fp16's loss scale, in fp32: a power of two cancels exactly."""
    one, scaled = Engine(net(), loss, settings(), open_ranks()), Engine(net(), loss, settings(), open_ranks())
    scaled.loss_scale, scaled.precision = 1024.0, "fp16"
    for i in range(3):
        a, b = one.step(batch_at(8 * i), 8 * i), scaled.step(batch_at(8 * i), 8 * i)
        assert b.loss == a.loss and b.grad_norm == pytest.approx(a.grad_norm, rel=1e-6) and b.loss_scale == 1024
    before = scaled.export("live")
    bad = {"x": torch.full((8, 5), torch.inf)}
    assert scaled.step(bad, 24).skipped
    assert scaled.loss_scale == 512
    assert all(torch.equal(before[name], value) for name, value in scaled.export("live").items())


def test_without_a_bound_the_gradient_is_taken_as_it_is() -> None:
    training = settings(clip=None)
    engine = Engine(net(), loss, training, open_ranks())
    losses = [engine.step(batch_at(8 * i), 8 * i).loss for i in range(4)]
    assert losses == pytest.approx(plain(training, 4)[0], rel=1e-5)


def test_out_of_memory_is_one_line_with_a_smaller_micro_batch() -> None:
    def hungry(module: nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    engine = Engine(net(), hungry, settings(micro_batch=8), open_ranks())
    with pytest.raises(UserError, match=r"micro_batch: 8 samples .* do not fit .* for instance 4"):
        engine.step(batch_at(0), 0)


def test_largest_micro_batch() -> None:
    assert largest_micro_batch(64, 64, base=100, peak_of_one=110, total=1000) == 32  # room for 85, under 64
    assert largest_micro_batch(64, 64, base=100, peak_of_one=150, total=1000) == 16
    assert largest_micro_batch(64, 8, base=100, peak_of_one=110, total=1000) == 4
    assert largest_micro_batch(64, 64, base=900, peak_of_one=1000, total=1000) == 0


@pytest.mark.parametrize("stage", (0, 2, 3))
def test_a_bad_step_leaves_a_codebook_and_drops_what_it_gathered(stage: int) -> None:
    """The buffers that follow the data are those of a run that never met the bad batch."""

    def codebook(bad: int | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = registry.build("autoencoders", VQ, channels=1)

        def distance(module: nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
            reconstruction, moments = module(batch["x"], batch["noise"])
            held = model.commitment(moments).mean()
            return {"loss": ((reconstruction - batch["x"]).square().mean() + held) * batch["factor"].mean()}

        engine = Engine(model, distance, settings(zero_stage=stage, micro_batch=4), open_ranks())
        for step in range(4):
            drawn = torch.Generator().manual_seed(step - (bad is not None and step > bad))
            x, noise = torch.rand(8, 1, 8, 8, generator=drawn), torch.randn(8, 2, 4, 4, generator=drawn)
            factor = torch.full((8,), torch.inf if step == bad else 1.0)
            if bad is None and step == 3:
                break
            stats = engine.step({"x": x, "noise": noise, "factor": factor}, 0)
            assert stats.skipped == (step == bad)
        found = {name: buffer.clone() for name, buffer in model.named_buffers()}
        engine.close()
        return found

    plain, skipped = codebook(None), codebook(1)
    assert plain["codebook.counts"].sum() > 0
    assert [name for name, buffer in plain.items() if not torch.equal(buffer, skipped[name])] == []


def test_learning_rate_schedules() -> None:
    def rates(**more: Any) -> list[float]:
        training = settings(learning_rate=1.0, **more)
        return [learning_rate(training, 8 * step) for step in range(10)]

    assert rates(schedule="constant", warmup=4) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]
    cosine = rates(schedule="cosine", warmup=2)
    assert cosine[:3] == [0.5, 1, 1] and cosine[6] == pytest.approx(0.5) and cosine == sorted(cosine[:2]) + cosine[2:]
    assert rates(schedule="wsd", warmup=0, decay=0.4) == pytest.approx([1] * 7 + [0.75, 0.5, 0.25])


def test_micro_batches_and_precision() -> None:
    assert micro_batches(settings(micro_batch=2), 2) == (2, 2)
    assert micro_batches(settings(), 4) == (2, 1)
    assert micro_batches(settings(micro_batch=8), 4) == (2, 1)
    with pytest.raises(UserError, match="batch_size: 8 is not divisible by 3 ranks"):
        micro_batches(settings(), 3)
    assert micro_batches(settings(batch_size=12, micro_batch=4), 2) == (
        3,
        2,
    )  # the largest divisor of a rank's 6 samples
    assert resolve_precision("auto", CPU) == "fp32"
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        resolve_precision("fp16", CPU)


def test_ranks_of_one() -> None:
    ranks = Ranks(0, 1, 0, CPU)
    assert ranks.gather_objects("x") == ["x"] and ranks.broadcast_object(3) == 3 and ranks.sum_floats([1.5]) == [1.5]
    assert ranks.all_reduce(torch.ones(2)).tolist() == [1, 1]
