"""Names that several rooms must spell alike: the stages in order, and the averages of weights.

Not every run has every stage: which ones a config has is `Config.stages`.
"""

from __future__ import annotations

INPUTS: dict[str, tuple[str, ...]] = {  # of each stage, in the order in which they run
    "ingest": (),
    "conditions": ("ingest",),
    "autoencoder": ("ingest",),
    "encode": ("ingest", "autoencoder"),
    "diffusion": ("ingest", "conditions", "autoencoder", "encode"),
    "evaluate": ("ingest", "autoencoder", "encode", "diffusion"),
    "register": ("ingest", "autoencoder", "encode", "diffusion", "evaluate"),
}
STAGES = tuple(INPUTS)


def length_name(length: float) -> str:
    """The name of a power-function average in `Engine.averages`, in checkpoints, in file names and for `--weights`."""
    return f"length-{length:g}"


def average_name(half_life: int) -> str:
    """The name of an average in `Engine.averages` and in checkpoints."""
    return f"average-{half_life}"
