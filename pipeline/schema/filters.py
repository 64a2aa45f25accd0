"""`data.filters`: filters against noise, on images before they are resized and stored (`pipeline/data/filters.py`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.schema.section import Section


class GaussianFilter(Section):
    """Convolution with a Gaussian."""

    kind: Literal["gaussian"]
    sigma: float = Field(1.0, gt=0, le=50, description="Standard deviation, in pixels of the source's image.")


class MedianFilter(Section):
    """The median of a square around each pixel: against single wrong pixels."""

    kind: Literal["median"]
    size: int = Field(3, ge=3, le=31, description="Side of the square, in pixels; odd.")

    @model_validator(mode="after")
    def _odd(self) -> MedianFilter:
        if self.size % 2 == 0:
            raise ValueError(f"`size` {self.size} is even; the square has a middle pixel")
        return self


class WaveletFilter(Section):
    """Shrinks wavelet coefficients that are not above the noise, and keeps edges."""

    kind: Literal["wavelet"]
    wavelet: Literal["haar", "db2", "db4", "sym4", "sym8", "coif2", "bior4.4"] = Field(
        "sym4", description="The wavelet, by PyWavelets' name."
    )
    threshold: Literal["bayes", "universal"] = Field(
        "bayes", description="Of a coefficient: BayesShrink by scale, or sigma sqrt(2 log n) for all."
    )
    sigma: float | None = Field(
        None,
        gt=0,
        le=255,
        description="Standard deviation of the noise, in grey levels of 0 to 255; default: estimated.",
    )
    levels: int | None = Field(None, ge=1, le=10, description="Scales; default: as many as fit, up to 5.")
    shifts: int = Field(4, ge=1, le=32, description="Shifts of the image over which the result is averaged.")


Filter = Annotated[GaussianFilter | MedianFilter | WaveletFilter, Field(discriminator="kind")]
