"""What diffusers needs beside the networks to sample: a scheduler's config, a pipeline's index, and a script.

diffusers' `DiTPipeline` starts from plain noise, gives the network x as it is at whole timesteps, takes class 1,000 for
the null class, and knows one scale of the latents. Of this kind are all three paths: the network on "edm" sees
x / sqrt(sigma^2 + 1), which is a walk that preserves variance, at times that are equal steps of log sigma. So one class
of schedulers serves them all, DPM-Solver++(2M). The script has no whole timesteps where a scheduler without is at hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from models.diffusion import grids
from models.diffusion.denoiser import start_time
from models.diffusion.process import EDM, Path, make_path, noise_level
from models.diffusion.steps import Steps
from pipeline.generate.diffusers_names import NULL_CLASS

VERSION = "0.42.1"  # of diffusers, for which this was written
TRAIN_STEPS = 1000  # timesteps of diffusers in one unit of our time
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SCHEDULES = {"linear": "ddpm_linear", "scaled_linear": "ddpm_scaled_linear", "squaredcos_cap_v2": "ddpm_cosine"}
SCRIPT = "sample_with_diffusers.py"
Options = Mapping[str, Any]  # of a `Generator`


def scheduler(options: Options, shift: float = 1.0) -> dict[str, Any] | None:
    """`scheduler_config.json` of a DPMSolverMultistepScheduler for a model's path; None: diffusers has none for it.

    shift: of the times on the straight path (`grids.shifted`).
    """
    kind, prediction = options["path"]["kind"], options["prediction"]
    config: dict[str, Any] = {"_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": VERSION}
    if kind == "rectified_flow":
        known = {"velocity": "flow_prediction", "x0": "sample"}
        flow = {"use_flow_sigmas": True, "flow_shift": shift, "num_train_timesteps": TRAIN_STEPS}
        return {**config, "prediction_type": known[prediction], **flow} if prediction in known else None
    if prediction not in PREDICTIONS:
        return None
    path = make_path(**options["path"])
    if isinstance(path, Steps):  # its own
        own = next(theirs for theirs, ours in SCHEDULES.items() if ours == path.schedule)
        return {
            **config, "prediction_type": PREDICTIONS[prediction], "num_train_timesteps": TRAIN_STEPS,
            "beta_schedule": own, "beta_start": path.betas[0], "beta_end": path.betas[1],
            "timestep_spacing": "linspace",
        }  # fmt: skip
    trained = betas(path, prediction)
    return {
        **config, "prediction_type": PREDICTIONS[prediction], "num_train_timesteps": len(trained),
        "trained_betas": trained, "timestep_spacing": "linspace", "use_karras_sigmas": kind == "edm",
    }  # fmt: skip


def betas(path: Path, prediction: str) -> list[float]:
    """The betas of diffusers' discrete walk that has, at timestep k, the noise level of the path at clock k / 1000.

    Up to 1000, or to the last timestep at which the prediction says something of x0. With the rounding of each beta to
    float32 in mind, so that no error adds up: alpha^2 is right to 1e-7 throughout.
    """
    last = TRAIN_STEPS
    if float(path.alpha(torch.ones((), dtype=torch.float64))) < 1e-6:
        last = min(TRAIN_STEPS - 1, math.floor(TRAIN_STEPS * start_time(path, prediction)))
    clock = torch.arange(last + 1, dtype=torch.float64) / TRAIN_STEPS
    if isinstance(path, EDM):
        level = EDM.SIGMA_MIN * (EDM.SIGMA_MAX / EDM.SIGMA_MIN) ** clock
    else:
        level = noise_level(path, clock)
        level[0] = 0.5 * level[1]  # no step ends there; its logarithm is taken
    wanted, found, out = (1.0 / (1.0 + level.square())).tolist(), 1.0, []
    for share in wanted:  # alpha^2
        alpha = 1.0 - torch.tensor(1.0 - share / found)  # float32, as diffusers will have it
        out.append(float(1.0 - alpha))
        found *= float(alpha)
    return out


def index(part: str, options: Options) -> dict[str, Any] | None:
    """`model_index.json` of a DiTPipeline; None for a network that diffusers has no pipeline for.

    part: "transformer" or "unet". options: of a `Generator`.
    """
    names = class_names(options)
    if part != "transformer" or len(names) > NULL_CLASS:
        return None
    return {
        "_class_name": "DiTPipeline", "_diffusers_version": VERSION,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip


def shift_of(options: Options, defaults: Mapping[str, Any]) -> float:
    """How much the model's own way to sample shifts the times of the straight path; 1: not at all."""
    if options["path"]["kind"] != "rectified_flow" or defaults["grid"] != "shifted":
        return 1.0
    return float(defaults["shift"] or grids.resolution_shift(options["latent"]["size"]))


def script(part: str, options: Options, defaults: Mapping[str, Any]) -> str:
    """A script of 15 lines at most that makes images of an exported model by diffusers and torch alone.

    For a model that has a `scheduler`. Plain guidance with the model's own scale, where it was trained for that.
    """
    latent, classes = options["latent"], class_names(options)
    network = "UNet2DModel" if part == "unet" else "DiTTransformer2DModel"
    labels = f"torch.arange(16) % {len(classes)}" if classes else "torch.zeros(16, dtype=torch.long)"
    asked = "labels" if classes or part == "transformer" else "None"
    how, scale = _walk(options, defaults), guidance_of(options, defaults)
    given, count, guided = how.given, 16, "v"
    if scale != 1:  # once more, for the null class
        labels = f"torch.cat([{labels}, torch.full((16,), {len(classes)})])"
        given, count = f"torch.cat([{given}] * 2)", 32
        guided = f"v[16:] + {scale:g} * (v[:16] - v[16:])"
    lines = [
        '"""Images of the model in this folder, made by diffusers alone: writes samples.png beside this file."""',
        "from pathlib import Path",
        "import torch",
        f"from diffusers import AutoencoderKL, {network}, {how.scheduler}, image_processor, utils",
        "torch.set_grad_enabled(False)",
        f"here, steps, labels = Path(__file__).parent, {how.steps}, {labels}",
        f'vae, model = AutoencoderKL.from_pretrained(here / "vae"), {network}.from_pretrained(here / "{part}")',
        f"scheduler = {how.scheduler}{how.made}",
        f"scheduler.set_timesteps({how.asked})",
        f"x = {how.first}torch.randn(16, {latent['channels']}, {latent['size']}, {latent['size']}, "
        "generator=torch.manual_seed(0))",
        how.loop,
        f"    v = model({given}, {how.time}.expand({count}), {asked}).sample",
        f"    x = scheduler.step({guided}, t, x).prev_sample",
        "images = image_processor.VaeImageProcessor().postprocess(vae.decode(x).sample)",
        'utils.make_image_grid(images, 4, 4).save(here / "samples.png")',
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Walk:
    """Pieces of the script: which scheduler, and what the network gets of x and t."""

    scheduler: str
    made: str
    asked: str
    steps: int
    first: str = ""
    loop: str = "for t in scheduler.timesteps:"
    given: str = "x"
    time: str = "t"


def _walk(options: Options, defaults: Mapping[str, Any]) -> _Walk:
    kind, prediction, steps = options["path"]["kind"], options["prediction"], int(defaults["steps"])
    if (kind, prediction) == ("rectified_flow", "velocity"):  # of first order: more steps
        made = f"(shift={shift_of(options, defaults)})"
        asked = "sigmas=[1 - i / steps for i in range(steps)]"  # its own grid loses a step near the end
        return _Walk("FlowMatchEulerDiscreteScheduler", made, asked, max(50, steps))
    if (kind, prediction) == ("edm", "v"):  # t there is log(sigma) / 4
        low, ratio = math.log(EDM.SIGMA_MIN), math.log(EDM.SIGMA_MAX / EDM.SIGMA_MIN)
        clock = f"{TRAIN_STEPS} * (4 * scheduler.timesteps + {-low:.9g}) / {ratio:.9g}"
        return _Walk(
            "EDMDPMSolverMultistepScheduler", '(sigma_data=1.0, prediction_type="v_prediction")', "steps", steps,
            f"{EDM.SIGMA_MAX:g} * ", f"for t, clock in zip(scheduler.timesteps, {clock}):",
            "scheduler.scale_model_input(x, t)", "clock",
        )  # fmt: skip
    return _Walk("DPMSolverMultistepScheduler", '.from_pretrained(here / "scheduler")', "steps", steps)


def class_names(options: Options) -> list[str]:
    """Names of the classes; empty for a model without class condition."""
    return list(options["classes"]) if options["condition"]["kind"] == "class" else []


def guidance_of(options: Options, defaults: Mapping[str, Any]) -> float:
    """The scale by which the model guides away from the null class; 1: not at all, or by other means."""
    plain = defaults["guidance_kind"] == "classifier_free" and options["condition"].get("drop", 0) > 0
    return float(defaults["guidance"]) if class_names(options) and plain else 1.0
