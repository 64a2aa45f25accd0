"""One config, many values: which elements there are, who runs them, which values come next, who has won.

What the elements leave for each other is `past/sweep_folder.py`; who is stopped early, `training/prune.py`, since a
rank decides it.
"""
