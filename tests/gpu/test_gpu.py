"""What only a GPU can show. Each test says so where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_training_falls_and_averages_follow(precision: str, zero_stage: int, tmp_path: Path) -> None:
    """Twenty steps of a small DiT on one batch: the loss falls, the average is finite and exported whole."""
    from models.diffusion.denoiser import build_network
    from models.diffusion.objectives import loss
    from models.diffusion.process import make_path
    from pipeline.schema.training import Training
    from pipeline.training.engine import Engine
    from pipeline.training.ranks import close_ranks, open_ranks

    torch.manual_seed(0)
    ranks = open_ranks()
    training = Training(steps=20, batch_size=16, zero_stage=zero_stage, precision=precision, half_lives=(64,))
    network = build_network({"kind": "dit", "preset": "dit-xxs/2"}, "class", channels=4, size=8, classes=10)
    path = make_path("rectified_flow")
    batch = {
        "x": torch.randn(16, 4, 8, 8),
        "noise": torch.randn(16, 4, 8, 8),
        "t": torch.rand(16),
        "label": torch.arange(16) % 10,
    }

    def objective(module: torch.nn.Module, b: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": loss(module, b["x"], b["noise"], b["t"], {"class": b["label"]}, path, "velocity").mean()}

    engine = Engine(network.to(ranks.device), objective, training, ranks)
    losses = [engine.step(dict(batch), position).loss for position in range(0, 20 * 16, 16)]
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(value).all() for value in engine.export("ema").values())
    engine.close()
    close_ranks()


def test_out_of_memory_names_a_micro_batch() -> None:
    """The message of a step that does not fit names the largest micro-batch that does, by estimate."""
    from pipeline.training.arithmetic import largest_micro_batch

    total = torch.cuda.get_device_properties(0).total_memory
    assert largest_micro_batch(64, 64, 0, total // 10, total) == 8
