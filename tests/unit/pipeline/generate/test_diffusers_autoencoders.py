"""Autoencoders that diffusers saves: latents and images are its own to 1e-5; what has no place here is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models import registry
from pipeline.errors import UserError
from pipeline.generate import diffusers_read

diffusers = pytest.importorskip("diffusers")

WIDTHS = {f"{way}_block_out_channels": (8, 16, 16) for way in ("encoder", "decoder")}
KINDS = {f"{way}_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock") for way in ("encoder", "decoder")}
DC = {"latent_channels": 4, "attention_head_dim": 8, **WIDTHS, **KINDS}
TINY = {f"{way}_block_out_channels": (8, 8, 8) for way in ("encoder", "decoder")}
TINY |= {f"num_{way}_blocks": (1, 2, 1) for way in ("encoder", "decoder")}


def scales(*kernels: int) -> dict[str, Any]:
    return {f"{way}_qkv_multiscales": ((), (), kernels) for way in ("encoder", "decoder")}


SAVED: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("AutoencoderTiny", {**TINY, "latent_channels": 3}),
    "dc of sana": ("AutoencoderDC", {
        **DC, **scales(5), "encoder_layers_per_block": (1, 2, 1), "decoder_layers_per_block": (1, 1, 2),
        "upsample_block_type": "interpolate", "downsample_block_type": "conv", "scaling_factor": 0.41407}),
    "dc of imagenet": ("AutoencoderDC", {
        **DC, **scales(), "encoder_layers_per_block": (0, 2, 1), "decoder_layers_per_block": (0, 1, 2),
        "decoder_norm_types": ("batch_norm", "batch_norm", "rms_norm"), "decoder_act_fns": ("relu", "relu", "silu")}),
}  # fmt: skip


def saved(folder: Path, name: str, **changes: Any) -> Any:
    kind, options = SAVED[name]
    torch.manual_seed(0)
    model = getattr(diffusers, kind)(**{**options, **changes})
    for value in (*model.parameters(), *(b for key, b in model.named_buffers() if "running" in key)):
        value.data += 0.1 * torch.rand_like(value)
    model.eval().save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", SAVED)
@torch.no_grad()
def test_latents_and_images_are_those_of_diffusers(tmp_path: Path, name: str) -> None:
    theirs = saved(tmp_path, name)
    found = diffusers_read.read(tmp_path)
    assert not found.notes
    ours: Any = registry.build("autoencoders", found.options, channels=found.channels)
    ours.load_state_dict(found.weights)
    x = torch.rand(2, 3, 32, 16) * 2 - 1
    encoded = theirs.encode(x)
    z = encoded.latents if name == "tiny" else encoded.latent
    assert z.std() > 0.01
    torch.testing.assert_close(ours.eval().encode(x).chunk(2, 1)[0], z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.decode(4 * z), theirs.decode(4 * z).sample, rtol=1e-5, atol=1e-5)
    scale = 0.41407 if name == "dc of sana" else 1.0
    assert found.space == ([0.0] * z.shape[1], [1 / scale] * z.shape[1])


def test_the_space_of_a_kl_autoencoder(tmp_path: Path) -> None:
    small = {"block_out_channels": (8,), "latent_channels": 2, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    for number, (said, space) in enumerate(
        [
            ({}, ([0.0, 0.0], [1 / 0.18215] * 2)),
            ({"scaling_factor": 0.5, "shift_factor": 0.1}, ([0.1, 0.1], [2.0, 2.0])),
            ({"scaling_factor": 0.5, "latents_mean": [1.0, 2.0], "latents_std": [3.0, 4.0]}, ([1.0, 2.0], [6.0, 8.0])),
        ]
    ):
        diffusers.AutoencoderKL(**small, **kinds, **said).save_pretrained(tmp_path / str(number))
        assert diffusers_read.read(tmp_path / str(number)).space == space
    diffusers.AutoencoderKL(**small, **kinds, latents_std=[1.0, 0.0]).save_pretrained(tmp_path / "zero")
    with pytest.raises(UserError, match=r"`latents_std: \[1\.0, 0\.0\]`.*expected 2 means and deviations above 0"):
        diffusers_read.read(tmp_path / "zero")


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("tiny", {"decoder_block_out_channels": (16, 16, 16)}, "encoder_block_out_channels.*expected one width"),
        ("tiny", {"act_fn": "gelu"}, "`act_fn: gelu`.*expected relu"),
        ("tiny", {"upsample_fn": "bilinear"}, "upsample_fn.*expected nearest"),
        ("dc of sana", {"encoder_out_shortcut": False}, "encoder_out_shortcut.*expected True"),
        ("dc of sana", {"decoder_conv_act_fn": "silu"}, "decoder_conv_act_fn.*expected relu"),
        ("dc of sana", {"decoder_act_fns": "relu"}, "decoder_norm_types.*expected rms_norm with silu"),
        ("dc of sana", {"decoder_qkv_multiscales": ((), (), ())}, "decoder_qkv_multiscales.*as encoder_qkv_mul"),
    ],
)  # fmt: skip
def test_what_has_no_place_here_is_refused_by_name(
    tmp_path: Path, name: str, changes: dict[str, Any], says: str
) -> None:
    saved(tmp_path, name, **changes)
    with pytest.raises(UserError, match=says):
        diffusers_read.read(tmp_path)
