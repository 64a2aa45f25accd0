"""`ldm models`: every kind and preset with its parameters and FLOPs, as a markdown table."""

from __future__ import annotations

import dataclasses

import click

from jobs.cli import main


@click.command("models")
@click.option("--channels", default=4, show_default=True, type=click.IntRange(1), help="Channels of the latents.")
@click.option("--size", default=32, show_default=True, type=click.IntRange(1), help="Side of the latents.")
@click.option("--image-channels", default=3, show_default=True, type=click.IntRange(1), help="Channels of the images.")
@click.option("--image", default=256, show_default=True, type=click.IntRange(1), help="Side of the images, in pixels.")
@click.option("--match", default="", metavar="TEXT", help="Only presets whose kind or name contains TEXT.")
@click.option("--set", "fields", multiple=True, metavar="KEY=VALUE", help="A field over the presets', as tokens=cross.")
def command(channels: int, size: int, image_channels: int, image: int, match: str, fields: tuple[str, ...]) -> None:
    """List models with their parameters and FLOPs (two a multiply-add) of one sample's forward pass.

    A training step costs three times that, four with activation checkpointing. A caption that is attended to has 64
    tokens, a clip 9 frames. With --set only the kinds that have such a field are listed.
    """
    from models import costs, registry
    from pipeline.config import override_value
    from pipeline.errors import UserError

    over = dict(map(override_value, fields))
    known = {kind: {field.name for field in dataclasses.fields(registry.config_class(family, kind))}
             for family in costs.SHAPES for kind in registry.kinds(family)}  # fmt: skip
    names = set[str]().union(*known.values())
    for key in sorted(set(over) - names):
        raise UserError(f"--set {key}: no kind has such a field; {registry.nearest(key, names)}")
    shapes = {"backbones": (channels, size), "autoencoders": (image_channels, image)}
    for family, shape in shapes.items():
        kinds = [kind for kind in registry.kinds(family) if known[kind] >= set(over)]
        if not kinds:
            continue
        print(f"\n{family} on {shape[0]} x {shape[1]} x {shape[1]}\n")
        print("| kind | preset | parameters | GFLOPs |\n| --- | --- | ---: | ---: |")
        for kind in kinds:
            for preset in [p for p in registry.presets(family, kind) if match in f"{kind} {p}"]:
                try:
                    cost = costs.preset(family, kind, preset, *shape, **over)
                except ValueError as error:  # such as a patch that does not divide the side
                    print(f"| {kind} | {preset} | - | {error} |")
                    continue
                print(f"| {kind} | {preset} | {_short(cost.parameters)} | {_figures(cost.flops / 1e9)} |")


def _short(number: int) -> str:
    """1,234,567 as 1.23 M."""
    return f"{_figures(number / 1e6)} M" if number < 1e9 else f"{_figures(number / 1e9)} G"


def _figures(number: float) -> str:
    """Three figures, never as a power of ten."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


if __name__ == "__main__":
    main(command)
