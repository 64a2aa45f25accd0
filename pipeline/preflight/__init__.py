"""Would it work on these machines? Questions to each node, a rehearsal of one real step, verdicts with their
thresholds.
"""
