"""Backbones, one kind a file: `Model(config, channels, size)` with `forward(x, t, condition) -> prediction` like x and
`condition_width`, the width of the vector that it wants of `condition` (models/conditioning/embedded.py: Embedded).
size: the sides of the latents, or a number, of a square (models/patches.py); ValueError for those it does not take.
Optional: parts with a bool attribute `activation_checkpointing` (registry.checkpoint_activations); `attends`, true of
one that takes a caption's tokens; `takes_places`, true of one that may be given latents of unequal length in a batch;
an argument `beside` of `Model`: the channels of spatial conditions, taken with x.
"""
