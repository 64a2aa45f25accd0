"""`ldm features`: activations of a trained model's denoiser on images, by noise level and block."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH, PLACE, numbers


@click.command("features")
@click.argument("model", type=PLACE)
@click.argument("data", type=PLACE)
@click.option("-o", "--out", required=True, type=PATH, help="The .npz file to write.")
@click.option("--levels", default="0.1,0.2,0.3", show_default=True, help="Shares of noise, from 0 to below 1.")
@click.option("--blocks", default=None, help="Behind which blocks, such as 2,4, or all; default: half of them, all.")
@click.option("--maps", is_flag=True, help="Keep the places of an activation apart, [D, h, w]; default: their mean.")
@click.option("-n", "--count", default=None, type=click.IntRange(1), help="Images at most, in the classes' shares.")
@click.option("--image", default=None, help="Column of the images in a table; default: image.")
@click.option("--label", default=None, help="Column of the class in a table.")
@click.option("--columns", default="", help="Columns to keep beside, separated by commas.")
@click.option("--bare", is_flag=True, help="Leave latents and pixels out, which `ldm probe` compares with.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the noise.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Ray actors; 1: this process.")
@click.option("--weights", default=None, type=PLACE, help="Other weights of the denoiser, as of `ldm sample`.")
@click.option("--root", default="runs", type=PATH, help="Where runs lie, and the pool of features.")
def command(
    model: str, data: str, out: Path, levels: str, blocks: str | None, maps: bool, count: int | None,
    image: str | None, label: str | None, columns: str, bare: bool, seed: int, workers: int, weights: str | None,
    root: Path,
) -> None:  # fmt: skip
    """Write what MODEL's denoiser has inside for the images of DATA: a folder, a table, an .npz file, tars (a pattern
    in quotes), or a config. A call that was killed goes on."""
    from pipeline.applications import features, given_data
    from pipeline.applications.recorded import record
    from pipeline.cluster.cluster import Cluster
    from pipeline.cluster.inline import Inline
    from pipeline.config import ClusterConfig
    from pipeline.data.sources import digests_folder_of
    from pipeline.errors import many
    from pipeline.generate.folder import load_pretrained

    shares = numbers("--levels", levels)
    chosen = given_data.data_of(data, {"image": image, "label": label})
    generator = load_pretrained(model, root=root, weights=weights)
    generator.pictures_only("`ldm features`")
    depth = len(getattr(generator.network.backbone, "blocks", ()))
    behind = {None: sorted({max(1, depth // 2), depth}), "all": list(range(1, depth + 1))}.get(blocks)
    wanted = features.Wanted(
        tuple(sorted(shares)), tuple(sorted(behind or numbers("--blocks", blocks or "", int))), maps, seed, not bare
    )
    features.check(generator, wanted)
    samples = given_data.listed(chosen, digests_folder_of(root), count, given_data.is_config(data))
    names = [name.strip() for name in columns.split(",") if name.strip()]
    with Cluster(ClusterConfig(workers=workers, threads=1)) as cluster:
        made = features.extract(
            generator, chosen, samples, out, wanted, root=root, columns=names,
            cluster=cluster if workers > 1 else Inline(), source=(model, weights) if workers > 1 else None,
        )  # fmt: skip
    said = "written" if made else "there already"
    of = f"{many(len(wanted.names), 'feature')} of {many(len(samples), 'image')}"
    said = f"{of} in {out} ({said}): {', '.join(wanted.names)}"
    print(said, flush=True)
    record(root, "features", out, said, asked=features.asked_of(out))


if __name__ == "__main__":
    main(command)
