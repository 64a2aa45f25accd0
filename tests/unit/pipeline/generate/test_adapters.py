"""An adapter's model folder, its base found by content, and both made one. No peft: the factors are made here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import registry
from models.lora import adapted
from pipeline.artifacts import Store
from pipeline.data import tokens
from pipeline.data.latents import LatentSpace
from pipeline.errors import UserError
from pipeline.files import read_json, sha256_file
from pipeline.generate import adapters
from pipeline.generate.folder import load_pretrained, save_pretrained
from pipeline.generate.merge import merge
from pipeline.networks import build_network

AUTOENCODER = {"kind": "kl", "width": 8, "multipliers": [1, 2], "blocks": 1, "latent_channels": 4, "groups": 4,
               "attention": False}  # fmt: skip
OPTIONS: dict[str, Any] = {
    "latent": {"channels": 4, "size": 4},
    "backbone": {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 2},
    "condition": {"kind": "class", "drop": 0.1},
    "classes": ["zero", "one"],
    "path": {"kind": "rectified_flow", "schedule": "cosine"},
    "prediction": "velocity",
}


def written(folder: Path, weights: dict[str, Tensor], autoencoder: nn.Module, more: Any = None, **adapter: Any) -> Path:
    save_pretrained(
        folder,
        name="small",
        image={"size": 8, "channels": 3},
        options={**OPTIONS, **(more or {})},
        autoencoder=AUTOENCODER,
        autoencoder_weights=autoencoder.state_dict(),
        denoiser_weights=weights,
        space=LatentSpace(torch.zeros(4), torch.ones(4)),
        defaults={"steps": 2, "batch_size": 4},
        lineage={"diffusion": {"fingerprint": "ab", "content": "cd" * 32}},
        **adapter,
    )
    return folder


@pytest.fixture
def models(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    return pair(tmp_path, getattr(request, "param", {}))


def pair(tmp_path: Path, more: dict[str, Any]) -> tuple[Path, Path]:
    """A base's folder and an adapter's, which is moved away from where both were made. more: options of both."""
    torch.manual_seed(0)
    autoencoder, network = registry.build("autoencoders", AUTOENCODER, channels=3), build_network({**OPTIONS, **more})
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    base = written(tmp_path / "base", network.state_dict(), autoencoder, more)
    factors = {}
    for name, layer in adapted(network.backbone, None).items():  # type: ignore[arg-type]
        outputs, inputs = layer.weight.shape  # type: ignore[misc]
        factors[f"backbone.{name}.lora_A.default.weight"] = torch.randn(2, int(inputs))
        factors[f"backbone.{name}.lora_B.default.weight"] = torch.randn(int(outputs), 2)
    file = base / "denoiser.safetensors"
    about = {**more, "adapter": {"base": sha256_file(file), "scale": 0.5, "places": [str(file)]}}
    return base, written(tmp_path / "adapter", factors, autoencoder, about, adapter={"r": 2}, base=file)


def images(folder: Path, root: Path, **how: Any) -> np.ndarray[Any, Any]:
    return load_pretrained(folder, "cpu", root, **how).sample(n=4, seed=1)


@pytest.mark.parametrize("models", [{}, {"self_conditioning": True, "before": 60}], indirect=True)
def test_an_adapter_is_small_and_samples_as_the_whole_model_that_is_made_of_it(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = models
    assert {path.name for path in adapter.iterdir()} == {"config.json", "latents.json", adapters.CONFIG, adapters.FILE}
    theirs, ours = images(base, tmp_path), images(adapter, tmp_path)
    assert not np.array_equal(theirs, ours)
    (adapter / tokens.FILE).write_text("{}")  # of text
    said = merge(str(adapter), tmp_path / "whole", tmp_path)
    assert (tmp_path / "whole" / tokens.FILE).read_text() == "{}"
    assert read_json(tmp_path / "whole" / "config.json").get("before") == read_json(base / "config.json").get("before")
    assert str(tmp_path / "whole") in said and "adapter" not in read_json(tmp_path / "whole" / "config.json")
    shutil.rmtree(base)
    assert np.array_equal(images(tmp_path / "whole", tmp_path), ours)
    with pytest.raises(UserError, match="no adapter, but a whole model"):
        merge(str(tmp_path / "whole"), tmp_path / "again", tmp_path)


def test_a_merged_model_is_told_its_own_guess_as_the_adapter_s_is(tmp_path: Path) -> None:
    _, adapter = pair(tmp_path, {"self_conditioning": True})
    merge(str(adapter), tmp_path / "whole", tmp_path)
    assert np.array_equal(images(tmp_path / "whole", tmp_path), images(adapter, tmp_path))


def test_a_base_that_was_moved_is_found_by_content(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = models
    before = images(adapter, tmp_path)
    with Store(tmp_path / "root").write("register", "a" * 16, {}, {}) as writer:
        base.rename(writer.path / "model")
        writer.finish({})
    assert np.array_equal(images(adapter, tmp_path / "root"), before)


def test_a_base_that_is_gone_or_another_is_named_in_a_line(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = models
    content = sha256_file(base / "denoiser.safetensors")[:12]
    away = base.rename(tmp_path / "away")
    with pytest.raises(
        UserError, match=f"base of this adapter, weights of content {content}, .* gone, and no artifact"
    ):
        images(adapter, tmp_path)
    with pytest.raises(UserError, match="gone, and no such file: /nowhere"):
        merge(str(adapter), tmp_path / "whole", tmp_path, "/nowhere")
    assert images(adapter, tmp_path, base=str(away)).shape == (4, 8, 8, 3)
    base.mkdir()
    torch.manual_seed(1)
    written(base, build_network(OPTIONS).state_dict(), registry.build("autoencoders", AUTOENCODER, channels=3))
    with pytest.raises(
        UserError, match=f"denoiser.safetensors: not the base of this adapter, weights of content {content}"
    ):
        images(adapter, tmp_path)
