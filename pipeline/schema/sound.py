"""Sound as data: `data.source.kind: sound`, files of sounds, and `data.sound`, what of them models see."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.schema.section import Place, Section

Decibels = Annotated[float, Field(ge=-200, le=200)]


class SoundSource(Section):
    """Sounds in .wav, .flac, .ogg, .aiff files: a folder of them, whose subfolders are classes, or a table with one row
    a sound. Needs the extra `sound`."""

    kind: Literal["sound"]
    path: Place = Field(description="A folder of such files, one file, or a .csv, .tsv, .jsonl or .parquet table.")
    sound: str = Field("sound", min_length=1, description="Of a table: the column of the sounds' paths.")
    label: str | None = Field(None, description="Of a table: the column of the class; none: sounds have no class.")
    caption: str | None = Field(
        None, description="Of a table: the column of the caption; see `diffusion.condition.caption`."
    )
    cut: Literal["start", "all"] = Field(
        "start",
        description="What of a file longer than `data.sound.seconds` is taken: its start, or all of it as sounds of "
        "that length, one after the other; the last is left out where it is less than half.",
    )
    longest: float = Field(
        600.0, gt=0, le=36_000, description="Seconds of a file at most; a longer one goes to quarantine, undecoded."
    )


class Sound(Section):
    """What of a sound models see: a log-mel spectrogram of `data.channels` x mels x (seconds x rate / hop)."""

    rate: int = Field(16_000, ge=1000, le=192_000, description="Samples a second; files of others are resampled.")
    seconds: float = Field(
        1.024, gt=0, le=60, description="Length of a sound: what is longer is cut, what is shorter followed by silence."
    )
    mels: int = Field(64, ge=8, le=512, description="Bands of the spectrogram, its height.")
    hop: int = Field(256, ge=2, le=8192, description="Samples from a frame to the next; frames are the width.")
    window: int = Field(1024, ge=4, le=16_384, description="Samples of a frame (Hann's window): some times `hop`.")
    lowest: float = Field(20.0, ge=0, description="Frequency where the lowest band begins, in Hz.")
    highest: float | None = Field(None, gt=0, description="Where the highest one ends, in Hz; default: half the rate.")
    decibels: tuple[Decibels, Decibels] = Field(
        (-80.0, 10.0),
        description="Power of a band in dB that is -1 to the models, and that which is 1; a sine of full scale has "
        "about 0. What is beyond is cut.",
    )
    loudness: Literal["as_is", "peak", "rms"] = Field(
        "as_is",
        description="As it is; or each sound scaled: its largest sample to 1, or its power to -20 dB of full scale.",
    )
    dtype: Literal["int16", "float32"] = Field("int16", description="Type of a value in the .wav files of samples.")

    @property
    def frames(self) -> int:
        return round(self.seconds * self.rate / self.hop)

    @model_validator(mode="after")
    def _whole_frames(self) -> Sound:
        frames = max(1, self.frames)
        if self.frames < 1 or abs(self.seconds * self.rate - frames * self.hop) > 1e-6 * self.rate:
            raise ValueError(
                f"`seconds` {self.seconds:g} at {self.rate} samples a second are no whole number of hops of "
                f"{self.hop}; {frames * self.hop / self.rate:.6g} are {frames}"
            )
        if self.window % self.hop or self.window < 2 * self.hop or self.window // self.hop % 2:
            raise ValueError(f"`window` {self.window}: expected 2, 4, 6 ... times `hop` ({self.hop})")
        highest = self.rate / 2 if self.highest is None else self.highest
        if not self.lowest < highest <= self.rate / 2:
            raise ValueError(
                f"`lowest` {self.lowest:g} and `highest` {highest:g}: expected a rise, up to half the `rate` at most"
            )
        if not self.decibels[1] - self.decibels[0] >= 1:
            raise ValueError(f"`decibels` {list(self.decibels)}: expected the lowest power, then the highest")
        return self


def fits(data: Any) -> str | None:
    """Why a `data` section cannot be of sound, or not be; None where all is well."""
    if (data.sound is not None) != (data.source.kind == "sound"):
        return "`sound` and `source.kind: sound` go together: files of sounds, and what models see of them"
    if data.sound is None:
        return None
    if data.channels not in (1, 2):
        return f"`channels` {data.channels}: of sound 1 is mono, 2 stereo"
    for key in ("size", "filters", "buckets", "augment"):
        if getattr(data, key) != type(data).model_fields[key].default:
            instead = "; `sound.mels` and `sound.seconds` say it" * (key == "size")
            return f"`{key}` is of images, and `source.kind: sound` has none{instead}; leave it out"
    return None
