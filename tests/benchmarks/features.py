"""What the features of a trained model are good for: classes of CIFAR-10, boxes of drawn shapes.

    python tests/benchmarks/features.py classes MODEL CONFIG.yaml OUT [--root RUNS] [--count N] [--seeds 5] \
        [--levels 0.05,0.1,0.2,0.3,0.4] [--blocks all] [--maps] [--workers 1]
    python tests/benchmarks/features.py draw FOLDER [--count 8000] [--size 32]
    ldm run FOLDER/shapes.yaml
    python tests/benchmarks/features.py boxes shapes FOLDER/shapes.jsonl OUT --root FOLDER/runs [...]

`classes`: MODEL's activations on the images of CONFIG (such as jobs/configs/cifar10_cpu.yaml), probed on those that its
training held out, with 10, 100 and all labels a class. `boxes`: maps, probed for the box of the shape.
Writes OUT/features.npz, OUT/probe.json and OUT/probe.md; what is there already is not made again.

`draw` writes the images of the synthetic source `shapes` as files, with a table: image, class, and the box as shares of
the sides, which is where pixels differ from the background (that of the corners: no shape covers all four).
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from pipeline.applications import probe  # noqa: E402
from pipeline.data import sources  # noqa: E402
from pipeline.data.listing import Unread  # noqa: E402
from pipeline.data.transforms import to_png  # noqa: E402
from pipeline.files import atomic_write, read_json, write_json  # noqa: E402
from pipeline.schema.data import ShapesSource  # noqa: E402

BOX = ("x0", "y0", "x1", "y1")
CONFIG = """\
run: {{name: shapes, root: {folder}/runs}}
data:
  source: {{kind: table, path: {folder}/shapes.jsonl, label: kind}}
  size: {size}
  channels: 3
autoencoder:
  model: {{kind: kl, width: 16, multipliers: [1, 4, 4], blocks: 1, latent_channels: 4, groups: 8, attention: false}}
  loss: {{reconstruction: l2, kl_weight: 1e-4}}
  training: {{batch_size: 64, steps: 1000, learning_rate: 2e-3, warmup: 50, schedule: wsd, half_lives: [10000]}}
diffusion:
  backbone: {{kind: dit, width: 128, depth: 6, heads: 4, patch: 2}}
  training: {{batch_size: 128, steps: 1500, learning_rate: 1e-3, warmup: 100, schedule: wsd, half_lives: [25000]}}
evaluate: {{samples: 400}}
cluster: {{threads: 1}}
"""


def box_of(pixels: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the shape in an image uint8 [H, W, 3], as shares of its sides."""
    background = np.median(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0)
    there = (np.abs(pixels - background) > 8).any(2)
    (rows,), (columns,) = np.nonzero(there.any(1)), np.nonzero(there.any(0))
    height, width = there.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def draw(folder: Path, count: int, size: int) -> None:
    source = ShapesSource(kind="shapes", count=count, sizes=((size, size),))
    read, rows = sources.reader(source), []
    for row in sources.listing(source, Unread()).rows:
        pixels = np.asarray(read(row.location))
        file = folder / "shapes" / f"{row.key}.png"
        if not file.exists():
            atomic_write(file, to_png(Image.fromarray(pixels)))
        known = dict(zip(BOX, (round(float(side), 5) for side in box_of(pixels)), strict=True))
        rows.append(json.dumps({"image": f"shapes/{row.key}.png", "kind": row.label, **known}))
    atomic_write(folder / "shapes.jsonl", "\n".join(rows) + "\n")
    atomic_write(folder / "shapes.yaml", CONFIG.format(folder=folder, size=size))


def measure(arguments: argparse.Namespace) -> None:
    out, boxes = arguments.out, arguments.what == "boxes"
    words = [arguments.model, arguments.data, "-o", str(out / "features.npz"), "--levels", arguments.levels]
    words += ["--blocks", arguments.blocks, "--root", arguments.root, "--workers", str(arguments.workers)]
    words += ["--count", str(arguments.count)] if arguments.count else []
    words += ["--maps"] if boxes or arguments.maps else []
    words += ["--columns", ",".join(BOX)] if boxes else []
    subprocess.run([sys.executable, "-m", "jobs.features", *words], cwd=ROOT, check=True)
    if not (out / "probe.json").exists():
        table = probe.load(out / "features.npz")
        values = (
            probe.boxes(table, BOX, None, arguments.seeds) if boxes else probe.classes(table, seeds=arguments.seeds)
        )
        write_json(out / "probe.json", values)
    values = read_json(out / "probe.json")
    atomic_write(out / "probe.md", markdown(values))
    print((out / "probe.md").read_text())


def markdown(values: dict[str, Any]) -> str:
    header, rows = probe.rows(values)
    tuning = values["tuning"]
    levels, blocks = (sorted({name.split("/")[i] for name in tuning}) for i in (0, 1))
    of = [[block, *(f"{tuning[f'{level}/{block}']:.1%}" for level in levels)] for block in blocks]
    images = values["images"]
    lines = [
        f"`python {shlex.join(['tests/benchmarks/features.py', *sys.argv[1:]])}`",
        f"{images['fit'] + images['tune']:,} images to learn from, {images['test']:,} to test (held out: "
        f"{values['held_out']}), {values['seeds']} seeds, 95% intervals.",
        table(header, rows),
        f"On {images['tune']:,} images that are not for tests, by which {values['chosen']} was chosen:",
        table(["", *levels], of),
    ]
    if "gain" in values:
        lines.append(f"{100 * values['gain']:+.1f} points over {values['over']} (linear, all labels).")
    return "\n\n".join(lines) + "\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="what", required=True)
    drawn = verbs.add_parser("draw")
    drawn.add_argument("folder", type=Path)
    drawn.add_argument("--count", type=int, default=8000)
    drawn.add_argument("--size", type=int, default=32)
    for name in ("classes", "boxes"):
        probed = verbs.add_parser(name)
        probed.add_argument("model")
        probed.add_argument("data")
        probed.add_argument("out", type=Path)
        probed.add_argument("--root", default="runs")
        probed.add_argument("--count", type=int)
        probed.add_argument("--seeds", type=int, default=5)
        probed.add_argument("--levels", default="0.05,0.1,0.2,0.3,0.4")
        probed.add_argument("--blocks", default="all")
        probed.add_argument("--maps", action="store_true")
        probed.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "draw":
        draw(arguments.folder.absolute(), arguments.count, arguments.size)
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
