"""What a trained model saves where the classes are others: CIFAR-10's weights, then the categories of emoji.

    OMP_NUM_THREADS=1 python tests/benchmarks/class_table.py FOLDER --cifar SHARDS --emoji captions.csv

Trains a model of CIFAR-10 (tars train-*.tar and val-*.tar in SHARDS); in its autoencoder's latents one of the emoji's
categories (a table with columns image and category) from nothing, and one for a third of these steps that goes on from
the first (`init_from`). Prints the losses on the held-out emoji over the steps, and how many steps the second needed
for what the first has at its end. 15 minutes of two cores; a second call goes on where the first was ended.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pipeline import config as configs
from pipeline.artifacts import Artifact
from pipeline.stages import graph

LONG, SHORT = 1200, 400  # steps from nothing, and going on
HALF_LIFE = 4000  # samples, of the emoji's averages: of 400 steps one of 25,000 is half the weights of before
MODEL = """\
  training: {{batch_size: 128, steps: {steps}, learning_rate: {rate}, warmup: {warmup}, schedule: wsd,
             half_lives: [{half_life}], save_every: 200, validate_every: {every}, preview_every: 5000{more}}}
evaluate: {{samples: 200}}
cluster: {{workers: 2, threads: 1}}
"""
BACKBONE = "diffusion:\n  backbone: {{kind: dit, width: 128, depth: 6, heads: 4, patch: 2}}\n"
BASE = """\
run: {{name: cifar10, root: {root}}}
data:
  source: {{kind: webdataset, path: "{cifar}/train-*.tar", val: "{cifar}/val-*.tar"}}
  size: 32
  channels: 3
  split: {{by: shards}}
autoencoder:
  model: {{kind: kl, width: 16, multipliers: [1, 4, 4], blocks: 1, latent_channels: 4, groups: 8, attention: false}}
  loss: {{reconstruction: l2, kl_weight: 1e-4}}
  training: {{batch_size: 64, steps: 1800, learning_rate: 2e-3, warmup: 50, schedule: wsd, half_lives: [10000]}}
latents: {{views: [as_is, flip]}}
"""
EMOJI = """\
run: {{name: {name}, root: {root}}}
data:
  source: {{kind: table, path: {emoji}, label: category}}
  size: 32
  channels: 3
  max_quarantine: 0.05
  split: {{by: key, val_fraction: 0.15}}
autoencoder: {{from: {autoencoder}}}
latents: {{views: [as_is, flip]}}
"""


def train(file: Path, text: str) -> dict[str, Artifact]:
    """The finished stages of a config, up to its denoiser."""
    file.write_text(text)
    return {done.artifact.stage: done.artifact for done in graph.run(configs.load(file), "diffusion")}


def held_out(model: Artifact) -> dict[int, float]:
    """Step -> loss on the held-out images."""
    events = [json.loads(line) for spool in Path(model.path, "work", "spool").glob("*.jsonl") for line in spool.open()]
    points = [event for event in events if event["kind"] == "metrics"]
    return {p["step"]: p["values"]["diffusion/val_loss"] for p in points if "diffusion/val_loss" in p["values"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--emoji", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000, help="of the training on CIFAR-10")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    root, cifar, emoji = (path.absolute() for path in (given.folder / "runs", given.cifar, given.emoji))
    often = {"rate": 1e-3, "warmup": 100, "every": 1000, "half_life": 25000, "more": ""}
    base = train(
        given.folder / "base.yaml",
        (BASE + BACKBONE + MODEL).format(root=root, cifar=cifar, steps=given.steps, **often),
    )
    curves = {}
    for name, steps, warmup, more in (
        ("nothing", LONG, 100, ""),
        ("cifar10", SHORT, 20, f", init_from: {base['diffusion'].path}"),
    ):
        text = (EMOJI + BACKBONE + MODEL).format(
            name=f"from-{name}", root=root, emoji=emoji, autoencoder=base["autoencoder"].path, steps=steps, rate=1e-3,
            warmup=warmup, every=50, half_life=HALF_LIFE, more=more,
        )  # fmt: skip
        curves[name] = held_out(train(given.folder / f"{name}.yaml", text)["diffusion"])
        print(f"from {name}: " + ", ".join(f"{step}: {loss:.4f}" for step, loss in sorted(curves[name].items())))
    end = curves["nothing"][LONG]
    reached = [step for step, loss in sorted(curves["cifar10"].items()) if loss <= end]
    share = f"after {reached[0]} steps, {reached[0] / LONG:.2f} of them" if reached else "never"
    print(f"from nothing {end:.4f} after {LONG} steps; reached from CIFAR-10's weights {share}")


if __name__ == "__main__":
    main()
