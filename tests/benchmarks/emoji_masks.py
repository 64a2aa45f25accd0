"""How well samples keep to a mask: emoji on white, told where they are drawn.

    python tests/benchmarks/emoji_masks.py table IMAGES FOLDER       # of RGBA files: pictures on white, alpha as mask
    ldm run FOLDER/masks.yaml
    python tests/benchmarks/emoji_masks.py measure MODEL FOLDER [--count 200] [--scale 1]

`table` writes `seen.csv` and, with a tenth of the files, which never occur in it, `unseen.csv`: columns image, mask;
and a config that two CPU cores train in minutes. `measure` samples with masks of `unseen.csv` and prints the mean
intersection over union of what is not white with the mask that was told, with others of them, and that of real images.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

HELD_OUT = 0.1
WHITE = 230  # of 255: where all channels are over it, there is paper
CONFIG = """\
run: {{name: emoji-masks, root: {folder}/runs}}
data: {{source: {{kind: table, path: {folder}/seen.csv}}, size: 16, max_quarantine: 0.05}}
autoencoder:
  model: {{kind: kl, width: 16, groups: 8, multipliers: [1, 2], blocks: 1, latent_channels: 4, attention: false}}
  training: {{steps: 200, batch_size: 16, learning_rate: 2.0e-3, half_lives: [300]}}
latents: {{views: [as_is, flip]}}
diffusion:
  backbone: {{kind: dit, preset: dit-xxs/2}}
  condition: {{kind: none, spatial: {{mask: {{}}}}}}
  training: {{steps: 400, batch_size: 32, learning_rate: 1.0e-3, half_lives: [1500]}}
evaluate: {{samples: 150}}
"""


def table(images: Path, folder: Path) -> None:
    """Write pictures, masks, both tables and the config."""
    from PIL import Image

    rows: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for file in sorted(images.glob("*.png")):
        with Image.open(file) as opened:
            drawn = opened.convert("RGBA")
        paper = Image.new("RGBA", drawn.size, (255, 255, 255, 255))
        paper.alpha_composite(drawn)
        names = (f"images/{file.stem}.png", f"masks/{file.stem}.png")
        paper.convert("RGB").save(folder / names[0])
        drawn.getchannel("A").save(folder / names[1])
        unseen = int(hashlib.sha256(file.stem.encode()).hexdigest()[:8], 16) < HELD_OUT * 2**32
        rows[unseen].append(names)
    for unseen, found in rows.items():
        with open(folder / f"{'unseen' if unseen else 'seen'}.csv", "w", newline="") as out:
            csv.writer(out).writerows([("image", "mask"), *found])
    (folder / "masks.yaml").write_text(CONFIG.format(folder=folder.absolute()))
    print(f"{len(rows[False]):,} seen, {len(rows[True]):,} held out: {folder}")


def overlaps(areas: Any, masks: Any) -> float:
    """Mean intersection over union of bool [n, h, w]."""
    both, either = (areas & masks).sum((1, 2)), (areas | masks).sum((1, 2))
    return float((both / np.maximum(either, 1)).mean())


def measure(model: str, folder: Path, count: int, scale: float) -> None:
    """Print the overlaps."""
    from PIL import Image

    from pipeline.generate import load_pretrained

    with open(folder / "unseen.csv") as file:
        rows = list(csv.DictReader(file))[:count]
    generator = load_pretrained(model)
    size = generator.shapes[0][0]

    def opened(name: str, mode: str) -> Any:
        with Image.open(folder / name) as image:
            return np.asarray(image.convert(mode).resize((size, size), Image.Resampling.BOX))

    masks = np.stack([opened(row["mask"], "L") for row in rows]) > 127
    real = np.stack([opened(row["image"], "RGB") for row in rows])
    samples = generator.sample(maps={"mask": [folder / row["mask"] for row in rows]}, scales={"mask": scale})
    untold = generator.sample(n=len(rows))
    areas, drawn, blind = ((images < WHITE).any(-1) for images in (samples, real, untold))
    shuffled = np.mean([overlaps(areas, np.roll(masks, shift, axis=0)) for shift in range(1, 11)])
    print(f"{len(rows)} held-out masks, scale {scale:g}: intersection over union of what is not white")
    print(f"  with the mask that was told  {overlaps(areas, masks):.3f}")
    print(f"  with another one             {shuffled:.3f}")
    print(f"  of samples told none         {overlaps(blind, masks):.3f}")
    print(f"  of the real images           {overlaps(drawn, masks):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make, look = commands.add_parser("table"), commands.add_parser("measure")
    make.add_argument("images", type=Path)
    look.add_argument("model")
    for command in (make, look):
        command.add_argument("folder", type=Path)
    look.add_argument("--count", type=int, default=200)
    look.add_argument("--scale", type=float, default=1.0)
    given = parser.parse_args()
    if given.command == "table":
        table(given.images, given.folder)
    else:
        measure(given.model, given.folder, given.count, given.scale)


if __name__ == "__main__":
    main()
