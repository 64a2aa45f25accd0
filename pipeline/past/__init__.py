"""What was, and what may stand beside what? Past runs and their curves, lineage, what nothing refers to, comparisons,
what the elements of a sweep leave for each other.

Reads files only, so that it works while a tracker is down.
"""
