"""Names that diffusers gives what our networks have too."""

from __future__ import annotations

from typing import Any

WEIGHTS = "diffusion_pytorch_model"
Weights = dict[str, Any]  # name -> tensor
DIT_BLOCK = {  # of ours (`blocks.N.`): of theirs (`transformer_blocks.N.`)
    "attention.out": "attn1.to_out.0",
    "mlp.up": "ff.net.0.proj",
    "mlp.down": "ff.net.2",
    "modulation": "norm1.linear",
}
TIME = {"up": "linear_1", "down": "linear_2"}  # of ours, in a TimeEmbedding: of theirs, in a TimestepEmbedding
# The null class of every DiT in diffusers' DiTPipeline, which knows no other number of classes.
NULL_CLASS = 1000
