"""The config of a run: its schema (each key with unit, range and default), strict YAML, overrides, errors with a line.

One YAML file describes a run. What a model's own options are is said in the model's file (`models/<family>/<kind>.py`):
here they are a plain mapping with a `kind`, and `check_models` validates them, late, because that needs torch.
A key marked SPEED changes how fast or how visibly something is computed, not what: it is no part of a fingerprint.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UserError
from pipeline.files import read_json

SPEED: dict[str, Any] = {"changes_result": False}
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen part of the config that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


# ---- run -------------------------------------------------------------------------------------------------------------


class Run(Section):
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Name of the run in MLflow, and of the model."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of weights, order and noise.")
    root: str = Field("runs", description="Folder for artifacts and MLflow's data base; shared by all nodes.")


# ---- data ------------------------------------------------------------------------------------------------------------


class DigitsSource(Section):
    """scikit-learn's 1,797 handwritten digits, 8x8, in ten classes; ships inside that package."""

    kind: Literal["digits"]


class FolderSource(Section):
    """A folder of images; the name of the folder that an image lies in is its class."""

    kind: Literal["folder"]
    path: str = Field(description="The folder; subfolders are classes.")


class TableSource(Section):
    """A .csv or .jsonl file with one row an image."""

    kind: Literal["table"]
    path: str = Field(description="The .csv or .jsonl file; image paths in it are relative to its folder.")
    image: str = Field("image", description="Column of the image path.")
    label: str | None = Field(None, description="Column of the class; none: images have no class.")
    caption: str | None = Field(None, description="Column of the caption, kept beside the image.")


class ArraysSource(Section):
    """Images in an .npz file (arrays `images`, `labels`) or in IDX files, as MNIST has them."""

    kind: Literal["arrays"]
    path: str = Field(description="The .npz file, or the IDX file of images (.gz allowed).")
    labels: str | None = Field(None, description="The IDX file of labels; an .npz file holds its own.")


class WebDatasetSource(Section):
    """WebDataset tars, read where they lie. Members of a sample share a key: KEY.jpg, KEY.cls, KEY.json, KEY.txt."""

    kind: Literal["webdataset"]
    path: str = Field(description="Pattern of the tars (local or fsspec URL), such as data/train-*.tar.")
    val: str | None = Field(None, description="Pattern of the validation tars, with `data.split.by: shards`.")
    classes: str | None = Field(
        None, description="JSON file with the list of class names; default: classes.json beside."
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
    DigitsSource | FolderSource | TableSource | ArraysSource | WebDatasetSource | GaussiansSource | ShapesSource,
    Field(discriminator="kind"),
]


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


class Split(Section):
    by: Literal["key", "column", "shards"] = Field(
        "key", description="What decides on the split: hash of the sample's key, hash of a column's value, or the tars."
    )
    column: str | None = Field(None, description="With `by: column`: rows with the same value stay together.")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="Share of the keys (or values) held out.")

    @model_validator(mode="after")
    def _column_given(self) -> Split:
        if (self.by == "column") != (self.column is not None):
            raise ValueError("`column` is given if and only if `by` is column")
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


class Cache(Section):
    path: str | None = Field(None, description="Node-local folder for remote shards; default: in the temporary folder.")
    gigabytes: float = Field(20.0, gt=0, description="Bound of that folder, in 10^9 bytes.")


class Data(Section):
    source: Source
    size: int = Field(32, ge=8, le=2048, description="Side of the square images, in pixels.")
    channels: Literal[1, 3] = Field(3, description="1: gray, 3: RGB.")
    background: tuple[int, int, int] = Field((255, 255, 255), description="RGB that transparent images are put on.")
    filters: tuple[Filter, ...] = Field(
        (), description="Filters against noise, one after the other, on each image before it is resized and stored."
    )
    split: Split = Split()
    shard_size: Positive = Field(2048, description="Images a shard, where shards are written.")
    max_pixels: Positive = Field(50_000_000, description="Larger images are refused before they are decoded.")
    max_quarantine: Fraction = Field(0.01, description="Share of unusable images above which ingest fails.")
    augment: Augment = Augment()
    balance: Balance | None = Field(None, description="Classes met more or less often; null: each image once an epoch.")
    on_corrupt: Literal["error", "skip"] = Field(
        "error", description="What a sample that cannot be read does in training."
    )
    lanes: Positive | None = Field(None, description="Lanes of a global batch; default: its largest divisor up to 256.")
    loader_workers: int = Field(
        0, ge=0, le=64, description="Reader processes a rank; 0 reads in the rank.", json_schema_extra=SPEED
    )
    cache: Cache = Field(Cache(), json_schema_extra=SPEED)

    @model_validator(mode="after")
    def _val_shards_given(self) -> Data:
        val = getattr(self.source, "val", None)
        if (self.split.by == "shards") != (val is not None):
            raise ValueError(
                "`split.by: shards` needs a webdataset source with `val`, and `val` needs `split.by: shards`"
            )
        if self.filters and self.source.kind == "webdataset":
            raise ValueError(
                "`filters` change images as they are stored, but tars are read where they lie; leave them out, or "
                "give the images as a folder or table"
            )
        return self


# ---- training --------------------------------------------------------------------------------------------------------


class Training(Section):
    batch_size: Positive = Field(128, description="Global batch: samples an optimizer step, over all ranks.")
    micro_batch: Positive | None = Field(
        None,
        description="Most samples a forward pass on a rank: the largest divisor of its share up to this.",
        json_schema_extra=SPEED,
    )
    steps: Positive = Field(description="Optimizer steps.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW.")
    betas: tuple[float, float] = Field((0.9, 0.99), description="AdamW's decay of the two moments.")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay, on matrices only.")
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up.")
    schedule: Literal["constant", "cosine", "wsd"] = Field(
        "constant", description="After warm-up: constant, cosine to 0, or warm-up-stable-decay."
    )
    decay: Fraction = Field(0.2, description="With `wsd`: the share of the steps at the end that falls linearly to 0.")
    clip: float | None = Field(1.0, gt=0, description="Bound of the gradient's global norm; null: none.")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="What DeepSpeed shards over the ranks.", json_schema_extra=SPEED
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, fp16 on one that has not, fp32 on a CPU."
    )
    activation_checkpointing: bool = Field(
        False,
        description="Recompute the activations of each block in the backward pass: less memory, a third more work.",
        json_schema_extra=SPEED,
    )
    compile: bool = Field(
        False,
        description="torch.compile: slow to start (minutes), then faster on a GPU; on a CPU it needs a C++ compiler.",
        json_schema_extra=SPEED,
    )
    half_lives: tuple[Positive, ...] = Field(
        (50_000,), min_length=1, description="Half-lives of the averages of the weights, in samples; the first is used."
    )
    average_lengths: tuple[Annotated[float, Field(gt=0, lt=0.288)], ...] = Field(
        (),
        description="Power-function averages kept as well, by length: the spread (standard deviation) of the moments "
        "averaged over, as a share of the training so far; [0.05, 0.1] is usual.",
    )
    snapshot_every: Positive | None = Field(
        None,
        description="Samples between stored snapshots of these (4 bytes a parameter and length), from which "
        "`ldm average` makes averages of any length; 1/32 of the training is usual, null: none.",
    )
    log_every: Positive = Field(10, description="Steps between two points of a curve.", json_schema_extra=SPEED)
    validate_every: Positive = Field(500, description="Steps between validations.", json_schema_extra=SPEED)
    preview_every: Positive = Field(500, description="Steps between grids of images.", json_schema_extra=SPEED)
    save_every: Positive = Field(500, description="Steps between checkpoints.", json_schema_extra=SPEED)
    keep: Positive = Field(2, description="Checkpoints kept.", json_schema_extra=SPEED)
    max_bad_steps: Positive = Field(
        20, description="Steps in a row with a gradient that is not finite before a roll-back."
    )
    skip: tuple[tuple[int, int], ...] = Field(
        (), description="Stretches [from, to) of positions, in samples, to leave out."
    )
    init_from: str | None = Field(
        None, description="Weights to begin with: an artifact's folder or a .safetensors file."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        for start, end in self.skip:
            if start % self.batch_size or end % self.batch_size or start >= end:
                raise ValueError(f"`skip` [{start}, {end}) is not a stretch of whole batches of {self.batch_size}")
        lengths = {f"{length:g}" for length in self.average_lengths}  # as they are named in files
        if len(set(self.half_lives)) < len(self.half_lives) or len(lengths) < len(self.average_lengths):
            raise ValueError("`half_lives` and `average_lengths` name each average once")
        if self.snapshot_every and not self.average_lengths:
            raise ValueError("`snapshot_every` stores averages of `average_lengths`, which names none; set [0.05, 0.1]")
        return self


# ---- stages ----------------------------------------------------------------------------------------------------------


class Perceptual(Section):
    """Distance of image and reconstruction in the features of a fixed network (models/perceptual.py)."""

    kind: Literal["none", "lpips", "classifier", "random"] = Field(
        "none",
        description="lpips: weights given by `path`; classifier: trained on the data's classes first; random: "
        "untrained convolutions (weak).",
    )
    weight: float = Field(1.0, gt=0, description="Weight of the distance in the loss.")
    network: Literal["vgg", "alex"] = Field("vgg", description="With `lpips`: VGG16 or AlexNet.")
    path: str | None = Field(
        None,
        description="With `lpips`: the network's ImageNet weights in torchvision's naming (.pth, .safetensors). With "
        "`classifier`: an evaluation's extractor.safetensors, instead of training one.",
    )
    heads: str | None = Field(
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
    perceptual: Perceptual = Perceptual()
    adversarial: Adversarial = Adversarial()


class Autoencoder(Section):
    from_: str | None = Field(
        None, alias="from", description="A finished autoencoder's folder, instead of training one."
    )
    model: dict[str, Any] = Field({"kind": "kl"}, description="`kind`, `preset`, and options of models/autoencoders/.")
    loss: AutoencoderLoss = AutoencoderLoss()
    training: Training

    @model_validator(mode="after")
    def _range(self) -> Autoencoder:
        if self.training.precision == "fp16":
            raise ValueError("an autoencoder's activations overflow fp16; give `training.precision` auto, bf16 or fp32")
        return self


class Latents(Section):
    views: tuple[Literal["as_is", "flip", "crop", "crop_flip"], ...] = Field(
        ("as_is",),
        min_length=1,
        description="Versions of each image that are encoded; a training sample draws one: the middle, mirrored, or a "
        "random crop (each time it is named another one), which needs `data.augment.crop: random`.",
    )
    batch_size: Positive = Field(64, description="Images encoded at once.", json_schema_extra=SPEED)


class Condition(Section):
    kind: Literal["none", "class"] = Field("class", description="What the model is told about an image.")
    drop: Fraction = Field(0.1, description="Share of the samples whose condition is withheld, for guidance.")


class DiffusionPath(Section):
    kind: Literal["rectified_flow", "variance_preserving", "edm"] = Field(
        "rectified_flow",
        description="The forward process; edm adds noise up to 80 deviations of the data, and is meant for "
        "`prediction: v` (its preconditioning), `times.kind: edm`, `weighting: edm`.",
    )
    schedule: Literal["linear", "cosine", "zero_terminal_snr"] = Field(
        "cosine",
        description="With `variance_preserving`: its noise schedule; the last is linear, moved to end in noise.",
    )


class Times(Section):
    kind: Literal["uniform", "logit_normal", "edm"] = Field(
        "uniform",
        description="Density of the training times in (0, 1); edm: log-normal noise level (noise over data), any path.",
    )
    mean: float = Field(0.0, description="With `logit_normal`: mean of the logit; `edm`: of the log noise level.")
    std: float = Field(
        1.0, gt=0, description="With `logit_normal`: standard deviation of the logit; `edm`: of the log noise level."
    )


class FdCurve(Section):
    """A curve of the Fréchet distance of a few samples in training: always of the same noise, classes and count."""

    every: int = Field(0, ge=0, description="Steps between two points; 0: no curve.")
    samples: int = Field(
        256, ge=50, description="Images in each of the two sets: at most this, and as many as there are; its name says."
    )
    steps: Positive = Field(10, description="Steps of the sampler (heun, no guidance).")


class Diffusion(Section):
    backbone: dict[str, Any] = Field({"kind": "dit"}, description="`kind`, `preset`, and options of models/backbones/.")
    condition: Condition = Condition()
    path: DiffusionPath = DiffusionPath()
    times: Times = Times()
    prediction: Literal["eps", "x0", "v", "velocity"] = Field(
        "velocity", description="What the backbone is trained to give."
    )
    weighting: Literal["uniform", "min_snr", "edm"] = Field("uniform", description="Weight of a time in the loss.")
    training: Training
    fd: FdCurve = Field(FdCurve(), json_schema_extra=SPEED)

    @model_validator(mode="after")
    def _finite_loss(self) -> Diffusion:
        # sigma^2 falls like t, so |d(alpha, sigma)/dt|^2 grows like 1/t: its mean over uniform times has no bound
        preserving = self.path.kind == "variance_preserving"
        linear = preserving and self.path.schedule in ("linear", "zero_terminal_snr")
        if linear and (self.prediction, self.times.kind, self.weighting) == ("velocity", "uniform", "uniform"):
            raise ValueError(
                "`prediction: velocity` has an infinite mean loss on the linear variance preserving path with uniform "
                "times; expected eps, x0 or v, or `schedule: cosine`, `times.kind: logit_normal`, `weighting: min_snr`"
            )
        # 1 + SNR times the error of x0 is (1 + SNR) / SNR times that of eps: like 1/(1 - t)^2 where alpha ends at 0
        ends = self.path.kind == "rectified_flow" or (preserving and self.path.schedule != "linear")
        if ends and (self.prediction, self.times.kind, self.weighting) == ("eps", "uniform", "edm"):
            raise ValueError(
                "`weighting: edm` with `prediction: eps` has an infinite mean loss under uniform times where no data "
                "are left at the end of the path; expected v or velocity, or `times.kind` logit_normal or edm"
            )
        return self


class Extractor(Section):
    kind: Literal["classifier", "torchscript", "inception"] = Field(
        "classifier",
        description="Features of the Fréchet distance: a classifier trained on the real data, a file, Inception.",
    )
    path: str | None = Field(None, description="Weights, with `torchscript` and `inception`.")
    digest: str | None = Field(
        None,
        pattern=r"^[0-9a-fA-F]{8,64}$",
        description="First digits (at least 8) of the SHA-256 that `path` must have; default with `inception`: those "
        "of the published file.",
        json_schema_extra=SPEED,
    )
    steps: Positive = Field(500, description="With `classifier`: training steps.")

    @model_validator(mode="after")
    def _path_given(self) -> Extractor:
        if (self.kind == "classifier") == (self.path is not None):
            raise ValueError("`path` is given if and only if `kind` is torchscript or inception")
        if self.digest and not self.path:
            raise ValueError("`digest` is that of the file at `path`; leave it out with `kind: classifier`")
        return self


class Evaluate(Section):
    weights: str = Field(
        "ema",
        min_length=1,
        description="Weights that are measured and registered: ema, live, ema-<half-life>, length-<any relative "
        "length>, or a .safetensors file.",
    )
    samples: int = Field(500, ge=2, description="Images that are generated and compared.")
    sampler: Literal["euler", "heun", "ddim", "dpmpp_2m", "ddpm", "euler_ancestral", "dpmpp_sde"] = Field(
        "heun", description="Solver of the sampling equation; the last three put in fresh noise at each step."
    )
    steps: Positive = Field(20, description="Steps of the solver.")
    grid: Literal["auto", "uniform", "cosine", "karras", "shifted"] = Field(
        "auto", description="Where the steps lie in time; auto: uniform, on the path edm karras."
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
    batch_size: Positive = Field(100, description="Images generated at once.")
    extractor: Extractor = Extractor()
    bootstrap: int = Field(100, ge=2, description="Resamples behind an interval.")
    seed: int = Field(0, ge=0, description="Seed of the samples.")

    @model_validator(mode="after")
    def _interval(self) -> Evaluate:
        if self.guidance_interval and not 0 <= self.guidance_interval[0] < self.guidance_interval[1]:
            raise ValueError(f"`guidance_interval` {list(self.guidance_interval)}: expected 0 <= low < high")
        return self


class ClusterConfig(Section):
    workers: Positive | Literal["auto"] = Field(
        "auto", description="Ranks; auto: a GPU each, or all CPUs over `threads`."
    )
    threads: Positive | Literal["auto"] = Field(
        "auto", description="CPU threads a rank; auto: the CPUs over the workers."
    )
    address: str | None = Field(None, description="A running Ray cluster; default: RAY_ADDRESS, or a local one.")
    collective_timeout: Positive = Field(300, description="Seconds after which a collective that hangs is given up.")
    max_failures: int = Field(2, ge=0, description="Restarts of a stage's workers after one of them died.")


class Tracking(Section):
    uri: str | None = Field(
        None, description="MLflow's address; default: MLFLOW_TRACKING_URI, or SQLite in `run.root`."
    )
    experiment: str = Field("latent-diffusion", description="MLflow experiment.")
    model_name: str | None = Field(None, description="Registered model; default: `run.name`.")
    alias: str = Field("latest-good", description="Alias that the new version gets.")
    deadline: Positive = Field(60, description="Seconds at the end to wait for a tracker that is slow or down.")


class Config(Section):
    """A whole run."""

    run: Run
    data: Data
    autoencoder: Autoencoder
    latents: Latents = Latents()
    diffusion: Diffusion
    evaluate: Evaluate = Evaluate()
    cluster: ClusterConfig = Field(ClusterConfig(), json_schema_extra=SPEED)
    tracking: Tracking = Field(Tracking(), json_schema_extra=SPEED)

    @model_validator(mode="after")
    def _room_to_crop(self) -> Config:
        crops = [view for view in self.latents.views if view.startswith("crop")]
        if crops and self.data.augment.crop != "random":
            raise ValueError(
                f"`latents.views` has {crops[0]}, but images are stored without a margin to crop in; "
                "set `data.augment.crop: random`, or leave the crops out"
            )
        return self

    @model_validator(mode="after")
    def _weaker_weights(self) -> Config:
        weak, kept = self.evaluate.guidance_weak, self.diffusion.training.half_lives[1:]
        if weak != "live" and weak not in kept:
            raise ValueError(
                f"`evaluate.guidance_weak` {weak}: expected live, or one of `diffusion.training.half_lives` after the "
                f"first ({', '.join(map(str, kept)) or 'there is none'})"
            )
        return self


def result_fields(section: Section) -> dict[str, Any]:
    """The keys of a section that change results, as plain JSON values: what goes into a fingerprint."""
    kept: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if field.json_schema_extra == SPEED:
            continue
        value = getattr(section, name)
        kept[name] = result_fields(value) if isinstance(value, Section) else _plain(value)
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return result_fields(value)
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


# ---- reading ---------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML without surprises: 1e-4 is a number, a key given twice is an error."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.inf$"),
    list("-+0123456789."),
)
_Loader.yaml_implicit_resolvers = {  # integers first: the float pattern above matches them as well
    first: sorted(pairs, key=lambda pair: pair[0] != "tag:yaml.org,2002:int")
    for first, pairs in _Loader.yaml_implicit_resolvers.items()
}


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a config file and put dotlist overrides (`diffusion.training.steps=100`) over it.

    Raises UserError naming file, line, key, what was expected and the nearest valid key.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); give the path of a YAML config"
        ) from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}: expected a mapping with the keys {', '.join(Config.model_fields)}")
        lines = dict(_lines(node, ()))
        loader = _Loader("")
        values = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    except _DoubleKey as error:
        raise UserError(f"{path}:{error.line}: the key `{error.key}` is given twice; remove one") from None
    for text in overrides:
        keys = _override(values, text)
        lines = {known: where for known, where in lines.items() if known[: len(keys)] != keys}
        for n in range(1, len(keys) + 1):  # sections that only the override names are real keys as well
            lines.setdefault(keys[:n], f"override `{text}`")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, path, lines)) from None


class _DoubleKey(Exception):
    def __init__(self, key: str, line: int) -> None:
        self.key, self.line = key, line


def _lines(node: yaml.Node, keys: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(path of keys, line) of everything in the document."""
    yield keys, str(node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise _DoubleKey(key.value, key.start_mark.line + 1)
            seen.add(key.value)
            yield from _lines(value, (*keys, key.value))
            yield (*keys, key.value), str(key.start_mark.line + 1)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _lines(value, (*keys, i))


def _override(values: dict[str, Any], text: str) -> tuple[str, ...]:
    """Put `a.b.c=value` (value: YAML) into the nested mapping; returns its path."""
    dotted, equals, value = text.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys):
        raise UserError(f"override `{text}`: expected KEY=VALUE, such as diffusion.training.steps=1000")
    at = values
    for key in keys[:-1]:
        if not isinstance(at.setdefault(key, {}), dict):
            raise UserError(f"override `{text}`: `{key}` is not a section")
        at = at[key]
    try:
        at[keys[-1]] = yaml.load(value, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError:
        raise UserError(f"override `{text}`: the value is not valid YAML") from None
    return keys


def _explain(error: ValidationError, path: Path, lines: dict[tuple[Any, ...], str]) -> str:
    """The first mistake in one line, with where it is; says how many more there are."""
    first, *more = error.errors(include_url=False)
    where: tuple[Any, ...] = ()
    for key in first["loc"]:  # pydantic puts the tag of a union between the keys: keys that exist in the file are real
        if (*where, key) in lines or key == first["loc"][-1]:
            where = (*where, key)
    line = next((lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in lines), "1")
    place = line if line.startswith("override") else f"{path}:{line}"
    key = ".".join(str(k) for k in where) or "the config"
    if first["type"] == "extra_forbidden":
        valid = _fields_at(where[:-1])
        near = difflib.get_close_matches(str(where[-1]), valid, n=1, cutoff=0.5)
        say = f"unknown key `{key}`; " + (
            f"did you mean `{near[0]}`?" if near else f"expected one of {', '.join(valid)}"
        )
    elif first["type"] == "missing":
        say = f"`{key}` is missing; add it"
    elif first["type"].startswith("union_tag"):
        given = repr(first["input"].get("kind")) if first["type"] == "union_tag_invalid" else "missing"
        say = f"`{key}.kind` is {given}; expected one of {', '.join(_kinds(where))}"
    else:
        given = first["input"]
        shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) else ""
        say = f"`{key}`: {first['msg'].removeprefix('Value error, ')}{shown}"
    return f"{place}: {say}" + (f" (and {len(more)} more)" if more else "")


def _kinds(keys: tuple[Any, ...]) -> list[str]:
    union = Filter if "filters" in keys else Source
    return [get_args(s.model_fields["kind"].annotation)[0] for s in get_args(get_args(union)[0])]


def _fields_at(keys: tuple[Any, ...]) -> list[str]:
    """Valid keys of the section at `keys`."""
    sections: list[type[Section]] = [Config]
    for key in (key for key in keys if not isinstance(key, int)):  # a place in a list
        found: list[type[Section]] = []
        for section in sections:
            for name, field in section.model_fields.items():
                if key in (name, field.alias):
                    found += _sections(field.annotation)
        sections = found
    return sorted({field.alias or name for section in sections for name, field in section.model_fields.items()})


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [s for a in get_args(annotation) for s in _sections(a)] if get_origin(annotation) else []


def check_models(config: Config) -> tuple[int, int]:
    """Check the options of the models, and that images, latents and patches fit; gives channels and side of a latent.

    Imports torch, allocates nothing (meta device). A pinned autoencoder (`autoencoder.from`) is read where it lies.
    Raises UserError naming the key.
    """
    from models import registry
    from pipeline.artifacts import Artifact

    options, data = config.autoencoder.model, config.data
    if config.autoencoder.from_:
        pinned = Artifact.load(config.autoencoder.from_, "autoencoder")
        options, channels = pinned.recipe["model"], read_json(pinned.path / "model.json")["channels"]
        if channels != data.channels:
            raise UserError(
                f"`data.channels`: {data.channels}, but the autoencoder at {pinned.path} was trained on {channels}; "
                f"set {channels}, or train another autoencoder"
            )
    key = "autoencoder.model"
    try:
        autoencoder: Any = registry.outline("autoencoders", options, channels=data.channels)
        if config.autoencoder.training.activation_checkpointing and not config.autoencoder.from_:
            registry.checkpoint_activations(autoencoder, options["kind"])
        if data.size % autoencoder.factor:
            raise UserError(
                f"`data.size`: {data.size} is not a multiple of {autoencoder.factor}, the pixels a side of one latent "
                "(`autoencoder.model`); change one of them"
            )
        _check_loss_fits(config)
        channels, side = autoencoder.latent_channels, data.size // autoencoder.factor
        key = "diffusion.backbone"
        backbone = registry.outline("backbones", config.diffusion.backbone, channels=channels, size=side)
        if config.diffusion.training.activation_checkpointing:
            registry.checkpoint_activations(backbone, config.diffusion.backbone["kind"])
    except ValueError as error:
        raise UserError(f"`{key}`: {error}") from None
    return channels, side


def _check_loss_fits(config: Config) -> None:
    """The images must be large enough for the windows and networks of the autoencoder's loss."""
    loss, size = config.autoencoder.loss, config.data.size
    least, what = 0, ""
    if loss.ssim:
        least, what = 11, "ssim"
    if loss.perceptual.kind == "lpips":
        least, what = max((least, what), ({"vgg": 16, "alex": 31}[loss.perceptual.network], "perceptual"))
    if loss.adversarial.weight:
        least, what = max((least, what), (3 * 2**loss.adversarial.layers, "adversarial.layers"))
    if size < least:
        raise UserError(
            f"`data.size`: {size} pixels are too few for `autoencoder.loss.{what}`, which needs {least}; change either"
        )


def dump(config: Config) -> str:
    """The resolved config as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False)
