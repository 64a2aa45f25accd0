"""Which sample comes next, and what is it? Sources, shards and their index, order and draws, readers, cached latents.

Nothing here trains, and nothing knows ranks or trackers: a batch is a function of (seed, position).
"""
