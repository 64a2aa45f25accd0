"""Fetches 3,388 drawn pictures with a caption each: Microsoft's Fluent emoji (MIT) with the names that Unicode gives.

    python tests/benchmarks/fluent_emoji.py FOLDER [--size 64]
    OMP_NUM_THREADS=1 ldm run FOLDER/emoji.yaml
    ldm agreement fluent-emoji FOLDER/unseen.csv --train FOLDER/seen.csv --captions --guidance 1,2,3,4 \
        --root FOLDER/runs --out FOLDER/agreement

The config needs `minilm` (docs/guide/conditions.md), and 25 minutes of two cores.

Takes npm's `@lobehub/fluent-emoji-3d` 1.1.0 (the pictures, 256 pixels) and `emojibase-data` 16.0.3 (the names); needs
npm and Pillow. Writes `seen.csv` and, with a tenth of the captions, which never occur in it, `unseen.csv`: columns
image, caption. Pictures are put on white.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = ("@lobehub/fluent-emoji-3d@1.1.0", "emojibase-data@16.0.3")
HELD_OUT = 0.1
CONFIG = """\
run: {{name: fluent-emoji, root: {folder}/runs}}
data:
  source: {{kind: table, path: {folder}/seen.csv, caption: caption}}
  size: {size}
  channels: 3
  shard_size: 256
  max_quarantine: 0.05   # some pictures have several names
  split: {{by: key, val_fraction: 0.03}}
autoencoder:
  model: {{kind: kl, width: 16, multipliers: [1, 2, 4], blocks: 1, latent_channels: 4, groups: 8, attention: false}}
  loss: {{reconstruction: l1, kl_weight: 1e-4}}
  training: {{batch_size: 32, steps: 800, learning_rate: 2e-3, warmup: 50, schedule: wsd, half_lives: [5000],
             save_every: 200, validate_every: 400, preview_every: 400}}
latents: {{views: [as_is]}}
diffusion:
  backbone: {{kind: dit, width: 128, depth: 6, heads: 4, patch: 2, tokens: cross}}
  condition: {{kind: none, drop: 0.1, caption: {{tokens: 32, drop: 0.0, encoder: {{kind: minilm}}}}}}
  training: {{batch_size: 128, steps: 1600, learning_rate: 1e-3, warmup: 100, schedule: wsd, half_lives: [25000],
             save_every: 250, validate_every: 500, preview_every: 500}}
evaluate: {{samples: 90, steps: 10, guidance: 2}}
cluster: {{workers: 2, threads: 1}}
"""


def fetched(package: str, folder: Path) -> Path:
    """The files of an npm package, under a folder; nothing of it is run."""
    told = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True)
    archive = folder / told.stdout.strip().splitlines()[-1]
    with tarfile.open(archive) as tar:
        tar.extractall(folder / archive.stem, filter="data")
    return folder / archive.stem / "package"


def named(entries: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(code points, name) of each emoji, with its skin tones."""
    for entry in entries:
        yield codes(entry["hexcode"]), entry["label"]
        yield from named(entry.get("skins", []))


def codes(name: str) -> str:
    """Code points in lower case, four digits at least, without the mark that asks for a picture (fe0f)."""
    return "-".join(part.zfill(4) for part in name.lower().split("-") if part != "fe0f")


def is_held_out(caption: str) -> bool:
    return int(hashlib.sha256(caption.encode()).hexdigest()[:8], 16) < HELD_OUT * 2**32


def main() -> None:
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64)
    given = parser.parse_args()
    packages = given.folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    pictures, names = (fetched(package, packages) for package in PACKAGES)
    known = dict(named(json.loads((names / "en" / "data.json").read_text())))
    rows: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
    (given.folder / "images").mkdir(exist_ok=True)
    for file in sorted((pictures / "assets").glob("*.webp")):
        caption = known.get(codes(file.stem))
        if caption is None:
            continue
        with Image.open(file) as image:
            drawn = image.convert("RGBA").resize((given.size, given.size), Image.Resampling.LANCZOS)
        paper = Image.new("RGBA", drawn.size, (255, 255, 255, 255))
        paper.alpha_composite(drawn)
        name = f"images/{file.stem}.png"
        paper.convert("RGB").save(given.folder / name)
        rows[is_held_out(caption)].append((name, caption))
    for unseen, found in rows.items():
        with open(given.folder / f"{'unseen' if unseen else 'seen'}.csv", "w", newline="") as table:
            csv.writer(table).writerows([("image", "caption"), *found])
    (given.folder / "emoji.yaml").write_text(CONFIG.format(folder=given.folder.absolute(), size=given.size))
    print(f"{len(rows[False]):,} seen, {len(rows[True]):,} held out: {given.folder}")


if __name__ == "__main__":
    main()
