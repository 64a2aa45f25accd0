"""What can a run be told? The sections of a config: each key with its meaning, unit, range and default; and names that
several rooms spell alike.
"""
