"""Autoencoders, one kind a file: `Model(config, channels)` with `encode(x) -> moments`, `decode(z) -> x`,
`forward(x, noise) -> (reconstruction, moments)`, `factor` (image side over latent side) and `latent_channels`.
Optional: parts with a bool attribute `activation_checkpointing` (registry.checkpoint_activations).
"""
