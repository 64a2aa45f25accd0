"""Writes the folders of diffusers' `AutoencoderKL`, `DiTTransformer2DModel` and `UNet2DModel`.

Such a folder holds config.json and safetensors; diffusers itself is not needed. An option that diffusers has not is
refused by name: a model is written whole, or not at all. Where the files lie is said by `jobs/export.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import save_tensors, write_json
from pipeline.generate.diffusers_names import DIT_BLOCK, NULL_CLASS, TIME, WEIGHTS, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn


def describe(model: nn.Module, **more: Any) -> tuple[dict[str, Any], Weights]:
    """config.json and weights, by diffusers' names, of an autoencoder or a network (models/diffusion/denoiser.py).

    more: of an autoencoder, `size` (side of the images) and `latents` (mean and std by channel); of a network, `size`
    (side of the latents). UserError names every option that has no place there.
    """
    from models.autoencoders import kl
    from models.backbones import dit, unet

    writers: dict[Any, Callable[..., tuple[dict[str, Any], Weights]]] = {
        kl.Config: _write_autoencoder,
        dit.Config: _write_dit,
        unet.Config: _write_unet,
    }
    backbone: Any = getattr(model, "backbone", model)
    config = getattr(backbone, "config", None)
    if type(config) not in writers:  # a kind that builds on another one's options is not that one
        kind = type(backbone).__module__.rpartition(".")[2]
        raise UserError(f"the kind {kind!r} cannot be exported to diffusers; only kl, dit and unet can")
    return writers[type(config)](config, model, **more)


def write(folder: str | Path, described: dict[str, Any], weights: Weights) -> None:
    """Write what `describe` gave as diffusers would."""
    whole = {name: value.detach().float().contiguous().cpu() for name, value in weights.items()}
    save_tensors(Path(folder) / f"{WEIGHTS}.safetensors", whole, {"format": "pt"})
    write_json(Path(folder) / "config.json", described)


def _write_autoencoder(
    config: Any, model: Any, size: int, latents: Mapping[str, list[float]] | None = None
) -> tuple[dict[str, Any], Weights]:
    from models.autoencoders.kl import diffusers_config

    described = diffusers_config(config, model.channels, size)
    if latents:
        described |= {"latents_mean": latents["mean"], "latents_std": latents["std"]}
    return described, model.state_dict()


def normalised(
    described: dict[str, Any], weights: Weights, mean: Tensor, std: Tensor
) -> tuple[dict[str, Any], Weights]:
    """What `describe` gave of an autoencoder, for normalised latents: (z - mean) / std goes into its 1x1 convolutions.

    mean, std: [C]. DiTPipeline knows one scale for all channels and no mean; so it needs none.
    """
    import torch

    weights, channels = dict(weights), len(mean)
    if not described["use_quant_conv"]:  # convolutions that change nothing
        for name, n in (("quant_conv", 2 * channels), ("post_quant_conv", channels)):
            weights |= {f"{name}.weight": torch.eye(n)[:, :, None, None], f"{name}.bias": torch.zeros(n)}
    mean, std = mean.double().cpu(), std.double().cpu()
    weight, bias = (weights[f"quant_conv.{part}"].double().cpu() for part in ("weight", "bias"))
    scale = torch.cat([1 / std, torch.ones_like(std)])  # of the mean; the log-variance is shifted
    weights["quant_conv.weight"] = scale[:, None, None, None] * weight
    weights["quant_conv.bias"] = scale * bias - torch.cat([mean / std, 2 * std.log()])
    weight, bias = (weights[f"post_quant_conv.{part}"].double().cpu() for part in ("weight", "bias"))
    weights["post_quant_conv.weight"] = weight * std[:, None, None]  # [out, in, 1, 1], in = C
    weights["post_quant_conv.bias"] = bias + (weight[:, :, 0, 0] @ mean)
    statistics = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    return {**described, **statistics, "use_quant_conv": True, "use_post_quant_conv": True}, weights


def _write_dit(config: Any, network: Any, size: int) -> tuple[dict[str, Any], Weights]:
    import torch

    needed = {"qk_norm": False, "rope": False, "rms_norm": False, "long_skips": False, "frequency_shift": 1,
              "mlp_ratio": 4.0, "tokens": "none"}  # fmt: skip
    _refuse(config, needed, "DiTTransformer2DModel", "the presets diffusers-*/2 have none of them")
    backbone, state, p = network.backbone, network.state_dict(), config.patch
    table, classes = _table(network)
    if table is None:  # unconditional: one class that says nothing
        table, classes = state["backbone.embed.bias"].new_zeros(2, backbone.condition_width), 1
    if classes < NULL_CLASS:  # where DiTPipeline looks for the null class: filled up with it
        table = torch.cat([table[:-1], table[-1:].expand(NULL_CLASS + 1 - classes, -1)])
        classes = NULL_CLASS
    tables = table.split(config.width, dim=1)  # one a block, where each has its own
    channels, width = backbone.channels, config.width
    out: Weights = {
        "pos_embed.proj.weight": state["backbone.embed.weight"].view(width, channels, p, p),
        "pos_embed.proj.bias": state["backbone.embed.bias"],
    }
    for part in ("weight", "bias"):
        out[f"proj_out_1.{part}"] = state[f"backbone.modulation.{part}"]
        # rows are (channel, y, x) here, (y, x, channel) there
        last = state[f"backbone.out.{part}"].unflatten(0, (channels, p * p)).transpose(0, 1).flatten(0, 1)
        out[f"proj_out_2.{part}"] = last
    for i in range(config.depth):
        ours, theirs = f"backbone.blocks.{i}.", f"transformer_blocks.{i}."
        own = config.own_embeddings and i > 0
        time = f"backbone.own_times.{i - 1}." if own else "backbone.time."
        for part in ("weight", "bias"):
            for name, other in DIT_BLOCK.items():
                out[f"{theirs}{other}.{part}"] = state[f"{ours}{name}.{part}"]
            for name, other in TIME.items():
                out[f"{theirs}norm1.emb.timestep_embedder.{other}.{part}"] = state[f"{time}{name}.{part}"]
            for name, piece in zip("qkv", state[f"{ours}attention.qkv.{part}"].chunk(3), strict=True):
                out[f"{theirs}attn1.to_{name}.{part}"] = piece
        out[f"{theirs}norm1.emb.class_embedder.embedding_table.weight"] = tables[i if config.own_embeddings else 0]
    described = {
        "_class_name": "DiTTransformer2DModel", "num_attention_heads": config.heads,
        "attention_head_dim": width // config.heads, "in_channels": channels, "out_channels": channels,
        "num_layers": config.depth, "sample_size": size, "patch_size": p, "num_embeds_ada_norm": classes,
        "activation_fn": {"exact": "gelu", "tanh": "gelu-approximate"}[config.gelu], "attention_bias": True,
        "norm_type": "ada_norm_zero", "norm_elementwise_affine": False, "norm_eps": config.mlp_eps, "dropout": 0.0,
    }  # fmt: skip
    return described, {name: value.clone() for name, value in out.items()}


def _write_unet(config: Any, network: Any, size: int) -> tuple[dict[str, Any], Weights]:
    _refuse(config, {"tokens": "none"}, "UNet2DModel", "a model that attends to captions stays here")
    if not config.middle_norm and config.middle_attention and not config.scale_shift:
        _refuse(config, {"middle_norm": True}, "UNet2DModel", "with scale_shift: true it has one")
    table, classes = _table(network)
    weights: Weights = {}
    for name, value in network.backbone.state_dict().items():
        first, second, *rest = name.split(".")
        weights[".".join([first, TIME[second], *rest]) if first == "time_embedding" else name] = value
    if table is not None:
        weights["class_embedding.weight"] = table
    resnet = config.resample == "resnet"
    kinds = ["Attn{}Block2D" if there else ("Resnet{}sampleBlock2D" if resnet else "{}Block2D")
             for there in config.attention]  # fmt: skip
    channels = network.backbone.conv_in.in_channels
    return {
        "_class_name": "UNet2DModel", "sample_size": size, "in_channels": channels, "out_channels": channels,
        "block_out_channels": list(config.widths), "layers_per_block": config.blocks,
        "down_block_types": [kind.format("Down") for kind in kinds],
        "up_block_types": [kind.format("Up") for kind in reversed(kinds)],
        "downsample_type": config.resample, "upsample_type": config.resample, "downsample_padding": config.padding,
        "add_attention": config.middle_attention, "attention_head_dim": config.head_width,
        "norm_num_groups": config.groups, "norm_eps": config.norm_eps,
        "attn_norm_num_groups": config.groups if config.middle_norm else None,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        "freq_shift": config.frequency_shift, "flip_sin_to_cos": True, "time_embedding_type": "positional",
        "num_class_embeds": None if table is None else classes + 1, "act_fn": "silu", "dropout": 0.0,
    }, weights  # fmt: skip


def _table(network: Any) -> tuple[Any, int]:
    """The conditioner's table of classes (the null class last) and their number without it; (None, 0): none."""
    if hasattr(network.conditioner, "parts") or network.guesses:
        what = "its own guess" if network.guesses else "attributes, captions and maps"
        raise UserError(f"{what}: diffusers' networks have no place for ours; such a model stays here")
    table = getattr(network.conditioner, "table", None)
    return (None, 0) if table is None else (table.weight, network.conditioner.classes)


def _refuse(config: Any, needed: Mapping[str, Any], theirs: str, advice: str) -> None:
    """UserError if a field has another value than the one that diffusers knows; names all of them."""
    wrong = [f"`{name}: {getattr(config, name)}` (expected {value})" for name, value in needed.items()
             if getattr(config, name) != value]  # fmt: skip
    if wrong:
        raise UserError(f"{', '.join(wrong)}: no place in diffusers' {theirs}; {advice}")
