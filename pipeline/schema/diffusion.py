"""`diffusion`: what is trained in the latent space, on which objective, and what is added to it.

A backbone's own options are in `models/backbones/`, what the model is told is in `conditions.py`, the part `training`
in `training.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.schema.conditions import Condition
from pipeline.schema.section import LATER, SPEED, Fraction, Place, Positive, Section
from pipeline.schema.training import Training

# What a path is trained with where a config does not say. edm as of Karras et al. 2024, "EDM2", won the
# comparison in docs/results/objectives.md.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "edm": {"prediction": "v", "times": {"kind": "edm"}, "weighting": "edm"},
    "rectified_flow": {"prediction": "velocity", "times": {"kind": "uniform"}, "weighting": "uniform"},
    "variance_preserving": {"prediction": "v", "times": {"kind": "uniform"}, "weighting": "uniform"},
}
EDM_MEAN = 0.3  # of the log noise level, where latents have deviation 1 (Karras et al. 2024: -0.4 at sigma_data 0.5)


Schedule = Literal["linear", "cosine", "zero_terminal_snr", "ddpm_linear", "ddpm_scaled_linear", "ddpm_cosine"]


class DiffusionPath(Section):
    kind: Literal["edm", "rectified_flow", "variance_preserving"] = Field(
        "edm",
        description="The forward process; edm adds noise up to 80 deviations of the data, and is meant for "
        "`prediction: v` (its preconditioning), `times.kind: edm`, `weighting: edm`.",
    )
    schedule: Schedule = Field(
        "cosine",
        description="With `variance_preserving`: its noise schedule; zero_terminal_snr is linear, moved to end in "
        "noise; ddpm_*: the thousand steps of published models.",
    )
    betas: tuple[float, float] = Field(
        (1e-4, 0.02),
        description="With `ddpm_linear` and `ddpm_scaled_linear`: variance of the noise in the first and last step.",
        json_schema_extra=LATER,
    )

    @model_validator(mode="after")
    def _betas(self) -> DiffusionPath:
        if not 0 < self.betas[0] <= self.betas[1] < 1:
            raise ValueError(f"`betas` {list(self.betas)}: expected 0 < first <= last < 1")
        if self.betas != (1e-4, 0.02) and self.schedule not in ("ddpm_linear", "ddpm_scaled_linear"):
            raise ValueError(f"`betas` goes with `schedule` ddpm_linear and ddpm_scaled_linear, not {self.schedule}")
        return self


class Times(Section):
    kind: Literal["uniform", "logit_normal", "edm"] = Field(
        "edm",
        description="Density of the training times in (0, 1); edm: log-normal noise level (noise over data), any path. "
        "Default: edm on the path edm, else uniform.",
    )
    mean: float = Field(
        EDM_MEAN,
        description="With `logit_normal`: mean of the logit (default 0); `edm`: of the log noise level (default 0.3).",
    )
    std: float = Field(
        1.0, gt=0, description="With `logit_normal`: standard deviation of the logit; `edm`: of the log noise level."
    )

    @model_validator(mode="before")
    @classmethod
    def _mean_of_kind(cls, values: Any) -> Any:
        given = isinstance(values, dict) and values.get("kind", "edm") != "edm"
        return {"mean": 0.0, **values} if given else values


class FdCurve(Section):
    """A curve of the Fréchet distance of a few samples in training: always of the same noise, classes and count."""

    every: int = Field(0, ge=0, description="Steps between two points; 0: no curve.")
    samples: int = Field(
        256, ge=50, description="Images in each of the two sets: at most this, and as many as there are; its name says."
    )
    steps: Positive = Field(10, description="Steps of the sampler (heun, no guidance).")


class Distil(Section):
    """A student of few steps: the network of `training.init_from` learns to jump along its own walk
    (models/diffusion/distillation.py)."""

    steps: int = Field(2, ge=1, le=8, description="Evaluations of a sample.")

    guidance: float = Field(
        1.0, ge=0, description="Guidance scale of the teacher's answers; the student's have it in them."
    )


class Route(Section):
    """Tokens at random go past some blocks, in training only (models/routing.py)."""

    share: float = Field(0.5, gt=0, lt=1, description="Share of the tokens that go past.")
    blocks: tuple[int, int] | None = Field(
        None,
        description="The first of these blocks, counted from 0, and the one behind the last; default: from a sixth of "
        "the blocks to two thirds.",
    )


class Align(Section):
    """Tokens in the middle come near what a teacher says of the same image (models/diffusion/inside.py)."""

    teacher: Place = Field(
        "self",
        min_length=1,
        description="self: the averaged network's own tokens, behind a deeper block, at less noise. Or a TorchScript "
        "file: uint8 images [n, 3, H, W], decoded from the latents, to features [n, d, h, w].",
    )
    digest: str | None = Field(
        None,
        pattern=r"^[0-9a-fA-F]{8,64}$",
        description="First digits (at least 8) of the SHA-256 that the file must have.",
        json_schema_extra=SPEED,
    )
    weight: float = Field(0.5, gt=0, description="In the loss.")
    depth: Positive | None = Field(None, description="Blocks before the tokens that learn; default: a third of them.")
    teacher_depth: Positive | None = Field(
        None, description="With `self`: blocks before the tokens that teach; default: two thirds of them."
    )
    nearer: Fraction = Field(
        0.2,
        description="With `self`: by up to how much smaller the share of noise, sigma / (alpha + sigma), is that the "
        "teacher sees.",
    )

    @model_validator(mode="after")
    def _of_self(self) -> Align:
        if self.teacher != "self" and (self.teacher_depth or self.nearer != 0.2):
            raise ValueError("`teacher_depth` and `nearer` go with `teacher: self`")
        if self.teacher == "self" and self.digest:
            raise ValueError("`digest` is that of a file in `teacher`")
        return self


class Diffusion(Section):
    backbone: dict[str, Any] = Field({"kind": "dit"}, description="`kind`, `preset`, and options of models/backbones/.")
    condition: Condition = Condition()
    path: DiffusionPath = DiffusionPath()
    times: Times = Times()
    prediction: Literal["eps", "x0", "v", "velocity"] = Field(
        "v", description="What the backbone is trained to give. Default: v, on the path rectified_flow velocity."
    )
    weighting: Literal["uniform", "min_snr", "edm"] = Field(
        "edm", description="Weight of a time in the loss. Default: edm on the path edm, else uniform."
    )
    cosine: float = Field(
        0.0,
        ge=0,
        description="Weight, in the loss, of 1 - cosine of the angle between prediction and target over channels; 1 as "
        "LightningDiT has it.",
        json_schema_extra=LATER,
    )
    self_conditioning: bool = Field(
        False,
        description="Tell the network its own guess of x0, of half of the samples in training, of the step before in "
        "sampling (Chen et al. 2022); a training step costs a third more.",
        json_schema_extra=LATER,
    )
    contrastive: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Weight, taken off the loss, of the prediction's squared distance to other samples' targets; "
        "0.05 as of contrastive flow matching. Predictions come out larger by 1 / (1 - weight).",
        json_schema_extra=LATER,
    )
    dispersive: float = Field(
        0.0,
        ge=0,
        description="Weight, in the loss, of how near to each other the tokens of different samples are in the middle "
        "of the network; 0.5 as of dispersive loss. A multiple of 16 samples a forward pass.",
        json_schema_extra=LATER,
    )
    align: Align | None = Field(
        None,
        description="Draw tokens in the middle of the network near what a teacher says; null: no.",
        json_schema_extra=LATER,
    )
    route: Route | None = Field(
        None,
        description="Let some tokens go past blocks in training: for 256 tokens and more; null: no.",
        json_schema_extra=LATER,
    )
    distil: Distil | None = Field(
        None,
        description="Train a student of few steps; null: a denoiser. `ldm distil` sets it.",
        json_schema_extra=LATER,
    )
    training: Training
    fd: FdCurve = Field(FdCurve(), json_schema_extra=SPEED)

    @model_validator(mode="before")
    @classmethod
    def _objective_of_path(cls, values: Any) -> Any:
        path = values.get("path") if isinstance(values, dict) else None
        kind = path.get("kind") if isinstance(path, dict) else getattr(path, "kind", None)
        return {**OBJECTIVES.get(kind or "edm", {}), **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _has_teacher(self) -> Diffusion:
        inside = [key for key in ("dispersive", "align", "route") if getattr(self, key)]
        if inside and (self.distil or self.training.lora):
            raise ValueError(f"`{inside[0]}` is for a denoiser of which all is trained: neither `distil` nor `lora`")
        if not self.distil:
            return self
        if not self.training.init_from or self.training.lora:
            raise ValueError("`distil` needs its teacher in `training.init_from`, and trains all weights: no `lora`")
        return self

    @model_validator(mode="after")
    def _finite_loss(self) -> Diffusion:
        # sigma^2 falls like t, so |d(alpha, sigma)/dt|^2 grows like 1/t: its mean over uniform times has no bound
        preserving = self.path.kind == "variance_preserving"
        linear = preserving and self.path.schedule != "cosine"
        if linear and (self.prediction, self.times.kind, self.weighting) == ("velocity", "uniform", "uniform"):
            raise ValueError(
                f"`prediction: velocity` has an infinite mean loss on the path {self.path.schedule} with uniform "
                "times; expected eps, x0 or v, or `schedule: cosine`, `times.kind: logit_normal`, `weighting: min_snr`"
            )
        # 1 + SNR times the error of x0 is (1 + SNR) / SNR times that of eps: like 1/(1 - t)^2 where alpha ends at 0
        ended = preserving and self.path.schedule in ("cosine", "zero_terminal_snr")
        ends = self.path.kind == "rectified_flow" or ended
        if ends and (self.prediction, self.times.kind, self.weighting) == ("eps", "uniform", "edm"):
            raise ValueError(
                "`weighting: edm` with `prediction: eps` has an infinite mean loss under uniform times where no data "
                "are left at the end of the path; expected v or velocity, or `times.kind` logit_normal or edm"
            )
        if (self.prediction, self.times.kind, self.weighting) == ("x0", "uniform", "edm"):  # like 1/sigma^2 at t = 0
            raise ValueError(
                "`weighting: edm` with `prediction: x0` has an infinite mean loss under uniform times: at little noise "
                "its weight has no bound; expected v or velocity, or `times.kind` logit_normal or edm"
            )
        return self
