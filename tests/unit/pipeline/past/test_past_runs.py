"""Looking back on runs: history, compare and its page, inventory (ls, gc), lineage. On a root made without training."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import artifacts
from pipeline.artifacts import Artifact, Lease, Store
from pipeline.config import Config
from pipeline.data.index import write_index, write_rows
from pipeline.errors import UserError
from pipeline.files import sha256_file, write_json
from pipeline.pages import compare_page
from pipeline.past import compare, history, inventory, lineage
from pipeline.past.compare import Side
from pipeline.past.inventory import Tracked
from pipeline.stages import graph
from pipeline.tracking import tracker
from pipeline.tracking.runs import PipelineRun

ONE, TWO = "1" * 16, "2" * 16
NOTHING = Tracked(frozenset(), frozenset())
INPUTS = {
    "ingest": (),
    "autoencoder": ("ingest",),
    "encode": ("ingest", "autoencoder"),
    "diffusion": ("encode", "autoencoder", "ingest"),
    "evaluate": ("diffusion", "autoencoder", "encode", "ingest"),
    "register": ("diffusion", "autoencoder", "encode", "ingest", "evaluate"),
}
SUMMARIES: dict[str, dict[str, Any]] = {
    "ingest": {"images": {"train": 3, "val": 1}, "classes": ["cat"], "quarantined": 1},
    "autoencoder": {"val_psnr": 30.0, "pca_psnr": 20.0},
    "encode": {"shape": [4, 8, 8], "images": {"train": 3, "val": 1}, "encoded": 1, "shards": 1},
    "diffusion": {"val_loss": 0.5, "gaussian_loss": 0.7},
    "evaluate": {"key_figures": {"psnr": 30.0}, "missing": {}, "images": {"compared": 100}},
    "register": {"name": "digits", "uri": "models:/digits@latest-good"},
}


class NoShipper:
    uri = ""

    def drain(self) -> int:
        return 0


def config(root: Path, rate: float) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "digits", "root": str(root)},
            "data": {"source": {"kind": "digits"}},
            "autoencoder": {"model": {"kind": "kl"}, "training": {"steps": 1}},
            "diffusion": {"backbone": {"kind": "dit"}, "training": {"steps": 1, "learning_rate": rate}},
        }
    )


def report(fd: float, **other: Any) -> dict[str, Any]:
    """What `unlike` looks at in an evaluation's report."""
    values = {"extractor": "e1", "guidance": 1.5, "images": 100, "real": "r1", **other}
    figure = {"value": fd, "interval": [fd - 1, fd + 1]}
    return {
        "conditions": {"resolution": 32, "channels": 1, **values},
        "frechet": {"samples": figure, "real": {"value": 3.0}},
    }


def fill(stage: str, folder: Path, fd: float) -> None:
    """A stage's files, as far as looking back reads them."""
    if stage == "ingest":
        rows = [(0, 1, 0, split, 0, 0, key) for split, key in ((0, b"a/1"), (0, b"a/2"), (0, b"b"), (1, b"held"))]
        write_rows(folder / "train-00000.rows.npy", rows)
        shard = {"name": "train-00000", "location": "train-00000.tar", "sha256": "5" * 64, "train": 3, "val": 1}
        write_index(folder, ["cat"], [shard])
        entry = {"key": "copy", "reason": "duplicate", "detail": "the same bytes as a/2"}
        (folder / "quarantine.jsonl").write_text(json.dumps(entry) + "\n")
    elif stage == "encode":
        write_json(folder / "shards.json", {"pool": "latents", "shards": [{"file": "used.tar"}]})
    elif stage == "evaluate":
        write_json(folder / "report.json", report(fd))
    else:
        (folder / "weights").write_text(f"{stage} {fd}")


@dataclass
class Made:
    """A root, and `pipeline(key, learning rate, distance, fingerprints of stages that are its own)`."""

    root: Path
    store: Store

    def pipeline(self, key: str, rate: float, fd: float, own: dict[str, str], until: str = "register") -> None:
        done: dict[str, Artifact] = {}
        with PipelineRun(config(self.root, rate), self.root, key, False) as run:
            for stage in list(INPUTS)[: list(INPUTS).index(until) + 1]:
                mark = own.get(stage, "a" * 16)
                found = self.store.find(stage, mark)
                if found:
                    done[stage] = found
                    run.cached(stage, found, "cached")
                    continue
                recipe = {"source": "c" * 64} if stage == "ingest" else {"training": {"init_from": None}}
                inputs = {name: done[name] for name in INPUTS[stage]}
                with self.store.write(stage, mark, recipe, inputs) as writer, run.stage(stage, writer, 4) as spool:
                    for step in range(1, 5):
                        spool.metrics({f"{stage}/train_loss": fd / step}, step)
                    if stage == "evaluate":
                        spool.metrics({"eval/fd": fd, "eval/psnr": 30.0}, 0)
                    if stage == "diffusion":
                        spool.metrics({"diffusion/val_loss": fd / 10}, 4)
                        for step in (2, 4):
                            spool.image("samples/ema", np.full((8, 8, 3), step, np.uint8), step, ["a <hat>"] * 16)
                    fill(stage, writer.path, fd)
                    done[stage] = writer.finish({**SUMMARIES[stage], "run": spool.run})
                run.finished(stage, done[stage], 1.0, "made")


def build(root: Path) -> Made:
    """Two runs of one name: the second has its own diffusion model, evaluation and registration."""
    root.mkdir()
    result = Made(root, Store(root))
    result.pipeline(ONE, 1e-3, 10.0, {})
    result.pipeline(TWO, 1e-4, 20.0, {stage: "b" * 16 for stage in ("diffusion", "evaluate", "register")})
    (root / "latents").mkdir()
    for name in ("used.tar", "used.json", "old.tar", "old.json"):
        (root / "latents" / name).write_text(name)
    return result


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Built once: each artifact is flushed to disk several times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker, "start", lambda *_: NoShipper())
        yield build(tmp_path_factory.mktemp("template") / "runs")


@pytest.fixture
def made(template: Made, tmp_path: Path) -> Made:
    shutil.copytree(template.root, tmp_path / "runs")
    return Made(tmp_path / "runs", Store(tmp_path / "runs"))


# ---- history


def test_a_pipeline_is_read_back_with_its_stages_and_curves(made: Made) -> None:
    first, second = history.pipelines(made.root)
    assert (first.key, first.name, first.status) == (ONE, "digits", "FINISHED")
    assert list(second.stages) == list(INPUTS)  # cached ones as well
    assert second.folders["diffusion"].name == "b" * 16 and second.folders["encode"].name == "a" * 16
    assert first.params["diffusion.training.learning_rate"] == "0.001"
    curves = history.curves(second)
    assert curves["diffusion/train_loss"] == [(1, 20.0), (2, 10.0), (3, 20 / 3), (4, 5.0)]
    assert curves["autoencoder/train_loss"][0] == (1, 10.0)  # the shared stage's own
    assert [step for step, _ in history.pictures(first)["samples/ema"]] == [2, 4]


def test_a_stage_that_was_stopped_belongs_to_its_pipeline(made: Made) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        PipelineRun(config(made.root, 1e-2), made.root, "3" * 16, False) as run,
        made.store.write("diffusion", "d" * 16, {}, {}) as writer,
        run.stage("diffusion", writer, 4),
    ):
        raise KeyboardInterrupt
    past = history.find(made.root, "3333")
    assert (past.status, past.folders["diffusion"].name) == ("KILLED", "d" * 16)


def test_a_run_is_found_by_what_a_person_has_at_hand(made: Made) -> None:
    state = {"stores": {"x": {"runs": {f"pipeline/{TWO}": {"id": "0f0f"}}, "models": {}}}}
    write_json(made.root / "tracking" / "state.json", state)
    for text in (TWO, "2222", "0f0f", str(made.root / "pipelines" / TWO)):
        assert history.find(made.root, text).key == TWO
    with pytest.raises(UserError, match=f"2 runs are meant by that; give a key: {ONE} digits"):
        history.find(made.root, "digits")
    with pytest.raises(UserError, match="no run of that name"):
        history.find(made.root, "other")


def test_of_several_attempts_the_one_that_finished_is_meant(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    for key in (ONE, "3" * 16):
        with pytest.raises(KeyboardInterrupt), PipelineRun(config(made.root, 1e-2), made.root, key, False):
            raise KeyboardInterrupt
    assert history.find(made.root, "digits").key == TWO
    assert f"{TWO}, which finished" in capsys.readouterr().out


# ---- compare


def test_the_better_run_is_told_first_and_by_what_differs(made: Made) -> None:
    compared = compare.sides(made.root, ["1111", "2222"])
    assert [side.label for side in compared] == ["digits (learning_rate 0.001)", "digits (learning_rate 0.0001)"]
    found = compare.verdict(compared)
    assert (found.winner, found.metric) == (0, "eval/fd")
    assert found.text.startswith(
        "digits (learning_rate 0.001) is better: Fréchet distance 10 [9, 11] against 20 [19, 21]"
    )
    differing = compare.differences([side.past for side in compared])
    assert differing == {"diffusion.training.learning_rate": ["0.001", "0.0001"]}
    assert set(compare.shared(compared)) == {"ingest", "autoencoder", "encode"}
    scores = compare.scores(compared)
    assert scores["eval/fd"] == [10.0, 20.0] and compare.best("eval/fd", scores["eval/fd"], compared) == 0
    assert compare.best("eval/psnr", scores["eval/psnr"], compared) is None  # equal


def test_intervals_that_touch_are_no_clear_difference(made: Made) -> None:
    made.pipeline("4" * 16, 2e-3, 11.5, {stage: "e" * 16 for stage in ("diffusion", "evaluate", "register")})
    found = compare.verdict(compare.sides(made.root, ["1111", "4444"]))
    assert found.winner is None and found.text.startswith("No clear difference, digits (learning_rate 0.001) is ahead")


@pytest.mark.parametrize("other", [{"extractor": "e2"}, {"guidance": 3.0}, {"images": 50}, {"real": "r2"}])
def test_unlike_figures_do_not_decide(made: Made, other: dict[str, Any]) -> None:
    assert compare.unlike(report(1.0), report(2.0)) == []
    write_json(made.root / "artifacts" / "evaluate" / ("b" * 16) / "report.json", report(5.0, **other))
    compared = compare.sides(made.root, ["1111", "2222"])
    found = compare.verdict(compared)
    assert found.metric == "diffusion/val_loss" and found.winner == 0
    assert "Fréchet distance does not decide" in found.why_not[0]
    assert compare.best("eval/fd", [10.0, 5.0], compared) is None


def test_losses_of_other_latents_or_objectives_do_not_decide(made: Made) -> None:
    first, second = compare.sides(made.root, ["1111", "2222"])
    assert compare.obstacles("diffusion/val_loss", [first, second]) == []
    second.past.params["diffusion.prediction"] = "eps"
    assert compare.obstacles("diffusion/val_loss", [first, second]) == ["diffusion.prediction is v and eps"]
    second.past.folders["encode"] = Path("/nowhere")
    assert "it was measured on other latents" in compare.obstacles("diffusion/val_loss", [first, second])


def test_one_run_is_not_compared_with_itself(made: Made) -> None:
    with pytest.raises(UserError, match="two different runs are needed, 1 given"):
        compare.sides(made.root, ["1111", ONE])


@pytest.mark.parametrize(
    ("name", "sign"),
    [("eval/fd", -1), ("eval/psnr", 1), ("diffusion/val_loss", -1), ("eval/class_accuracy", 1), ("eval/fd_real", 0),
     ("eval/fd_yardstick", 0), ("eval/kd_yardstick", 0), ("eval/fd_reconstructions", -1),
     ("diffusion/grad_norm", 0), ("diffusion/gaussian_loss", 0), ("autoencoder/val_psnr", 1)],
)  # fmt: skip
def test_which_way_is_better(name: str, sign: int) -> None:
    assert compare.better(name) == sign


def test_the_page_stands_alone_and_leads_with_the_verdict(made: Made, tmp_path: Path) -> None:
    compared = compare.sides(made.root, ["1111", "2222"])
    compare_page.write(tmp_path / "page.html", compared, compare.verdict(compared))
    text = (tmp_path / "page.html").read_text()
    assert text.index("is better") < text.index("<table") < text.index("<svg" if "<svg" in text else "figure")
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert text.count("data:image/webp;base64,") == 4  # two steps of two runs
    assert "<figcaption>diffusion/train_loss ↓" in text
    assert "<figcaption>autoencoder/train_loss" not in text  # one stage, one curve: nothing to compare


def test_samples_have_what_they_were_told_under_them(made: Made) -> None:
    compared = compare.sides(made.root, ["1111", "2222"])
    assert history.cells(compared[0].past) == {"samples/ema": ["a <hat>"] * 16}
    text = compare_page.page(compared, compare.verdict(compared))
    assert text.count(">a &lt;hat&gt;</span>") == 32 and "<hat>" not in text
    assert text.count("repeat(4,1fr)") == 2


def test_runs_that_are_told_other_things_say_so(made: Made) -> None:
    first, second = compare.sides(made.root, ["1111", "2222"])
    start = "diffusion.condition."
    more = {f"{start}attributes.age.kind": "continuous", f"{start}caption.tokens": "64", f"{start}kind": "none"}
    other = Side(replace(second.past, params={**second.past.params, **more}), second.label)
    assert history.told(first.past) == "class" and history.told(other.past) == "age, caption"
    mapped = replace(second.past, params=other.past.params | {f"{start}spatial.mask.channels": "1"})
    assert history.told(mapped) == "age, caption, mask"
    assert "one model is told class, the other age, caption" in compare.obstacles("diffusion/val_loss", [first, other])
    page = compare_page.page([first, other], compare.verdict([first, other]))
    assert "<td>class</td>" in page and "<td>age, caption</td>" in page


def test_labels_from_a_config_cannot_break_the_page(made: Made) -> None:
    past = history.find(made.root, "1111")
    sides = [Side(past, "<script>alert(1)</script>"), Side(history.find(made.root, "2222"), "b")]
    text = compare_page.page(sides, compare.verdict(sides))
    assert "<script>alert" not in text and "</script>alert" not in text


def test_a_thinned_curve_keeps_its_mean_and_its_order() -> None:
    curve = [(step, float(step)) for step in range(1000)] + [(1000, float("nan"))]
    points = compare_page.thinned(curve, 100)
    assert len(points) == 100 and points[0] == [4.5, 4.5] and points == sorted(points)
    assert compare_page.thinned(curve[:3], 100) == [[0, 0.0], [1, 1.0], [2, 2.0]]


# ---- ls and gc


def names(entries: list[inventory.Garbage]) -> set[str]:
    return {f"{entry.path.parent.name}/{entry.path.name}"[:13] for entry in entries}


def test_items_say_who_uses_them(made: Made) -> None:
    items = {item.name: item for item in inventory.items(made.root)}
    users = items[f"diffusion/{'b' * 16}"].used_by
    assert users == ["digits (222222)", "evaluate/bbbbbb", "register/bbbbbb"] or set(users) == {
        "digits (222222)", "evaluate/bbbbbb", "register/bbbbbb"}  # fmt: skip
    assert {"digits (111111)", "digits (222222)"} <= set(items[f"encode/{'a' * 16}"].used_by)
    assert items[f"register/{'a' * 16}"].state == "finished" and items[f"register/{'a' * 16}"].bytes > 0


def test_what_runs_use_stays_and_latents_that_nobody_lists_may_go(made: Made) -> None:
    found = inventory.garbage(made.root, NOTHING)
    assert {entry.path.name for entry in found} == {"old.tar", "old.json"}


def test_a_run_deleted_in_the_tracker_frees_what_only_it_used(made: Made) -> None:
    found = inventory.garbage(made.root, Tracked(frozenset({TWO}), frozenset()))
    assert {e.path for e in found if e.kind == "artifact"} == {
        made.root / "artifacts" / stage / ("b" * 16) for stage in ("diffusion", "evaluate", "register")
    }
    assert made.root / "pipelines" / TWO in {e.path for e in found if e.kind == "run"}
    freed = inventory.remove(made.root, found)
    assert freed == sum(entry.bytes for entry in found) > 0
    assert not (made.root / "artifacts" / "diffusion" / ("b" * 16)).exists() and not (made.root / "set-aside").exists()
    for artifact in made.store.all():
        assert not artifact.verify()
    assert [past.key for past in history.pipelines(made.root)] == [ONE]
    assert inventory.garbage(made.root, NOTHING) == []


def test_features_go_with_the_model_that_they_are_of(made: Made) -> None:
    pool = made.root / "features"
    pool.mkdir()
    for name in "ab":
        write_json(pool / f"{name}.json", {"bytes": 1, "diffusion": name * 16})
        (pool / f"{name}.safetensors").write_text("1")
    (pool / "d.json").write_text("torn")
    for name in "cd":  # a process was killed before it had written the record, or the disk lost it
        (pool / f"{name}.safetensors").write_text("1")
    found = inventory.garbage(made.root, Tracked(frozenset({TWO}), frozenset()))
    assert {entry.path.name for entry in found if entry.path.parent == pool} == {"b.json", "b.safetensors"}
    for path in pool.iterdir():
        old(path)
    found = inventory.garbage(made.root, Tracked(frozenset({TWO}), frozenset()))
    gone = {entry.path.name for entry in found if entry.path.parent == pool}
    assert gone == {"b.json", "b.safetensors", "c.safetensors", "d.json", "d.safetensors"}


def old(path: Path) -> None:
    os.utime(path, (time.time() - 2 * inventory.IDLE,) * 2)


@pytest.mark.parametrize("folder", inventory.LOOSE)
def test_what_a_killed_verb_left_half_made_goes_after_a_while(made: Made, folder: str) -> None:
    left = made.root / folder / "tmp12.tmp"  # of tracking/: a record that was not renamed into place
    (left / "spool").mkdir(parents=True)
    assert left not in {entry.path for entry in inventory.garbage(made.root, Tracked(frozenset(), frozenset()))}
    old(left)
    (found,) = (e for e in inventory.garbage(made.root, Tracked(frozenset(), frozenset())) if e.path == left)
    assert found.kind == "temporary"
    inventory.remove(made.root, [found])
    assert not left.exists()


def test_a_registered_model_keeps_all_it_was_made_of(made: Made) -> None:
    tracked = Tracked(frozenset({ONE, TWO}), frozenset({"b" * 16}))
    gone = {entry.path for entry in inventory.garbage(made.root, tracked) if entry.kind == "artifact"}
    assert gone == {made.root / "artifacts" / stage / ("a" * 16) for stage in ("diffusion", "evaluate", "register")}


def test_what_is_kept_by_name_keeps_its_inputs(made: Made) -> None:
    tracked = Tracked(frozenset({ONE, TWO}), frozenset())
    kept = inventory.garbage(made.root, tracked, keep=[f"autoencoder/{'a' * 16}"])
    assert not {entry.path.parent.name for entry in kept if entry.kind == "artifact"} & {"autoencoder", "ingest"}
    with pytest.raises(UserError, match="--keep autoencoder/zz: no such artifact"):
        inventory.garbage(made.root, tracked, keep=["autoencoder/zz"])


def test_a_leased_artifact_is_never_garbage(made: Made) -> None:
    tracked = Tracked(frozenset({ONE, TWO}), frozenset())
    place = made.root / "artifacts" / "diffusion" / ("b" * 16)
    with Lease(place / "work" / "lease"):
        gone = {entry.path for entry in inventory.garbage(made.root, tracked)}
        assert place not in gone and made.root / "artifacts" / "encode" / ("a" * 16) not in gone
        assert next(item for item in inventory.items(made.root) if item.path == place).state == "finished"
    assert place in {entry.path for entry in inventory.garbage(made.root, tracked)}


def test_an_artifact_that_was_taken_since_is_not_removed(made: Made) -> None:
    tracked = Tracked(frozenset({TWO}), frozenset())
    found = inventory.garbage(made.root, tracked)
    place = made.root / "artifacts" / "diffusion" / ("b" * 16)
    with Lease(place / "work" / "lease") as lease:
        rival = lease._me | {"pid": os.getppid(), "started": artifacts._started(os.getppid())}
        write_json(place / "work" / "lease" / "000099.json", rival)
    assert place not in {entry.path for entry in inventory.garbage(made.root, tracked)}
    with pytest.raises(UserError, match="being written by process"):
        inventory.remove(made.root, [entry for entry in found if entry.path == place])
    assert (place / "manifest.json").exists()


def test_nothing_is_removed_while_a_run_goes_on(made: Made) -> None:
    found = inventory.garbage(made.root, NOTHING)
    with Lease(made.root / "pipelines" / ONE / "spool" / "lease"), pytest.raises(UserError, match="may be running"):
        inventory.remove(made.root, found)
    assert (made.root / "latents" / "old.tar").exists()


def test_what_was_set_aside_may_go_unless_a_model_was_made_of_it(made: Made) -> None:
    artifact = made.store.find("diffusion", "b" * 16)
    assert artifact is not None
    place = made.store.set_aside(artifact)
    assert place in {entry.path for entry in inventory.garbage(made.root, NOTHING)}
    tracked = Tracked(frozenset(), frozenset({"b" * 16}))
    assert place not in {entry.path for entry in inventory.garbage(made.root, tracked)}


@pytest.mark.parametrize("lora", [{"lora": {"rank": 8}}, {}])
def test_the_base_of_what_is_kept_stays(made: Made, lora: dict[str, Any]) -> None:
    first = made.store.find("diffusion", "a" * 16)
    assert first is not None
    training = {"init_from": first.manifest["files"]["weights"]["sha256"], **lora}
    with made.store.write("diffusion", "f" * 16, {"training": training}, {}) as writer:
        (writer.path / "weights").write_text("factors")
        writer.finish({})
    tracked = Tracked(frozenset({ONE, TWO}), frozenset())
    kept = inventory.garbage(made.root, tracked, keep=[f"diffusion/{'f' * 16}"])
    assert first.path not in {entry.path for entry in kept}
    assert first.path in {entry.path for entry in inventory.garbage(made.root, tracked)}
    users = {item.name: item.used_by for item in inventory.items(made.root)}[f"diffusion/{'a' * 16}"]
    assert "diffusion/ffffff" in users
    place = made.store.set_aside(first)  # made again since, by --rebuild: what the adapter needs is here
    assert place not in {e.path for e in inventory.garbage(made.root, tracked, keep=[f"diffusion/{'f' * 16}"])}
    assert place in {entry.path for entry in inventory.garbage(made.root, tracked)}


@pytest.mark.parametrize("lora", [{"lora": {"rank": 8}}, {}])
def test_the_base_of_a_training_that_waits_to_go_on_stays(made: Made, lora: dict[str, Any]) -> None:
    first = made.store.find("diffusion", "a" * 16)
    assert first is not None
    training = {"init_from": first.manifest["files"]["weights"]["sha256"], **lora}
    waiting = made.root / "artifacts" / "diffusion" / ("f" * 16)
    (waiting / "work").mkdir(parents=True)
    write_json(waiting / "work" / "recipe.json", {"recipe": {"training": training}, "inputs": {}})
    tracked = Tracked(frozenset({ONE, TWO}), frozenset())
    kept = inventory.garbage(made.root, tracked, keep=[f"diffusion/{waiting.name}"])
    assert first.path not in {entry.path for entry in kept}
    assert {first.path, waiting} <= {entry.path for entry in inventory.garbage(made.root, tracked)}


def test_an_unfinished_encode_keeps_the_whole_pool(made: Made) -> None:
    (made.root / "artifacts" / "encode" / ("a" * 16) / "manifest.json").unlink()
    assert not [entry for entry in inventory.garbage(made.root, NOTHING) if entry.kind == "latents"]


def test_without_a_tracker_every_run_counts(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    asked = inventory.ask_tracker(made.root)
    assert asked.trouble.endswith("mlflow.db is not there") and not asked.gone


# ---- lineage


def test_the_graph_names_contents_from_shards_to_model(made: Made) -> None:
    text = lineage.tree(*lineage.artifacts_of(made.root, "2222"), graph.headline)
    order = [text.index(f"\n{stage}  ") for stage in INPUTS]
    assert order == sorted(order)
    model = made.store.find("diffusion", "b" * 16)
    assert model is not None and f"from diffusion {'b' * 16}  content {model.content[:12]}" in text
    assert (
        f"shard train-00000  sha256 {'5' * 12}  3 + 1 images" in text
        and "a" * 16 not in text.split("\ndiffusion")[0][:20]
    )


@pytest.mark.parametrize("name", ["diffusion/bbbb", "bbbb"])
def test_an_artifact_is_named_by_the_beginning_of_its_fingerprint(made: Made, name: str) -> None:
    if name == "bbbb":
        with pytest.raises(UserError, match="3 artifacts begin so"):
            lineage.artifacts_of(made.root, name)
        return
    _, found = lineage.artifacts_of(made.root, name)
    assert [a.stage for a in found] == ["ingest", "autoencoder", "encode", "diffusion"]


def test_an_input_that_was_made_again_is_told(made: Made) -> None:
    path = made.root / "artifacts" / "encode" / ("a" * 16) / "manifest.json"
    path.write_text(
        path.read_text().replace('"content": "' + Artifact.load(path.parent).content, '"content": "' + "9" * 64)
    )
    _, found = lineage.artifacts_of(made.root, "diffusion/bbbb")
    assert "made again since" in lineage.tree("x", found, graph.headline)


def test_a_model_is_traced_by_its_own_record(made: Made, tmp_path: Path) -> None:
    made_of = {stage: made.store.find(stage, "a" * 16) for stage in list(INPUTS)[:5]}
    record = {stage: {"fingerprint": a.fingerprint, "content": a.content} for stage, a in made_of.items() if a}
    write_json(tmp_path / "model" / "config.json", {"name": "digits", "lineage": record})
    _, found = lineage.artifacts_of(made.root, str(tmp_path / "model"))
    assert [(a.stage, a.fingerprint) for a in found] == [(stage, "a" * 16) for stage in INPUTS]


def test_the_models_that_an_image_went_into(made: Made) -> None:
    text = lineage.uses(made.root, "a/1")
    assert "a/1: train split of ingest/aaaa" in text and "class cat" in text
    assert text.count("model models:/digits@latest-good") == 2 and f"diffusion/{'b' * 16}" in text
    assert "held out" in lineage.uses(made.root, "held")
    copied = lineage.uses(made.root, "copy")  # left out, but its twin is in
    assert "copy: left out" in copied and "a/2: train split" in copied
    with pytest.raises(UserError, match="keys look like a/1"):
        lineage.uses(made.root, "nosuch")


def test_weights_to_begin_with_are_an_origin(made: Made) -> None:
    first = made.store.find("diffusion", "a" * 16)
    assert first is not None
    recipe = {"training": {"init_from": first.manifest["files"]["weights"]["sha256"]}}
    with made.store.write("diffusion", "f" * 16, recipe, {}) as writer:
        (writer.path / "weights").write_text("tuned")
        tuned = writer.finish({**SUMMARIES["diffusion"], "run": "x"})
    known = lineage.everything(made.store)
    assert tuned.fingerprint in {a.fingerprint for a in lineage.downstream(first, known)}
    assert f"diffusion/{'f' * 16}" in lineage.uses(made.root, "a/1")
    assert lineage.upstream([tuned], known)[0].stage == "ingest"


def test_a_root_that_was_moved_is_read_from_where_it_is(template: Made, tmp_path: Path) -> None:
    shutil.copytree(template.root, tmp_path / "copy")
    hidden = template.root.rename(template.root.with_name("hidden"))
    try:
        past = history.find(tmp_path / "copy", "2222")
        assert history.pictures(past)["samples/ema"] and history.curves(past)["eval/fd"] == [(0, 20.0)]
        assert "(gone)" not in lineage.tree(*lineage.artifacts_of(tmp_path / "copy", "2222"), graph.headline)
    finally:
        hidden.rename(template.root)


def test_a_tokenizer_goes_with_the_autoencoders_that_hold_it(made: Made) -> None:
    pool, folder = made.root / "tokenizers", made.root / "artifacts" / "autoencoder"
    pool.mkdir()
    manifest = next(folder.glob("*/manifest.json"))
    values = json.loads(manifest.read_text())
    (pool / "used.json").write_text("{}")
    (pool / "other.json").write_text("[]")
    values["files"]["tokenizer.json"] = {"bytes": 2, "sha256": sha256_file(pool / "used.json")}
    write_json(manifest, values)

    def gone() -> set[str]:
        return {entry.path.name for entry in inventory.garbage(made.root, NOTHING) if entry.path.parent == pool}

    assert gone() == set()  # somebody may be about to use it
    for path in pool.iterdir():
        old(path)
    assert gone() == {"other.json"}
