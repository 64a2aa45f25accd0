"""`ldm distil`: a student of a trained model that samples in one to eight evaluations."""

from __future__ import annotations

import math
from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH, PLACE, read, run_stages

RATE, SHARE, LEAST = 0.5, 0.8, 100  # of the teacher's learning rate and compute; steps at least


@click.command("distil")
@click.argument("run", type=PLACE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--steps", default=2, show_default=True, type=click.IntRange(1, 8), help="Evaluations of a sample.")
@click.option("--guidance", type=float, help="Scale that the student has in its answers; default: the evaluation's.")
@click.option("--name", help="Name of the student's run and model; default: RUN-few.")
@click.option("--root", default="runs", type=PATH, help="`run.root` of the run.")
def command(
    run: str, overrides: tuple[str, ...], steps: int, guidance: float | None, name: str | None, root: Path
) -> None:
    """Train a student of RUN, evaluate it, and register it beside its teacher. The same command goes on after a stop.

    Data, autoencoder and latents are RUN's own. Overrides are of its config, such as diffusion.training.steps=2000.
    """
    from models.diffusion.grids import WALK
    from pipeline.errors import UserError
    from pipeline.generate.sampling import configured, guidance_of
    from pipeline.past import history

    past = history.find(root, run)
    path, teacher = past.folder / "config.yaml", past.folders.get("diffusion")
    if past.summary("diffusion") is None or teacher is None:
        raise UserError(f"{run}: its diffusion stage is not finished; `ldm run` goes on with it")
    own = read(path, [])
    if own.diffusion.distil:
        raise UserError(f"{run}: is a student already; give the run of its teacher")
    if name == own.run.name:
        raise UserError(
            f"--name {name}: is the teacher's, whose versions and alias the student's would be; give another"
        )
    training = own.diffusion.training
    if training.lora and not any(word.startswith("diffusion.training.init_from=") for word in overrides):
        raise UserError(
            f"{run}: is an adapter, and a student has its teacher's whole weights; `ldm merge {teacher} -o WHOLE`, "
            "then give diffusion.training.init_from=WHOLE here"
        )
    if guidance is None and isinstance(how := guidance_of(configured(own.evaluate)), str):
        raise UserError(f"{run}: its evaluation has guidance {how}, and a student's has a scale alone; give --guidance")
    scale = own.evaluate.guidance if guidance is None else guidance
    # forward passes a sample: of the walk, twice for guidance; of the student three times, for a backward pass is two
    passes = (1 if scale == 1 else 2) * steps * math.ceil(WALK / steps) + 3 * steps
    length = max(LEAST, round(SHARE * training.steps * 3 / passes))
    often = {key: getattr(training, key) for key in ("save_every", "validate_every", "preview_every")}
    derived = [
        f"run.name={name or f'{own.run.name}-few'}",
        f"run.root={past.root}",
        f"diffusion.training.init_from={teacher}",
        f"diffusion.training.learning_rate={RATE * training.learning_rate:g}",
        f"diffusion.training.steps={length}",
        f"diffusion.training.warmup={min(training.warmup, length // 10)}",
        f"diffusion.training.half_lives=[{max(1, length * training.batch_size // 16)}]",
        *(f"diffusion.training.{key}={min(value, length)}" for key, value in often.items()),
        f"diffusion.distil={{guidance: {scale:g}, steps: {steps}}}",
        *(f"diffusion.{key}=null" for key in ("align", "route") if getattr(own.diffusion, key)),
        *(["diffusion.training.lora=null"] if training.lora else []),
        *(["diffusion.dispersive=0"] if own.diffusion.dispersive else []),
        "evaluate.sampler=few",
        "evaluate.grid=auto",
        f"evaluate.steps={steps}",
        "evaluate.guidance=1",
        *(["evaluate.noise_left=0"] if own.evaluate.noise_left else []),
        "evaluate.guidance_weak=live",  # the teacher's may name averages that a student has not
        "evaluate.weights=ema",
        "tracking.model_name=null",
    ]
    words = [*derived, *overrides]
    run_stages(read(path, words, warn=True), path, words)


if __name__ == "__main__":
    main(command)
