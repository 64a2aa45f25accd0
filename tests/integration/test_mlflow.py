"""Spools to a real MLflow: SQLite beside the runs, and a server on the loopback that goes down and comes back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.tracking import links, tracker
from pipeline.tracking.server import server
from pipeline.tracking.spool import process_identity, surely_dead
from pipeline.tracking.tracker import Spool
from tests.integration.conftest import sync
from tests.integration.forks import Forks

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_tracker_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(autouse=True)
def forked(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shippers and servers that a test starts are forks. One is not: that of a pipeline which is killed."""
    monkeypatch.setattr("subprocess.Popen", forks.Popen)


@pytest.fixture
def root(tmp_path: Path, database: bytes) -> Path:
    (tmp_path / "mlflow.db").write_bytes(database)
    return tmp_path


def client(root: Path, uri: str | None = None) -> Any:
    from pipeline.tracking import mlflow_store

    uri = links.resolve_uri(root, uri)
    return mlflow_store.mlflow.MlflowClient(uri, uri)


def spool(root: Path, stage: str, fingerprint: str = "ab12", token: int = 1) -> Spool:
    if stage == "pipeline":
        return Spool(root / "pipelines" / fingerprint / "spool", f"pipeline/{fingerprint}", token)
    return Spool(root / "artifacts" / stage / fingerprint / "work" / "spool", f"{stage}/{fingerprint}", token)


def runs(root: Path, uri: str | None = None) -> dict[str, Any]:
    """Run key -> run, of all that are in the tracker."""
    found = client(root, uri)
    experiments = [e.experiment_id for e in found.search_experiments()]
    listed = found.search_runs(experiments)
    by_key = {run.data.tags["ldm.run_key"]: run for run in listed}
    assert len(by_key) == len(listed)  # no run twice
    return by_key


def history(root: Path, key: str, metric: str, uri: str | None = None) -> list[tuple[int, float]]:
    run = runs(root, uri)[key].info.run_id
    return [(m.step, m.value) for m in client(root, uri).get_metric_history(run, metric)]


def train(run: Spool, start: int, stop: int, every: int = 1) -> None:
    for step in range(start, stop, every):
        run.metrics({"diffusion/train_loss": 1 / (1 + step), "diffusion/grad_norm": 2.0}, step)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def test_a_pipeline_in_the_tracker(root: Path) -> None:
    """Names, nesting, params, tags, data set, links, curves at full rate, the mirror, pictures by step, times."""
    pipeline, stage = spool(root, "pipeline"), spool(root, "diffusion")
    shipper = tracker.start(root)
    pipeline.start("digits", tags={"ldm.pipeline": "ab12"}, params={"run.seed": 0, "data.size": 8}, experiment="demo")
    pipeline.note("**good**: [4 diffusion]({{run:diffusion/ab12}})")
    stage.start("4 diffusion", "pipeline/ab12", experiment="demo", steps=1999)
    stage.tags({"ldm.world_size": 2})
    stage.dataset("digits", "a" * 64, "scikit-learn")
    train(stage, 0, 2000)
    for step in (0, 1000):
        stage.image("samples/ema", np.full((8, 8, 3), step // 8, np.uint8), step)
    (root / "report.html").write_text("<p>counts</p>")
    stage.file(root / "report.html", "data")
    stage.end()
    pipeline.end()
    assert shipper.drain() == 0

    found = runs(root)
    parent, child = found["pipeline/ab12"], found["diffusion/ab12"]
    assert (parent.info.run_name, child.info.run_name) == ("digits", "4 diffusion")
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["ldm.world_size"] == "2"
    assert parent.data.params == {"run.seed": "0", "data.size": "8"}
    assert child.inputs.dataset_inputs[0].dataset.digest == "a" * 36
    assert f"/runs/{child.info.run_id}?" in parent.data.tags["mlflow.note.content"]
    assert links.run_url(root, "diffusion/ab12") is None  # nothing serves it

    full = history(root, "diffusion/ab12", "diffusion/train_loss")
    assert full == [(step, 1 / (1 + step)) for step in range(2000)]
    mirror = history(root, "pipeline/ab12", "diffusion/train_loss")
    assert 400 < len(mirror) <= 500 and set(mirror) <= set(full) and mirror[-1] == full[-1]

    for key in ("diffusion/ab12", "pipeline/ab12"):
        names = [f.path for f in client(root).list_artifacts(found[key].info.run_id, "images")]
        assert len(names) == 4
        assert sum("samples~ema+step+1000" in name and name.endswith(".png") for name in names) == 1
    assert child.info.artifact_uri.startswith(f"file://{root}/mlartifacts/")
    assert [f.path for f in client(root).list_artifacts(child.info.run_id, "data")] == ["data/report.html"]


def test_sending_everything_again_changes_nothing(root: Path) -> None:
    pipeline, stage = spool(root, "pipeline"), spool(root, "diffusion")
    pipeline.start("digits")
    stage.start("4 diffusion", "pipeline/ab12", steps=699)
    train(stage, 0, 700)
    stage.image("samples/ema", np.zeros((8, 8, 3), np.uint8), 5)
    stage.metrics({"diffusion/odd": float("inf")}, 0)
    stage.end()
    pipeline.end()
    sync(root)

    def everything() -> Any:
        keys = ("pipeline/ab12", "diffusion/ab12")
        curves = [history(root, key, "diffusion/train_loss") for key in keys]
        pictures = [[f.path for f in client(root).list_artifacts(runs(root)[k].info.run_id, "images")] for k in keys]
        return curves, pictures, {key: run.info.run_id for key, run in runs(root).items()}

    before = everything()
    assert np.isnan(history(root, "diffusion/ab12", "diffusion/odd")[0][1])
    (root / "tracking" / "state.json").unlink()
    sync(root)
    assert everything() == before


def test_a_resumed_stage_goes_on_in_its_run_without_double_steps(root: Path) -> None:
    stage = spool(root, "diffusion", token=1)
    stage.start("4 diffusion")
    train(stage, 0, 60)
    sync(root)
    stage = spool(root, "diffusion", token=2)  # from the checkpoint at step 40
    stage.start("4 diffusion")
    train(stage, 40, 100)
    stage.end()
    sync(root)
    assert [step for step, _ in history(root, "diffusion/ab12", "diffusion/train_loss")] == list(range(100))
    assert runs(root)["diffusion/ab12"].info.status == "FINISHED"


def test_a_torn_line_is_passed_over(root: Path) -> None:
    stage = spool(root, "diffusion")
    stage.start("4 diffusion")
    train(stage, 0, 10)
    (path,) = (root / "artifacts/diffusion/ab12/work/spool").glob("*.jsonl")
    os.truncate(path, path.stat().st_size - 7)
    assert sync(root)["left"] == 0
    assert len(history(root, "diffusion/ab12", "diffusion/train_loss")) == 9
    train(spool(root, "diffusion"), 9, 12)
    sync(root)
    assert [step for step, _ in history(root, "diffusion/ab12", "diffusion/train_loss")] == list(range(12))


def test_a_refused_line_is_counted_and_does_not_hold_up_the_rest(root: Path) -> None:
    stage = spool(root, "diffusion")
    stage.start("4 diffusion")
    stage.metrics({"diffusion/train_loss": 1.0}, 0)
    stage.metrics({"not a ? name": 1.0}, 0)
    stage.file(root / "is-not-there.txt")
    stage.metrics({"diffusion/train_loss": 0.5}, 1)
    assert sync(root) == {"sent": 4, "left": 0, "refused": 2}
    assert len(history(root, "diffusion/ab12", "diffusion/train_loss")) == 2
    assert "not a ? name" in (root / "tracking" / "shipper.log").read_text()
    uri = links.resolve_uri(root)
    assert "refused 2 lines" in tracker.refused_message(root, uri) and "kept" in tracker.refused_message(root, uri)
    (root / "is-not-there.txt").write_text("now it is")
    assert sync(root) == {"sent": 1, "left": 0, "refused": 1}
    assert sync(root) == {"sent": 0, "left": 0, "refused": 1}  # kept, and still told
    run = runs(root)["diffusion/ab12"].info.run_id
    assert "is-not-there.txt" in [file.path for file in client(root).list_artifacts(run)]


def test_what_is_of_a_deleted_experiment_is_kept_and_sent_when_it_is_restored(root: Path) -> None:
    first = spool(root, "pipeline", "one")
    first.start("one", experiment="mine")
    sync(root)
    identifier = links.read_store(root, links.resolve_uri(root))["experiments"]["mine"]
    client(root).delete_experiment(identifier)
    second, other = spool(root, "diffusion"), spool(root, "encode")
    second.start("4 diffusion", experiment="mine")
    train(second, 0, 3)
    other.start("3 encode", experiment="another")
    with pytest.raises(UserError, match=r"the experiment 'mine' .* was deleted there: restore it"):
        sync(root)
    assert set(runs(root)) == {"encode/ab12"}  # the rest went
    client(root).restore_experiment(identifier)
    assert sync(root)["left"] == 0
    assert [step for step, _ in history(root, "diffusion/ab12", "diffusion/train_loss")] == [0, 1, 2]


def test_a_root_that_was_moved_goes_on_where_it_lies(root: Path, tmp_path: Path) -> None:
    before = tmp_path.parent / f"{tmp_path.name} before"
    root.rename(before)
    (before / "mlflow.db").unlink()
    stage = spool(before, "diffusion")
    stage.start("4 diffusion")
    stage.image("samples/ema", np.zeros((8, 8, 3), np.uint8), 1)
    tracker.sync(before)
    stage.image("samples/ema", np.zeros((8, 8, 3), np.uint8), 2)  # its line names the folder that will be gone
    before.rename(root)
    assert tracker.left(root, links.resolve_uri(root)) == 1
    assert tracker.sync(root) == {"sent": 1, "left": 0, "refused": 0}
    run = runs(root)["diffusion/ab12"].info
    assert run.artifact_uri.startswith((root / "mlartifacts").as_uri()) and not before.exists()
    assert len(client(root).list_artifacts(run.run_id, "images")) == 4


def test_a_cached_stage_gives_its_curves_to_the_new_parent(root: Path) -> None:
    first, stage = spool(root, "pipeline", "one"), spool(root, "diffusion")
    first.start("one")
    stage.start("4 diffusion", "pipeline/one", steps=999)
    train(stage, 0, 1000)
    stage.end()
    second = spool(root, "pipeline", "two")
    second.start("two")
    second.adopt("diffusion/ab12", root / "artifacts/diffusion/ab12/work/spool")
    second.end()
    sync(root)
    curve = history(root, "pipeline/two", "diffusion/train_loss")
    assert curve == history(root, "pipeline/one", "diffusion/train_loss")
    assert 400 < len(curve) <= 500


def test_elements_are_shown_under_their_sweep_and_leave_it_no_curves(root: Path) -> None:
    for name in ("early", "late"):  # sent before the sweep, and after it
        element = spool(root, "pipeline", name)
        element.start(name, group="sweep/k")
        element.metrics({"time/ingest": 1.0}, 0)
        if name == "early":
            sync(root)
            Spool(root / "pipelines" / "sweep-k" / "spool", "sweep/k", 1).start("learning rates")
    sync(root)
    found = runs(root)
    parents = {found[f"pipeline/{name}"].data.tags["mlflow.parentRunId"] for name in ("early", "late")}
    assert parents == {found["sweep/k"].info.run_id}
    assert not found["sweep/k"].data.metrics


def test_a_stage_that_another_pipeline_goes_on_with_moves_to_it_with_its_whole_curve(root: Path) -> None:
    for token, name in enumerate(("one", "two"), start=1):
        spool(root, "pipeline", name).start(name)
        stage = spool(root, "diffusion", token=token)
        stage.start("4 diffusion", f"pipeline/{name}", steps=399)
        train(stage, 200 * (token - 1), 200 * token)
        sync(root)
    assert [step for step, _ in history(root, "pipeline/two", "diffusion/train_loss")] == list(range(400))
    found = runs(root)
    assert found["diffusion/ab12"].data.tags["mlflow.parentRunId"] == found["pipeline/two"].info.run_id


def test_kill_the_shipper_at_any_moment(root: Path) -> None:
    pipeline, stage = spool(root, "pipeline"), spool(root, "diffusion")
    pipeline.start("digits")
    stage.start("4 diffusion", "pipeline/ab12", steps=7_999)
    train(stage, 0, 8_000)
    path = root / "tracking" / "state.json"
    for batches in (1, 5):  # killed while it is sending
        shipper = tracker.start(root)
        enough = tracker.left(root, shipper.uri) - 450 * batches
        while not path.exists() or tracker.left(root, shipper.uri) > enough:
            assert shipper.process.poll() is None
            time.sleep(0.05)
        os.kill(shipper.process.pid, signal.SIGKILL)
        shipper.process.wait()
        assert tracker.left(root, shipper.uri) > 0
    stage.end()
    pipeline.end()
    assert tracker.start(root, deadline_s=120).drain() == 0
    assert [s for s, _ in history(root, "diffusion/ab12", "diffusion/train_loss")] == list(range(8_000))
    mirror = [s for s, _ in history(root, "pipeline/ab12", "diffusion/train_loss")]
    assert len(mirror) == len(set(mirror)) <= 500


RUN = """
import os, sys, time
from pathlib import Path
from pipeline.tracking import tracker
root = Path(sys.argv[1])
spool = tracker.Spool(root / "pipelines" / "p" / "spool", "pipeline/p", 1)
spool.start("digits")
shipper = tracker.start(root)
spool.metrics({"a": 1.0}, 0)
print(shipper.process.pid, flush=True)
time.sleep(600)
"""


def test_kill_the_pipeline_and_the_shipper_sends_the_rest_and_leaves(root: Path) -> None:
    """And the run that was left RUNNING is marked as KILLED; one that goes on after that is RUNNING again."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(root)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    shipper = process_identity(int(process.stdout.readline()))
    process.kill()
    process.wait()
    wait_for(lambda: surely_dead(shipper), "the shipper leaves")
    assert tracker.left(root, links.resolve_uri(root)) == 0
    assert runs(root)["pipeline/p"].info.status == "KILLED"
    spool(root, "pipeline", "p", token=2).start("digits")
    tracker.sync(root)
    assert runs(root)["pipeline/p"].info.status == "RUNNING"


def test_two_shippers_of_one_root_do_not_disturb_each_other(root: Path) -> None:
    stage = spool(root, "diffusion")
    stage.start("4 diffusion")
    shippers = [tracker.start(root) for _ in range(2)]
    train(stage, 0, 3000)
    assert [shipper.drain() for shipper in shippers][-1] == 0
    assert len(history(root, "diffusion/ab12", "diffusion/train_loss")) == 3000


def test_a_database_that_was_removed_is_filled_again(root: Path, database: bytes) -> None:
    pipeline, stage = spool(root, "pipeline"), spool(root, "diffusion")
    pipeline.start("digits")
    stage.start("4 diffusion", "pipeline/ab12")
    train(stage, 0, 5)
    tracker.sync(root)
    (root / "mlflow.db").write_bytes(database)  # another, empty
    pipeline.start("digits")
    tracker.sync(root)
    assert len(history(root, "pipeline/ab12", "diffusion/train_loss")) == 5
    assert len(history(root, "diffusion/ab12", "diffusion/train_loss")) == 5


@pytest.fixture
def free_port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    yield port


def test_a_server_that_is_down_and_comes_back(root: Path, tmp_path: Path, free_port: int) -> None:
    uri = f"http://127.0.0.1:{free_port}"
    work = tmp_path / "work"
    stage = spool(work, "diffusion")
    stage.start("4 diffusion")
    train(stage, 0, 300)

    shipper = tracker.start(work, uri, deadline_s=30)  # down from the start
    began = time.monotonic()
    left = shipper.drain()
    assert left == 301 and time.monotonic() - began < 31
    assert "301 lines" in tracker.left_message(work, uri, left) and "refused" in tracker.left_message(work, uri, left)
    with pytest.raises(UserError, match="ldm mlflow sync"):
        tracker.sync(work, uri)

    shipper = tracker.start(work, uri, deadline_s=30)
    with server(root, free_port):  # comes up, with a port of its own for artifacts
        wait_for(lambda: tracker.left(work, uri) == 0, "the shipper finds it")
        stage.image("samples/ema", np.zeros((8, 8, 3), np.uint8), 1)
        wait_for(lambda: tracker.left(work, uri) == 0, "the picture")
        run = runs(root, uri)["diffusion/ab12"].info.run_id
        assert len(client(root, uri).list_artifacts(run, "images")) == 2
    train(stage, 300, 400)  # down again
    with server(root, free_port):
        stage.end()
        wait_for(lambda: tracker.left(work, uri) == 0, "the rest")
        assert shipper.drain() == 0
        assert str(links.run_url(work, "diffusion/ab12", uri)).startswith(uri)
    assert [s for s, _ in history(root, "diffusion/ab12", "diffusion/train_loss")] == list(range(400))
    with socket.socket() as probe:  # nothing is left behind
        assert probe.connect_ex(("127.0.0.1", free_port)) != 0


def tiny_model(folder: Path) -> Path:
    """A model folder of untrained networks, 8x8 gray images, 3 classes."""
    from models import registry
    from pipeline.data.latents import LatentSpace
    from pipeline.generate.folder import save_pretrained
    from pipeline.networks import build_network

    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    autoencoder = {"kind": "kl", "width": 8, "multipliers": [1, 2], "blocks": 1, "latent_channels": 2, "groups": 4}
    options = {
        "latent": {"channels": 2, "size": 4},
        "backbone": {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 1},
        "condition": {"kind": "class"},
        "classes": ["a", "b", "c"],
        "path": {"kind": "rectified_flow", "schedule": "linear"},
        "prediction": "velocity",
    }
    save_pretrained(
        folder,
        name="tiny",
        image={"size": 8, "channels": 1},
        options=options,
        autoencoder=autoencoder,
        autoencoder_weights=registry.build("autoencoders", autoencoder, channels=1).state_dict(),
        denoiser_weights=build_network(options).state_dict(),
        space=LatentSpace(torch.zeros(2), torch.ones(2)),
        defaults={"steps": 2, "batch_size": 4},
    )
    return folder


LOAD = """
import sys
import mlflow
sys.path[:] = [p for p in sys.path if p not in ("", sys.argv[3])]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__name__", str(f)).lower()]
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/tiny@best")
images = model.predict({"label": [1, 2]}, params={"steps": 3, "seed": 5})
import numpy, pipeline
print(pipeline.__path__[0])
numpy.save(sys.argv[2], images)
"""


def test_a_model_is_registered_once_has_its_alias_and_loads_without_the_repository(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.generate.folder import load_pretrained

    folder = tiny_model(tmp_path / "model")
    stage = spool(root, "register")
    stage.start("6 register")
    for _ in range(2):  # the second time nothing but the description is new
        stage.model(
            folder, "tiny", "best", "**FD 3.1** of [6 register]({{run:register/ab12}})", {"ldm.diffusion": "ef"}
        )
    stage.note("see {{model:register/ab12}}")
    stage.end()
    used = Spool(root / "pipelines" / "edit-1" / "spool", "edit/1", 1)
    used.start("edit smiles")
    used.uses("register/ab12")
    used.uses("register/ab12")
    used.end()
    assert tracker.sync(root)["refused"] == 2  # the record went first, and knew of no model yet
    assert tracker.sync(root)["refused"] == 0, (root / "tracking" / "shipper.log").read_text()

    found = client(root)
    (version,) = found.search_model_versions("name = 'tiny'")
    run = runs(root)["register/ab12"]
    assert found.get_model_version_by_alias("tiny", "best").version == version.version
    assert version.run_id == run.info.run_id and run.info.status == "FINISHED"
    assert version.tags["ldm.diffusion"] == "ef" and f"/runs/{run.info.run_id}" in version.description
    assert run.data.tags["mlflow.note.content"] == "see #/models/tiny/versions/1"
    record = runs(root)["edit/1"]
    assert record.data.tags["ldm.model"] == "tiny/1" and record.info.status == "FINISHED"
    used_models = found.get_run(record.info.run_id).inputs.model_inputs
    assert [f"models:/{model.model_id}" for model in used_models] == [version.source]

    uri = links.resolve_uri(root)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    fetched = tracker.fetch_model("models:/tiny@best", root)
    assert list((tmp_path / "empty").iterdir()) == []  # MLflow makes its default data base where it is not told another
    expected = load_pretrained(fetched).sample(classes=[1, 2], n=2, seed=5, steps=3)
    arguments = [uri, str(tmp_path / "images.npy"), str(ROOT)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", LOAD, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip().splitlines()[-1].startswith(str(ROOT / "pipeline"))  # the code that came along
    assert (np.load(tmp_path / "images.npy") == expected).all() and expected.shape == (2, 8, 8, 1)

    for wrong in ("models:/tiny@worst", "models:/other/1"):
        with pytest.raises(UserError, match="cannot be had"):
            tracker.fetch_model(wrong, root)
    with pytest.raises(UserError, match="no tracker"):
        tracker.fetch_model("models:/tiny@best", tmp_path / "elsewhere")


def test_a_server_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        spool(tmp_path, "diffusion").start("4 diffusion")
        shipper = tracker.start(tmp_path, uri, deadline_s=3)
        began = time.monotonic()
        assert shipper.drain() > 0
        assert time.monotonic() - began < 6
