"""Backbones, one kind a file: `Model(config, channels, size)` with `forward(x, t, condition) -> prediction` like x and
`condition_width`, the width of the vector that it wants of `condition` (models/conditioning/embedded.py: Embedded).
Optional: parts with a bool attribute `activation_checkpointing` (registry.checkpoint_activations); `attends`, true of
one that takes a caption's tokens; an argument `beside` of `Model`: the channels of spatial conditions, taken with x.
"""
