"""Muon: orthogonal updates, torch's own where it can do it, the same at every ZeRO stage, AdamW for the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import registry
from pipeline.errors import UserError
from pipeline.schema.training import Training
from pipeline.training.engine import Engine
from pipeline.training.muon import matrices, orthogonalised
from pipeline.training.ranks import open_ranks


class Net(nn.Module):
    """Two blocks, one of them wide and one tall, and what is no block's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 12)
        self.blocks = nn.ModuleList([nn.Linear(12, 20), nn.Linear(20, 12)])
        self.out = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide, tall = self.blocks
        return self.out(tall(F.silu(wide(F.silu(self.first(x))))))  # type: ignore[no-any-return]


def loss(module: nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {"loss": F.mse_loss(module(batch["x"]), batch["x"])}


def batch_at(position: int) -> dict[str, Any]:
    return {"x": 3 * torch.randn(8, 5, generator=torch.Generator().manual_seed(position)), "position": position}


def trained(stage: int, steps: int = 5, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    training = Training(
        batch_size=8, steps=10, learning_rate=1e-2, weight_decay=0.1, clip=None, half_lives=(16,), zero_stage=stage,
        optimizer="muon",
    )  # fmt: skip
    engine = Engine(Net(), loss, training, open_ranks())
    assert engine._muon
    engine._muon.dtype = dtype
    for i in range(steps):
        engine.step(batch_at(8 * i), 8 * i)
    weights = engine.export("live")
    engine.close()
    return weights


def test_the_update_has_the_directions_of_the_matrix_all_of_about_one_length() -> None:
    for shape in ((12, 20), (20, 12), (16, 16)):
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 1e-3
        found = orthogonalised(matrix)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        lengths = torch.linalg.svdvals(found)
        assert found.shape == matrix.shape and 0.6 < lengths.min() <= lengths.max() < 1.25
        assert torch.allclose(u.T @ found @ v.T, torch.diag(torch.diag(u.T @ found @ v.T)), atol=1e-4)
    assert orthogonalised(torch.zeros(3, 4)).abs().max() == 0


def test_it_is_torchs_own_where_that_can_be_had() -> None:
    model = Net()
    names = matrices(model)
    assert names == ["blocks.0.weight", "blocks.1.weight"]
    turned = [p for name, p in model.named_parameters() if name in names]
    others = [p for name, p in model.named_parameters() if name not in names]
    muon = torch.optim.Muon(turned, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99))
    for i in range(5):
        model.zero_grad()
        loss(model, batch_at(8 * i))["loss"].backward()
        muon.step()
        adam.step()
    found = trained(0, dtype=torch.bfloat16)  # the precision that torch's has, whatever the device
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_it_is_the_same_at_every_zero_stage(stage: int) -> None:
    plain, sharded = trained(0), trained(stage)
    for name, weights in plain.items():
        torch.testing.assert_close(sharded[name], weights, rtol=1e-5, atol=1e-6)


def test_an_autoencoder_of_text_has_layers() -> None:
    model = registry.outline("autoencoders", {"kind": "text", "width": 8, "depth": 1, "heads": 2, "causal": 1})
    kinds = {name.rpartition("layers.0.")[2] for name in matrices(model)}
    assert kinds == {f"{part}.weight" for part in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")}
    assert len(matrices(model)) == 3 * len(kinds)  # of encoder, decoder, and those that see the tokens before


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"training\.optimizer: muon is for the matrices of blocks") as error:
        matrices(nn.Sequential(nn.Linear(2, 2)))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="give adamw with `lora`"):
        Training(steps=1, optimizer="muon", lora={"rank": 1}, init_from="x")
