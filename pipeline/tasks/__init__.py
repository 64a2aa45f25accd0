"""What does each network learn? Network, loss, validation and previews of the autoencoder and of the diffusion model,
their yardsticks, encoding, and how a driver and its ranks train one.

How a step works, whatever is learned, is in `training/`.
"""
