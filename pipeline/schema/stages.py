"""`autoencoder`, `latents`, `evaluate`, `register`: what each stage computes.

The images' section is in `data.py`, the stage diffusion's in `diffusion.py`, what the model is told in `conditions.py`,
the part `training` of both trained stages in `training.py`; `run`, `cluster` and `tracking`, and how a file is read,
are in `pipeline/config.py`. What a model's own options are is said in the model's file (`models/<family>/<kind>.py`):
here they are a plain mapping with a `kind`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.schema.section import LATER, SPEED, Fraction, Place, Positive, Section
from pipeline.schema.training import Training


class Perceptual(Section):
    """Distance of image and reconstruction in the features of a fixed network (models/perceptual.py)."""

    kind: Literal["none", "lpips", "classifier", "random"] = Field(
        "none",
        description="lpips: weights given by `path`; classifier: trained on the data's classes first; random: "
        "untrained convolutions (weak).",
    )
    weight: float = Field(1.0, gt=0, description="Weight of the distance in the loss.")
    network: Literal["vgg", "alex"] = Field("vgg", description="With `lpips`: VGG16 or AlexNet.")
    path: Place | None = Field(
        None,
        description="With `lpips`: the network's ImageNet weights in torchvision's naming (.pth, .safetensors). With "
        "`classifier`: an evaluation's extractor.safetensors, instead of training one.",
    )
    heads: Place | None = Field(
        None, description="With `lpips`: its linear heads (.pth, .safetensors); default: those that torchmetrics ships."
    )
    steps: Positive = Field(500, description="With `classifier`: training steps.")

    @model_validator(mode="after")
    def _weights_given(self) -> Perceptual:
        if self.kind == "lpips" and self.path is None:
            raise ValueError("kind lpips needs `path`, the weights of `network`; or give kind classifier or random")
        if (self.path and self.kind not in ("lpips", "classifier")) or (self.heads and self.kind != "lpips"):
            raise ValueError("`path` goes with kind lpips or classifier, `heads` with lpips")
        return self


class Adversarial(Section):
    """A discriminator of patches that the autoencoder is trained against (models/adversarial.py)."""

    weight: float = Field(0.0, ge=0, description="Weight of the adversarial loss; 0: no discriminator.")
    adaptive: bool = Field(
        True,
        description="Multiply `weight` by the ratio of both losses' gradient norms in the decoder's last layer, as "
        "measured in the step before.",
    )
    start: int = Field(0, ge=0, description="Step at which the discriminator comes in.")
    r1: float = Field(0.0, ge=0, description="Gamma of the R1 penalty on the discriminator; 0: none.")
    learning_rate: float | None = Field(
        None, gt=0, description="Of the discriminator, with the autoencoder's schedule; default: the autoencoder's."
    )
    betas: tuple[float, float] = Field((0.5, 0.9), description="AdamW's decay of the discriminator's two moments.")
    width: int = Field(64, ge=8, multiple_of=8, description="Channels of the discriminator's first layer.")
    layers: int = Field(3, ge=1, le=6, description="Its halvings: a patch is 9 * 2^layers - 2 pixels wide (70 with 3).")


class AutoencoderLoss(Section):
    reconstruction: Literal["l1", "l2"] = Field(
        "l1", description="Distance of image and reconstruction, a mean over pixels."
    )
    kl_weight: float = Field(
        1e-6, ge=0, description="Weight of the KL divergence of a posterior, in nats an image element."
    )
    commitment: float = Field(
        0.25, ge=0, description="With model kind vq: weight of the latents' squared distance to their codes."
    )
    ssim: float = Field(0.0, ge=0, description="Weight of 1 - SSIM (window of 11 pixels); 0: none.")
    equivariance: Fraction = Field(
        0.0,
        description="Share of the steps in which latents are made smaller, down to a quarter, and turned before they "
        "are decoded, and so is the image they are compared with: smoother latents, easier to model (model kl).",
    )
    perceptual: Perceptual = Perceptual()
    adversarial: Adversarial = Adversarial()


class Autoencoder(Section):
    from_: Place | None = Field(
        None, alias="from", description="A finished autoencoder's folder, instead of training one."
    )
    model: dict[str, Any] = Field({"kind": "kl"}, description="`kind`, `preset`, and options of models/autoencoders/.")
    loss: AutoencoderLoss = AutoencoderLoss()
    training: Training

    @model_validator(mode="before")
    @classmethod
    def _nothing_to_train(cls, values: Any) -> Any:
        pinned = isinstance(values, dict) and (values.get("from") or values.get("from_"))
        return {"training": {"steps": 1}, **values} if pinned else values  # nothing is trained: it has no effect

    @model_validator(mode="after")
    def _range(self) -> Autoencoder:
        if self.loss.equivariance and (self.model.get("kind") != "kl" or self.loss.adversarial.weight):
            raise ValueError(
                "`loss.equivariance` is for model kind kl, without `loss.adversarial`; leave one of them out"
            )
        if self.training.precision == "fp16":
            raise ValueError("an autoencoder's activations overflow fp16; give `training.precision` auto, bf16 or fp32")
        if self.training.lora:
            raise ValueError("`training.lora` is for the stage diffusion; leave it out here")
        if self.training.optimizer == "muon" and self.model.get("kind") != "text":
            raise ValueError(
                "`training.optimizer`: muon is for the stage diffusion and model kind text; give adamw here"
            )
        return self


class Latents(Section):
    views: tuple[Literal["as_is", "flip", "crop", "crop_flip"], ...] = Field(
        ("as_is",),
        min_length=1,
        description="Versions of each image that are encoded; a training sample draws one: the middle, mirrored, or a "
        "random crop (each time it is named another one), which needs `data.augment.crop: random`.",
    )
    batch_size: Positive = Field(64, description="Images encoded at once.", json_schema_extra=SPEED)
    statistics: Literal["measured", "autoencoder"] = Field(
        "measured",
        description="Mean and deviation by which latents are normalised: those of the training images, or those "
        "that an imported autoencoder brings (its scaling factor), with which its denoiser was trained.",
        json_schema_extra=LATER,
    )


class Extractor(Section):
    kind: Literal["classifier", "torchscript", "inception"] = Field(
        "classifier",
        description="Features of the Fréchet distance: a classifier trained on the real data, a file, Inception.",
    )
    path: Place | None = Field(None, description="Weights, with `torchscript` and `inception`.")
    digest: str | None = Field(
        None,
        pattern=r"^[0-9a-fA-F]{8,64}$",
        description="First digits (at least 8) of the SHA-256 that `path` must have; default with `inception`: those "
        "of the published file.",
        json_schema_extra=SPEED,
    )
    steps: Positive = Field(500, description="With `classifier`: training steps.")
    rule: Literal["clean-fid", "pytorch-fid"] = Field(
        "clean-fid",
        description="With `inception`: how images are resized and scaled before it, as by the program of this name.",
        json_schema_extra=LATER,
    )

    @model_validator(mode="after")
    def _path_given(self) -> Extractor:
        if (self.kind == "classifier") == (self.path is not None):
            raise ValueError("`path` is given if and only if `kind` is torchscript or inception")
        if self.digest and not self.path:
            raise ValueError("`digest` is that of the file at `path`; leave it out with `kind: classifier`")
        if self.rule != "clean-fid" and self.kind != "inception":
            raise ValueError("`rule` goes with `kind: inception`")
        return self


class Agreement(Section):
    """Whether samples show what they were told: judges that are trained on real images look (guide/agreement.md)."""

    columns: tuple[str, ...] = Field(
        (), description="Columns of the source that are judged: told to the model, or what its captions were made from."
    )
    captions: bool = Field(False, description="Whether a sample is looked up among the captions of held-out images.")
    samples: int = Field(
        400, ge=2, description="Samples, each told a held-out image's row: at most as many as there are."
    )
    steps: Positive = Field(1500, description="Training steps of a judge.")

    @model_validator(mode="after")
    def _something_judged(self) -> Agreement:
        if not self.columns and not self.captions:
            raise ValueError("`agreement` judges nothing: give `columns`, or `captions: true`")
        if len(set(self.columns)) < len(self.columns) or "all" in self.columns:
            raise ValueError(f"`columns` {list(self.columns)}: expected different names, none of them `all`")
        return self


class TextJudge(Section):
    """A small autoregressive model, trained on the training passages: perplexity of samples and of held-out text, and
    its own samples as a yardstick (guide/text.md)."""

    width: Positive = Field(256, description="Channels of a token; a multiple of `heads`.")
    depth: Positive = Field(4, description="Layers.")
    heads: Positive = Field(4, description="Attention heads.")
    steps: Positive = Field(3000, description="Training steps.")
    batch_size: Positive = Field(32, description="Passages a step.")
    learning_rate: float = Field(1e-3, gt=0, description="Of AdamW, at its highest.")

    @model_validator(mode="after")
    def _heads_divide(self) -> TextJudge:
        if self.width % self.heads:
            raise ValueError(f"`heads` {self.heads} does not divide `width` {self.width}")
        return self


class Evaluate(Section):
    weights: Place = Field(
        "ema",
        min_length=1,
        description="Weights that are measured and registered: ema, live, ema-<half-life>, length-<any relative "
        "length>, or a .safetensors file.",
    )
    samples: int = Field(500, ge=2, description="Images that are generated and compared.")
    sampler: Literal["dpmpp_2m", "heun", "euler", "ddim", "ddpm", "euler_ancestral", "dpmpp_sde", "few"] = Field(
        "dpmpp_2m",
        description="Solver of the sampling equation; the last four put in fresh noise at each step. few: for a "
        "student of `diffusion.distil`.",
    )
    steps: Positive = Field(20, description="Steps of the solver.")
    grid: Literal["auto", "uniform", "cosine", "karras", "shifted", "few"] = Field(
        "auto",
        description="Where the steps lie in time; auto: uniform, on the path edm karras; of the sampler few: few.",
    )
    shift: float | None = Field(
        None, gt=0, description="With `shifted`: how many times the noise; default: side of the latents over 32."
    )
    guidance: float = Field(1.0, ge=0, description="Guidance scale; 1: none.")
    guidance_kind: Literal["classifier_free", "autoguidance"] = Field(
        "classifier_free",
        description="What guidance leads away from: the answer without condition, or that of weaker weights.",
    )
    guidance_weak: Literal["live"] | Positive = Field(
        "live",
        description="With `autoguidance`: the weaker weights, live (not averaged) or the average of this half-life in "
        "samples, one of `diffusion.training.half_lives`.",
    )
    guidance_interval: tuple[float, float] | None = Field(
        None, description="Noise levels (noise over data) above and up to which there is guidance; default: all."
    )
    guidance_rescale: Fraction = Field(
        0.0, description="Share in which the guided answer is brought back to the deviation of the plain one."
    )
    noise_left: float = Field(
        0.0,
        ge=0,
        description="Of text: noise level (noise over data) at which sampling ends and the decoder takes over, at most "
        "about the `noise` that the autoencoder was trained with; 0: none is left.",
        json_schema_extra=LATER,
    )
    batch_size: Positive = Field(100, description="Images generated at once.")
    extractor: Extractor = Extractor()
    agreement: Agreement | None = Field(
        None, description="Judges of what samples were told; null: none.", json_schema_extra=LATER
    )
    judge: TextJudge | None = Field(
        None, description="Of text: a model that says how likely a text is; null: none.", json_schema_extra=LATER
    )
    infill: int = Field(
        0,
        ge=0,
        description="Of text, with a judge: held-out passages whose middle third is taken out and written anew.",
        json_schema_extra=LATER,
    )
    bootstrap: int = Field(100, ge=2, description="Resamples behind an interval.")
    seed: int = Field(0, ge=0, description="Seed of the samples.")

    @model_validator(mode="after")
    def _interval(self) -> Evaluate:
        if self.guidance_interval and not 0 <= self.guidance_interval[0] < self.guidance_interval[1]:
            raise ValueError(f"`guidance_interval` {list(self.guidance_interval)}: expected 0 <= low < high")
        return self


class Gate(Section):
    """Figures of an audit (guide/privacy.md) over which no model is registered; what is not given is not looked at."""

    membership_auc: float | None = Field(
        None,
        ge=0.5,
        le=1,
        description="Most AUC by which training images are told from held-out ones; 0.5: not at all.",
        json_schema_extra=LATER,
    )
    membership_tpr: Fraction | None = Field(
        None,
        description="Most training images, as a share, that are found at 1% false positives; 0.01: none.",
        json_schema_extra=LATER,
    )
    copies: Fraction | None = Field(
        None,
        description="Most samples, as a share, that are a training image again, by their pixels.",
        json_schema_extra=LATER,
    )
    copies_features: Fraction | None = Field(
        None,
        description="The same by the features of `evaluate.extractor`: also what is drawn anew.",
        json_schema_extra=LATER,
    )

    @model_validator(mode="after")
    def _something_bounded(self) -> Gate:
        if all(getattr(self, name) is None for name in Gate.model_fields):
            raise ValueError(f"`gate` bounds nothing: give some of {', '.join(Gate.model_fields)}, or leave it out")
        return self


class Register(Section):
    gate: Gate | None = Field(
        None, description="An audit before the model is registered; null: none.", json_schema_extra=LATER
    )
