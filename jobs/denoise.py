"""`ldm denoise`: the filters of `data.filters` beside each other on an image or a folder, with PSNR."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH, read


@click.command("denoise")
@click.argument("source", metavar="IMAGE|DIR", type=PATH)
@click.option("--out", default="denoise.png", show_default=True, type=PATH, help="The picture.")
@click.option("--noise", type=click.FloatRange(0, 255), help="Add noise of so many grey levels; the source is clean.")
@click.option("--clean", type=PATH, help="The clean original, or a folder of the same names.")
@click.option(
    "--filter", "texts", multiple=True, metavar="KIND:KEY=VALUE,...", help="A filter, or several joined by +."
)
@click.option("--config", "path", type=PATH, help="Also the filters of this config's data.filters.")
@click.option("-n", "--count", default=8, show_default=True, type=click.IntRange(1), help="Images of a folder.")
@click.option("--channels", type=click.Choice(["1", "3"]), help="1: gray, 3: RGB; default: as the files are.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the added noise.")
def command(
    source: Path, out: Path, noise: float | None, clean: Path | None, texts: tuple[str, ...], path: Path | None,
    count: int, channels: str | None, seed: int,
) -> None:  # fmt: skip
    """Show what filters make of IMAGE, or of the first images of DIR, and how near it is to a clean original."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.data import denoise
    from pipeline.errors import UserError, many
    from pipeline.files import atomic_path

    if noise is not None and clean is not None:
        raise UserError("--noise and --clean: give one; with --noise the images themselves are the clean ones")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: expected a name that ends in .png")
    configured = [read(path, ()).data.filters] if path else []
    chosen = [tuple(denoise.parse(part) for part in text.split("+")) for text in texts]
    chosen += [chain for chain in configured if chain]
    chosen = chosen or [(denoise.parse(text),) for text in denoise.DEFAULT]
    wanted = int(channels) if channels else None
    given = denoise.load(source, wanted, count)
    originals = None
    if noise is not None:
        originals = given
        given = {key: denoise.add_noise(image, noise, seed, i) for i, (key, image) in enumerate(given.items())}
    elif clean is not None:
        originals = denoise.load(clean, wanted, 10**9)
        if source.is_file():  # two files may have any names
            originals = dict(zip(given, originals.values(), strict=False))
    compared = denoise.compare(given, originals, chosen)
    with atomic_path(out) as temporary:
        denoise.picture(compared).save(temporary, format="PNG")
    table = Table("filter", *(["PSNR (dB)"] if compared.psnr else []), box=None, pad_edge=False)
    for i, name in enumerate(compared.names):
        table.add_row(name, *([f"{compared.psnr[i]:.2f}{' best' * (i == compared.best)}"] if compared.psnr else []))
    Console(soft_wrap=True).print(table)
    print(
        f"{many(len(given), 'image')}, noise of about {compared.noise:.1f} grey levels as estimated; the picture: {out}"
    )


if __name__ == "__main__":
    main(command)
