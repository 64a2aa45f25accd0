"""peft's layers in our networks, against the sum that is sampled from, and against peft's own reader. Needs peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.lora import merged
from models.transfer import carry
from pipeline.generate import adapters
from pipeline.networks import build_network
from pipeline.schema.training import Lora
from pipeline.training.lora import adapt

pytest.importorskip("peft")

SMALL = {"kind": "dit", "width": 32, "depth": 2, "heads": 2, "patch": 2}
BASE: dict[str, Any] = {
    "latent": {"channels": 2, "size": 4}, "backbone": SMALL, "condition": {"kind": "class"}, "classes": ["a", "b"],
}  # fmt: skip
CAPTION = {"tokens": 8, "encoder": {"kind": "trained", "width": 8, "depth": 1, "heads": 2}}
MORE: dict[str, Any] = {
    **BASE,
    "backbone": {**SMALL, "tokens": "cross"},
    "classes": ["b", "c"],
    "condition": {
        "kind": "class", "caption": CAPTION, "attributes": {
            "age": {"kind": "continuous", "range": [0, 9]}, "hat": {"kind": "multi_label", "values": ["x", "y"]},
        },
    },
}  # fmt: skip


def noisy(network: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    return network.eval()


def answer(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x, t = torch.randn(3, 2, 4, 4, generator=generator), torch.rand(3, generator=generator)
    told = {"class": torch.tensor([0, 1, 2]), "age": torch.tensor([0.2, 0.8, -1.0])}
    told |= {
        "hat": torch.tensor([[1.0, 0], [-1, -1], [0, 1]]),
        "caption": torch.tensor([[257, 70, 0], [257, 0, 0], [257, 9, 9]]),
    }
    with torch.no_grad():
        return network(x, t, told)


@pytest.mark.parametrize(
    ("ours", "lora"), [(BASE, Lora(rank=4)), (MORE, Lora(rank=3, alpha=7, targets=("qkv", "mlp.up")))]
)
def test_what_is_trained_is_what_is_sampled_from_and_what_peft_reads(
    ours: dict[str, Any], lora: Lora, tmp_path: Path
) -> None:
    from peft import PeftModel

    base = noisy(build_network(BASE), 0).state_dict()
    network = build_network(ours)
    found = carry(network, base, ours, BASE)
    network.load_state_dict(found.weights)
    before = answer(network.eval())
    config = adapt(network, lora, found.begun)
    assert torch.equal(answer(network.eval()), before)  # B is zero
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == found.begun
    assert sum(".lora_" in name for name in trained) == 2 * 2 * 2  # A and B, of two layers, in two blocks
    after = answer(noisy(network, 1))
    weights = {name: value.detach() for name, value in network.named_parameters() if name in trained}

    adapters.save(tmp_path, weights, config)
    assert json.loads((tmp_path / adapters.CONFIG).read_text())["r"] == lora.rank
    alone = build_network(ours)
    adapters.load(alone, tmp_path / adapters.FILE, {"adapter": {"scale": lora.scale}}, _saved(base, tmp_path / "base"))
    assert (answer(alone.eval()) - after).abs().max() < 1e-6 * max(1, after.abs().max())
    assert (after - before).abs().max() > 0.01

    theirs = build_network(ours)
    theirs.load_state_dict(carry(theirs, base, ours, BASE).weights)
    loaded = PeftModel.from_pretrained(theirs, str(tmp_path))
    assert torch.equal(answer(loaded.eval()), after)
    merged_by_peft = answer(loaded.merge_and_unload().eval())
    assert (merged_by_peft - after).abs().max() < 1e-6 * max(1, after.abs().max())
    assert merged(base, weights, lora.scale, set(alone.state_dict())).keys() == alone.state_dict().keys()


def _saved(weights: dict[str, Tensor], folder: Path) -> Path:
    from pipeline.networks import save_weights

    save_weights(folder / "ema.safetensors", weights)
    return folder / "ema.safetensors"
