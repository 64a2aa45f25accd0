"""Do a generator's images help a classifier that has few real ones? CIFAR-10 with 50, 100 and 500 a class.

    OMP_NUM_THREADS=1 python tests/benchmarks/augmentation.py FOLDER --cifar SHARDS

SHARDS: CIFAR-10 as tars train-*.tar and val-*.tar with classes.json. For each number a part of the training images is
taken; `ldm run` trains a generator on it alone, `ldm augment` draws 500 images a class with it, filtered by a judge
that has seen these real images alone. A small residual network is trained on the real images with crops and mirrored
images, and on the same with half of each batch generated, for the same number of steps, from five seeds. Prints the
accuracy on the images of val-*.tar, and the difference, paired by seed, with its 95% interval (Student's t). There is
one generator for each number: the seeds are the classifier's (first weights, batches, crops). `--arms` has a third,
the generated images without the filter. A second call goes on where the first was ended. An hour of two cores.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torch import nn
from torch.nn import functional

from jobs.augment import command
from pipeline import config as configs
from pipeline.data import index_tars, shards
from pipeline.files import atomic_path, read_json, write_json
from pipeline.stages import graph

ARMS = {"real": None, "filtered": "real and generated", "unfiltered": "real and generated, unfiltered"}
CONFIG = """\
run: {{name: few-{shots}, root: {root}}}
data:
  source: {{kind: webdataset, path: {real}/real.tar}}
  size: 32
  channels: 3
  split: {{by: key, val_fraction: 0.1}}
  augment: {{flip: true}}
autoencoder:
  model: {{kind: kl, width: 16, multipliers: [1, 4, 4], blocks: 1, latent_channels: 4, groups: 8, attention: false}}
  loss: {{reconstruction: l2, kl_weight: 1e-4}}
  training: {{batch_size: 64, steps: {first}, learning_rate: 2e-3, warmup: 50, schedule: wsd, half_lives: [10000]}}
latents: {{views: [as_is, flip]}}
diffusion:
  backbone: {{kind: dit, width: 128, depth: 6, heads: 4, patch: 2}}
  condition: {{kind: class, drop: 0.1}}
  training: {{batch_size: 128, steps: {steps}, learning_rate: 1e-3, warmup: 100, schedule: wsd, half_lives: [25000],
             save_every: 500, validate_every: 1000, preview_every: 5000}}
cluster: {{workers: {workers}, threads: 1}}
"""
Set = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]  # images uint8 [n, 32, 32, 3], classes int64 [n]


# ---- data ------------------------------------------------------------------------------------------------------------


def read(paths: list[Path]) -> Set:
    """All images of tars with their classes."""
    images, labels = [], []
    for path in paths:
        with open(path, "rb") as file:
            for _, members, member in index_tars.samples_of(path, str(path)):
                assert member
                content = io.BytesIO(index_tars.read_member(file, member))
                images.append(np.asarray(Image.open(content).convert("RGB")))
                labels.append(int(index_tars.read_member(file, members["cls"])))
    return np.stack(images), np.array(labels)


def few(cifar: Path, shots: int, folder: Path) -> Path:
    """The first `shots` images of each class in the order of the shards, as real.tar: 50 are among 100."""
    path, counts = folder / "real.tar", dict.fromkeys(range(10), 0)
    if path.exists():
        return path
    write_json(folder / "classes.json", read_json(cifar / "classes.json"))
    with atomic_path(path) as temporary, open(temporary, "wb") as out:
        writer = shards.TarWriter(out)
        for source in sorted(cifar.glob("train-*.tar")):
            with open(source, "rb") as file:
                for key, members, member in index_tars.samples_of(source, str(source)):
                    assert member
                    label = int(index_tars.read_member(file, members["cls"]))
                    if counts[label] < shots:
                        counts[label] += 1
                        extension = member.name.rpartition(".")[2]
                        writer.add(f"{key}.{extension}", index_tars.read_member(file, member))
                        writer.add(f"{key}.cls", str(label).encode())
            if min(counts.values()) == shots:
                break
        writer.close()
    return path


def generated(folder: Path, shots: int, filtered: bool, given: argparse.Namespace) -> Set:
    """The images of a generator that is trained on the real ones of `folder` alone."""
    config, root = folder / "generator.yaml", folder / "runs"
    config.write_text(
        CONFIG.format(shots=shots, root=root, real=folder, first=given.autoencoder_steps, steps=given.generator_steps,
                      workers=given.workers)
    )  # fmt: skip
    made = {done.artifact.stage: done.artifact for done in graph.run(configs.load(config), "diffusion")}
    out = folder / ("filtered" if filtered else "unfiltered")
    asked = [str(made["diffusion"].path), str(folder / "real.tar"), "-o", str(out), "--root", str(root), "--flip",
             "--per-class", str(given.per_class), "--judge-steps", str(given.judge_steps),
             "--guidance", str(given.guidance), *([] if filtered else ["--least", "0"])]  # fmt: skip
    command.main(asked, standalone_mode=False)
    return read(sorted(out.glob("generated-*.tar")))


# ---- the classifier --------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """x + F(x), the second convolution's scale at 0 at first (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        last = nn.BatchNorm2d(after)
        self.norms = nn.ModuleList([nn.BatchNorm2d(after), last])
        self.beside = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else nn.Identity()
        nn.init.zeros_(last.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(self.beside(x) + self.norms[1](self.second(h)))


def network(width: int) -> nn.Module:
    """Three stages of a block each, of width, 2 width, 4 width channels at 32, 16 and 8 pixels."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), Block(width, width, 1),
        Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4 * width, 10),
    )  # fmt: skip


def batch(data: Set, size: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images drawn with crops of 4 pixels' padding, half of them mirrored: float32 [n, 3, 32, 32]."""
    rows = random.integers(len(data[1]), size=size)
    padded = np.pad(data[0][rows], ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    places, mirrored = random.integers(9, size=(size, 2)), random.integers(2, size=size)
    cut = [
        one[top : top + 32, left : left + 32][:, :: -1 if flip else 1]
        for one, (top, left), flip in zip(padded, places, mirrored, strict=True)
    ]
    return tensor(np.stack(cut)), torch.from_numpy(data[1][rows])


def tensor(images: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 127.5 - 1


def accuracy(real: Set, more: Set | None, test: Set, seed: int, given: argparse.Namespace) -> float:
    """Of a network that is trained in bf16 on `real`, with a share of each batch from `more`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    random, rate = np.random.Generator(np.random.Philox(seed)), 0.1
    model = network(given.width).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = given.classifier_steps
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    part = round(given.batch * given.generated) if more else 0
    for _ in range(steps):
        drawn = [batch(real, given.batch - part, random), *([batch(more, part, random)] if more else [])]
        x, y = (torch.cat(several).to(device) for several in zip(*drawn, strict=True))
        with torch.autocast(device, torch.bfloat16):
            told = model(x.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(told.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plan.step()
    model.eval()
    with torch.no_grad():
        chunks = [range(i, min(i + 500, len(test[1]))) for i in range(0, len(test[1]), 500)]
        found = [model(tensor(test[0][rows]).to(device)).argmax(1).cpu().numpy() for rows in chunks]
    return float((np.concatenate(found) == test[1]).mean())


# ---- figures ---------------------------------------------------------------------------------------------------------


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of its 95% interval (Student's t)."""
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else float("nan")
    return float(np.mean(values)), half


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Accuracy in percent by number of real images and arm, and by how much each differs from real ones alone."""
    lines = [
        "| real images a class | trained on | accuracy | difference, paired by seed |",
        "| ---: | --- | ---: | ---: |",
    ]
    for shots, arms in sorted(results.items(), key=lambda item: int(item[0])):
        for arm, by_seed in sorted(arms.items(), key=lambda item: list(ARMS).index(item[0])):
            mean, half = interval([100 * value for value in by_seed.values()])
            row = f"| {shots} | {ARMS[arm] or 'real'} | {mean:.1f} ± {half:.1f} |"
            both = [seed for seed in by_seed if seed in arms.get("real", {})]
            gain, wide = interval([100 * (by_seed[seed] - arms["real"][seed]) for seed in both]) if both else (0.0, 0.0)
            lines.append(row + (" |" if arm == "real" else f" {gain:+.1f} [{gain - wide:+.1f}, {gain + wide:+.1f}] |"))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--shots", default="50,100,500", help="real images a class")
    parser.add_argument("--arms", default="real,filtered", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--per-class", type=int, default=500, help="generated images")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--generated", type=float, default=0.5, help="share of a batch")
    for name, default in (("autoencoder-steps", 1800), ("generator-steps", 5000), ("judge-steps", 1500),
                          ("classifier-steps", 2000), ("width", 16), ("batch", 128), ("workers", 2),
                          ("test", 10000)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    folder, cifar = given.folder.absolute(), given.cifar.absolute()
    asked = {k: v for k, v in vars(given).items() if k not in ("folder", "cifar", "shots", "arms", "seeds", "workers")}
    path = folder / "results.json"
    held = read_json(path) if path.exists() else {"asked": asked, "results": {}}
    if held["asked"] != asked:
        sys.exit(f"{path}: figures of other options ({held['asked']}); give a new folder")
    results = held["results"]
    test: Set = read(sorted(cifar.glob("val-*.tar")))
    test = test[0][: given.test], test[1][: given.test]
    for shots in given.shots.split(","):
        own = folder / shots
        own.mkdir(parents=True, exist_ok=True)
        real = read([few(cifar, int(shots), own)])
        for arm in given.arms.split(","):
            more = None if arm == "real" else generated(own, int(shots), arm == "filtered", given)
            kept = results.setdefault(shots, {}).setdefault(arm, {})
            with ProcessPoolExecutor(given.workers, multiprocessing.get_context("spawn")) as pool:
                seeds = [seed for seed in range(given.seeds) if str(seed) not in kept]
                runs = {pool.submit(accuracy, real, more, test, seed, given): seed for seed in seeds}
                for done in as_completed(runs):
                    kept[str(runs[done])] = done.result()
                    write_json(path, held)
                    print(f"{shots} a class, {arm}, seed {runs[done]}: {done.result():.1%}", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
