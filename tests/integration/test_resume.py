"""Stop and go on: the loop in plain processes, killed by SIGKILL at a random step, resumed at the same or another world
size and ZeRO stage; bad steps and the roll-back. All runs are made once."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

STEPS, BATCH = 14, 8
STAGES, ACCUMULATIONS = (0, 2, 3), (1, 2)
# which stages accumulate; the network, in which all kinds of parameters are, at each
ACCUMULATED = {"autoencoder": (2,), "conditioned": (2,), "lora": (), "distil": ()}
STRETCH = [5 * BATCH, 25 * BATCH]  # 20 bad steps


Runs = tuple[list[dict[str, Any]], dict[str, int]]


def scenarios(root: Path, seed: int, subject: str) -> Runs:
    """Runs that are never stopped, killed, resumed; of the subject "bad" some with bad steps."""
    chance = random.Random(seed)
    runs: list[dict[str, Any]] = []
    kills: dict[str, int] = {}

    def add(
        name: str, folder: str, stage: int, world: int, accumulation: int = 1, kill: bool = False, **more: Any
    ) -> None:
        if kill:
            kills[name] = more["kill"] = chance.randrange(more.pop("after", 1), more.pop("until", STEPS - 1))
            more["kill_rank"] = chance.randrange(world)
        more["training"] = {"steps": STEPS, "save_every": 3} | more.get("training", {})
        if "copy" in more:
            more["copy"] = str(root / more["copy"])
        runs.append(
            {"out": str(root / name), "folder": str(root / folder), "stage": stage, "world": world}
            | {"root": str(root), "subject": "network" if subject == "bad" else subject}
            | {"accumulation": accumulation} | more
        )  # fmt: skip

    if subject == "bad":
        for stage in (0, 1, 2, 3):
            for leave_out in (False, True):
                add(f"bad-{stage}-{leave_out}", "none", stage, 2, 2, kind="bad_step", leave_out=leave_out)
        add("export", "none", 0, 2, kind="export")
        for stage in STAGES:
            add(f"average-{stage}", f"f-average-{stage}", stage, 2, kind="average")
        long = {"steps": 32, "save_every": 2}
        for stage in STAGES:
            bad = list(range(*STRETCH, BATCH))
            add(f"back-{stage}", f"f-back-{stage}", stage, 2, 2, bad=bad, training=long)
            add(f"told-{stage}", f"f-told-{stage}", stage, 2, 2, training=long | {"skip": [STRETCH]})
        return runs, kills
    if subject != "network":
        add("prepare", "none", 0, 1, kind="prepare")
    for stage in STAGES:
        for accumulation in ACCUMULATIONS if stage in ACCUMULATED.get(subject, STAGES) else (1,):
            key = f"{stage}-{accumulation}"
            add(f"whole-{key}", f"f-whole-{key}", stage, 2, accumulation)
            add(f"killed-{key}", f"f-killed-{key}", stage, 2, accumulation, kill=True)
            if accumulation == 1:
                add(f"to1-{key}", f"f-to1-{key}", stage, 1, 1, copy=f"f-killed-{key}", seed=1)
            add(f"resumed-{key}", f"f-killed-{key}", stage, 2, accumulation, seed=1)
        add(f"one-{stage}", f"f-one-{stage}", stage, 1, 2, kill=True)
        add(f"to2-{stage}", f"f-one-{stage}", stage, 2, 1, seed=1)
    add("chain-2", "f-chain", 2, 2, kill=True, until=6)
    add("chain-3", "f-chain", 3, 1, kill=True, after=7, until=11, whole=6 * BATCH, seed=1)
    add("chain-0", "f-chain", 0, 2, seed=1)
    return runs, kills


def make(train: Any, root: Path, subject: str) -> tuple[Path, dict[str, int]]:
    """All runs of a subject; where they left their files, and where they were killed."""
    seed = int(os.environ.get("RESUME_SEED", random.randrange(10**6)))
    print(f"RESUME_SEED={seed}")
    runs, kills = scenarios(root, seed, subject)
    train(runs)
    return root, kills


SLOW = [pytest.param(subject, marks=pytest.mark.slow) for subject in ("autoencoder", "conditioned", "lora", "distil")]


@pytest.fixture(scope="module", params=["network", *SLOW])
def results(request: Any, train: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """Runs of a network that has all kinds of parameters, and of both trained stages on real artifacts; the diffusion
    model is told class, attributes of each kind and captions; adapters beside a base that knows other classes, and a
    student of a teacher."""
    return make(train, tmp_path_factory.mktemp("resume"), request.param)


@pytest.fixture(scope="module")
def bad(train: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    return make(train, tmp_path_factory.mktemp("bad"), "bad")


def steps(root: Path, name: str) -> dict[int, dict[str, Any]]:
    """position -> the last row that a run wrote for it."""
    rows = [json.loads(line) for line in (root / f"{name}.steps.jsonl").read_text().splitlines()]
    return {row["position"]: row for row in rows}


def end(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / f"{name}.json").read_text())


def assert_close(root: Path, name: str, whole: str) -> None:
    """Every step of the run that went on: within 1e-5 of the run that was never stopped."""
    reference, resumed = steps(root, whole), steps(root, name)
    assert max(resumed) == (STEPS - 1) * BATCH
    for position, row in resumed.items():
        loss, wanted = float.fromhex(row["loss"]), float.fromhex(reference[position]["loss"])
        assert abs(loss - wanted) <= 1e-5 * abs(wanted), (name, position, loss, wanted)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
def test_killed_and_resumed_is_equal_bit_for_bit(results: Any, stage: int, accumulation: int) -> None:
    root, kills = results
    key = f"{stage}-{accumulation}"
    if f"killed-{key}" not in kills:
        pytest.skip("not accumulated here")
    whole, resumed = steps(root, f"whole-{key}"), steps(root, f"resumed-{key}")
    assert max(resumed) == (STEPS - 1) * BATCH
    assert min(resumed) <= (kills[f"killed-{key}"] + 1) * BATCH
    assert all(whole[position] == row for position, row in resumed.items())
    for what in ("live", "ema", "snapshots"):
        assert end(root, f"whole-{key}")[what] == end(root, f"resumed-{key}")[what]
    assert len(end(root, f"whole-{key}")["snapshots"]) == 2 * 5  # of two lengths, in 14 steps of 8 each 20 samples


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_curve_has_the_same_points(results: Any, stage: int) -> None:
    root, _ = results
    whole: dict[int, dict[str, float]] = {}
    for step, values in end(root, f"whole-{stage}-1")["points"]:
        whole.setdefault(step, {}).update(values)
    for step, values in end(root, f"resumed-{stage}-1")["points"]:
        for key in values:
            if "per_second" not in key and not key.startswith("efficiency/"):
                assert values[key] == whole[step][key], key


@pytest.mark.parametrize("stage", STAGES)
def test_another_world_size(results: Any, stage: int) -> None:
    root, _ = results
    assert_close(root, f"to1-{stage}-1", f"whole-{stage}-1")
    assert_close(root, f"to2-{stage}", f"whole-{stage}-1")
    for name in (f"to1-{stage}-1", f"to2-{stage}"):
        assert end(root, name)["snapshots"].keys() == end(root, f"whole-{stage}-1")["snapshots"].keys()


def test_another_stage(results: Any) -> None:
    root, _ = results
    assert_close(root, "chain-0", "whole-0-1")
    assert end(root, "chain-0")["resumed_from"] >= 6 * BATCH


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
def test_an_inf_on_one_rank_changes_nothing(bad: Any, stage: int) -> None:
    root, _ = bad
    spoilt, without = end(root, f"bad-{stage}-False"), end(root, f"bad-{stage}-True")
    assert [skipped for skipped, _ in spoilt["losses"]] == [False, False, False, True, False, False]
    assert spoilt["different"] == []
    assert not any(spoilt["padding"]) and (stage != 3 or spoilt["padding"])
    assert [row for row in spoilt["losses"] if not row[0]] == without["losses"]


def test_what_two_ranks_export_is_fp32_bit_for_bit(bad: Any) -> None:
    different = end(bad[0], "export")
    assert len(different) == 8 and not any(different.values()), different


@pytest.mark.parametrize("stage", STAGES)
def test_twenty_bad_steps_roll_back_and_are_left_out(bad: Any, stage: int) -> None:
    root, _ = bad
    back, told = end(root, f"back-{stage}"), end(root, f"told-{stage}")
    assert back["bad_steps"] == 20
    assert back["skipped"] == told["skipped"] == [STRETCH]
    assert any("back to the checkpoint at 32" in line for line in back["said"])
    good = {position: row for position, row in steps(root, f"back-{stage}").items() if not row["bad"]}
    assert good == steps(root, f"told-{stage}")
    assert all(back[what] == told[what] for what in ("live", "ema", "snapshots"))


@pytest.mark.parametrize("stage", STAGES)
def test_an_average_made_afterwards_is_the_one_kept_in_training(bad: Any, stage: int) -> None:
    """Lengths 0.075 and 0.15, made of stored 0.05 and 0.1, on two ranks, with a bad step among the 64."""
    found = end(bad[0], f"average-{stage}")
    assert found["averaged"] == 63 * 8 and found["stored"] == 4 * (31 + 1)
    print(found["different"])
    for length in ("0.05", "0.1", "0.075", "0.15"):
        assert found["different"][length] < 1e-5 and found["different"][f"{length} live"] > 1e-3
