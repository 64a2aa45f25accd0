"""`ldm sweep` on real small pipelines: shared stages once, a kill in the middle, the winner; pruning; folds."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from pipeline.cluster import cluster, stopping
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.past import history
from pipeline.stages import graph

SWEEP = """\
name: lr
config: small.yaml
overrides: {diffusion.training.steps: 4, diffusion.training.validate_every: 2}
keys:
  diffusion.training.learning_rate: [1e-9, 1e-2]
  diffusion.training.weight_decay: [0.0, 0.5]
"""


def results(small: Any) -> dict[int, dict[str, Any]]:
    return {int(p.parent.name): read_json(p) for p in small.root.glob("sweeps/*/elements/*/result.json")}


def test_four_elements_share_one_autoencoder_and_go_on_after_a_kill(small: Any, monkeypatch: Any) -> None:
    file = small.folder / "lr.yaml"
    file.write_text(SWEEP)
    trained: list[str] = []
    real = cluster.Cluster.train

    def counted(self: Any, function: Any, arguments: Any, *rest: Any) -> None:
        trained.append(arguments["stage"])
        if len(trained) == 4:  # the autoencoder, then the third element's denoiser
            raise KeyboardInterrupt
        real(self, function, arguments, *rest)

    listed = small.ldm("sweep", str(file), "--dry-run")
    assert listed.code == 0, listed.err
    assert "element 3: learning_rate 0.01, weight_decay 0.5" in listed.out
    assert listed.out.count("would run, shared by 4 elements") == 3 and listed.out.count("would run, of element") == 4
    assert not small.manifests()

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.cluster.cluster.Cluster.train", counted)
        assert small.ldm("sweep", str(file)).code == 130
    before = results(small)
    assert sorted(before) == [0, 1] and trained.count("autoencoder") == 1

    said = small.ldm("sweep", str(file))
    assert said.code == 0, said.err
    found = results(small)
    assert {n: found[n] for n in before} == before and sorted(found) == [0, 1, 2, 3]
    assert len(small.manifests("autoencoder")) == 1 and len(small.manifests("diffusion")) == 4
    best = min(found, key=lambda n: found[n]["value"])
    rate, decay = (1e-9, 1e-2)[best // 2], (0.0, 0.5)[best % 2]
    assert f"Winner: learning_rate {rate}, weight_decay {decay}: diffusion/val_loss" in said.out
    assert "One run each gives no interval" in said.out
    assert f"diffusion.training.learning_rate={rate}" in said.out
    assert said.out.endswith(small.ldm("sweep", str(file), "--report").out)
    assert small.ldm("sweep", str(file), "--element", "4").code == 2

    pasts = history.pipelines(small.root)
    assert sorted((past.name, past.status) for past in pasts) == [(f"lr.{n}", "FINISHED") for n in range(4)]
    key = next(small.root.glob("sweeps/*")).name.rpartition("-")[2]
    starts = [
        e for past in pasts for e in history.events(list(past.folder.glob("spool/*.jsonl"))) if e["kind"] == "start"
    ]
    assert {start["group"] for start in starts} == {f"sweep/{key}"}
    parent = list(history.events(list(small.root.glob(f"pipelines/sweep-{key}/spool/*.jsonl"))))
    assert [e["status"] for e in parent if e["kind"] == "end"] == ["KILLED", "FINISHED"]
    notes = [e["markdown"] for e in parent if e["kind"] == "note"]
    assert "Winner: " in notes[-1] and all(f"{{{{run:pipeline/{past.key}}}}}" in notes[-1] for past in pasts)


def test_a_hopeless_element_is_pruned_at_its_rung_and_resumed_when_asked(small: Any) -> None:
    file = small.folder / "lr.yaml"
    text = SWEEP.replace("validate_every: 2", "validate_every: 1, diffusion.training.half_lives: [8]")
    text = text.replace("steps: 4", "steps: 6")
    text = text.replace("[1e-9, 1e-2]", "[1e-2, 1e-9]").replace("  diffusion.training.weight_decay: [0.0, 0.5]\n", "")
    file.write_text(text + "prune: {kind: median, first: 24, least: 1}\n")
    assert "pruning: by diffusion/val_loss at 1 rungs" in small.ldm("sweep", str(file), "--dry-run").out
    said = small.ldm("sweep", str(file))
    assert said.code == 0, said.err
    pruned = results(small)[1]
    assert (pruned["state"], pruned["samples"]) == ("pruned", 24)  # the third of six steps of 8
    assert len(small.manifests("diffusion")) == 1
    assert "pruned: " in said.out and "worse than the median" in said.out and "Winner: learning_rate 0.01" in said.out
    assert small.ldm("sweep", str(file)).code == 0 and results(small)[1] == pruned  # decided once

    resumed = small.ldm("sweep", str(file), "--no-prune", "--element", "1")
    assert resumed.code == 0, resumed.err
    whole = results(small)[1]
    assert whole["state"] == "finished" and len(small.manifests("diffusion")) == 2
    assert whole["value"] > results(small)[0]["value"]
    ended = [read_json(path) for path in small.root.glob("artifacts/diffusion/*/work/mail/*/summary.json")]
    assert sorted((one["resumed_from"] or 0, one["step"]) for one in ended) == [(0, 6), (32, 6)]


def test_folds_hold_out_every_group_once_in_real_runs(small: Any) -> None:
    file = small.folder / "folds.yaml"
    text = SWEEP.replace("learning_rate: [1e-9, 1e-2]", "learning_rate: [1e-2]").replace("[0.0, 0.5]", "[0.0]")
    text = text.replace("name: lr", "name: folds").replace("  diffusion.", "  autoencoder.")
    file.write_text(text + "metric: autoencoder/val_psnr\nfolds: {column: label, k: 2}\n")
    said = small.ldm("sweep", str(file))
    assert said.code == 0, said.err
    counts = [read_json(m)["summary"]["images"] for m in small.manifests("ingest")]
    assert counts == [{"train": 20, "val": 20}] * 2
    assert re.search(r"Winner: .*: autoencoder/val_psnr [0-9.]+ \[[0-9., ]+\], the mean of 2 runs", said.out)


def test_an_element_that_fails_costs_no_other(small: Any, monkeypatch: Any) -> None:
    file = small.folder / "lr.yaml"
    file.write_text(SWEEP.replace("  diffusion.training.weight_decay: [0.0, 0.5]\n", ""))
    real = cluster.Cluster.train

    def dies(self: Any, function: Any, arguments: Any, *rest: Any) -> None:
        if arguments["stage"] == "diffusion" and arguments["config"]["run"]["name"] == "lr.0":
            raise RuntimeError("a rank died")
        real(self, function, arguments, *rest)

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.cluster.cluster.Cluster.train", dies)
        said = small.ldm("sweep", str(file))
    assert said.code == 2 and "Traceback" in said.err and said.err.endswith("1 element failed: 0; the table says why\n")
    assert {n: r["state"] for n, r in results(small).items()} == {0: "failed", 1: "finished"}
    assert "failed: RuntimeError: a rank died" in said.out
    assert small.ldm("sweep", str(file)).code == 0 and results(small)[0]["state"] == "finished"


def test_a_searcher_outlives_what_is_no_config(small: Any) -> None:
    pytest.importorskip("optuna", reason="the searcher needs the extra `sweep`")
    file = small.folder / "heads.yaml"
    text = "name: heads\nconfig: small.yaml\nkeys: {diffusion.backbone.heads: [2, 3]}\n"  # of a width of 16
    file.write_text(text + "search: {kind: optuna, trials: 6, startup: 6}\n")
    said = small.ldm("sweep", str(file))
    assert said.code == 2, said.err
    states = {(r["values"]["diffusion.backbone.heads"], r["state"]) for r in results(small).values()}
    assert states == {(2, "finished"), (3, "failed")} and len(results(small)) == 6
    assert small.ldm("sweep", str(file), "--dry-run").code == 0
    assert small.ldm("sweep", str(file)).code == 2  # not stuck at the first of them
    file.write_text(text.replace("heads: [", "headz: [") + "search: {kind: optuna, trials: 6}\n")
    said = small.ldm("sweep", str(file))
    assert said.code == 2 and "headz" in said.err and "Traceback" not in said.err


def test_a_result_is_not_written_by_who_has_lost_the_element(small: Any, monkeypatch: Any) -> None:
    file = small.folder / "lr.yaml"
    file.write_text(SWEEP.replace("  diffusion.training.weight_decay: [0.0, 0.5]\n", ""))

    def cut_off(self: Any, function: Any, arguments: Any, *_: Any) -> None:
        """The node was cut off; another process has taken the element over, and ended it."""
        monkeypatch.setattr("pipeline.artifacts.Lease.check", lost)
        (folder,) = small.root.glob("sweeps/*/elements/000000")
        write_json(folder / "result.json", {"state": "finished", "value": 1.0, "values": {}})
        raise UserError("the lease of an artifact is lost")

    def lost(self: Any) -> None:
        raise UserError(f"{self.folder}: taken over")

    monkeypatch.setattr("pipeline.cluster.cluster.Cluster.train", cut_off)
    said = small.ldm("sweep", str(file))
    assert said.code == 2 and "taken over" in said.err
    assert {n: r["state"] for n, r in results(small).items()} == {0: "finished"}


def test_a_notice_at_the_moment_of_pruning_still_ends_the_sweep(small: Any, monkeypatch: Any) -> None:
    file = small.folder / "lr.yaml"
    text = SWEEP.replace("validate_every: 2", "validate_every: 1, diffusion.training.half_lives: [8]")
    text = text.replace("steps: 4", "steps: 6")
    text = text.replace("[1e-9, 1e-2]", "[1e-2, 1e-9, 1e-3]").replace(
        "  diffusion.training.weight_decay: [0.0, 0.5]\n", ""
    )
    file.write_text(text + "prune: {kind: median, first: 24, least: 1}\n")
    real = cluster.Cluster.train

    def noticed(self: Any, function: Any, arguments: Any, work: Any, *rest: Any) -> None:
        try:
            real(self, function, arguments, work, *rest)
        except stopping.Stopped:
            raise stopping.Stopped(again=True) from None  # SIGUSR1 came while the ranks were saving

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.cluster.cluster.Cluster.train", noticed)
        assert small.ldm("sweep", str(file)).code == 75
    assert {n: r["state"] for n, r in results(small).items()} == {0: "finished", 1: "pruned"}
    assert small.ldm("sweep", str(file)).code == 0 and sorted(results(small)) == [0, 1, 2]


def test_who_waited_for_a_shared_stage_shows_its_curves_as_cached(small: Any, monkeypatch: Any) -> None:
    """Another process has made the autoencoder between this one's plan and its lease."""
    assert small.run("autoencoder").code == 0
    real = graph.plan

    def early(*arguments: Any) -> Any:
        return [replace(s, artifact=None) if s.stage == "autoencoder" else s for s in real(*arguments)]

    monkeypatch.setattr("pipeline.stages.graph.plan", early)
    said = small.run("diffusion", "run.name=second")
    assert said.code == 0, said.err
    (past,) = [past for past in history.pipelines(small.root) if past.name == "second"]
    adopted = [e["of"] for e in history.events(list(past.folder.glob("spool/*.jsonl"))) if e["kind"] == "adopt"]
    assert any(key.startswith("autoencoder/") for key in adopted)
    assert any("autoencoder/" in name for name in history.curves(past))
