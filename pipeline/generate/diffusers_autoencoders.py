"""Reads diffusers' autoencoders: `AutoencoderKL`, `AutoencoderTiny` and `AutoencoderDC`, whose weights have our names.

Files and the call are `diffusers_read.py`'s.
"""

from __future__ import annotations

from typing import Any

from pipeline.generate.diffusers_config import Imported, Keys
from pipeline.generate.diffusers_names import Weights

KL_FIXED = {"act_fn": ("silu", "swish"), "down_block_types": "all DownEncoderBlock2D",
            "up_block_types": "all UpDecoderBlock2D"}  # fmt: skip
# block_out_channels is written beside the widths of both ways; the latent's magnitude and shift are of 8-bit files
TINY_FIXED = {"act_fn": ("relu",), "upsample_fn": ("nearest",), "upsampling_scaling_factor": (2,)}
TINY_WITHOUT_EFFECT = ("block_out_channels", "latent_magnitude", "latent_shift")
DC_FIXED = {"encoder_out_shortcut": (True,), "decoder_in_shortcut": (True,), "decoder_conv_act_fn": ("relu",)}
BLOCKS = {"ResBlock": False, "EfficientViTBlock": True}  # whether they attend


def _space(keys: Keys, latents: int, scaling: float) -> tuple[list[float], list[float]]:
    """Mean and deviation by channel: denoisers see (z - mean) / deviation.

    That is (z - shift_factor) * scaling_factor in diffusers, or (z - latents_mean) * scaling_factor / latents_std.
    scaling: where the config is silent.
    """
    scale = float(keys.values.get("scaling_factor") or scaling)
    shift = float(keys.values.get("shift_factor") or 0.0)
    mean = [float(value) for value in keys.values.get("latents_mean") or [shift] * latents]
    std = [float(value) / scale for value in keys.values.get("latents_std") or [1.0] * latents]
    if not len(mean) == len(std) == latents or not min(std) > 0:
        keys.refuse("latents_std", f"expected {latents} means and deviations above 0, and a scaling_factor above 0")
    return mean, std


def _read_kl(keys: Keys, weights: Weights) -> Imported:
    from models.autoencoders import kl

    width, multipliers = keys.widths([64])
    encode, decode = keys.get("use_quant_conv", True), keys.get("use_post_quant_conv", True)
    if encode != decode:
        keys.refuse("use_post_quant_conv", f"expected {encode}, as use_quant_conv")
    config = kl.Config(
        width, multipliers, keys.get("layers_per_block", 1), keys.get("latent_channels", 4),
        bool(keys.get("mid_block_add_attention", True)), keys.get("norm_num_groups", 32), bool(encode),
    )  # fmt: skip
    channels = keys.channels(3)
    keys.fixed(KL_FIXED)
    space = _space(keys, config.latent_channels, 0.18215)
    return Imported("autoencoders", keys.options("kl", config), channels, keys.size, weights, space=space)


def _read_tiny(keys: Keys, weights: Weights) -> Imported:
    from models.autoencoders import tiny

    both = [keys.get(f"{way}_block_out_channels", [64] * 4) for way in ("encoder", "decoder")]
    if len({width for widths in both for width in widths}) != 1:
        keys.refuse("encoder_block_out_channels", "expected one width in all blocks of encoder and decoder")
    config = tiny.Config(
        both[0][0], tuple(keys.get("num_encoder_blocks", (1, 3, 3, 3))),
        tuple(keys.get("num_decoder_blocks", (3, 3, 3, 1))), keys.get("latent_channels", 4),
    )  # fmt: skip
    channels = keys.channels(3)
    keys.seen |= set(TINY_WITHOUT_EFFECT)
    keys.fixed(TINY_FIXED)
    space = _space(keys, config.latent_channels, 1.0)
    return Imported("autoencoders", keys.options("tiny", config), channels, keys.size, weights, space=space)


def _read_dc(keys: Keys, weights: Weights) -> Imported:
    from models.autoencoders import dc

    widths = _both(keys, "block_out_channels", [128, 256, 512, 512, 1024, 1024])
    count = len(widths)
    kinds = _each(_both(keys, "block_types", "ResBlock"), count)
    if not set(kinds) <= set(BLOCKS):
        keys.refuse("encoder_block_types", f"expected {' and '.join(BLOCKS)}")
    attention = tuple(BLOCKS[kind] for kind in kinds)
    every = _both(keys, "qkv_multiscales", [[], [], [], [5], [5], [5]])
    scales = {tuple(scale) for scale, there in zip(every, attention, strict=True) if there}
    if len(scales) > 1:
        keys.refuse("encoder_qkv_multiscales", "expected the same at all resolutions with attention")
    norms = _each(keys.get("decoder_norm_types", "rms_norm"), count)
    pairs = list(zip(norms, _each(keys.get("decoder_act_fns", "silu"), count), strict=True))
    wrong = set(pairs) - {("rms_norm", "silu"), ("batch_norm", "relu")}
    if wrong or any(there and norm != "rms_norm" for there, norm in zip(attention, norms, strict=True)):
        keys.refuse("decoder_norm_types", "expected rms_norm with silu, or in a ResBlock batch_norm with relu")
    ways = {"downsample_block_type": {"pixel_unshuffle": True, "conv": False},
            "upsample_block_type": {"pixel_shuffle": True, "interpolate": False}}  # fmt: skip
    folds: list[bool] = []
    for key, known in ways.items():
        if (value := keys.get(key, next(iter(known)))) not in known:
            keys.refuse(key, f"expected {' or '.join(known)}")
        folds.append(known[value])
    config = dc.Config(
        tuple(widths), tuple(keys.get("encoder_layers_per_block", (2, 2, 2, 3, 3, 3))),
        tuple(keys.get("decoder_layers_per_block", (3, 3, 3, 3, 3, 3))), attention,
        scales.pop() if scales else (), keys.get("attention_head_dim", 32),
        tuple(norm == "batch_norm" for norm in norms), folds[0], folds[1], keys.get("latent_channels", 32),
    )  # fmt: skip
    channels = int(keys.get("in_channels", 3))
    keys.fixed(DC_FIXED)
    space = _space(keys, config.latent_channels, 1.0)
    return Imported("autoencoders", keys.options("dc", config), channels, keys.size, weights, space=space)


def _both(keys: Keys, name: str, default: Any) -> Any:
    """What a config says of encoder and decoder alike."""
    encoder, decoder = keys.get(f"encoder_{name}", default), keys.get(f"decoder_{name}", default)
    if encoder != decoder:
        keys.refuse(f"decoder_{name}", f"expected {encoder}, as encoder_{name}")
    return encoder


def _each(value: Any, count: int) -> list[str]:
    """One for each resolution of what a config may say of all at once."""
    return [value] * count if isinstance(value, str) else list(value)


READERS = {"AutoencoderKL": _read_kl, "AutoencoderTiny": _read_tiny, "AutoencoderDC": _read_dc}
