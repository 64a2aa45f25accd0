"""Runs the training loop in plain processes, for tests: python training_process.py, and a line of stdin each:
SCENARIOS.json OUTPUT, answered by an exit code.

SCENARIOS.json holds a list of runs, done one after the other, each by `world` forked processes, which find everything
imported; what they print goes to the file OUTPUT. A run trains a small
network on batches that are a pure function of position, or (`subject`) one of the pipeline's own trained stages.
Rank 0 appends each step to `<out>.steps.jsonl` (floats in hex) and writes `<out>.json` at the end. A run may kill
itself with SIGKILL at a step, or get an inf in one rank's gradient.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import pkgutil
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", GLOO_SOCKET_IFNAME="lo")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

BATCH, WIDTH = 8, 24
LOSS = "autoencoder.loss"
VARIANTS = {  # subject -> stage, overrides of its config
    "adversarial": (
        "autoencoder",
        [f"{LOSS}.adversarial={{weight: 0.5, start: 4, r1: 0.1, width: 8, layers: 1}}",
         f"{LOSS}.perceptual.kind=random"],
    ),
    "vq": (
        "autoencoder",
        ["autoencoder.model={kind: vq, width: 8, multipliers: [1, 2], blocks: 1, latent_channels: 2, groups: 4, "
         "attention: false, codes: 24, restarts: 3, half_life: 40}"],
    ),
    "conditioned": (
        "diffusion",
        ["data.source={kind: table, path: ROOT/images.csv, label: class, caption: said}",
         "diffusion.condition={class_drop: 0.2, caption: {tokens: 24, encoder: {kind: trained, width: 16, heads: 2}}, "
         "attributes: {mood: {kind: categorical}, age: {kind: continuous, range: [0, 40]}, worn: {kind: multi_label}}, "
         "spatial: {mask: {column: other, drop: 0.2}}}",
         "diffusion.backbone.tokens=cross", "diffusion.training.optimizer=muon", "diffusion.backbone.depth=2",
         "diffusion.align={}", "diffusion.dispersive=0.5", "diffusion.route={}",
         "diffusion.self_conditioning=true"],
    ),
    "lora": (
        "diffusion",
        ["data.source={kind: table, path: ROOT/images.csv, label: class}", "diffusion.training.init_from=ROOT/base",
         "diffusion.condition.attributes={age: {kind: continuous, range: [0, 40]}}",
         "diffusion.training.lora={rank: 2}"],
    ),
    "distil": ("diffusion", ["diffusion.training.init_from=ROOT/teacher", "diffusion.distil={guidance: 2}"]),
}  # fmt: skip


class Net(nn.Module):
    """Tied, frozen, single-element and (for ZeRO 3) both persistent and non-persistent parameters, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 360)
        self.wide = nn.Linear(360, 360)  # 129,600 elements: over ZeRO 3's persistence threshold
        self.tied = nn.Linear(360, 360)
        self.tied.weight = self.wide.weight
        self.norm = nn.LayerNorm(360)
        self.frozen = nn.Linear(360, 360).requires_grad_(False)
        self.gain = nn.Parameter(torch.ones(1))
        self.out = nn.Linear(360, WIDTH)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        h = self.norm(F.silu(self.wide(F.silu(self.first(x)))))
        return self.out(self.gain * (self.frozen(h) + F.silu(self.tied(h))))


def batches(position: int, rank: int, world: int) -> Iterator[dict[str, Any]]:
    """This rank's shares, from a position on."""
    share = BATCH // world
    while True:
        generator = torch.Generator().manual_seed(1000 + position)
        x = torch.randn(BATCH, WIDTH, generator=generator)[rank * share : (rank + 1) * share]
        yield {"x": x, "position": position}
        position += BATCH


def loss_function(rank: int, bad: list[int]) -> Any:
    """Reconstruction; at a bad position the last rank's gradient gets one inf in its first micro-batch."""
    done: set[int] = set()

    def loss(module: nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        out = module(batch["x"])
        value = F.mse_loss(out, batch["x"])
        position = batch["position"]
        if position in bad and position not in done and rank >= 0:
            done.add(position)
            spoil = torch.zeros_like(out)
            spoil[0, 0] = torch.inf
            out.register_hook(lambda gradient: gradient + spoil)
        if position not in bad:
            done.clear()
        return {"loss": value, "twice": 2 * value.detach()}

    return loss


def whole(folder: Path, position: int) -> bool:
    """Whether there is a whole checkpoint made at this position or later."""
    return any(int(path.parent.name.split("-")[1]) >= position for path in folder.glob("step-*/manifest.json"))


class Curves:
    """A log that keeps all it is given."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.points.append((step, values))

    def image(self, key: str, image: Any, step: int, cells: Any = ()) -> None:
        self.points.append((step, {key: float(image.mean())}))


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def join(world: int, rank: int, store: str) -> Any:
    """This process as a rank of a group that meets over the file `store`."""
    import torch.distributed as dist

    from pipeline.training.ranks import open_ranks

    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    return open_ranks()


def run(scenario: dict[str, Any], rank: int, store: str) -> None:
    """One rank of one scenario."""
    from pipeline.files import sha256_file
    from pipeline.schema.training import Training
    from pipeline.training import snapshots
    from pipeline.training.loop import Task, train

    world, ranks = scenario["world"], join(scenario["world"], rank, store)
    training = Training(
        batch_size=BATCH, micro_batch=BATCH // world // scenario["accumulation"], zero_stage=scenario["stage"],
        learning_rate=3e-3, weight_decay=0.1, warmup=3, schedule="cosine", half_lives=(32, 400), log_every=2, keep=3,
        average_lengths=(0.05, 0.1), snapshot_every=20, **scenario["training"],
    )  # fmt: skip
    torch.manual_seed(scenario.get("seed", 0))
    model: nn.Module
    if scenario["subject"] == "network":
        loss = loss_function(rank if rank == world - 1 else -1, scenario.get("bad", []))
        model, task = Net(), Task("test", loss, lambda position: batches(position, rank, world))
    else:
        model, task, values = build_stage(scenario, ranks)
        training = training.model_copy(update={"lora": values.lora, "optimizer": values.optimizer})
    engine = task.engine(model, training, ranks)
    out, kill = scenario["out"], scenario.get("kill")

    def on_step(position: int, stats: Any) -> None:
        if rank == 0:
            row = {"position": position, "loss": stats.loss.hex(), "norm": stats.grad_norm.hex(), "bad": stats.skipped}
            with open(f"{out}.steps.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
        if kill is not None and position == kill * BATCH and rank == scenario.get("kill_rank", 0):
            while not whole(Path(scenario["folder"]), scenario.get("whole", 0)):  # the resumed runs have another seed
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    curves, said, stored = Curves(), [], Path(scenario["folder"]) / "snapshots"
    summary = train(
        engine, task, training, ranks, Path(scenario["folder"]), curves, lambda: False,
        on_step=on_step, progress=lambda progress: None, say=said.append, token=scenario.get("token", 1),
        snapshots=stored,
    )  # fmt: skip
    live, ema = engine.export("live"), engine.export("ema")
    assert not any(name.startswith("align_head") for name in live)  # what training alone needs
    if rank == 0:
        snapshots.tidy(stored, training, engine.averaged)
        result = {
            "snapshots": {path.name: sha256_file(path) for path in sorted(stored.iterdir())},
            "live": fingerprint(live), "ema": fingerprint(ema), "said": said, "points": curves.points,
            "resumed_from": summary.resumed_from, "skipped": summary.skipped, "bad_steps": summary.bad_steps,
        }  # fmt: skip
        Path(f"{out}.json").write_text(json.dumps(result))
    ranks.barrier()


def prepare(scenario: dict[str, Any], rank: int, store: str) -> None:
    """Config, images, shards, an autoencoder and latents, for the runs of the pipeline's stages."""
    import conftest
    import numpy as np
    from PIL import Image

    from pipeline import config
    from pipeline.artifacts import Store
    from pipeline.cluster import cluster
    from pipeline.stages import graph
    from pipeline.tracking import tracker

    cluster.Cluster = conftest.OneProcess  # type: ignore[misc]
    tracker.start = lambda *_: conftest.NoShipper()  # type: ignore[assignment,return-value]
    for i in range(40):
        path = Path(scenario["root"]) / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (12, 12, 3), np.uint8)).save(path)
    rows = [
        f"images/{'ab'[i % 2]}/{i}.png,{'ab'[i % 2]},{'said of ' + str(i) if i % 5 else ''},"
        f'{("glad", "sad", "")[i % 3]},{i if i % 4 else ""},"{("hat", "", "hat,beard")[i % 3]}",'
        f"{f'images/b/{i + 1}.png' if i % 4 == 0 else ''}"
        for i in range(40)
    ]  # some values are missing
    root = Path(scenario["root"])
    (root / "images.csv").write_text("\n".join(["image,class,said,mood,age,worn,other", *rows]) + "\n")
    path = root / "small.yaml"
    path.write_text(conftest.CONFIG.format(root=path.parent / "pipeline", images=path.parent / "images"))
    if modality := scenario.get("modality"):  # other data, and a config of its own, by the test of that name
        importlib.import_module(f"tests.integration.test_{modality}").write(root, root / "pipeline")
    if scenario.get("subject") == "lora":
        conftest.make_base(root / "base")
    if scenario.get("subject") == "distil":
        graph.run(config.load(path), "diffusion")
        teacher = next(artifact for artifact in Store(root / "pipeline").all() if artifact.stage == "diffusion")
        (root / "teacher").symlink_to(teacher.path)
    graph.run(config.load(path, variant(scenario)[1]), "encode")


def build_stage(scenario: dict[str, Any], ranks: Any) -> tuple[nn.Module, Any, Any]:
    """Network, task and section `training` of a trained stage, on what `prepare` made."""
    from models.diffusion import inside
    from pipeline import config
    from pipeline.artifacts import Store
    from pipeline.schema.names import INPUTS
    from pipeline.tasks import begin

    inside.GROUP = 2  # a micro-batch here has no more
    made = {artifact.stage: artifact for artifact in Store(Path(scenario["root"]) / "pipeline").all()}
    stage, overrides = variant(scenario)
    module = importlib.import_module(f"pipeline.tasks.{stage}")
    values = config.load(Path(scenario["root"]) / "small.yaml", overrides)
    inputs = {name: made[name] for name in INPUTS[stage] if name in made}
    model, task = module.build(values, inputs, ranks)
    own = getattr(values, stage).training
    if own.init_from:
        what, file = module.options(values, inputs), begin.first_weights(values, stage)
        begin.put(model, what, inputs, file, values, lambda line: None)
    return model, task, own


def variant(scenario: dict[str, Any]) -> tuple[str, list[str]]:
    """The stage that a scenario trains, and the overrides of its config."""
    subject = scenario.get("subject", "")
    stage, overrides = VARIANTS.get(subject, (subject, []))
    return stage, [*scenario.get("overrides", []), *(text.replace("ROOT", scenario["root"]) for text in overrides)]


def rests(partition: Any) -> list[torch.Tensor]:
    """The elements of each flat that are no parameter's."""
    masks = [torch.ones(flat.numel(), dtype=torch.bool) for flat in partition.flats]
    for piece in partition.held:
        masks[piece.flat][piece.at : piece.at + piece.numel] = False
    return [flat.detach().view(-1)[mask] for flat, mask in zip(partition.flats, masks, strict=True)]


def run_bad_step(scenario: dict[str, Any], rank: int, store: str) -> None:
    """A step with an inf on the last rank between good ones: what changed, bit by bit, and what the next steps gave."""
    from pipeline.schema.training import Training
    from pipeline.training.engine import Engine

    world, ranks = scenario["world"], join(scenario["world"], rank, store)
    training = Training(
        batch_size=BATCH, micro_batch=BATCH // world // scenario["accumulation"], zero_stage=scenario["stage"],
        steps=10, learning_rate=3e-3, weight_decay=0.1, half_lives=(32,), precision=scenario.get("precision", "auto"),
    )  # fmt: skip
    torch.manual_seed(0)
    engine = Engine(Net(), loss_function(rank if rank == world - 1 else -1, [3 * BATCH]), training, ranks)
    feed = batches(0, rank, world)
    losses, different = [], []

    def everything() -> dict[str, torch.Tensor]:
        part = engine.partition
        state = {f"{k}/{i}": t.clone() for k, ts in part.slots(engine.averages).items() for i, t in enumerate(ts)}
        state |= {f"step/{i}": part.state(flat)["step"].clone() for i, flat in enumerate(part.flats[: part.trainable])}
        with torch.no_grad():  # the weights of the forward pass: at ZeRO 1 to 3 they are not the masters
            state |= {"forward": engine.module(torch.ones(1, WIDTH))}
        return state | {f"export/{name}": t for name, t in engine.export("live").items() if name != "seen"}

    for step, batch in zip(range(6), feed, strict=False):
        if scenario["leave_out"] and step == 3:
            continue
        before = everything()
        stats = engine.step(batch, step * BATCH)
        losses.append((stats.skipped, stats.loss.hex()))
        if step == 3:
            after = everything()
            different = [key for key in before if not torch.equal(before[key], after[key])]
    different = sorted({key for keys in ranks.gather_objects(different) for key in keys})
    padding = [float(t.abs().max()) for rest in ranks.gather_objects(rests(engine.partition)) for t in rest if len(t)]
    if rank == 0:
        result = {"losses": losses, "different": different, "padding": padding}
        Path(f"{scenario['out']}.json").write_text(json.dumps(result))
    ranks.barrier()


def run_export(scenario: dict[str, Any], rank: int, store: str) -> None:
    """After three steps at each stage and precision: the names whose export is not DeepSpeed's own fp32 value."""
    from deepspeed.utils import safe_get_full_fp32_param

    from pipeline.schema.training import Training
    from pipeline.training.engine import Engine

    world, ranks = scenario["world"], join(scenario["world"], rank, store)
    different = {}
    for stage, precision in ((stage, precision) for stage in range(4) for precision in ("fp32", "bf16")):
        training = Training(batch_size=BATCH, zero_stage=stage, precision=precision, steps=10, half_lives=(32,))
        torch.manual_seed(0)
        engine = Engine(Net(), loss_function(-1, []), training, ranks)
        for step, batch in zip(range(3), batches(0, rank, world), strict=False):
            engine.step(batch, step * BATCH)
        wrong = different[f"{stage} {precision}"] = []
        for which in ("live", "ema"):
            export = engine.export(which)
            with engine.weights(which):
                for name, parameter in engine.partition.module.named_parameters():
                    master = parameter.detach() if stage == 0 else safe_get_full_fp32_param(parameter)
                    if parameter.requires_grad and rank == 0 and not torch.equal(master, export[name]):
                        wrong.append((which, name))
            if rank == 0:
                rounded = all(torch.equal(value, value.bfloat16().float()) for value in export.values())
                tied = torch.equal(export["tied.weight"], export["wide.weight"])
                torch.manual_seed(0)
                frozen = torch.equal(export["frozen.weight"], Net().frozen.weight)
                wrong += [which] * (rounded or not tied or not frozen or export.keys() != Net().state_dict().keys())
        engine.close()
    if rank == 0:
        Path(f"{scenario['out']}.json").write_text(json.dumps(different))
    ranks.barrier()


def run_average(scenario: dict[str, Any], rank: int, store: str) -> None:
    """A stored run that also keeps two lengths, which are then made of the two others: relative differences."""
    from safetensors.torch import load_file

    from pipeline.generate import averages
    from pipeline.schema.names import length_name
    from pipeline.schema.training import Training
    from pipeline.training import snapshots
    from pipeline.training.engine import Engine

    world, folder = scenario["world"], Path(scenario["folder"])
    ranks = join(world, rank, store)
    training = Training(
        batch_size=BATCH, zero_stage=scenario["stage"], steps=64, learning_rate=1e-2,
        average_lengths=(0.05, 0.1, 0.075, 0.15), snapshot_every=2 * BATCH,
    )  # fmt: skip
    torch.manual_seed(0)
    engine = Engine(Net(), loss_function(rank if rank == world - 1 else -1, [30 * BATCH]), training, ranks)
    for step, batch in zip(range(64), batches(0, rank, world), strict=False):
        engine.step(batch, step * BATCH)
        if snapshots.due(training, engine.averaged):
            snapshots.save(engine, folder)
    snapshots.save(engine, folder)
    kept = {length: engine.export(length_name(length)) for length in training.average_lengths}
    live = engine.export("live")
    if rank == 0:
        result = {"averaged": engine.averaged, "different": {}, "stored": len(list(folder.iterdir()))}
        for length, weights in kept.items():
            averages.make(averages.plan(folder, length, use=("0.05", "0.1")), folder / "made.safetensors")
            made = load_file(folder / "made.safetensors")
            assert made.keys() == weights.keys() and torch.equal(made["seen"], live["seen"])
            names = [name for name in weights if name != "seen"]
            norms = [sum(float(each[name].double().square().sum()) for name in names) ** 0.5 for each in (
                {name: made[name] - weights[name] for name in names}, weights, {n: live[n] - weights[n] for n in names}
            )]  # fmt: skip
            result["different"][str(length)] = norms[0] / norms[1]
            result["different"][f"{length} live"] = norms[2] / norms[1]
        Path(f"{scenario['out']}.json").write_text(json.dumps(result))
    ranks.barrier()


def fork(scenario: dict[str, Any]) -> None:
    """Run a scenario's ranks; when one dies, all are killed, as by the loss of a machine."""
    if "copy" in scenario:
        shutil.copytree(scenario["copy"], scenario["folder"])
    with tempfile.TemporaryDirectory() as folder:
        pids = {}
        for rank in range(scenario["world"]):
            pid = os.fork()
            if pid == 0:
                try:
                    kinds = {"train": run, "prepare": prepare, "bad_step": run_bad_step, "export": run_export,
                             "average": run_average}  # fmt: skip
                    kinds[scenario.get("kind", "train")](scenario, rank, f"{folder}/store")
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            pids[pid] = rank
        codes = {}
        while pids:
            pid, status = os.wait()
            codes[pids.pop(pid)] = os.waitstatus_to_exitcode(status)
            if status:
                for other in pids:
                    os.kill(other, signal.SIGKILL)
        killed = scenario.get("kill") is not None
        if killed != (-signal.SIGKILL in codes.values()) or (not killed and any(codes.values())):
            raise SystemExit(f"{scenario['out']}: exit codes {codes}")


def all_of(scenarios: str, output: str) -> int:
    """Run all scenarios of a file in a process of their own; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(file, number)
            runs = json.loads(Path(scenarios).read_text())
            if any(each.get("subject") == "lora" for each in runs):
                import peft  # noqa: F401 - five seconds, which no fork need spend again
            for each in runs:
                fork(each)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    import conftest  # noqa: F401
    import numpy.random  # noqa: F401
    import PIL.Image
    import ray.train.torch  # noqa: F401 (each rank asks it for its device)

    import pipeline.stages.ingest  # noqa: F401
    from pipeline.training.initialise import import_deepspeed

    import_deepspeed()  # before any part of it: it hides mlflow
    import deepspeed.module_inject.auto_ep_layer  # noqa: F401 (each engine imports it)

    PIL.Image.init()
    for package in ("models", "pipeline.data", "pipeline.tasks", "pipeline.training"):
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(found.name)
    gc.freeze()  # DeepSpeed collects what there is as often as it makes an engine
    for line in sys.stdin:
        print(all_of(*line.split()), flush=True)
