"""What happens in a step? Loop, engine (DeepSpeed), checkpoints for any world size, the guard, two networks that fight,
averages and their snapshots, early stopping in a sweep.

Knows no images and no latents: what is learned is a `Task` (`tasks/`).
"""
