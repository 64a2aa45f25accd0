"""`ldm sweep` on real small pipelines: shared stages once, a kill in the middle, the winner; pruning; folds."""

from __future__ import annotations

import re
from typing import Any

from pipeline import cluster, history
from pipeline.files import read_json

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
        patched.setattr("pipeline.cluster.Cluster.train", counted)
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
    assert [e["status"] for e in parent if e["kind"] == "end"] == ["KILLED", "FINISHED", "FINISHED"]
    notes = [e["markdown"] for e in parent if e["kind"] == "note"]
    assert "Winner: " in notes[-1] and all(f"{{{{run:pipeline/{past.key}}}}}" in notes[-1] for past in pasts)


def test_a_hopeless_element_is_pruned_at_its_rung_and_resumed_when_asked(small: Any) -> None:
    file = small.folder / "lr.yaml"
    text = SWEEP.replace("validate_every: 2", "validate_every: 1, diffusion.training.half_lives: [8]")
    text = text.replace("steps: 4", "steps: 6")
    text = text.replace("[1e-9, 1e-2]", "[1e-2, 1e-9]").replace("  diffusion.training.weight_decay: [0.0, 0.5]\n", "")
    file.write_text(text + "prune: {kind: median, first: 24, least: 1}\n")
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
    ended = [read_json(path) for path in small.root.glob("artifacts/diffusion/*/work/summary.json")]
    assert sorted((one["resumed_from"] or 0, one["step"]) for one in ended) == [(0, 6), (32, 6)]


def test_folds_hold_out_every_group_once_in_real_runs(small: Any) -> None:
    file = small.folder / "folds.yaml"
    text = SWEEP.replace("learning_rate: [1e-9, 1e-2]", "learning_rate: [1e-2]").replace("[0.0, 0.5]", "[0.0]")
    text = text.replace("name: lr", "name: folds")
    file.write_text(text + "metric: autoencoder/val_psnr\nfolds: {column: label, k: 2}\n")
    said = small.ldm("sweep", str(file))
    assert said.code == 0, said.err
    counts = [read_json(m)["summary"]["images"] for m in small.manifests("ingest")]
    assert counts == [{"train": 20, "val": 20}] * 2
    assert re.search(r"Winner: .*: autoencoder/val_psnr [0-9.]+ \[[0-9., ]+\], the mean of 2 runs", said.out)
