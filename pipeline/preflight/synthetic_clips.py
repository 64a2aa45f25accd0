"""Clips for a rehearsal where none are ingested yet."""

from __future__ import annotations

import math

from pipeline.artifacts import Artifact, Store
from pipeline.config import Config


def synthetic_clips(config: Config, store: Store, count: int) -> Artifact:
    """An artifact of so many clips, their frames of one colour, in the config's size and length, written by ingest
    itself."""
    import numpy as np

    from pipeline.cluster.inline import Inline
    from pipeline.generate.clip_samples import webp
    from pipeline.schema.clips import ClipsSource
    from pipeline.schema.data import Split
    from pipeline.stages import ingest

    assert config.data.clip
    frames, folder = max(2, config.data.clip.frames), store.root / "rehearsal"
    for name in "ab":  # classes, should the model be told some
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        colours = np.array([[[[i % 251, 40 * k % 251, (i // 251 + 90 * k) % 251]]] for k in range(frames)], np.uint8)
        (folder / "ab"[i % 2] / f"{i:06d}.webp").write_bytes(
            webp(colours.repeat(8, 1).repeat(8, 2), config.data.clip.rate)
        )
    source = ClipsSource(kind="clips", path=str(folder))
    clip = config.data.clip.model_copy(update={"longest": math.inf, "most_frames": frames})
    changed = {"source": source, "clip": clip, "split": Split(val_fraction=0.3), "max_quarantine": 1.0, "limit": None}
    of_clips = config.model_copy(update={"data": config.data.model_copy(update=changed)})
    with store.write("ingest", "rehearsal", {}, {}) as writer:
        return writer.finish(ingest.run(of_clips, {}, writer, Inline(), None))
