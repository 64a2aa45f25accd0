"""Reads the folders of diffusers' models: `DiTTransformer2DModel`, `UNet2DModel`, and its autoencoders.

Such a folder holds config.json and safetensors (`diffusers_files.py`); diffusers itself is not needed. An option that
one side has and the other has not is refused by name: a model is read whole, or not at all. Autoencoders are in
`diffusers_autoencoders.py`, the folder of a whole pipeline in `diffusers_folder.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError, brief
from pipeline.files import read_json
from pipeline.generate import diffusers_autoencoders, diffusers_files
from pipeline.generate.diffusers_config import Imported, Keys
from pipeline.generate.diffusers_names import DIT_BLOCK, NULL_CLASS, TIME, Weights

if TYPE_CHECKING:
    from torch import nn


# Keys with one value (or a few) that our networks know: whatever else they say has no place here.
UNET_FIXED = {
    "center_input_sample": (False,), "time_embedding_type": ("positional",), "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,), "act_fn": ("silu", "swish"), "class_embed_type": (None,),
}  # fmt: skip
DIT_FIXED = {"norm_type": ("ada_norm_zero",), "norm_elementwise_affine": (False,), "attention_bias": (True,),
             "attention_type": ("default",)}  # fmt: skip

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.13


def read(folder: str | Path, null_class: bool = False, variant: str | None = None) -> Imported:
    """The model in a folder that diffusers has saved. UserError names what has no place here, or is missing.

    null_class: a UNet's last class is the null class of guidance; else one that adds nothing is put behind the others.
    (A DiT has its null class in its layout.) variant: of the weights, see `diffusers_files.load`.
    """
    folder = Path(folder)
    try:
        config = read_json(folder / "config.json")
        name = config["_class_name"]
    except FileNotFoundError:
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        advice = f"give one of its folders: {', '.join(inside)}" if inside else "give a folder that diffusers has saved"
        missing = "neither model_index.json (a pipeline) nor config.json (one network) is there"
        raise UserError(f"{folder}: {missing}; {advice}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / 'config.json'}: not a config of diffusers") from None
    readers: dict[str, Callable[[Keys, Weights], Imported]] = {
        **diffusers_autoencoders.READERS,
        "DiTTransformer2DModel": _read_dit,
        "Transformer2DModel": _read_dit,  # the class of published DiTs
        "UNet2DModel": lambda keys, weights: _read_unet(keys, weights, null_class),
    }
    if not isinstance(name, str):
        raise UserError(f"{folder / 'config.json'}: `_class_name: {name}`; expected the name of a class")
    if name not in readers:
        raise UserError(f"{folder}: a {name}; expected one of {', '.join(readers)}")
    weights, notes = diffusers_files.load(folder, variant)
    try:
        found = readers[name](Keys(config, folder), _modern(weights))
        _check(found, folder)
    except KeyError as error:
        raise UserError(f"{folder}: {error.args[0]} is missing; the folder is not whole") from None
    except (ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        # of a Config of ours; of a key that holds another type, a zero, or less
        raise UserError(f"{folder / 'config.json'}: {brief(error)}") from None
    return dataclasses.replace(found, notes=(*notes, *found.notes))


def _modern(weights: Weights) -> Weights:
    """The same weights with today's names of attention."""
    old = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
    return {old.sub(lambda m: f"{m[1]}.{OLD_ATTENTION[m[2]]}.", name): value for name, value in weights.items()}


def _read_unet(keys: Keys, weights: Weights, null_class: bool) -> Imported:
    import torch

    from models.backbones import unet

    width, multipliers = keys.widths([224, 448, 672, 896])
    down = keys.get("down_block_types", ["DownBlock2D", *["AttnDownBlock2D"] * 3])
    up = keys.get("up_block_types", [*["AttnUpBlock2D"] * 3, "UpBlock2D"])
    for key, kinds in (("down_block_types", down), ("up_block_types", up)):
        way = "Down" if key.startswith("down") else "Up"
        if set(kinds) - {f"{way}Block2D", f"Attn{way}Block2D", f"Resnet{way}sampleBlock2D"}:
            keys.refuse(key, f"expected {way}Block2D, Attn{way}Block2D or Resnet{way}sampleBlock2D")
    if _attention(down) != _attention(up[::-1]):
        keys.refuse("up_block_types", "expected attention at the same resolutions on both ways")
    # how each level but the last of its way goes to the next one
    ways = {_resample(kind, keys.get("downsample_type", "conv")) for kind in down[:-1]}
    ways |= {_resample(kind, keys.get("upsample_type", "conv")) for kind in up[:-1]}
    if len(ways) > 1:
        keys.refuse("downsample_type", "expected one way of halving and doubling for all resolutions")
    scale_shift = keys.get("resnet_time_scale_shift", "default")
    if scale_shift not in ("default", "scale_shift"):
        keys.refuse("resnet_time_scale_shift", "expected default or scale_shift")
    groups, middle = keys.get("norm_num_groups", 32), keys.get("attn_norm_num_groups", None)
    if middle not in (None, groups):
        keys.refuse("attn_norm_num_groups", f"expected {groups}, as norm_num_groups")
    if keys.get("time_embedding_dim", None) not in (None, 4 * width * multipliers[0]):
        keys.refuse("time_embedding_dim", f"expected {4 * width * multipliers[0]}")
    config = unet.Config(
        width, multipliers, keys.get("layers_per_block", 2), _attention(down), bool(keys.get("add_attention", True)),
        middle is not None or scale_shift == "default", keys.get("attention_head_dim", 8), groups,
        scale_shift == "scale_shift", ways.pop() if ways else "conv", keys.get("downsample_padding", 1),
        keys.get("norm_eps", 1e-5), int(keys.get("freq_shift", 0)),
    )  # fmt: skip
    channels, classes = keys.channels(3), keys.get("num_class_embeds", None)
    flip = keys.get("flip_sin_to_cos", True)
    keys.fixed(UNET_FIXED)
    ours: Weights = {}
    back = {theirs: name for name, theirs in TIME.items()}
    for name, value in weights.items():
        first, second, *rest = name.split(".")
        ours["backbone." + (".".join([first, back[second], *rest]) if first == "time_embedding" else name)] = value
    if not flip:  # sines first there: the other half of the columns
        columns = ours["backbone.time_embedding.up.weight"]
        ours["backbone.time_embedding.up.weight"] = torch.cat(columns.chunk(2, dim=1)[::-1], dim=1)
    notes = []
    if classes is not None:
        table = ours.pop("backbone.class_embedding.weight")
        if null_class:
            classes -= 1
        else:
            table = torch.cat([table, torch.zeros_like(table[:1])])
            notes.append("a null class that adds nothing was put behind the classes (--null-class: the last one is it)")
        ours["conditioner.table.weight"] = table
    return Imported("backbones", keys.options("unet", config), channels, keys.size, ours, classes, tuple(notes))


def _attention(kinds: list[str]) -> tuple[bool, ...]:
    return tuple(kind.startswith("Attn") for kind in kinds)


def _resample(kind: str, given: str) -> str:
    """conv or resnet: only blocks with attention look at the `downsample_type` and `upsample_type` of a config."""
    return given if kind.startswith("Attn") else ("resnet" if kind.startswith("Resnet") else "conv")


def _read_dit(keys: Keys, weights: Weights) -> Imported:
    import torch

    from models.backbones import dit

    heads, depth, p = keys.get("num_attention_heads", 16), keys.get("num_layers", 28), keys.get("patch_size", 2)
    width = heads * keys.get("attention_head_dim", 72)
    gelu = {"gelu": "exact", "gelu-approximate": "tanh"}.get(keys.get("activation_fn", "gelu-approximate"))
    if gelu is None:
        keys.refuse("activation_fn", "expected gelu or gelu-approximate")
    embedders = [f"transformer_blocks.{i}.norm1.emb." for i in range(depth)]
    embedding = [name.removeprefix(embedders[0]) for name in weights if name.startswith(embedders[0])]
    own = any(not torch.equal(weights[e + n], weights[embedders[0] + n]) for e in embedders[1:] for n in embedding)
    config = dit.Config(
        width, depth, heads, p, frequency_shift=1, gelu=str(gelu), mlp_eps=keys.get("norm_eps", 1e-5),
        own_embeddings=own,
    )  # fmt: skip
    classes = keys.get("num_embeds_ada_norm", 1000)
    keys.get("norm_num_groups", 32)  # of other layouts than this one
    channels, notes = keys.get("in_channels", 4), []
    gives = keys.get("out_channels", None) or channels
    if gives not in (channels, 2 * channels):
        keys.refuse("out_channels", f"expected {channels}, as many as go in, or twice that with a learned variance")
    if gives > channels:
        notes.append(f"it also predicts a variance: these {channels} of {gives} outputs were left out")
    keys.fixed(DIT_FIXED)
    ours: Weights = {
        "backbone.embed.weight": weights["pos_embed.proj.weight"].flatten(1),
        "backbone.embed.bias": weights["pos_embed.proj.bias"],
    }
    for part in ("weight", "bias"):
        ours[f"backbone.modulation.{part}"] = weights[f"proj_out_1.{part}"]
        last = weights[f"proj_out_2.{part}"].unflatten(0, (p * p, gives)).transpose(0, 1)[:channels].flatten(0, 1)
        ours[f"backbone.out.{part}"] = last  # rows are (y, x, channel) there, (channel, y, x) here
    for i in range(depth):
        mine, theirs = f"backbone.blocks.{i}.", f"transformer_blocks.{i}."
        time = f"backbone.own_times.{i - 1}." if i > 0 else "backbone.time."
        for part in ("weight", "bias"):
            for name, other in DIT_BLOCK.items():
                ours[f"{mine}{name}.{part}"] = weights[f"{theirs}{other}.{part}"]
            ours[f"{mine}attention.qkv.{part}"] = torch.cat([weights[f"{theirs}attn1.to_{n}.{part}"] for n in "qkv"])
            for name, other in TIME.items() if own or i == 0 else ():
                ours[f"{time}{name}.{part}"] = weights[f"{embedders[i]}timestep_embedder.{other}.{part}"]
    tables = [weights[f"{e}class_embedder.embedding_table.weight"] for e in (embedders if own else embedders[:1])]
    table = torch.cat(tables, dim=1)  # [classes + 1, D]
    if not table.any() and classes in (1, NULL_CLASS):  # as an export of an unconditional model
        return Imported("backbones", keys.options("dit", config), channels, keys.size, ours, None, tuple(notes))
    said = (table[:-1] != table[-1]).any(dim=1).nonzero()  # classes that differ from the null class
    if classes == NULL_CLASS and len(said) and int(said[-1]) + 1 < classes:  # as an export of fewer classes
        classes = int(said[-1]) + 1
        table = torch.cat([table[:classes], table[-1:]])
        notes.append(f"classes {classes} to {NULL_CLASS - 1} are the null class there, and were left out")
    ours["conditioner.table.weight"] = table
    return Imported("backbones", keys.options("dit", config), channels, keys.size, ours, classes, tuple(notes))


def _check(found: Imported, folder: Path) -> None:
    """Refuse weights that are not those of the model that the config describes, by the first name that is wrong."""
    shapes = {name: tuple(value.shape) for name, value in outline(found).state_dict().items()}
    given = {name: tuple(value.shape) for name, value in found.weights.items()}
    for name in sorted(shapes.keys() | given.keys()):
        if shapes.get(name) != given.get(name):
            raise UserError(
                f"{folder}: the weights do not fit config.json: {name} (by our names) has shape {given.get(name)}, "
                f"expected {shapes.get(name)}"
            )


def outline(found: Imported) -> nn.Module:
    """What the weights are of, without numbers: an autoencoder, or a network with its conditioner."""
    import torch

    from models import registry
    from models.diffusion.denoiser import build_network

    if found.family == "autoencoders":
        return registry.outline("autoencoders", found.options, channels=found.channels)
    size = found.size or 2 ** len(found.options.get("multipliers", ())) * found.options.get("patch", 1)
    condition = "none" if found.classes is None else "class"
    with torch.device("meta"):
        return build_network(found.options, condition, found.channels, size, found.classes or 0)
