"""`ldm verify`: whether the artifacts on disk are still what their manifests say."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli import main
from jobs.common import PATH


@click.command("verify")
@click.option("--root", default="runs", type=PATH, help="Folder of the artifacts.")
def command(root: Path) -> None:
    """Hash every file of every artifact again; exit code 2 if one differs, or an adapter's base is gone."""
    from pipeline.artifacts import Artifact
    from pipeline.data.latent_pool import damaged
    from pipeline.errors import UserError, many
    from pipeline.generate.adapters import without_base

    if not (root / "artifacts").is_dir():
        raise UserError(f"{root}: holds no artifacts; give the `run.root` of a config by --root")
    count = lonely = 0
    for manifest in sorted(root.glob("artifacts/*/*/manifest.json")):
        try:
            artifact = Artifact.load(manifest.parent)
        except UserError as error:  # what it is cannot be told; the others still can
            count += 1
            print(f"{manifest.parent.parent.name}/{manifest.parent.name}: damaged: {error}")
            continue
        wrong = artifact.verify()
        if artifact.stage in ("encode", "conditions"):
            wrong += damaged(artifact)
        gone = without_base(artifact) if artifact.stage == "diffusion" and not wrong else []
        count, lonely = count + len(wrong), lonely + len(gone)
        state = f"damaged: {', '.join(wrong)}" if wrong else f"whole, but {gone[0]}" if gone else "whole"
        print(f"{artifact.stage}/{artifact.fingerprint}: {state}")
    told = [f"{many(count, 'damaged file')}; move their artifacts away and run again"] if count else []
    told += [f"{many(lonely, 'adapter')} without a base; bring it back"] if lonely else []
    if told:
        raise UserError(f"{root}: {'; '.join(told)}")


if __name__ == "__main__":
    main(command)
