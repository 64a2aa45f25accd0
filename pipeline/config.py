"""The config of a run: one YAML file, read strictly, with overrides, and errors that name their line.

What each key means is said in `schema/` and, for the options of a model, in the model's file: `check_models` validates
these late, because that needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.errors import UserError
from pipeline.schema import mistakes, tracker_names
from pipeline.schema.data import Data
from pipeline.schema.diffusion import Diffusion
from pipeline.schema.names import STAGES
from pipeline.schema.section import SPEED, Place, Positive, Section
from pipeline.schema.stages import Autoencoder, Evaluate, Latents, Register

S = TypeVar("S", bound=Section)


class Run(Section):
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Name of the run in MLflow, and of the model."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of weights, order and noise.")
    root: Place = Field("runs", description="Folder for artifacts and MLflow's data base; shared by all nodes.")


class ClusterConfig(Section):
    workers: Positive | Literal["auto"] = Field(
        "auto", description="Ranks; auto: a GPU each, or all CPUs over `threads`."
    )
    threads: Positive | Literal["auto"] = Field(
        "auto", description="CPU threads a rank; auto: the CPUs over the workers."
    )
    address: str | None = Field(None, description="A running Ray cluster; default: RAY_ADDRESS, or a local one.")
    collective_timeout: Positive = Field(
        300, description="Seconds after which a rank that hangs is given up, and training goes on from a checkpoint."
    )
    max_failures: int = Field(2, ge=0, description="Restarts of a stage's workers after one of them died or hung.")

    @property
    def least_threads(self) -> int:
        """CPU threads of a task; of a rank, as long as it is not known how many there will be."""
        return 1 if self.threads == "auto" else self.threads


class Tracking(Section):
    uri: Place | None = Field(
        None, description="MLflow's address; default: MLFLOW_TRACKING_URI, or SQLite in `run.root`."
    )
    experiment: str = Field("latent-diffusion", description="MLflow experiment.")
    model_name: str | None = Field(None, description="Registered model; default: `run.name`.")
    alias: str = Field("latest-good", description="Alias that the new version gets.")
    deadline: Positive = Field(
        60,
        description="Seconds at the end to wait for a slow tracker; one that is down is not waited for.",
    )

    system_metrics: bool = Field(
        False,
        description="Curves of the first rank's machine beside the training, by MLflow's names (`system/...`): "
        "CPU, memory, network, GPU.",
    )

    @field_validator("model_name")
    @classmethod
    def _takes_model(cls, name: str | None) -> str | None:
        return None if name is None else tracker_names.model_name(name)

    @field_validator("alias")
    @classmethod
    def _takes_alias(cls, name: str) -> str:
        return tracker_names.alias(name)

    @field_validator("experiment")
    @classmethod
    def _takes_experiment(cls, name: str) -> str:
        return tracker_names.experiment(name)


class Element(Section):
    """Which element of which sweep a run is; written by `ldm sweep`, never by hand."""

    key: str = Field(description="The sweep.")
    folder: str = Field(description="Where the sweep keeps what its elements leave for each other.")
    number: int = Field(ge=0, description="The element.")
    prune: bool = Field(True, description="Whether training may be stopped by the sweep's rule.")


class Config(Section):
    """A whole run."""

    run: Run
    data: Data
    autoencoder: Autoencoder
    latents: Latents = Latents()
    diffusion: Diffusion
    evaluate: Evaluate = Evaluate()
    register_: Register = Field(Register(), alias="register")
    cluster: ClusterConfig = Field(ClusterConfig(), json_schema_extra=SPEED)
    tracking: Tracking = Field(Tracking(), json_schema_extra=SPEED)
    sweep: Element | None = Field(None, description="Written by `ldm sweep`; not for hands.", json_schema_extra=SPEED)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of this run, in order."""
        return tuple(stage for stage in STAGES if stage != "conditions" or self.diffusion.condition.columns)

    @model_validator(mode="after")
    def _room_to_crop(self) -> Config:
        crops = [view for view in self.latents.views if view.startswith("crop")]
        in_time = self.data.clip is not None and self.data.clip.start == "random"  # crops are other windows
        if crops and self.data.augment.crop != "random" and not in_time:
            raise ValueError(
                f"`latents.views` has {crops[0]}, but images are stored without a margin to crop in; "
                "set `data.augment.crop: random`, or leave the crops out"
            )
        return self

    @model_validator(mode="after")
    def _pictures_fit(self) -> Config:
        """Whatever lies over the latents is cut, and mirrored, as the images are."""
        if not self.diffusion.condition.spatial:
            return self
        data, where = self.data, "`diffusion.condition.spatial`"
        crops = [view for view in self.latents.views if view.startswith("crop")]
        if data.source.kind not in ("table", "webdataset"):
            raise ValueError(f"{where} comes from a table or from tars; `data.source.kind` is {data.source.kind}")
        if data.buckets is not None:
            raise ValueError(f"{where} knows square images only; leave it out with `data.buckets`")
        if crops or data.augment.crop == "random":
            found = f"`latents.views` has {crops[0]}" if crops else "`data.augment.crop` is random"
            raise ValueError(f"{where} is cut from the middle only, but {found}; take the views as_is and flip")
        return self

    @model_validator(mode="after")
    def _works_in_buckets(self) -> Config:
        if self.data.buckets is None:
            return self
        if self.diffusion.fd.every:
            raise ValueError("`diffusion.fd` samples one shape only; with `data.buckets` set `diffusion.fd.every: 0`")
        if self.autoencoder.loss.perceptual.kind == "classifier":
            raise ValueError(
                "`autoencoder.loss.perceptual.kind` classifier knows square images only; with `data.buckets` use "
                "lpips or random"
            )
        if self.evaluate.agreement:
            raise ValueError("`evaluate.agreement` knows square images only; leave it out with `data.buckets`")
        if self.register_.gate:
            raise ValueError("`register.gate` knows square images only; leave it out with `data.buckets`")
        return self

    @model_validator(mode="after")
    def _something_told(self) -> Config:
        asked, condition, source = self.evaluate.agreement, self.diffusion.condition, self.data.source
        if asked and condition.kind == "none" and not condition.columns:
            raise ValueError("`evaluate.agreement`: the model is told nothing (`diffusion.condition`); leave it out")
        if asked and condition.spatial:
            raise ValueError("`evaluate.agreement` tells samples no pictures; leave it out with `condition.spatial`")
        if asked and asked.captions and source.kind == "table" and source.caption is None:
            raise ValueError("`evaluate.agreement.captions`: `data.source.caption` names no column of captions")
        return self

    @model_validator(mode="after")
    def _weaker_weights(self) -> Config:
        weak, kept = self.evaluate.guidance_weak, self.diffusion.training.half_lives[1:]
        if weak != "live" and weak not in kept:
            raise ValueError(
                f"`evaluate.guidance_weak` {weak}: expected live, or one of `diffusion.training.half_lives` after the "
                f"first ({', '.join(map(str, kept)) or 'there is none'})"
            )
        given = self.evaluate.weights
        if self.evaluate.guidance_kind == "autoguidance" and given == ("live" if weak == "live" else f"ema-{weak}"):
            raise ValueError(
                f"`evaluate.guidance_weak` {weak} are the weights that `evaluate.weights` measures: away from itself "
                "nothing is led; give others for one of them"
            )
        return self

    @model_validator(mode="after")
    def _weights_there(self) -> Config:
        """What evaluate asks of the denoiser is there when it is trained: said now, not after days of training."""
        from pipeline.schema.names import length_name

        section, training = self.evaluate, self.diffusion.training
        names = ["ema", "live", *(f"ema-{half_life}" for half_life in training.half_lives[1:])]
        names += [length_name(length) for length in training.average_lengths]
        made = training.snapshot_every and re.fullmatch(r"length-0?\.[0-9]+", section.weights)
        if section.weights not in names and not made and not section.weights.endswith(".safetensors"):
            raise ValueError(
                f"`evaluate.weights` {section.weights!r}: this training leaves {', '.join(names)} (other half-lives by "
                "`diffusion.training.half_lives`, other lengths by `snapshot_every` with `average_lengths`)"
            )
        told = self.diffusion.condition.tells and self.diffusion.condition.drop > 0
        if section.guidance != 1 and section.guidance_kind == "classifier_free" and not told:
            raise ValueError(
                f"`evaluate.guidance` {section.guidance:g} needs a condition that is sometimes withheld: "
                "`diffusion.condition` of kind class, or attributes, or a caption, with `drop` above 0; or give 1, or "
                "`guidance_kind: autoguidance`"
            )
        return self


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
    return load_as(Config, path, overrides)


def load_as(top: type[S], path: str | Path, overrides: Iterable[str] = ()) -> S:
    """`load`, for a YAML file whose keys are those of the section `top`."""
    path = Path(path)
    values, lines = _read(path, overrides, top)
    try:
        return top.model_validate(values)
    except ValidationError as error:
        raise UserError(mistakes.explain(error, path, lines, top)) from None


def place(path: str | Path, overrides: Iterable[str], said: str) -> str:
    """Where the key that a message begins with (`` `diffusion.backbone`: width: ... ``) stands: FILE:LINE or the
    override; empty if it names none. For what is found out after `load`."""
    found = re.match(r"`([a-z_][\w.]*)`(?:: (\w+))?", said)
    if not found or found[1].split(".")[0] not in Config.model_fields:
        return ""
    lines = _read(Path(path), overrides, Config)[1]
    keys = (*found[1].split("."), *([found[2]] if found[2] else []))
    return mistakes.place(path, lines, keys if keys in lines else tuple(found[1].split(".")))


def _read(
    path: Path, overrides: Iterable[str], top: type[Section]
) -> tuple[dict[str, Any], dict[tuple[str | int, ...], str]]:
    """The values of a file with overrides in place, not validated, and where each key is."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); give the path of a YAML config"
        ) from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}: expected a mapping with the keys {', '.join(top.model_fields)}")
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
    return values, lines


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


def override_value(text: str) -> tuple[str, Any]:
    """The key and value of `KEY=VALUE` (value: YAML). Raises UserError for anything else."""
    values: dict[str, Any] = {}
    keys = _override(values, text)
    for key in keys:
        values = values[key]
    return ".".join(keys), values


def dump(config: Config) -> str:
    """The resolved config as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False)
