"""`data`: where the images come from, how they are stored, split, met and cached."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.schema import clips, sound
from pipeline.schema.clips import Clip, ClipsSource
from pipeline.schema.filters import Filter
from pipeline.schema.section import LATER, SPEED, Fraction, Place, Positive, Section
from pipeline.schema.sound import Sound, SoundSource
from pipeline.schema.text import TextSource
from pipeline.schema.values import MOST_CHANNELS, RastersSource, Values


class DigitsSource(Section):
    """scikit-learn's 1,797 handwritten digits, 8x8, in ten classes; ships inside that package."""

    kind: Literal["digits"]


class FolderSource(Section):
    """A folder of images; the name of the folder that an image lies in is its class."""

    kind: Literal["folder"]
    path: Place = Field(description="The folder; subfolders are classes.")


class TableSource(Section):
    """A .csv, .tsv or .jsonl file with one row an image, or Parquet files with images or their paths in a column."""

    kind: Literal["table"]
    path: Place = Field(
        description="The .csv, .tsv, .jsonl or .parquet file, or a folder or pattern of .parquet files; image paths in "
        "it are relative to its folder."
    )
    image: str = Field("image", description="Column of the image path; of Parquet: of paths, or of the images' bytes.")
    label: str | None = Field(None, description="Column of the class; none: images have no class.")
    caption: str | None = Field(
        None, description="Column of the caption, kept beside the image; see `diffusion.condition.caption`."
    )
    delimiter: str | None = Field(
        None, description="Between the columns of a .csv or .tsv file, one character or `tab`; default: found."
    )
    encoding: str | None = Field(
        None, min_length=1, description="Of a .csv, .tsv or .jsonl file, such as utf-8 or cp1252; default: found."
    )
    empty_label: str | None = Field(
        None, min_length=1, description="Class of images whose label is empty; default: they have none."
    )

    @model_validator(mode="after")
    def _one_character(self) -> TableSource:
        if self.delimiter not in (None, "tab") and (len(self.delimiter or "") != 1 or self.delimiter in '"\r\n'):
            raise ValueError(f"`delimiter` {self.delimiter!r}: expected one character (no quote), or tab")
        return self


class ArraysSource(Section):
    """Images in an .npz file (arrays `images`, `labels`, or as MedMNIST and Keras name them), or in IDX files, as MNIST
    has them."""

    kind: Literal["arrays"]
    path: Place = Field(description="The .npz file, or the IDX file of images (.gz allowed).")
    labels: Place | None = Field(None, description="The IDX file of labels; an .npz file holds its own.")
    images_key: str | None = Field(
        None, min_length=1, description="Name of the array of images in an .npz file; default: found."
    )
    labels_key: str | None = Field(
        None, min_length=1, description="Name of the array of labels in an .npz file; default: found."
    )
    class_names: tuple[str, ...] | Place | None = Field(
        None, description="Names of the classes 0, 1, ...: a list, or a file with one (JSON, or a name a line)."
    )
    range: tuple[float, float] | None = Field(
        None, description="Values that mean black and white, such as [0, 1] or [-1, 1]; needed for float images."
    )

    @model_validator(mode="after")
    def _range_rises(self) -> ArraysSource:
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"`range` {list(self.range)}: expected the lowest value, then the highest")
        return self


class WebDatasetSource(Section):
    """WebDataset tars, read where they lie. Members of a sample share a key: KEY.jpg, KEY.cls, KEY.json, KEY.txt."""

    kind: Literal["webdataset"]
    path: Place = Field(description="Pattern of the tars (local or fsspec URL), such as data/train-*.tar.")
    val: Place | None = Field(None, description="Pattern of the validation tars, with `data.split.by: shards`.")
    classes: Place | None = Field(
        None, description="JSON file with the list of class names; default: classes.json beside."
    )
    image: str | None = Field(
        None,
        min_length=1,
        description="Which members are the images, by what follows the key's dot, such as png or left.jpg; default: "
        "the first of a sample that is an image; with `data.values`: npy.",
        json_schema_extra=LATER,
    )


class GaussiansSource(Section):
    """Grey images of a mixture of Gaussians, in closed form (`pipeline.data.synthetic.mixture`); the component is the
    class, the coordinates are attributes."""

    kind: Literal["gaussians"]
    count: Positive = Field(2000, description="Images.")
    side: int = Field(16, ge=4, le=256, description="Side of an image, in pixels.")
    components: int = Field(3, ge=1, le=100, description="Components, which are the classes.")
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="Share of each component, up to a factor; default: all equal."
    )
    modes: int = Field(3, ge=2, le=16, description="Waves a side: an image has modes^2 - 1 coordinates.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the components and of the images.")

    @model_validator(mode="after")
    def _weight_each(self) -> GaussiansSource:
        if self.weights is not None and len(self.weights) != self.components:
            raise ValueError(f"{len(self.weights)} `weights` for {self.components} `components`; give one for each")
        if self.modes > self.side:
            raise ValueError(f"`modes` {self.modes} is over `side` {self.side}: so many waves do not fit")
        return self


class ShapesSource(Section):
    """Circles, squares and triangles in colour; their factors (size, place, angle, hue, ...) are attributes."""

    kind: Literal["shapes"]
    count: Positive = Field(2000, description="Images.")
    sizes: tuple[tuple[Annotated[int, Field(ge=8, le=1024)], Annotated[int, Field(ge=8, le=1024)]], ...] = Field(
        ((32, 32),), min_length=1, description="Widths and heights of images, in pixels; each image draws one."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the images.")


Source = Annotated[
    DigitsSource
    | FolderSource
    | TableSource
    | ArraysSource
    | WebDatasetSource
    | GaussiansSource
    | ShapesSource
    | RastersSource
    | SoundSource
    | TextSource
    | ClipsSource,
    Field(discriminator="kind"),
]


class Split(Section):
    by: Literal["key", "column", "shards", "fold", "source"] = Field(
        "key",
        description="What decides on the split: hash of the sample's key, hash of a column's value, the tars, one "
        "fold of the column's values, or the source's own split (Parquet files and arrays that are named train, val).",
    )
    column: str | None = Field(None, description="With `by: column` or `fold`: rows with the same value stay together.")
    val_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of the keys (or values) held out; with `by: fold`, the fold is."
    )
    folds: int | None = Field(
        None,
        ge=2,
        description="With `by: fold`: parts of the column's values, as equal in images as can be.",
    )
    fold: int | None = Field(None, ge=0, description="With `by: fold`: the part that is held out, from 0.")

    @model_validator(mode="after")
    def _column_given(self) -> Split:
        if (self.by in ("column", "fold")) != (self.column is not None):
            raise ValueError("`column` is given if and only if `by` is column or fold")
        if (self.by == "fold") != (self.folds is not None) or (self.by == "fold") != (self.fold is not None):
            raise ValueError("`folds` and `fold` are given if and only if `by` is fold")
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"`fold` {self.fold} of {self.folds} `folds`: they are numbered from 0")
        return self


class Augment(Section):
    crop: Literal["centre", "random"] = Field("centre", description="Where the square is cut, at read.")
    flip: bool = Field(False, description="Mirror half of the images, at read.")


class Balance(Section):
    """How often training meets each class: its share is in proportion to count^(1 - power) x weight."""

    power: float = Field(
        0.0, ge=0, le=1, description="0: as the data are; 1: all classes equally often; between: between."
    )
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="Factor by class name, `(none)` for images without class; 0 leaves a class out; default 1."
    )


Shape = tuple[int, int]  # height and width, in pixels
MOST_SHAPES = 128
NOUNS = {"text": "passage", "clip": "clip", "sound": "sound"}  # of what is no image


class Buckets(Section):
    """Shapes that images are sorted into by the ratio of their sides. A training batch is of one shape."""

    max_ratio: float = Field(2.0, ge=1, le=8, description="Of the longer side to the shorter one, at most.")
    multiple: int = Field(16, ge=8, le=512, description="Both sides are multiples of this many pixels.")
    shapes: tuple[tuple[Annotated[int, Field(ge=8, le=8192)], Annotated[int, Field(ge=8, le=8192)]], ...] | None = (
        Field(
            None,
            min_length=1,
            max_length=MOST_SHAPES,
            description="[height, width] of each bucket, in pixels, of about equal areas; default: all multiples whose "
            "area is at most `data.size` squared and of which neither side can grow.",
        )
    )

    @model_validator(mode="after")
    def _ratios_differ(self) -> Buckets:
        ratios: dict[float, Shape] = {}
        for shape in self.shapes or ():
            if shape[1] / shape[0] in ratios:
                raise ValueError(
                    f"`shapes`: {list(ratios[shape[1] / shape[0]])} and {list(shape)} have the same ratio of sides, so "
                    "that no image says which it belongs to; leave one out"
                )
            ratios[shape[1] / shape[0]] = shape
        return self

    def near(self, size: int) -> tuple[Shape, ...]:
        """(height, width) of each bucket, from the tallest to the widest, for images of about size x size pixels.

        As in the tables of NovelAI and SDXL (Podell et al. 2023, appendix I): for each width the largest height with
        height * width <= size^2, where that width is also the largest for that height.
        """
        if self.shapes is not None:
            return tuple(sorted(self.shapes, key=lambda shape: shape[1] / shape[0]))
        m, area = self.multiple, size * size
        found = []
        for width in range(m, math.isqrt(int(area * self.max_ratio)) + 1, m):
            height = area // width // m * m
            fits = height >= m and max(height, width) <= self.max_ratio * min(height, width)
            if fits and area // height // m * m == width:
                found.append((height, width))
        return tuple(found)


class Cache(Section):
    path: Place | None = Field(
        None, description="Node-local folder of remote shards; default: in the temporary folder."
    )
    gigabytes: float = Field(20.0, gt=0, description="Bound of that folder, in 10^9 bytes.")


class Data(Section):
    source: Source
    size: int = Field(32, ge=8, le=2048, description="Side of the square images, in pixels.")
    channels: int = Field(3, ge=1, le=MOST_CHANNELS, description="1: gray, 3: RGB; with `values` the number of bands.")
    values: Values | None = Field(
        None,
        description="Depth, unit and range of images that are not 8 bits of gray or RGB (`source.kind: rasters`, or "
        ".npy members of `webdataset`).",
        json_schema_extra=LATER,
    )
    clip: Clip | None = Field(
        None, description="What of a clip is one sample (`source.kind: clips`).", json_schema_extra=LATER
    )
    sound: Sound | None = Field(
        None, description="What of sounds models see (`source.kind: sound`).", json_schema_extra=LATER
    )
    background: tuple[int, int, int] = Field((255, 255, 255), description="RGB that transparent images are put on.")
    filters: tuple[Filter, ...] = Field(
        (), description="Filters against noise, one after the other, on each image before it is resized and stored."
    )
    split: Split = Split()
    limit: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Images that are read, at most, in the classes' shares, chosen by key; null: all."
    )
    shard_size: Positive = Field(2048, description="Images a shard, where shards are written.")
    max_pixels: Positive = Field(50_000_000, description="Larger images are refused before they are decoded.")
    max_quarantine: Fraction = Field(0.01, description="Share of unusable images above which ingest fails.")
    augment: Augment = Augment()
    balance: Balance | None = Field(None, description="Classes met more or less often; null: each image once an epoch.")
    buckets: Buckets | None = Field(
        None, description="Shapes by the ratio of an image's sides; null: each image becomes a square."
    )
    on_corrupt: Literal["error", "skip"] = Field(
        "error", description="What an image that cannot be read does: ends the run, or another one stands for it."
    )
    leave_out: Place | None = Field(
        None,
        description="With `on_corrupt: skip`: a file of keys, one a line, whose images count as damaged.",
        json_schema_extra=SPEED,  # by what it names, not where it lies: in the stages' recipes
    )
    lanes: Positive | None = Field(None, description="Lanes of a global batch; default: its largest divisor up to 256.")
    loader_workers: int = Field(
        0, ge=0, le=64, description="Reader processes a rank; 0 reads in the rank.", json_schema_extra=SPEED
    )
    cache: Cache = Field(Cache(), json_schema_extra=SPEED)

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of what models see of a sample where there are no buckets: height and width of a square, of clips the
        number of frames before them, of sound mels and frames of the spectrogram."""
        if self.sound is not None:
            return self.sound.mels, self.sound.frames
        return (*([self.clip.frames] if self.clip else []), self.size, self.size)

    @property
    def shape(self) -> Shape:
        """The last two of `sides`: (height, width) of an image, of a clip's frame, of a spectrogram."""
        height, width = self.sides[-2:]
        return height, width

    @property
    def noun(self) -> str:
        """What people call a sample, in lines that they read; names of metrics say images of all kinds."""
        return noun_of([self.source.kind, *(["clip"] if self.clip else [])])

    @property
    def measured(self) -> bool:
        """Whether models see other than pictures of 8 bits: what values mean is said by a `ValueMap`."""
        return self.values is not None or self.sound is not None

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """(height, width) of each bucket, in pixels; `shape` alone where there are no buckets."""
        return (self.shape,) if self.buckets is None else self.buckets.near(self.size)

    @model_validator(mode="after")
    def _shapes_found(self) -> Data:
        if self.buckets is None or self.buckets.shapes is not None:
            return self
        if self.size % self.buckets.multiple:
            raise ValueError(f"`buckets.multiple` {self.buckets.multiple} does not divide `size` {self.size}")
        if len(self.shapes) > MOST_SHAPES:
            raise ValueError(f"`buckets` are {len(self.shapes)}, {MOST_SHAPES} at most; give a larger `multiple`")
        return self

    @model_validator(mode="after")
    def _values_known(self) -> Data:
        if (self.values is not None) != (self.source.kind == "rasters") and not (
            self.values is not None and self.source.kind == "webdataset"
        ):
            raise ValueError(
                "`values` and `source.kind: rasters` go together: files of measured values, and what these mean (also "
                "of .npy members of `webdataset`)"
            )
        bands = self.source.bands if self.source.kind == "rasters" else None
        if bands and len(bands) != self.channels:
            raise ValueError(f"`source.bands` are {len(bands)}, and `channels` is {self.channels}: give as many")
        if not self.measured and self.channels not in (1, 3):
            raise ValueError(f"`channels` {self.channels}: 1 is gray, 3 RGB; others need `values`")
        if self.values is not None and self.filters:
            raise ValueError("`filters` are for 8-bit images, and `values` says that these are not; leave them out")
        if self.values is not None and self.buckets is not None:
            raise ValueError("`buckets` are for 8-bit images, and `values` says that these are not; leave them out")
        if self.values is not None and (why := self.values.fits(self.channels)):
            raise ValueError(why)
        return self

    @model_validator(mode="after")
    def _modality_known(self) -> Data:
        for fits in (clips.fits, sound.fits):
            if why := fits(self):
                raise ValueError(why)
        return self

    @model_validator(mode="after")
    def _text_alone(self) -> Data:
        if self.source.kind != "text":
            return self
        plain = {"filters": (), "buckets": None, "augment": Augment(), "on_corrupt": "error"}
        for key, default in plain.items():
            if getattr(self, key) != default:
                raise ValueError(f"`{key}` is of images, and `source.kind: text` has none; leave it out")
        return self

    @model_validator(mode="after")
    def _leave_out_skips(self) -> Data:
        if self.leave_out and self.on_corrupt == "error":
            raise ValueError("`leave_out` needs `on_corrupt: skip`")
        return self

    @model_validator(mode="after")
    def _val_shards_given(self) -> Data:
        val = getattr(self.source, "val", None)
        if (self.split.by == "shards") != (val is not None):
            raise ValueError(
                "`split.by: shards` needs a webdataset source with `val`, and `val` needs `split.by: shards`"
            )
        if self.split.by == "source" and self.source.kind not in ("table", "arrays"):
            raise ValueError("`split.by: source` is for tables and arrays, which can have a split of their own")
        if self.filters and self.source.kind == "webdataset":
            raise ValueError(
                "`filters` change images as they are stored, but tars are read where they lie; leave them out, or "
                "give the images as a folder or table"
            )
        return self


def noun_of(about: Collection[str]) -> str:
    """What people call a sample of data, by what is said of them: a kind of source, or a key of ingest's summary."""
    return next((noun for key, noun in NOUNS.items() if key in about), "image")


def text(shape: Sequence[int]) -> str:
    """A shape for people, HEIGHTxWIDTH, as `ldm sample --size` takes it."""
    return f"{shape[0]}x{shape[1]}"
