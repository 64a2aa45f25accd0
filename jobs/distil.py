"""`ldm distil`: a student of a trained model that samples in one to four evaluations."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH, PLACE, read, run_stages

RATE, SHARE = 0.3, 0.5  # of the teacher's learning rate, and of its steps: a step costs twice as much


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
    from pipeline.errors import UserError
    from pipeline.past import history

    past = history.find(root, run)
    path, teacher = past.folder / "config.yaml", past.folders.get("diffusion")
    if past.summary("diffusion") is None or teacher is None:
        raise UserError(f"{run}: its diffusion stage is not finished; `ldm run` goes on with it")
    own = read(path, [])
    if own.diffusion.distil:
        raise UserError(f"{run}: is a student already; give the run of its teacher")
    training = own.diffusion.training
    if training.lora and not any(word.startswith("diffusion.training.init_from=") for word in overrides):
        raise UserError(
            f"{run}: is an adapter, and a student has its teacher's whole weights; `ldm merge {teacher} -o WHOLE`, "
            "then give diffusion.training.init_from=WHOLE here"
        )
    derived = [
        f"run.name={name or f'{own.run.name}-few'}",
        f"run.root={past.root}",
        f"diffusion.training.init_from={teacher}",
        f"diffusion.training.learning_rate={RATE * training.learning_rate:g}",
        f"diffusion.training.steps={max(1, round(SHARE * training.steps))}",
        f"diffusion.distil={{guidance: {own.evaluate.guidance if guidance is None else guidance:g}}}",
        # all levels that a jump may begin at (Geng et al. 2024, for data of deviation 1)
        "diffusion.times={kind: edm, mean: -0.4, std: 2.0}",
        *(f"diffusion.{key}=null" for key in ("align", "route") if getattr(own.diffusion, key)),
        *(["diffusion.training.lora=null"] if training.lora else []),
        *(["diffusion.dispersive=0"] if own.diffusion.dispersive else []),
        "evaluate.sampler=few",
        "evaluate.grid=auto",
        f"evaluate.steps={steps}",
        "evaluate.guidance=1",
        "tracking.model_name=null",
    ]
    words = [*derived, *overrides]
    run_stages(read(path, words, warn=True), path, words)


if __name__ == "__main__":
    main(command)
