"""A sweep's elements: which there are, exactly; what is refused; what a searcher goes on from."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.past import sweep_folder
from pipeline.schema.sweep import Domain, Sweep
from pipeline.sweeps import plan, run, search, study
from pipeline.sweeps.search import Told

LR, BATCH = "diffusion.training.learning_rate", "diffusion.training.batch_size"
BASE = """\
run: {{name: base, root: {root}}}
data: {{source: {{kind: digits}}}}
autoencoder: {{training: {{steps: 1}}}}
diffusion: {{training: {{steps: 10, batch_size: 8}}}}
"""


def made(**more: Any) -> Sweep:
    return Sweep.model_validate({"name": "s", "config": "base.yaml", "keys": {LR: [1e-4, 1e-3]}, **more})


def made_study(tmp_path: Path, text: str, *overrides: str) -> study.Study:
    (tmp_path / "base.yaml").write_text(BASE.format(root=tmp_path / "root"))
    (tmp_path / "s.yaml").write_text(text)
    return study.read(tmp_path / "s.yaml", overrides)


GRID = f"name: s\nconfig: base.yaml\nkeys:\n  {LR}: [1e-4, 1e-3]\n  {BATCH}: [4, 8, 16]\n"


def test_a_grid_has_all_combinations_in_order_and_overrides_make_each(tmp_path: Path) -> None:
    read = made_study(
        tmp_path, GRID + "overrides: {diffusion.training.clip: 0.5}\nseeds: [3, 4]\n", "diffusion.training.warmup=2"
    )
    assert read.count == 12
    points = [tuple(search.values(read.sweep, n).values()) for n in range(6)]
    assert points == [(1e-4, 4), (1e-4, 8), (1e-4, 16), (1e-3, 4), (1e-3, 8), (1e-3, 16)]
    config = study.element_config(read, 7, search.values(read.sweep, 7 // 2))
    training = config.diffusion.training
    assert (training.learning_rate, training.batch_size, training.clip, training.warmup) == (1e-3, 4, 0.5, 2)
    assert (config.run.seed, config.run.name, config.run.root) == (4, "s.7", str(tmp_path / "root"))
    assert config.sweep is not None and (config.sweep.number, config.sweep.prune) == (7, False)


def test_folds_times_seeds() -> None:
    found = sweep_folder.repeats(made(folds={"column": "person", "k": 3}, seeds=[7, 8]))
    assert [(r["data.split"]["fold"], r["run.seed"]) for r in found] == [(f, s) for f in range(3) for s in (7, 8)]
    assert found[0]["data.split"] == {"by": "fold", "column": "person", "folds": 3, "fold": 0}
    assert sweep_folder.repeats(made()) == [{}]


def test_the_key_is_of_what_decides(tmp_path: Path) -> None:
    key = made_study(tmp_path, GRID).key
    assert made_study(tmp_path, GRID, f"run.root={tmp_path / 'other'}", "cluster.workers=1").key == key
    assert made_study(tmp_path, GRID, "diffusion.training.clip=0.1").key != key
    assert made_study(tmp_path, GRID.replace("16", "32")).key != key
    drawn = f"name: s\nconfig: base.yaml\nkeys: {{{LR}: {{uniform: [0.1, 0.2]}}}}\nsearch: {{kind: random, trials: "
    assert made_study(tmp_path, drawn + "3}\n").key == made_study(tmp_path, drawn + "5}\n").key  # more of the same


@settings(deadline=None)
@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.integers(0, 2**32), st.integers(0, 1000))
def test_draws_lie_in_their_range_and_depend_on_nothing_else(low: float, high: float, seed: int, point: int) -> None:
    low, high = sorted((low, high))
    if low == high:
        return
    keys: dict[str, Any] = {
        "a": {"uniform": [low, high]},
        "b": {"log_uniform": [low, high]},
        "c": {"integer": [-3, 4]},
        "d": ["x", [1, 2]],
    }
    drawn = search.values(made(keys=keys, search={"kind": "random", "trials": 1, "seed": seed}), point)
    assert low <= drawn["a"] <= high and low <= drawn["b"] <= high
    assert isinstance(drawn["c"], int) and -3 <= drawn["c"] <= 4 and drawn["d"] in keys["d"]
    fewer = made(keys={"b": keys["b"]}, search={"kind": "random", "trials": 9, "seed": seed})
    assert search.values(fewer, point)["b"] == drawn["b"]


def test_a_draw_is_the_inverse_of_its_distribution() -> None:
    logarithmic = Domain.model_validate({"log_uniform": [1e-4, 1e-2]})
    assert [search.draw(logarithmic, at) for at in (0.0, 0.25, 0.5)] == [1e-4, pytest.approx(10**-3.5, 1e-5), 1e-3]
    assert search.draw(Domain.model_validate({"uniform": [2, 4]}), 0.25) == 2.5
    whole = Domain.model_validate({"integer": [1, 4]})
    assert [search.draw(whole, at) for at in (0, 0.24, 0.25, 0.99)] == [1, 1, 2, 4]
    units = [search.unit(0, point, "key") for point in range(2000)]
    assert abs(sum(units) / 2000 - 0.5) < 4 / math.sqrt(12 * 2000)  # four standard errors


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (GRID + "sede: [1]\n", ":6: unknown key `sede`; did you mean `seeds`?"),
        (GRID + "search: {knd: random}\n", ":6: unknown key `search.knd`; did you mean `kind`?"),
        (GRID.replace("[4, 8, 16]", "{log_unifrm: [1, 2]}"), "did you mean `log_uniform`?"),
        (GRID.replace("[4, 8, 16]", "{uniform: [2, 1]}"), "expected low < high"),
        (GRID.replace("[4, 8, 16]", "{uniform: [1, 2]}"), "a grid needs lists"),
        (GRID + "search: {kind: random}\n", "`trials` is given with random and optuna"),
        (GRID + "overrides: {run.name: x}\n", "`run.name` is set by the sweep"),
        (GRID.replace(BATCH, "run.root"), "`run.root` is set by the sweep, or common"),
        (
            GRID.replace(BATCH, "autoencoder.training.steps"),
            "on the latents of another autoencoder; take `metric: eval",
        ),
        (GRID.replace(BATCH, "diffusion.prediction"), "the loss is another; take `metric: eval/fd`"),
        (GRID.replace(BATCH, "data.size"), "the images are others"),
        (GRID + "metric: diffusion/spikes\n", "is more of it better, or less? It is not known here; give `direction"),
        (GRID + "prune: {first: 8, metric: diffusion/spikes}\n", "prune by another curve"),
        (
            GRID + "metric: autoencoder/val_psnr\n",
            "has no effect on autoencoder/val_psnr, so all elements would be alike",
        ),
        (GRID.replace(BATCH, "evaluate.guidance"), "`keys.evaluate.guidance` has no effect on diffusion/val_loss"),
        (GRID.replace(f"  {BATCH}: [4, 8, 16]", "  run: [{name: a}]"), "`run` is set by the sweep"),
        (GRID + "prune: {kind: median}\n", "`prune.first` is missing"),
        (GRID + "folds: {column: person, k: 1}\n", "`folds.k`"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(UserError) as raised:
        made_study(tmp_path, text)
    assert what in str(raised.value) and "\n" not in str(raised.value) and "s.yaml" in str(raised.value)


def test_a_wrong_key_or_value_of_the_config_is_found_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"element 0: .*did you mean `learning_rate`"):
        study.check(made_study(tmp_path, GRID.replace("learning_rate", "learning_rat")), range(6))
    with pytest.raises(UserError, match=r"element 1: .*batch_size"):
        study.check(made_study(tmp_path, GRID.replace("8, 16", "-8, 16")), range(6))
    assert not (tmp_path / "root").exists() or not list((tmp_path / "root").glob("artifacts/*"))


def test_the_dry_run_says_where_pruning_looks(tmp_path: Path) -> None:
    read = made_study(tmp_path, GRID + "prune: {first: 30}\n", "diffusion.training.validate_every=2")
    configs = [study.element_config(read, n, search.values(read.sweep, n)) for n in (0, 2)]  # batches of 4 and 16
    (line,) = plan._rungs(read, configs)  # validated at 32, 64, 96, 128 of 160; the smaller at 8 to 32 of 40
    assert line == "pruning: by diffusion/val_loss at 4 rungs, from 30 samples on"
    (line,) = plan._rungs(made_study(tmp_path, GRID + "prune: {first: 200}\n"), configs)
    assert line == "pruning: never, since no validation before the end lies at 200 samples or later"
    assert not plan._rungs(made_study(tmp_path, GRID), configs)


# ---- the searcher


def quadratic(point: dict[str, Any]) -> float:
    return (math.log10(point["a"]) + 2) ** 2 + 0.1 * (point["b"] != [2])


SEARCH = {"a": {"log_uniform": [1e-6, 1.0]}, "b": [[1], [2]]}


def asked(count: int, kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Go on from what is kept, as another process would."""
    with_search = made(keys=SEARCH, search={"kind": "optuna", "trials": count, "startup": 4, "seed": 1})
    while len(kept) < count:
        told = [Told(point, "finished", quadratic(point)) for point in kept]
        kept = [*kept, search.ask(with_search, told)]
    return kept


def test_the_searcher_goes_on_from_stored_results_as_if_never_stopped_and_learns() -> None:
    pytest.importorskip("optuna", reason="the searcher needs the extra `sweep`")
    whole = asked(24, [])
    assert asked(24, json.loads(json.dumps(whole[:7]))) == whole
    random.seed(0)
    drawn = [search.values(made(keys=SEARCH, search={"kind": "random", "trials": 24}), n) for n in range(24)]
    late = sorted(quadratic(point) for point in whole[12:])[6]
    assert late < sorted(quadratic(point) for point in drawn[12:])[6]  # the median of the second half


def test_processes_of_a_searcher_share_points_and_running_ones_count(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the searcher needs the extra `sweep`")
    text = f"name: s\nconfig: base.yaml\nkeys: {{{LR}: {{log_uniform: [1e-5, 1e-1]}}}}\n"
    read = made_study(tmp_path, text + "search: {kind: optuna, trials: 4, startup: 2}\nseeds: [0, 1]\n")
    assert study.point_values(read, 2, may_ask=False) is None
    third = study.point_values(read, 2)  # asked first, by a task of an array: those before it come into being
    assert [p.name for p in sorted((read.folder.path / "points").glob("*.json"))] == [
        f"00000{n}.json" for n in range(3)
    ]
    assert study.point_values(read, 2) == third and third != study.point_values(read, 0)
    write_json(read.folder.element(0) / "result.json", {"state": "finished", "value": 2.0})
    assert study._told(read, 0).state == "running"  # its second seed is not there yet
    write_json(read.folder.element(1) / "result.json", {"state": "finished", "value": 4.0})
    assert (study._told(read, 0).state, study._told(read, 0).value) == ("finished", 3.0)
    write_json(read.folder.element(2) / "result.json", {"state": "failed", "why": "it"})
    assert study._told(read, 1).state == "bad"
    write_json(read.folder.element(4) / "result.json", {"state": "pruned", "value": 9.0, "samples": 80, "why": "it"})
    assert study._told(read, 2).state == "bad"
    assert study.point_values(read, 3) is not None


def test_what_is_to_do_and_what_the_command_line_may_not_set(tmp_path: Path) -> None:
    read = made_study(tmp_path, GRID)
    for number, state in enumerate(["finished", "pruned", "failed"]):
        write_json(read.folder.element(number) / "result.json", {"state": state})
    assert [number for number in range(6) if run.to_do(read, number)] == [2, 3, 4, 5]
    assert [number for number in range(6) if run.to_do(read, number, prune=False)] == [1, 2, 3, 4, 5]
    with pytest.raises(UserError, match=r"s.yaml: `run.name` is set by the sweep, or common to all[^\n]*$"):
        made_study(tmp_path, GRID, "run.name=x")
