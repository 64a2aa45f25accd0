"""Folders of diffusers, read and written: outputs in diffusers itself and here agree to 1e-5, both ways; what has no
place on the other side is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from models import registry
from models.diffusion.denoiser import build_network
from models.diffusion.objectives import predict
from models.diffusion.process import make_path
from pipeline.data.latents import LatentSpace
from pipeline.errors import UserError
from pipeline.generate import diffusers_read, diffusers_write
from pipeline.generate.diffusers_read import Imported
from pipeline.generate.exchange import export_diffusers
from pipeline.generate.folder import save_pretrained

diffusers = pytest.importorskip("diffusers")

DIT = {"kind": "dit", "width": 24, "depth": 2, "heads": 2, "patch": 2, "frequency_shift": 1}
UNET = {"kind": "unet", "width": 8, "multipliers": [1, 2, 2], "attention": [False, True, True], "blocks": 1,
        "groups": 4, "head_width": 8}  # fmt: skip
DDPM = {**UNET, "resample": "conv", "scale_shift": False, "head_width": None, "padding": 0, "frequency_shift": 1,
        "norm_eps": 1e-6}  # fmt: skip
KL = {"kind": "kl", "width": 8, "multipliers": [1, 2], "blocks": 1, "latent_channels": 3, "groups": 4}
CHANNELS, SIZE, CLASSES = 3, 8, 4


def fill(model: nn.Module) -> nn.Module:
    """Numbers everywhere, so that no part hides behind a zero; in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        scale = 0.3 if parameter.ndim > 1 else 0.1
        parameter.data += (
            scale * torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5
        )
    return model.eval()


def network(options: dict[str, Any], classes: int = CLASSES) -> Any:
    torch.manual_seed(1)
    return fill(build_network(options, "class" if classes else "none", CHANNELS, SIZE, classes))


def restored(found: Imported) -> Any:
    """The model that was read, with its weights."""
    if found.family == "autoencoders":
        model = registry.build("autoencoders", found.options, channels=found.channels)
    else:
        condition = "none" if found.classes is None else "class"
        model = build_network(found.options, condition, found.channels, SIZE, found.classes or 0)
    model.load_state_dict(found.weights)
    return model.eval()


def write(folder: Path, model: Any, **more: Any) -> str:
    described, weights = diffusers_write.describe(model, **more)
    diffusers_write.write(folder, described, weights)
    return described["_class_name"]


@torch.no_grad()
def ours(model: Any, labels: torch.Tensor | None) -> torch.Tensor:
    x, t = torch.randn(4, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(2)), torch.linspace(0.01, 1, 4)
    return model(x, t, {} if labels is None else {"class": labels})


@torch.no_grad()
def theirs(model: Any, labels: torch.Tensor | None) -> torch.Tensor:
    x, t = torch.randn(4, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(2)), torch.linspace(0.01, 1, 4)
    return model(x, 1000 * t, class_labels=labels).sample


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.abs().max() > 0.1
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [DIT, {**DIT, "gelu": "tanh", "mlp_eps": 1e-5}, {**DIT, "own_embeddings": True}, UNET, DDPM,
     {**UNET, "middle_norm": False}, {**DDPM, "padding": 1, "middle_attention": False, "blocks": 2},
     {**UNET, "attention": [False, False, False], "middle_attention": False}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("classes", [CLASSES, 0])
def test_denoisers_written_load_in_diffusers_and_come_back(
    tmp_path: Path, options: dict[str, Any], classes: int
) -> None:
    model = network(options, classes)
    name = write(tmp_path, model, size=SIZE)
    loaded = getattr(diffusers, name).from_pretrained(tmp_path)
    labels = torch.tensor([0, 1, 3, CLASSES]) if classes else None  # the null class last
    asked = labels if classes or name == "UNet2DModel" else torch.zeros(4, dtype=torch.int64)
    close(theirs(loaded, asked), ours(model, labels))
    found = diffusers_read.read(tmp_path, null_class=True)
    assert found.classes == (classes or None) and found.size == SIZE
    assert found.options == registry.resolve("backbones", options)
    for key, value in model.state_dict().items():
        assert torch.equal(found.weights[key], value), key


@pytest.mark.parametrize(
    "options",
    [{}, {"resnet_time_scale_shift": "scale_shift"}, {"downsample_type": "resnet", "upsample_type": "resnet",
      "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D",
      "ResnetUpsampleBlock2D"), "attn_norm_num_groups": 4}, {"flip_sin_to_cos": False, "freq_shift": 1,
      "downsample_padding": 0, "attention_head_dim": None, "norm_eps": 1e-6},
     {"num_class_embeds": CLASSES, "dropout": 0.1}],
    ids=str,
)  # fmt: skip
def test_unets_that_diffusers_saves_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    base = {"sample_size": SIZE, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, **kinds}
    model = fill(diffusers.UNet2DModel(**(base | options)))
    model.save_pretrained(tmp_path)
    found = diffusers_read.read(tmp_path)
    labels = torch.tensor([0, 1, 2, 3]) if "num_class_embeds" in options else None
    close(ours(restored(found), labels), theirs(model, labels))
    assert found.classes == (CLASSES if labels is not None else None)
    assert bool(found.notes) == (labels is not None)  # a null class was added


@pytest.mark.parametrize("options", [{}, {"activation_fn": "gelu", "norm_eps": 1e-6}], ids=str)
def test_a_dit_that_diffusers_saves_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    """As it is made, every block has its own embeddings; those that are published share them."""
    base = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": CHANNELS, "num_layers": 2,
            "sample_size": SIZE, "num_embeds_ada_norm": CLASSES}  # fmt: skip
    model = fill(diffusers.DiTTransformer2DModel(**base, **options))
    labels = torch.tensor([0, 1, 3, CLASSES])
    model.save_pretrained(tmp_path / "own", max_shard_size="4KB")  # in several files, with an index
    assert len(list((tmp_path / "own").glob("*.safetensors"))) > 1
    found = diffusers_read.read(tmp_path / "own")
    assert found.options["own_embeddings"] and found.classes == CLASSES
    close(ours(restored(found), labels), theirs(model, labels))
    model.transformer_blocks[1].norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    model.save_pretrained(tmp_path / "shared")
    found = diffusers_read.read(tmp_path / "shared")
    assert not found.options["own_embeddings"]
    close(ours(restored(found), labels), theirs(model, labels))


@pytest.mark.parametrize("options", [{}, {"attention": False, "quant_conv": False}], ids=str)
def test_autoencoders_both_ways(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model: Any = fill(registry.build("autoencoders", KL | options, channels=1))
    latents = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    assert write(tmp_path / "a", model, size=16, latents=latents) == "AutoencoderKL"
    loaded = diffusers.AutoencoderKL.from_pretrained(tmp_path / "a")
    assert loaded.config.latents_mean == latents["mean"] and loaded.config.latents_std == latents["std"]
    x, noise = torch.randn(2, 1, 16, 16), torch.zeros(2, 3, 8, 8)
    with torch.no_grad():
        reconstruction, moments = model(x, noise)
        close(loaded.encode(x).latent_dist.parameters, moments)
        close(loaded(x).sample, reconstruction)  # of the posterior's mean
        loaded.save_pretrained(tmp_path / "b")
        found = diffusers_read.read(tmp_path / "b")
        assert (found.family, found.channels) == ("autoencoders", 1)
        assert found.options == registry.resolve("autoencoders", KL | options)
        close(restored(found)(x, noise)[0], loaded(x).sample)


def test_what_has_no_place_in_diffusers_is_refused_by_name(tmp_path: Path) -> None:
    for name, value in {"qk_norm": True, "rope": True, "rms_norm": True, "long_skips": True, "frequency_shift": 0,
                        "mlp_ratio": 2.0}.items():  # fmt: skip
        with pytest.raises(UserError, match=rf"^`{name}: {value}` .*DiTTransformer2DModel; the presets diffusers"):
            write(tmp_path / name, network({**DIT, name: value}), size=SIZE)
        assert not (tmp_path / name).exists()
    for options in (DIT, UNET):
        with pytest.raises(UserError, match=r"^`tokens: cross` \(expected none\): no place in diffusers'"):
            attends = registry.build("backbones", {**options, "tokens": "cross"}, channels=CHANNELS, size=SIZE)
            write(tmp_path, attends, size=SIZE)
    with pytest.raises(UserError, match=r"`middle_norm: False`.*UNet2DModel"):
        write(tmp_path, network({**DDPM, "middle_norm": False}), size=SIZE)
    with pytest.raises(UserError, match="cannot be exported to diffusers"):
        write(tmp_path, nn.Linear(2, 2), size=SIZE)
    with pytest.raises(UserError, match="'vq' cannot be exported"):
        write(tmp_path, registry.build("autoencoders", {**KL, "kind": "vq"}, channels=3), size=SIZE)


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("unet", {"time_embedding_type": "fourier"}, "`time_embedding_type: fourier` of this UNet2DModel"),
        ("unet", {"center_input_sample": True}, "center_input_sample"),
        ("unet", {"attn_norm_num_groups": 2}, "attn_norm_num_groups"),
        ("unet", {"down_block_types": ["SkipDownBlock2D"] * 3}, "down_block_types"),
        ("unet", {"out_channels": 6}, "learned variance"),
        ("unet", {"of_the_future": 3}, "`of_the_future: 3` .* not known here"),
        ("unet", {"layers_per_block": 2}, "do not fit config.json: backbone.down_blocks.0.resnets.1"),
        ("dit", {"norm_type": "ada_norm"}, "norm_type"),
        ("dit", {"activation_fn": "geglu"}, "activation_fn"),
        ("dit", {"num_layers": 3}, "transformer_blocks.2.* is missing"),
        ("kl", {"act_fn": "relu"}, "act_fn"),
        ("kl", {"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "down_block_types"),
        ("unet", {"in_channels": -3, "out_channels": -3}, "config.json: .*negative"),
        ("unet", {"block_out_channels": [0, 0, 0]}, "config.json: .* by zero"),
        (
            "kl",
            {"_class_name": ["AutoencoderKL"]},
            r"config.json: `_class_name: \['AutoencoderKL'\]`; expected the name",
        ),
        ("kl", {"_class_name": "VQModel"}, "a VQModel; expected one of AutoencoderKL"),
    ],
)
def test_what_has_no_place_here_is_refused_by_name(
    tmp_path: Path, kind: str, changes: dict[str, Any], says: str
) -> None:
    model = registry.build("autoencoders", KL, channels=3) if kind == "kl" else network(UNET if kind == "unet" else DIT)
    write(tmp_path, model, size=SIZE)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=says):
        diffusers_read.read(tmp_path)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"nor config\.json \(one network\) is there; give a folder that diffusers has saved"
    ):
        diffusers_read.read(tmp_path)
    write(tmp_path / "unet", network(UNET), size=SIZE)
    with pytest.raises(UserError, match="give one of its folders: unet"):
        diffusers_read.read(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        diffusers_read.read(tmp_path / "unet")
    weights.unlink()
    with pytest.raises(UserError, match="pickles are not read"):
        diffusers_read.read(tmp_path / "unet")


def test_old_names_of_attention_are_understood(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = network(DDPM)
    write(tmp_path, model, size=SIZE)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, value in load_file(path).items():
        for new, before in old.items():
            key = key.replace(f".{new}.", f".{before}.")
        renamed[key] = value
    save_file(renamed, path)
    found = diffusers_read.read(tmp_path, null_class=True)
    assert all(torch.equal(found.weights[key], value) for key, value in model.state_dict().items())


def test_an_export_says_what_the_edm_path_does_around_the_network(tmp_path: Path) -> None:
    """Input and time by the line that is printed, in diffusers, give the prediction here."""
    folder, out, path = tmp_path / "model", tmp_path / "out", {"kind": "edm", "schedule": "linear"}
    ours, options = network(UNET), {"backbone": UNET, "condition": {"kind": "class"}, "classes": list("abcd")}
    options |= {"path": path, "prediction": "v", "latent": {"channels": CHANNELS, "size": SIZE}}
    vae = registry.build("autoencoders", KL, channels=3)
    space = LatentSpace(torch.zeros(CHANNELS), torch.ones(CHANNELS))
    save_pretrained(
        folder, name="a", image={"size": 16, "channels": 3}, options=options, autoencoder=KL,
        autoencoder_weights=vae.state_dict(), denoiser_weights=ours.state_dict(), space=space,
    )  # fmt: skip
    said = export_diffusers(str(folder), out, tmp_path)[-1]
    assert "1000 log(sigma / 0.002) / log(80 / 0.002)" in said and "over sqrt(1 + sigma^2)" in said
    theirs = diffusers.UNet2DModel.from_pretrained(out / "unet").eval()
    labels, sigma = torch.tensor([0, CLASSES]), torch.tensor([0.5, 20.0])
    x = torch.randn(2, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(3)) * sigma.view(-1, 1, 1, 1)
    with torch.no_grad():
        wanted = predict(ours, x, sigma / 80, {"class": labels}, make_path("edm"))
        given = x / (1 + sigma.square()).sqrt().view(-1, 1, 1, 1)
        times = 1000 * torch.log(sigma / 0.002) / math.log(80 / 0.002)
        found = theirs(given, times, labels).sample
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_student_has_no_sampler_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(options={"student": {"steps": 2}}, pictures_only=lambda what: None)
    monkeypatch.setattr("pipeline.generate.folder.load_pretrained", lambda *given, **how: model)
    with pytest.raises(UserError, match=r"few: is a student, .*; give its teacher") as refused:
        export_diffusers("few", tmp_path / "out", tmp_path)
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()
