"""From a folder of images to a comparison by the real commands: init, run, ls, lineage, compare, gc."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load
from pipeline.past import history

FEW = [
    "autoencoder.training.steps=2", "autoencoder.training.warmup=0", "diffusion.training.steps=2",
    "diffusion.training.warmup=0", "evaluate.samples=8", "evaluate.steps=1",
    "evaluate.extractor={kind: classifier, steps: 2}",
    "evaluate.bootstrap=2", "cluster.workers=1",
    "autoencoder.model={kind: kl, width: 8, multipliers: [1, 2], blocks: 1, groups: 4, attention: false}",
    "diffusion.backbone={kind: dit, width: 16, depth: 1, heads: 2, patch: 2}",
]  # fmt: skip


@pytest.fixture
def ready(small: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(small.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow sets it when it is told a tracker: put back afterwards
    return small


def test_from_a_folder_to_a_comparison(ready: Any) -> None:
    said = ready.ldm("init", "--source", "images", "-o", "mine.yaml", "--quick", "--device", "cpu")
    assert said.code == 0 and "40 images, 2 classes" in said.out, said
    config = load("mine.yaml")
    assert config.data.size == 32 and config.diffusion.condition.kind == "class"
    assert ready.ldm("init", "--source", "images", "-o", "mine.yaml").code == 2  # nothing is written over

    for rate in ("1e-3", "1e-4"):
        done = ready.ldm("run", "--config", "mine.yaml", *FEW, f"diffusion.training.learning_rate={rate}")
        assert done.code == 0, done
        if rate == "1e-3":  # the command that `run` ends with, beside a folder of images that has the run's name
            assert "ldm sample images --out samples" in done.out, done
            made = ready.ldm("sample", "images", "--out", "samples", "-n", "2")
            assert made.code == 0 and len(list(Path("samples").glob("0*.png"))) == 2, made
    first, second = history.pipelines("runs")

    listed = ready.ldm("ls")
    assert listed.code == 0 and listed.out.count("\ndiffusion") == 2 and first.key[:6] in listed.out
    assert first.key in ready.ldm("ls", "--runs").out

    compared = ready.ldm("compare", first.key, second.key, "--html", "page.html")
    assert compared.code == 0 and "diffusion.training.learning_rate" in compared.out, compared
    assert "learning_rate 0.001" in Path("page.html").read_text()

    traced = ready.ldm("lineage", first.key)
    content = json.loads((first.folders["diffusion"] / "manifest.json").read_text())["content"]
    assert f"content {content[:12]}" in traced.out and "\nregister  " in traced.out
    index = json.loads((first.folders["ingest"] / "report.json").read_text())
    assert index["images"]["train"] + index["images"]["val"] == 40
    used = ready.ldm("lineage", "--uses", "a/0")
    assert used.code == 0 and used.out.count("models:/images@latest-good") == 2

    kept = ready.ldm("gc")  # the tracker was never reached: every run counts
    assert kept.code == 0 and "everything is in use" in kept.out
    assert ready.ldm("gc", "--delete").code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "a"], "no run of that name"),
        (["lineage"], "give a run, an artifact or a model"),
        (["lineage", "x", "--uses", "y"], "give a run, an artifact or a model"),
        (["ls", "--root", "nowhere"], "holds no artifacts"),
        (["gc", "--root", "nowhere"], "holds no artifacts"),
        (["explain", "run.nmae"], "did you mean run.name"),
        (["init", "--source", "nowhere"], "does not exist"),
    ],
)
def test_a_mistake_is_one_line(ready: Any, arguments: list[str], message: str) -> None:
    said = ready.ldm(*arguments)
    assert said.code == 2 and message in said.err and len(said.err.strip().splitlines()) == 1, said


def test_a_run_deleted_in_mlflow_is_collected(ready: Any, tmp_path: Path) -> None:
    """With MLflow's own data base: a deleted run frees its artifacts, a registered model keeps them."""
    import mlflow

    from pipeline.files import write_json
    from pipeline.tracking.links import resolve_uri
    from pipeline.tracking.mlflow_store import MlflowStore

    for rate in ("1e-3", "1e-4"):
        config = [f"autoencoder.training.learning_rate={rate}", f"run.root={tmp_path / 'root'}"]
        assert ready.run("autoencoder", *config).code == 0
    root = tmp_path / "root"
    first, second = history.pipelines(root)
    uri = resolve_uri(root)
    store = MlflowStore(uri, root)
    experiment = store.experiment("x")
    ids = {past.run_key: store.start(experiment, past.run_key, past.name, {}, 0) for past in (first, second)}
    write_json(root / "tracking" / "state.json", {"stores": {uri: {"runs": {k: {"id": i} for k, i in ids.items()}}}})
    assert not store.deleted(ids[first.run_key]) and not store.deleted("f" * 32)
    store.client.delete_run(ids[second.run_key])

    dry = ready.ldm("gc", "--root", str(root))
    assert "nothing was touched" in dry.out and str(second.folders["autoencoder"]) in dry.out, dry
    assert str(first.folders["autoencoder"]) not in dry.out and str(second.folders["ingest"]) not in dry.out
    assert second.folders["autoencoder"].exists()

    store.client.create_registered_model("m")
    tags = {"ldm.diffusion": "0123456789abcdef"}
    store.client.create_model_version("m", (tmp_path / "somewhere").as_uri(), tags=tags)
    assert store.model_tags("ldm.diffusion") == {"0123456789abcdef"}

    removed = ready.ldm("gc", "--root", str(root), "--delete")
    assert removed.code == 0 and "removed" in removed.out, removed
    assert not second.folders["autoencoder"].exists() and first.folders["autoencoder"].exists()
    assert not second.folder.exists() and ready.ldm("verify", "--root", str(root)).code == 0
    assert mlflow.get_tracking_uri() == uri


def test_explain_answers(ready: Any) -> None:
    assert "Peak learning rate" in ready.ldm("explain", "diffusion.training.learning_rate").out
