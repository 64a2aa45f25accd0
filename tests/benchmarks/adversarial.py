"""What adversarial and perceptual losses, and a codebook, change: equally long trainings on faces, compared on held-out
people.

    python tests/benchmarks/adversarial.py --steps 2000 --root /somewhere       prints the table
    ... --out docs/results/adversarial.md                                       and writes it
    ... --lpips vgg16.pth                                                       LPIPS as one of the distances

Reconstructions are those of the posterior's mean, by the averaged weights. Distances are in features that no loss has
seen: LPIPS if its weights are given; a classifier trained for this comparison, with another seed than the loss's;
untrained convolutions with another seed. Sharpness is the energy of the reconstructions' gradients over that of the
originals'. Finished trainings are found again in the root.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOSS, TRAINING = "autoencoder.loss", "autoencoder.training"
VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "perceptual": [f"{LOSS}.perceptual={{kind: classifier, weight: 4}}"],
    "adversarial": [
        f"{LOSS}.perceptual={{kind: classifier, weight: 4}}",
        f"{LOSS}.adversarial={{weight: 0.1, width: 32, layers: 2, learning_rate: 2e-4}}",
    ],
    "vq": ["autoencoder.model.kind=vq", "autoencoder.model.codes=512"],
}
MODEL = "{kind: kl, width: 16, multipliers: [1, 2, 4, 4], blocks: 1, latent_channels: 4, groups: 8, attention: false}"
COUNT = 512  # held-out images


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "jobs" / "configs" / "faces64_cpu.yaml")
    parser.add_argument("--root", type=Path, default=ROOT / "runs")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--start", type=float, default=0.5, help="when the discriminator comes in: share of the steps")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--lpips", type=Path, help="VGG16's weights in torchvision's naming")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for all variants")
    options = parser.parse_args()
    trained = {name: train(name, options) for name in options.variants}
    rows = compare(trained, options)
    text = table(rows, options)
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0


def train(name: str, options: argparse.Namespace) -> Any:
    """The stages up to the autoencoder; gives what was done."""
    from pipeline import config
    from pipeline.planning import fits
    from pipeline.stages import graph

    overrides = [
        f"autoencoder.model={MODEL}", f"{TRAINING}.learning_rate=2e-3", f"{TRAINING}.half_lives=[2000]",
        f"run.name=faces64-{name}", f"run.root={options.root.absolute()}", f"{TRAINING}.steps={options.steps}",
        f"{TRAINING}.validate_every={max(1, options.steps // 4)}", *VARIANTS[name], *options.overrides,
    ]  # fmt: skip
    if name == "adversarial":
        overrides.append(f"{LOSS}.adversarial.start={int(options.start * options.steps)}")
    values = config.load(options.config, overrides)
    fits.check_models(values)
    print(f"-- {name}", flush=True)
    return values, {done.artifact.stage: done.artifact for done in graph.run(values, "autoencoder")}


def compare(trained: dict[str, Any], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Variant -> metric -> value, on the same held-out images."""
    import torch

    from models import similarity
    from pipeline.data.split import load_split
    from pipeline.data.value_map import floats
    from pipeline.evaluation.metrics import pixel
    from pipeline.networks import load_model

    values, artifacts = next(iter(trained.values()))
    images, _ = load_split(artifacts["ingest"].path, "val", values, seed=0)
    images = images[:COUNT]
    x = floats(torch.from_numpy(images).permute(0, 3, 1, 2))
    distances = make_distances(values, artifacts["ingest"].path, options)
    rows = {}
    for name, (_, made) in trained.items():
        summary = made["autoencoder"].summary
        model: Any = load_model(made["autoencoder"].path)
        with torch.no_grad():
            y = torch.cat([model.decode(model.encode(part)[:, : model.latent_channels]) for part in x.split(64)])
            y = y.clamp(-1, 1)
            found = {key: float(torch.cat([d(a, b) for a, b in zip(x.split(64), y.split(64), strict=True)]).mean())
                     for key, d in distances.items()}  # fmt: skip
        bytes_ = ((y + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        energy = similarity.gradient_energy(y).sum() / similarity.gradient_energy(x).sum()
        rows[name] = {"PSNR, dB": pixel.psnr(images, bytes_), "SSIM": pixel.ssim(images, bytes_), **found}
        rows[name] |= {"sharpness": float(energy), "codes used": summary.get("val_codes_used", float("nan"))}
    return rows


def make_distances(values: Any, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Distances that no loss has seen."""
    from models import perceptual as models
    from pipeline.data.split import load_split
    from pipeline.evaluation.metrics import features
    from pipeline.schema.stages import Perceptual
    from pipeline.tasks import perceptual

    size, channels = values.data.size, values.data.channels
    found: dict[str, Any] = {}
    if options.lpips:
        found["LPIPS"] = perceptual.load(Perceptual(kind="lpips", path=str(options.lpips)), size, channels)[0]
    path = options.root / "judge.safetensors"
    if not path.exists():
        train, labels = load_split(data, "train", values, seed=0)
        held_out, held_out_labels = load_split(data, "val", values, seed=0)
        judge = features.train_classifier(
            train, labels, held_out, held_out_labels, classes=int(labels.max()) + 1, steps=500, seed=1
        )
        print(f"judge: {judge.description}", flush=True)
        judge.save(path)
    found["classifier distance"] = perceptual.load(Perceptual(kind="classifier", path=str(path)), size, channels)[0]
    found["random-feature distance"] = models.random_features(channels, size, seed=1)
    return found


def table(rows: dict[str, dict[str, float]], options: argparse.Namespace) -> str:
    names = list(next(iter(rows.values())))
    chosen = [*(["--variants", *rows] if rows.keys() != VARIANTS.keys() else []), *options.overrides]
    lines = [
        "# Autoencoders: plain, perceptual, adversarial, quantised",
        "",
        f"`python {' '.join(['tests/benchmarks/adversarial.py', f'--steps {options.steps}', *chosen])}`",
        "",
        (__doc__ or "").strip().split("\n\n")[-1],
        "",
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row, values in rows.items():
        cells = ["-" if math.isnan(value) else f"{value:.4g}" for value in values.values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    if {"plain", "adversarial"} <= rows.keys():
        plain, other = rows["plain"], rows["adversarial"]
        lines += ["", f"Adversarial over plain: PSNR {other['PSNR, dB'] - plain['PSNR, dB']:+.2f} dB (target >= -1)"]
        for key in names:
            if "distance" in key or key == "LPIPS":
                lines.append(f"{key} {other[key] / plain[key] - 1:+.1%} (target below 0)")
        nearer = abs(other["sharpness"] - 1) < abs(plain["sharpness"] - 1)
        lines.append(
            f"sharpness {plain['sharpness']:.3f} -> {other['sharpness']:.3f} ({'' if nearer else 'not '}nearer to 1)"
        )
    if "vq" in rows:
        lines += ["", f"Codes used: {rows['vq']['codes used']:.1%} (target over 90%)"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
