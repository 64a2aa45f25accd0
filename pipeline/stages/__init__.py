"""Which stages are there, and in which order do they run? One file a stage: what goes in, what decides on it, what
comes out.

A stage imports rooms, and no room below imports a stage. What the trained stages learn is in `tasks/`.
"""
