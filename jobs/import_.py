"""`ldm import`: a folder that diffusers has saved, as a model, for `autoencoder.from` or for `init_from`."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH


@click.command("import")
@click.argument("source", type=PATH)
@click.option("-o", "--out", required=True, type=PATH, help="A new folder.")
@click.option("--null-class", is_flag=True, help="The last class of this UNet is the null class of guidance.")
@click.option("--variant", help="Of the weights, such as fp16; default: those without one, or the only one.")
def command(source: Path, out: Path, null_class: bool, variant: str | None) -> None:
    """Read SOURCE and print the config's lines that use it.

    SOURCE: a pipeline's folder (DiTPipeline, LDMPipeline with an AutoencoderKL, or what `ldm export` wrote), which
    becomes a model that `ldm sample` takes; or a folder of one network (AutoencoderKL, AutoencoderTiny, AutoencoderDC,
    DiTTransformer2DModel, UNet2DModel). VQModel is not read. An option that has no place here is refused by name.
    """
    from pipeline.generate.exchange import import_diffusers

    print(import_diffusers(source, out, null_class, variant))


if __name__ == "__main__":
    main(command)
