"""`training`, as both trained stages have it: batch, optimizer, precision, averages, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.schema.section import LATER, SPEED, Fraction, Place, Positive, Section


class Lora(Section):
    """Low-rank adapters beside frozen weights (Hu et al. 2021), by peft."""

    rank: Positive = Field(8, description="Rank of each adapter: it has rank * (inputs + outputs) parameters.")
    alpha: float | None = Field(
        None, gt=0, description="An adapter's product counts alpha / rank times; default: `rank`, so once."
    )
    targets: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Ends of the names of the backbone's layers that are adapted, such as `attention.qkv`, `mlp.up`; "
        "default: the products of every attention.",
    )

    @property
    def scale(self) -> float:
        """How many times the product of both factors counts."""
        return (self.alpha or self.rank) / self.rank


class Profile(Section):
    """Some steps whose trace is kept: what ran when on rank 0, for Perfetto (ui.perfetto.dev)."""

    from_: Positive = Field(10, alias="from", description="The first of these steps.")
    steps: Positive = Field(3, description="How many: each is some MB.")


class Training(Section):
    batch_size: Positive = Field(128, description="Global batch: samples an optimizer step, over all ranks.")
    micro_batch: Positive | None = Field(
        None,
        description="Most samples a forward pass on a rank: the largest divisor of its share up to this.",
        json_schema_extra=SPEED,
    )
    steps: Positive = Field(description="Optimizer steps.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW.")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="muon: AdamW, but the updates of the matrices in the backbone's blocks are made orthogonal (stage "
        "diffusion, and autoencoders of text). Learning rate and weight decay mean the same.",
        json_schema_extra=LATER,
    )
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
        "auto",
        description="auto: bf16 on a GPU that has it, fp16 on one that has not; on a CPU bf16 where it multiplies that "
        "faster (measured once, kept in the root), else fp32.",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Recompute the activations of each block in the backward pass: less memory, a third more work.",
        json_schema_extra=SPEED,
    )
    compile: bool | Literal["auto"] = Field(
        False,
        description="torch.compile: slow to start (minutes), then faster on a GPU; on a CPU it needs a C++ compiler. "
        "auto: where the training is long enough to win that time back; decided once, before its first step.",
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
    profile: Profile | None = Field(
        None, description="Steps whose trace is kept with the run in MLflow; null: none.", json_schema_extra=SPEED
    )
    keep: Positive = Field(2, description="Checkpoints kept.", json_schema_extra=SPEED)
    max_bad_steps: Positive = Field(
        20, description="Steps in a row with a gradient that is not finite before a roll-back."
    )
    skip: tuple[tuple[int, int], ...] = Field(
        (), description="Stretches [from, to) of positions, in samples, to leave out."
    )
    init_from: Place | None = Field(
        None,
        description="Weights to begin with: an artifact's or a model's folder, models:/NAME@ALIAS, or a .safetensors "
        "file. Other classes and more conditions than they know begin with no effect.",
    )
    lora: Lora | None = Field(
        None,
        description="Train adapters beside the frozen weights of `init_from`, and what is new, nothing else (stage "
        "diffusion; needs the extra `lora`).",
        json_schema_extra=LATER,
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
        if self.lora and self.optimizer == "muon":
            raise ValueError("`optimizer: muon` turns whole matrices, adapters are thin ones; give adamw with `lora`")
        if self.lora and not self.init_from:
            raise ValueError(
                "`lora` adapts the weights that `init_from` names; give a model there, or leave out `lora`"
            )
        return self
