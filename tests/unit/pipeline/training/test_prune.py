"""Who is stopped, at which rung, given the curves; a decision is made once and kept."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Element
from pipeline.files import read_json, write_json
from pipeline.schema.sweep import Prune, Sweep
from pipeline.tracking.tracker import Spool
from pipeline.training.prune import Judge, hopeless, rung_of, rungs, value_at

MEDIAN = Prune(kind="median", first=100, every=50, least=2)
HALVING = Prune(kind="halving", first=100, factor=3, least=3)
VALUES = st.lists(st.floats(-1e3, 1e3), max_size=12)


def test_rungs() -> None:
    assert list(islice(rungs(MEDIAN), 3)) == [100, 150, 200]
    assert list(islice(rungs(Prune(first=100)), 3)) == [100, 200, 300]
    assert list(islice(rungs(HALVING), 4)) == [100, 300, 900, 2700]
    assert [rung_of(HALVING, n) for n in (99, 100, 299, 300, 5000)] == [None, 100, 100, 300, 2700]


def test_a_curve_at_a_rung_is_its_last_value_before_the_one_that_is_judged_knew_less() -> None:
    curve = [(64, 3.0), (128, 2.0), (192, 1.0)]
    assert [value_at(curve, rung, 128) for rung in (1, 64, 65, 128, 129)] == [2.0, 2.0, 2.0, 2.0, None]
    assert value_at(curve, 64, 100) == 3.0
    assert value_at([(512, 0.1)], 64, 100) is None  # validated less often (a larger batch), or gone on from another run


def test_the_median_rule() -> None:
    assert hopeless(MEDIAN, 9.0, [1.0], -1) is None  # too few
    assert hopeless(MEDIAN, 2.1, [1.0, 3.0], -1) == "worse than the median 2 of 2 others"
    assert hopeless(MEDIAN, 2.0, [1.0, 3.0], -1) is None
    assert hopeless(MEDIAN, 1.9, [1.0, 3.0], 1) is not None  # of a PSNR more is better


def test_halving() -> None:
    assert hopeless(HALVING, 9.0, [1.0], -1) is None
    assert hopeless(HALVING, 9.0, [1.0, 2.0], -1) == "place 3 of 3, of which 1 pass"
    assert hopeless(HALVING, 1.0, [1.0, 2.0], -1) is None
    assert hopeless(HALVING, 2.0, [1.0, 3.0, 4.0, 5.0, 6.0], -1) is None  # place 2 of 6
    assert hopeless(HALVING, 3.5, [1.0, 3.0, 4.0, 5.0, 6.0], -1) is not None


@settings(deadline=None)
@given(st.floats(-1e3, 1e3), VALUES, st.sampled_from([MEDIAN, HALVING]), st.randoms())
def test_a_decision_knows_no_order_and_the_best_is_never_stopped(
    own: float, others: Any, rule: Prune, rng: Any
) -> None:
    mixed = list(others)
    rng.shuffle(mixed)
    assert hopeless(rule, own, others, -1) == hopeless(rule, own, mixed, -1)
    assert hopeless(rule, own, others, 1) == hopeless(rule, -own, [-v for v in others], -1) or rule.kind == "median"
    assert hopeless(rule, min([own, *others]), others, -1) is None


def begin(folder: Path, number: int, curve: list[tuple[int, float]]) -> None:
    """An element with a spool of its denoiser, batches of 10."""
    stage = folder / f"artifact-{number}"
    spool = Spool(stage / "work" / "spool", f"diffusion/{number}", 1)
    for step, value in curve:
        spool.metrics({"diffusion/val_loss": value}, step)
    place = {"folders": {"diffusion": str(stage)}, "batch": {"diffusion": 10}}
    write_json(folder / "elements" / f"{number:06d}" / "place.json", place)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values: dict[str, Any] = {"name": "s", "config": "b", "keys": {"a": [1, 2, 3, 4]}, "seeds": [0, 1]}
    values |= {"metric": "diffusion/val_loss", "prune": {"first": 100, "every": 50}}
    write_json(tmp_path / "sweep.json", Sweep.model_validate(values).model_dump(mode="json"))
    begin(tmp_path, 0, [(5, 9.0), (10, 2.0), (15, 1.0)])
    begin(tmp_path, 1, [(10, 0.0), (15, 0.0)])  # another seed: not compared
    begin(tmp_path, 2, [(5, 9.0), (10, 4.0)])
    return tmp_path


def judge(folder: Path, token: int = 1, steps: int = 100) -> Judge:
    element = Element(key="k", folder=str(folder), number=4)
    log = Spool(folder / "own" / "work" / "spool", "diffusion/4", token)
    return Judge(log, element, folder / "own" / "work", batch=10, steps=steps)


def test_an_element_is_stopped_at_a_rung_and_the_decision_is_kept(folder: Path) -> None:
    log = judge(folder)
    log.metrics({"diffusion/val_loss": 9.9}, 5)  # before the first rung
    log.metrics({"diffusion/train_loss": 9.9}, 10)  # another curve
    log.metrics({"diffusion/val_loss": 2.9}, 10)  # the others: 2 and 4
    assert not log.stopped and not (folder / "own/work/stop").exists()
    kept = read_json(folder / "elements/000004/rungs/000000000100.json")
    assert kept == {"rung": 100, "samples": 100, "value": 2.9, "others": {"0": 2.0, "2": 4.0}, "why": None}
    begin(folder, 6, [(10, 0.1), (15, 0.1)])  # comes later: what was decided stays
    again = judge(folder, token=2)
    again.metrics({"diffusion/val_loss": 2.9}, 10)
    assert not again.stopped
    again.metrics({"diffusion/val_loss": 1.5}, 16)  # rung 150: 1.0 of element 0, 0.1 of element 6
    assert again.stopped and (folder / "own/work/stop").exists()
    pruned = read_json(folder / "elements/000004/pruned.json")
    assert (pruned["samples"], pruned["others"]) == (160, {"0": 1.0, "6": 0.1})
    assert pruned["why"] == "worse than the median 0.55 of 2 others"
    after_a_kill = judge(folder, token=3)
    after_a_kill.metrics({"diffusion/val_loss": 1.5}, 16)
    assert after_a_kill.stopped


def test_a_direction_that_is_given_holds_for_pruning_too(folder: Path) -> None:
    values = read_json(folder / "sweep.json") | {"direction": "max"}
    write_json(folder / "sweep.json", values)
    log = judge(folder)
    log.metrics({"diffusion/val_loss": 9.0}, 10)  # the others: 2 and 4
    assert not log.stopped
    log.metrics({"diffusion/val_loss": 0.5}, 15)  # only element 0 has come so far, to 1
    assert not log.stopped
    begin(folder, 6, [(15, 1.0)])
    log.metrics({"diffusion/val_loss": 0.5}, 20)
    assert not log.stopped  # rung 200: nobody else
    other = Judge(judge(folder).log, Element(key="k", folder=str(folder), number=8), folder / "own/work", 10, 100)
    other.metrics({"diffusion/val_loss": 0.5}, 15)
    assert other.stopped


def test_nobody_is_stopped_at_the_end(folder: Path) -> None:
    log = judge(folder, steps=10)
    log.metrics({"diffusion/val_loss": 99.0}, 10)
    assert not log.stopped
