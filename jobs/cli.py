"""`ldm`: the group of all verbs. Each is imported when it is called, so that `ldm --help` answers at once."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

import click

GROUPS = {  # heading: {verb: (module, what `ldm --help` says)}
    "First": {
        "init": ("init", "Look at images and write a config that runs on them."),
        "run": ("train_ldm", "Run all stages; finished ones are skipped."),
        "sample": ("sample", "Generate images, or text, from a model; talk with one."),
        "chat": ("chat", "Talk with a model of replies."),
        "ui": ("ui", "Open MLflow's pages and a page that makes images."),
    },
    "What a model is for": {
        "edit": ("edit", "Change images: a smile, another age."),
        "inpaint": ("inpaint", "Draw what images lack, or what lies around them."),
        "restore": ("restore", "Undo noise, blur, JPEG; enlarge, give colour."),
        "compose": ("compose", "Make two images one: a strip, a collage, a look."),
        "augment": ("augment", "Write images by class, for the training of something else."),
        "features": ("features", "What its denoiser sees in images, as arrays."),
        "probe": ("probe", "How good such features are for other tasks."),
    },
    "Up to one stage": {
        "ingest": ("ingest", "Images to shards with an index (stage 1)."),
        "conditions": ("conditions", "Gather attributes, captions, pictures, if a config names them."),
        "autoencoder": ("autoencoder", "Train the autoencoder (stage 2)."),
        "encode": ("encode", "Encode every image once (stage 3)."),
        "diffusion": ("diffusion", "Train the diffusion model on the latents (stage 4)."),
        "evaluate": ("evaluate", "Measure samples and reconstructions (stage 5)."),
    },
    "Before a run": {
        "config": ("config", "Show or check a config."),
        "explain": ("explain", "What a config key means, its unit, range and default."),
        "models": ("models", "List models with their parameters and FLOPs."),
        "denoise": ("denoise", "Show filters against noise beside each other."),
        "preflight": ("preflight", "Check machines, network, storage and one step."),
    },
    "With several runs, and trained models": {
        "sweep": ("sweep", "Run a config with many values, and name the best."),
        "compare": ("compare", "Which of several runs is better, and what differs."),
        "fd": ("fd", "Fréchet distance of images to published statistics."),
        "agreement": ("agreement", "Do samples show what they were told?"),
        "audit": ("audit", "Has a model kept its training images?"),
        "why": ("why", "Where conditions act in samples; what is near to them."),
        "solvers": ("solvers", "Measure samplers, grids and steps on a model."),
    },
    "A model in another form": {
        "average": ("average", "Average weights after training, over any length."),
        "distil": ("distil", "Train a student that samples in one to eight steps."),
        "merge": ("merge", "Make a whole model of an adapter and its base."),
        "export": ("export", "Write a model for diffusers."),
        "import": ("import_", "Read a model of diffusers."),
    },
    "What is there": {
        "ls": ("ls", "Artifacts: sizes, fingerprints, who uses what."),
        "lineage": ("lineage", "What a model was made of; where an image went."),
        "verify": ("verify", "Hash the files of all artifacts again."),
        "gc": ("gc", "Find what nothing refers to, and remove it."),
        "mlflow": ("mlflow", "Open the tracker's pages, or send it what it missed."),
        "completion": ("completion", "The script that makes a shell complete all this."),
    },
}
IN_A_LINE = ("Up to one stage", "A model in another form")  # so that all fits a screen
BESIDE = {"chat": "sample"}  # in the other's line
VERBS = {verb: said for verbs in GROUPS.values() for verb, said in verbs.items()}
EXAMPLES = """\
  ldm init --source /data/my-images -o my.yaml    a config for these images
  ldm run my.yaml run.seed=1 --dry-run            what would run; set any key so"""


class Verbs(click.Group):
    """Finds a verb's command in its own module."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"jobs.{VERBS[cmd_name][0]}").command
        return command

    def get_help(self, ctx: click.Context) -> str:
        """One screen, whatever the terminal, from one line of each verb: its module is not needed."""
        lines = ["Usage: ldm VERB ...  (ldm VERB --help: what it takes; ldm --version)", self.help or "", EXAMPLES]
        for heading, verbs in GROUPS.items():
            if heading in IN_A_LINE:
                lines.append(f"{heading}: {', '.join(verbs)}.")
                continue
            lines.append(f"{heading}:")
            for verb, (_, said) in verbs.items():
                named = ", ".join([verb, *(other for other, place in BESIDE.items() if place == verb)])
                lines += [] if verb in BESIDE else [f"  {named:<12} {said}"]
        return "\n".join(lines)


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ldm-pipeline")
def group() -> None:
    """From images to a latent diffusion model. A command that was stopped goes on."""


def main(command: Any = group) -> None:
    """Run a command. Exit code 2: a user's mistake, in one line. 1: a bug, with its traceback. 130: stopped.

    75 (EX_TEMPFAIL): stopped by a notice (SIGUSR1, a drain); the same command is to be given again elsewhere.
    """
    from pipeline.errors import Notice, UserError, for_terminal
    from pipeline.files import disk_trouble

    caught: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        """A scheduler's request to end unwinds as Ctrl-C does: Ray and the tracker are left in order."""
        caught.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGUSR1, interrupt)
    try:
        with disk_trouble():
            command(standalone_mode=False, prog_name="ldm" if command is group else None)
    except click.exceptions.NoArgsIsHelpError as error:  # a group without a verb: its help, as `--help` prints it
        print(error.format_message())
        sys.exit(0)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        more = f"; `{context.command_path} --help` says what there is" if context else ""
        said = for_terminal(" ".join(error.format_message().split()))
        print(f"error: {said.rstrip('.')}{more}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"error: {for_terminal(str(error))}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # click takes one for Ctrl-D; nothing here asks a person
            raise error.__cause__ from None
        # what was caught, not what it raised: `ray.get` puts a KeyboardInterrupt of its own in the place of any
        again = set(caught) == {signal.SIGUSR1} or isinstance(error.__cause__, Notice)
        print("stopped; the same command goes on" if again else "stopped", file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL if again else 130)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
