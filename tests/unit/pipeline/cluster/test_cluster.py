"""How much room a cluster has where its machines go away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.cluster import cluster
from pipeline.cluster.cluster import Cluster
from pipeline.cluster.said import Said
from pipeline.cluster.stopping import Stopped
from pipeline.config import ClusterConfig
from pipeline.errors import UserError


def node(name: str, cpus: int, alive: bool = True) -> dict[str, Any]:
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus}, "NodeManagerHostname": name,
            "NodeManagerAddress": name, "NodeManagerPort": 1}  # fmt: skip


def room(monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]], leaving: set[str], lost: str = "") -> int:
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "_draining", lambda: leaving)
    monkeypatch.setattr(cluster, "reach", lambda targets: [name for name, *_ in targets if name == lost])
    return Cluster(ClusterConfig())._room(threads=2, gpus=0)


def test_drained_dead_and_lost_nodes_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("a", 4), node("b", 6), node("c", 8, alive=False)]
    assert room(monkeypatch, nodes, set()) == 2 + 3
    assert room(monkeypatch, nodes, {"a"}) == 3
    assert room(monkeypatch, nodes, set(), lost="b") == 2
    assert room(monkeypatch, [node("a", 1)], set()) == 1  # too small for a worker: tried, and Ray says why


@pytest.mark.parametrize(
    ("asked", "threads"),
    [({}, 6), ({"workers": 2}, 2), ({"workers": 2, "threads": 2}, 4), ({"workers": 9}, 6), ({"threads": 7}, 7)],
)
def test_a_task_that_runs_alone_has_the_threads_of_all_ranks(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, int], threads: int
) -> None:
    room(monkeypatch, [node("a", 4), node("b", 6), node("c", 8)], {"c"})
    for started in (True, False):
        of_machine = Cluster(ClusterConfig(**asked))
        of_machine.started = started  # else this machine is counted
        monkeypatch.setattr(cluster, "cpus", lambda: 6)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(of_machine, "start", lambda: None)
        assert of_machine.alone() == threads


@pytest.mark.parametrize(
    ("alive", "leaving"), [(True, {"a"}), (False, set()), (False, {"a"})], ids=["drained", "gone", "both"]
)  # a node without work is gone as soon as it is drained, and is no drained one then
def test_where_no_node_is_left_the_run_is_to_go_on_elsewhere(
    monkeypatch: pytest.MonkeyPatch, alive: bool, leaving: set[str]
) -> None:
    with pytest.raises(Stopped) as stopped:
        room(monkeypatch, [node("a", 4, alive)], leaving)
    assert stopped.value.again


def test_what_a_task_prints_is_shown_while_it_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray without its processes: a task runs as it is submitted, and is done when it was waited for twice."""
    room(monkeypatch, [node("a", 4)], set())
    looked: list[str] = []

    def wait(waiting: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        looked.append(capsys.readouterr().err)
        return (waiting, []) if len(looked) == 2 else ([], waiting)

    class Remote:
        def __init__(self, function: Any) -> None:
            self.function = function

        def options(self, **_: Any) -> Remote:
            return self

        def remote(self, *arguments: Any) -> Any:
            return self.function(*arguments)

    monkeypatch.setattr(cluster, "_gpus", lambda: False)
    monkeypatch.setattr(ray, "remote", Remote)
    monkeypatch.setattr(ray, "get", lambda done: done)
    monkeypatch.setattr(ray, "wait", wait)
    of_machine = Cluster(ClusterConfig())
    of_machine.started = True
    monkeypatch.setattr(of_machine, "start", lambda: None)
    told = Said(tmp_path / "said")

    def doubled(number: int) -> int:
        print(f"halfway to {2 * number}")
        return 2 * number

    assert list(of_machine.map(doubled, [4], said=told)) == [8]
    assert looked == ["", "halfway to 8\n"]
    assert list(of_machine.map(doubled, [5])) == [10] and capsys.readouterr().out == "halfway to 10\n"


def test_a_machine_too_busy_for_ray_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", late)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(UserError, match="Ray did not start: The current node timed out"),
        Cluster(ClusterConfig()) as started,
    ):
        started.start()
