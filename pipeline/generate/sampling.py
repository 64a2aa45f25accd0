"""How latents are sampled: the values a request may hold, and one batch of latents for it.

Solvers, grids and guidance are in `models/diffusion/`; whose network, and what becomes of the latents, is the business
of `generator.py`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.conditioning import Conditions
from models.diffusion import denoiser, grids, samplers
from models.diffusion.denoiser import Denoiser
from models.diffusion.guidance import autoguided, composed, guided, only, within
from models.diffusion.process import Path, make_path
from models.diffusion.self_conditioning import remembering
from models.patches import sides_of
from pipeline.data.order import Draw, draw_batch
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.schema.stages import Evaluate

DEFAULTS: dict[str, Any] = {  # as in the config's `evaluate`, where each is explained
    "sampler": "dpmpp_2m",
    "steps": 20,
    "grid": "auto",
    "shift": None,
    "guidance": 1.0,
    "guidance_kind": "classifier_free",
    "guidance_weak": "live",
    "guidance_interval": None,
    "guidance_rescale": 0.0,
    "noise_left": 0.0,
}
KINDS = ("classifier_free", "autoguidance")


def configured(config: Evaluate) -> dict[str, Any]:
    """What the config's section `evaluate` says of sampling, as plain JSON values."""
    values = config.model_dump(mode="json")
    return {key: values[key] for key in DEFAULTS}


def check(values: Mapping[str, Any]) -> None:
    """UserError for a value that no model can be sampled with, or a key that is none of `DEFAULTS`."""
    for key in values:
        if key not in DEFAULTS:
            near = difflib.get_close_matches(key, DEFAULTS, n=1)
            guess = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(DEFAULTS)}"
            raise UserError(f"{key}: there is no such way to sample; {guess}")
    one_of = {"sampler": samplers.NAMES, "grid": ("auto", *grids.GRIDS), "guidance_kind": KINDS}
    for key, names in one_of.items():
        if values[key] not in names:
            raise UserError(f"{key}: {values[key]!r} is none of {', '.join(names)}")
    check_guidance(values["guidance"])
    if not _number(values["guidance_rescale"]) or not 0 <= values["guidance_rescale"] <= 1:
        raise UserError(f"guidance_rescale: {values['guidance_rescale']} given, expected a number from 0 to 1")
    if values["shift"] is not None and (not _number(values["shift"]) or values["shift"] <= 0):
        raise UserError(f"shift: {values['shift']} given, expected a number above 0")
    if not _number(values["noise_left"]) or values["noise_left"] < 0:
        raise UserError(f"noise_left: {values['noise_left']} given, expected a noise level of at least 0")
    interval = values["guidance_interval"]
    if interval is not None and not (len(interval) == 2 and 0 <= interval[0] < interval[1]):
        raise UserError(f"guidance_interval: {interval} given, expected two noise levels, 0 <= low < high")


def check_guidance(scale: Any) -> None:
    """UserError for what is no scale of guidance."""
    if not _number(scale) or scale < 0:
        raise UserError(f"guidance: {scale} given, expected a number of at least 0 (1 is no guidance)")


def guidance_of(request: Mapping[str, Any]) -> float | str | None:
    """What of guidance decides whether two figures may stand side by side: the scale alone where guidance is plain,
    words where it is not, None where the request says nothing.
    """
    scale = request.get("guidance")
    filled = {**DEFAULTS, **request}
    kind, interval, rescale = (filled[f"guidance_{name}"] for name in ("kind", "interval", "rescale"))
    words = [f"autoguidance by {filled['guidance_weak']}"] if kind == "autoguidance" else []
    words += [f"in ({interval[0]:g}, {interval[1]:g}]"] if interval is not None else []
    words += [f"rescaled by {rescale:g}"] if rescale else []
    if scale is None or scale == 1 or not words:
        return scale
    return " ".join([f"{scale:g}", *words])


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def latents(
    network: nn.Module,
    weaker: Callable[[], nn.Module],
    options: Mapping[str, Any],
    request: Mapping[str, Any],
    rows: range,
    conditions: Sequence[Conditions],
    null: Conditions,
    device: torch.device,
    sides: tuple[int, ...] | None = None,
) -> Tensor:
    """Normalised latents [len(rows), C, *sides] of the images with the numbers `rows`, told `conditions`, a row each:
    several, which differ in the caption only, where prompts are of several pieces.

    All noise of an image is a function of (seed, its number, the step), and of its shape: the first and, in stochastic
    samplers, that of each step. Where the request says `noise_left`, that much noise is still on them. weaker: gives
    the network of autoguidance. options: of the model; request: checked, `DEFAULTS` and seed, and `scales` of single
    conditions; null: what stands for no condition; sides: default the model's own.
    """
    path = make_path(**options["path"])
    sides = sides or sides_of(options["latent"]["size"])

    def noise(purpose: str) -> Tensor:
        return noise_of(request["seed"], purpose, rows, (options["latent"]["channels"], *sides), device)

    times = times_of(options, request, path, sides, request["noise_left"])
    x = noise("sample") * path.sigma(times[0]).float()  # noise alone: alpha is about 1/80 of sigma there at most
    denoise = led(network, weaker, options, request, conditions, null)
    with torch.no_grad():
        x = samplers.sample(
            request["sampler"], denoise, path, x, times, conditions[0], lambda step: noise(f"sample/{step}")
        )
    return x / path.alpha(times[-1]).float() if request["noise_left"] else x  # x0 + noise_left eps


def noise_of(seed: int, purpose: str, rows: range, shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal noise [len(rows), *shape] of the images with these numbers, for one purpose."""
    spec = [Draw("noise", "normal", tuple(shape))]
    return torch.from_numpy(draw_batch(seed, purpose, rows, spec)["noise"]).to(device)


def times_of(
    options: Mapping[str, Any],
    request: Mapping[str, Any],
    path: Path,
    sides: Sequence[int],
    noise_left: float = 0.0,
) -> Tensor:
    """The times of a request's steps, for latents of these sides: float64 [steps + 1], from noise down to 0, or to the
    level `noise_left`."""
    start = denoiser.start_time(path, options["prediction"])
    shift = request["shift"] if request["shift"] is not None else grids.resolution_shift(math.sqrt(math.prod(sides)))
    own = request["sampler"] == "few" and request["grid"] == "auto"  # its jumps are no steps of a walk
    kind = "few" if own else request["grid"]
    try:
        return grids.grid(kind, request["steps"], path, start, shift, noise_left)
    except ValueError as error:
        raise UserError(str(error)) from None


def led(
    network: nn.Module,
    weaker: Callable[[], nn.Module],
    options: Mapping[str, Any],
    request: Mapping[str, Any],
    conditions: Sequence[Conditions],
    null: Conditions,
) -> Denoiser:
    """The model's denoiser under the guidance that a request asks for; arguments as of `latents`. It is to be called
    with `conditions[0]`. One that is told its own last guess remembers it: a walk's."""
    path = make_path(**options["path"])
    alone = plain = denoiser.denoiser(network, path, options["prediction"])
    scale, rescale = float(request["guidance"]), float(request["guidance_rescale"])
    scales: Mapping[str, float] = request.get("scales", {})
    if len(conditions) > 1:
        plain = composed(alone, _terms({}, 1.0, conditions, null), null)
    denoise = plain
    if scales or len(conditions) > 1:
        denoise = composed(alone, _terms(scales, scale, conditions, null), null, rescale)
    elif scale != 1.0 and request["guidance_kind"] == "autoguidance":
        denoise = autoguided(plain, denoiser.denoiser(weaker(), path, options["prediction"]), scale, rescale)
    elif scale != 1.0:
        denoise = guided(plain, scale, null, rescale)
    if denoise is not plain and request["guidance_interval"] is not None:
        denoise = within(denoise, plain, path, *request["guidance_interval"])
    return remembering(denoise) if options.get("self_conditioning") else denoise


def _terms(
    scales: Mapping[str, float], rest: float, told: Sequence[Conditions], null: Conditions
) -> list[tuple[float, Conditions]]:
    """A term for each condition that has a scale of its own, and one of the scale `rest` for all others together.

    Where captions are of several pieces p_i, a row of `told` each, the term that holds them is one for each, and what
    it holds besides, G, counts once: s sum_i (D(G, p_i) - D(G)) + s (D(G) - D(null)), which is Liu et al. 2022, eq. 11,
    given G. With one piece it is the term as it was.
    """
    groups = [(float(scale), {name}) for name, scale in scales.items()]
    if others := {key.partition("/")[0] for key in told[0] if key in null} - set(scales):
        groups.append((rest, others))
    terms = []
    for scale, group in groups:
        several = told if "caption" in group else told[:1]
        terms += [(scale, only(one, group, null)) for one in several]
        if len(several) > 1 and group != {"caption"}:
            terms.append((scale * (1 - len(several)), only(told[0], group - {"caption"}, null)))
    return terms
