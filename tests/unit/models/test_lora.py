"""Adapters as tensors. What peft's layers compute is compared in tests/unit/pipeline/training/test_lora.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import lora, registry


def test_the_sum_is_that_of_the_paper() -> None:
    base = {"p.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "p.bias": torch.tensor([5.0, 6.0])}
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    for names in ("p.lora_{}.default.weight", "base_model.model.p.lora_{}.weight"):  # in training; in peft's files
        adapter = {names.format("A"): a, names.format("B"): b, "p.bias": torch.zeros(2)}
        made = lora.merged(base, adapter, 0.5, set(base))
        assert made["p.weight"].tolist() == [[1 + 1.5, 3.0], [2.0, 1 + 4.0]] and made["p.bias"].tolist() == [0, 0]
    with pytest.raises(KeyError, match="weight"):
        lora.merged(base, {}, 1.0, {"q.weight"})


def test_of_a_convolution_too() -> None:
    first, second = nn.Conv2d(3, 2, 3, bias=False), nn.Conv2d(2, 4, 1, bias=False)
    x = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    whole = lora.product(first.weight.detach(), second.weight.detach(), torch.empty(4, 3, 3, 3)).float()
    torch.testing.assert_close(nn.functional.conv2d(x, whole), second(first(x)).detach())


def test_a_lone_class_table_is_that_of_several_conditions() -> None:
    made = lora.merged(
        {"conditioner.table.weight": torch.ones(2, 2)}, {}, 1.0, {"conditioner.parts.of_class.table.weight"}
    )
    assert made["conditioner.parts.of_class.table.weight"].sum() == 4


def test_layers_are_found_by_the_ends_of_their_names() -> None:
    dit = registry.outline("backbones", {"kind": "dit", "width": 16, "depth": 2, "heads": 2}, channels=2, size=4)
    assert list(lora.adapted(dit, None)) == [f"blocks.{i}.attention.{end}" for i in (0, 1) for end in ("qkv", "out")]
    assert list(lora.adapted(dit, ["mlp.up", "embed"], {"blocks.0.mlp.up.weight"})) == ["embed", "blocks.1.mlp.up"]
    with pytest.raises(
        ValueError, match=r"no layer of the backbone is called 'attention\.qkw'; did you mean 'attention\.qkv'"
    ):
        lora.adapted(dit, ["attention.qkw"])
    with pytest.raises(ValueError, match="all layers that are named are new"):
        lora.adapted(dit, ["embed"], {"embed.weight"})
    with pytest.raises(ValueError, match="no attention"):
        lora.adapted(nn.Linear(2, 2), None)
    unet = registry.outline("backbones", {"kind": "unet", "preset": next(iter(registry.presets("backbones", "unet")))},
                            channels=4, size=32)  # fmt: skip
    assert {name.rpartition("to_")[2] for name in lora.adapted(unet, None)} == {"q", "k", "v", "out.0"}


def test_at_the_default_rank_few_parameters_are_trained() -> None:
    dit = registry.outline("backbones", {"kind": "dit", "preset": "dit-xs/2"}, channels=4, size=32)
    count = lora.parameters(lora.adapted(dit, None), 8)
    assert count == 6 * 8 * ((192 + 3 * 192) + (192 + 192))
    assert count < 0.03 * sum(p.numel() for p in dit.parameters())
