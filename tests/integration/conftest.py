"""What several integration tests share: the real command in this process with all work in it, and a small data set."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cluster.inline import Inline
from pipeline.cluster.stopping import Stopped
from pipeline.tracking.server import QUIET
from tests.integration.forks import Forks

CONFIG = """\
run: {{name: small, root: {root}}}
data:
  source: {{kind: folder, path: {images}}}
  size: 8
  shard_size: 8
  split: {{val_fraction: 0.2}}
autoencoder:
  model: {{kind: kl, width: 8, multipliers: [1, 2], blocks: 1, latent_channels: 2, groups: 4, attention: false}}
  training: {{precision: fp32, steps: 4, batch_size: 8, save_every: 2, half_lives: [100]}}
diffusion:
  backbone: {{kind: dit, width: 16, depth: 1, heads: 2, patch: 2}}
  path: {{kind: rectified_flow}}
  training: {{precision: fp32, steps: 2, batch_size: 8, half_lives: [100]}}
cluster: {{workers: 1, threads: 1}}
tracking: {{deadline: 1}}
"""


class OneProcess(Inline):
    """A cluster of this process: the stages' tasks and their one rank run here, no Ray."""

    def __init__(self, config: Any = None) -> None: ...

    def __enter__(self) -> OneProcess:
        return self

    def __exit__(self, *_: object) -> None: ...

    def workers(self) -> int:
        return 1

    def threads(self, workers: int) -> int:
        return 1

    def train(self, function: Any, arguments: dict[str, Any], mail: Path, world: Callable[[], int], watch: Any) -> None:
        assert world() == 1
        (mail / "stop").unlink(missing_ok=True)
        function({**arguments, "threads": 1})
        watch()
        if (mail / "stop").exists():
            raise Stopped(asked=bool((mail / "stop").read_text()))


class NoShipper:
    """The spool stays where it is."""

    uri = ""

    def drain(self) -> int:
        return 0


def sync(root: Path) -> dict[str, int]:
    """`tracker.sync` with its shipper in this process, which has imported MLflow: it is not about processes."""
    from pipeline.tracking import links, shipper, tracker

    def here(command: list[str], stdout: Any, env: dict[str, str], **_: Any) -> Any:
        given = dict(zip(command[3::2], command[4::2], strict=True))
        with redirect_stdout(io.TextIOWrapper(stdout, write_through=True)) as said:
            shipper.run(Path(given["--root"]), env["MLFLOW_TRACKING_URI"], None, float(given["--drain-seconds"]))
            said.detach()
        return subprocess.CompletedProcess(command, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", links.resolve_uri(root))  # MLflow sets it, for all that comes after
        patch.setattr("pipeline.tracking.tracker.subprocess.run", here)
        return tracker.sync(root)


def make_base(folder: Path) -> None:
    """Weights that an adapter goes beside: of a network with other classes, that is told nothing else."""
    import torch

    from pipeline.files import write_json
    from pipeline.networks import build_network, save_weights

    backbone = {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 2}
    options = {"backbone": backbone, "condition": {"kind": "class"}, "classes": ["b", "c", "d"]}
    options["latent"] = {"channels": 2, "size": 4}
    torch.manual_seed(0)
    weights = build_network(options).state_dict()
    write_json(folder / "model.json", options)
    save_weights(folder / "ema.safetensors", {name: 0.3 * torch.randn_like(value) for name, value in weights.items()})


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Small:
    """A folder with a config, 40 images of two classes, and a root."""

    folder: Path
    ldm: Callable[..., Said]

    @property
    def config(self) -> Path:
        return self.folder / "small.yaml"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def run(self, verb: str, *overrides: str) -> Said:
        return self.ldm(verb, "--config", str(self.config), *overrides)

    def draw(self, name: str, seed: int) -> None:
        """Save an image that no other seed gives."""
        pixels = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), np.uint8)
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.folder / name)

    def manifests(self, stage: str = "*") -> list[Path]:
        return sorted(self.root.glob(f"artifacts/{stage}/*/manifest.json"))


@pytest.fixture
def ldm(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Said]]:
    """`ldm(verb, ...)`: the program's own `main` in this process, in place of Ray this process, no tracker."""
    from jobs.cli import main

    def run(*arguments: str) -> Said:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["ldm", *arguments])
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = int(exit.code or 0)
        return Said(code, *capfd.readouterr())

    monkeypatch.setattr("pipeline.cluster.cluster.Cluster", OneProcess)
    monkeypatch.setattr("pipeline.tracking.tracker.start", lambda *_: NoShipper())
    yield run


@pytest.fixture
def small(tmp_path: Path, ldm: Callable[..., Said]) -> Small:
    """A small pipeline, nothing run yet."""
    made = Small(tmp_path, ldm)
    for i in range(40):
        made.draw(f"images/{'ab'[i % 2]}/{i}.png", i)
    made.config.write_text(CONFIG.format(root=made.root, images=tmp_path / "images"))
    return made


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """MLflow's empty SQLite file, made once: each root that is not about its making gets a copy (it takes seconds)."""
    from pipeline.tracking.links import resolve_uri
    from pipeline.tracking.mlflow_store import create_database

    root = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        create_database(resolve_uri(root), root)
    return (root / "mlflow.db").read_bytes()


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Shippers and MLflow's servers as forks of one process, which has imported MLflow."""
    modules = ["pipeline.tracking.shipper", "mlflow", "uvicorn"]
    stores = ["mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"]
    server = ["mlflow.pyfunc", "flask", "graphene", "aiohttp", "fastapi"]  # its own modules read its environment
    made = Forks(modules, ["mlflow", *stores, *server, "PIL.Image"], os.environ | QUIET)
    yield made
    made.close()


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """`train(scenarios)`: runs of the training loop, killed and resumed, by ranks that are forks of one process
    (`training_process.py`), which imports everything once."""
    here, folder = Path(__file__).parent, tmp_path_factory.mktemp("train")
    # memory that nobody wrote to holds 3.4e38, so that who reads it is seen
    environment = {**os.environ, "PYTHONPATH": str(here.parents[1]), "MALLOC_PERTURB_": "128"}
    command = [sys.executable, str(here / "training_process.py")]
    server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin and server.stdout

    def run(scenarios: list[dict[str, Any]]) -> None:
        assert server.stdin and server.stdout
        (folder / "scenarios.json").write_text(json.dumps(scenarios))
        print(folder / "scenarios.json", folder / "output", file=server.stdin, flush=True)
        while not (answer := server.stdout.readline().strip()).lstrip("-").isdigit():  # what an import says
            assert server.poll() is None
        assert answer == "0", (folder / "output").read_text()[-6000:]

    yield run
    server.stdin.close()
    server.wait(30)
