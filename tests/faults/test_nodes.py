"""A machine of a running Ray cluster is lost: raylet, ranks and all, at once. The nodes are real raylets of this
machine, each with processes and ports of its own; the head has no CPUs, so that no rank is beside the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.integration.test_ray import ROOT, Head, family, kill_all, ray_head, ray_node

from .conftest import EVERY, LIMIT, STEPS, Fault, Row, is_rank, settle

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

Node = subprocess.Popen[bytes]
Add = Callable[[], Node]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head(0) as head:
        yield head


@pytest.fixture
def add(head: Head) -> Iterator[Add]:
    """`add()`: one more node of one CPU joins."""
    with ExitStack() as stack:

        def one() -> Node:
            log = head.folder / f"node-{time.monotonic_ns()}.log"
            return stack.enter_context(ray_node(log, head.environment, 1, f"--address={head.address}"))

        yield one


def lose(nodes: list[Node]) -> tuple[float, Node]:
    """Kill all processes of a node that has a rank; when that was, and the node."""
    node = next(node for node in nodes if any(is_rank(p) for p in family(node)))
    kill_all(node)
    return time.time(), node


def clients(head: Head) -> dict[str, str]:
    return head.environment | {"RAY_ADDRESS": head.address, "PYTHONPATH": str(ROOT)}


def test_node_lost(fault: Callable[..., Fault], row: Row, head: Head, add: Add) -> None:
    """With a spare node: as many ranks as before, in the same command."""
    row.fault, row.how = "Ray node lost", "SIGKILL of all processes of a node with a rank; a spare node is there"
    nodes = [add() for _ in range(3)]
    run = fault(env=clients(head))
    run.begin()
    at, _ = lose(nodes)
    reached = run.reached()
    run.finish()
    assert run.log.count("2 ranks on") == 1 and "a rank died" in run.log
    settle(run, row, at, reached)


def test_elastic(fault: Callable[..., Fault], row: Row, head: Head, add: Add) -> None:
    """2 nodes, 1 after a loss, 2 again after a stop: the same global batch, the losses within 1e-5."""
    row.fault = "elastic 2 to 1 to 2 nodes"
    row.how = "a node lost without a spare; later a new one joins, Ctrl-C, the command again"
    nodes = [add() for _ in range(2)]
    run = fault(env=clients(head))
    run.begin()
    at, _ = lose(nodes)
    run.wait(lambda: "a rank died" in run.log)
    reached = run.reached()
    row.again.append(run.undone())
    run.wait_step(reached + 3)
    row.seconds.append(run.recovered(at, reached))
    assert run.process and "room for 1" in run.log
    os.kill(run.process.pid, signal.SIGINT)
    assert run.process.wait(LIMIT) == 130, run.log[-3000:]
    at, reached = time.time(), run.reached()
    assert reached < STEPS
    add()
    run.start()
    run.finish()
    row.again.append(run.again(reached))
    assert 0 <= row.again[0] <= EVERY and row.again[1] == 0
    row.seconds.append(run.recovered(at, reached))
    worlds = [event["tags"]["ldm.world_size"] for event in run.events() if "ldm.world_size" in event.get("tags", {})]
    assert worlds[0] == worlds[-1] == "2" and "1" in worlds, worlds
    row.metrics = run.lost_metrics()
    assert row.metrics == 0
    row.end = run.equal(exact=False)
