"""Clips as data: `data.source.kind: clips`, files of moving pictures, and `data.clip`, what of them is one sample."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.schema.section import Place, Positive, Section


class ClipsSource(Section):
    """A folder of clips (animated .webp, .gif and .apng; .mp4, .webm, .mov, .mkv with the extra `video`), where the
    name of the folder that a clip lies in is its class; or a .csv, .tsv or .jsonl table with one row a clip."""

    kind: Literal["clips"]
    path: Place = Field(description="The folder, or the table; paths in a table are relative to its folder.")
    column: str = Field("clip", min_length=1, description="Of a table: the column of the clip's path.")
    label: str | None = Field(None, description="Of a table: the column of the class; none: clips have no class.")
    caption: str | None = Field(
        None, description="Of a table: the column of the caption; see `diffusion.condition.caption`."
    )


class Clip(Section):
    """Which frames of a clip a model sees, and which clips are taken. Frames have `data.size` and `data.channels`."""

    frames: Positive = Field(description="Frames of a sample: a window of the clip. A shorter clip goes to quarantine.")
    rate: Annotated[float, Field(gt=0, le=240, allow_inf_nan=False)] = Field(
        description="Frames a second: of each step of this length the frame that the clip shows in its middle."
    )
    start: Literal["random", "first", "middle"] = Field(
        "random",
        description="Where the window lies: drawn anew each time a clip is met in training (held-out clips, and the "
        "view as_is of the latents: in the middle), at the beginning, or in the middle.",
    )
    longest: float = Field(60.0, gt=0, le=3600, description="Seconds of a clip at most; longer ones go to quarantine.")
    most_frames: Positive = Field(
        3000, description="Frames of a file at most; one with more goes to quarantine before they are decoded."
    )
    most_pixels: Positive = Field(
        4_000_000_000, description="Pixels of all frames of a file at most; likewise (of one frame: `data.max_pixels`)."
    )

    @model_validator(mode="after")
    def _some_fit(self) -> Clip:
        least = (self.frames - 0.5) / self.rate
        if least >= self.longest:
            raise ValueError(
                f"`frames` {self.frames} at `rate` {self.rate:g} need clips of more than {least:.3g} s, and `longest` "
                f"is {self.longest:g}"
            )
        return self


def fits(data: Any) -> str | None:
    """Why a `data` section cannot be of clips, or not be; None where all is well."""
    if (data.clip is not None) != (data.source.kind == "clips"):
        return "`clip` and `source.kind: clips` go together: files of clips, and what of them is a sample"
    for key in ("filters", "buckets") if data.clip else ():
        if getattr(data, key):
            return f"`{key}` is of images, and `source.kind: clips` has none; leave it out"
    return None
