"""Where does it run? A Ray cluster, local or joined; tasks, actors and ranks on it; signals and drains; a Slurm
allocation.

What a rank does is in `training/`; what runs in which order, in `stages/`. Only here is ray imported.
"""
