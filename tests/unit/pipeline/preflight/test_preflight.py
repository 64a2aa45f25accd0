"""Each check of `ldm preflight` by itself, sound and with a planted defect; the whole of it is an integration test."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster import reach
from pipeline.config import Config
from pipeline.preflight import node_checks, questions, verdicts
from pipeline.preflight.verdicts import GB, Finding

SMALL: dict[str, Any] = {
    "run": {"name": "small"},
    "data": {"source": {"kind": "digits"}, "size": 16, "channels": 1},
    "autoencoder": {
        "model": {"kind": "kl", "width": 8, "multipliers": [1, 2], "blocks": 1, "latent_channels": 2, "groups": 4,
                  "attention": False},
        "training": {"batch_size": 32, "steps": 16, "micro_batch": 8},
    },
    "diffusion": {
        "backbone": {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 2},
        "training": {"batch_size": 32, "steps": 16},
    },
}  # fmt: skip


def config(
    tmp_path: Path,
    data: dict[str, Any] | None = None,
    diffusion: dict[str, Any] | None = None,
    autoencoder: dict[str, Any] | None = None,
    **tracking: Any,
) -> Config:
    changed = {"run": {"name": "small", "root": str(tmp_path)}, "data": SMALL["data"] | (data or {})}
    changed["diffusion"] = SMALL["diffusion"] | (diffusion or {})
    changed["autoencoder"] = SMALL["autoencoder"] | (autoencoder or {})
    return Config.model_validate({**SMALL, **changed, "tracking": tracking})


def states(findings: list[Finding]) -> list[str]:
    return [finding.state for finding in findings]


class Here:
    """A node that is this process; `change` may falsify what it does, as a broken machine would."""

    def __init__(self, name: str, change: Callable[..., Any] = lambda function, *args: function(*args)) -> None:
        self.name, self.address, self.change, self.cpus, self.gpus = name, "127.0.0.1", change, 1, 0

    def begin(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self.change(function, *arguments)
        except Exception as error:
            return error


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(questions, "gather", lambda answers, timeout: list(answers))
    yield
    while node_checks._listening:  # which an actor of a node ends with
        node_checks._listening.pop().close()


# ---- machines


def facts(**changed: Any) -> dict[str, Any]:
    disk = {"path": "/runs", "free": 100 * GB, "files": None}
    return {
        "host": "n1", "gpus": [], "gpu_trouble": "", "memory": {"total": 64 * GB, "available": 60 * GB},
        "shared_memory": 8 * GB, "root": disk, "temporary": {**disk, "path": "/tmp"}, "cache": None,
        "own_name": "10.0.0.1",
        "interface": None, **changed,
    }  # fmt: skip


GPU = {"name": "H100", "total": 80 * GB, "used": 0.5 * GB, "driver": "550.1"}


def test_this_machine_says_what_it_has(tmp_path: Path) -> None:
    found = node_checks.facts(str(tmp_path / "not" / "yet"), None)
    assert found["root"]["path"] == str(tmp_path) and found["root"]["free"] > 0  # where it would be made
    assert 0 < found["memory"]["available"] <= found["memory"]["total"]
    assert found["gpus"] or found["gpu_trouble"]


def test_gpus() -> None:
    assert states(verdicts.gpus("n1", facts(), 0)) == ["ok"]
    assert states(verdicts.gpus("n1", facts(gpus=[GPU] * 2), 2)) == ["ok"]
    missing = verdicts.gpus("n1", facts(gpu_trouble="driver not loaded"), 2)[0]
    assert missing.state == "refused" and "2 GPUs" in missing.text and "driver not loaded" in missing.text
    assert states(verdicts.gpus("n1", facts(gpus=[GPU] * 8), 1)) == ["warning"]  # Ray was told of one
    assert states(verdicts.gpus("n1", facts(gpus=[{**GPU, "used": 30 * GB}]), 1)) == ["ok", "warning"]
    other = facts(gpus=[{**GPU, "driver": "470.2"}])
    assert verdicts.alike({"n1": facts(gpus=[GPU]), "n2": facts(gpus=[GPU])}) == []
    assert "470.2" in verdicts.alike({"n1": facts(gpus=[GPU]), "n2": other})[0].text


def test_memory() -> None:
    assert states(verdicts.memory("n1", facts(), 1 * GB)) == ["ok"]
    assert states(verdicts.memory("n1", facts(memory={"total": 4 * GB, "available": 1 * GB}), 0)) == ["warning"]
    small = verdicts.memory("n1", facts(shared_memory=0.06 * GB), 1 * GB)
    assert states(small) == ["ok", "warning"] and "--shm-size" in small[1].text


@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_that_of_the_tightest_control_group(tmp_path: Path, version: int) -> None:
    """As Slurm makes them: the job's limit, with the step in it that has none."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    job = tmp_path / "groups" / ("memory" if version == 1 else ".") / "slurm" / "job_7"
    for folder, limit in ((job, "1000000"), (job / "step_0", str(2**63 - 1) if version == 1 else "max")):
        folder.mkdir(parents=True)
        (folder / names[0]).write_text(limit)
        (folder / names[1]).write_text("400000")
    mine = tmp_path / "cgroup"
    mine.write_text(f"3:cpu:/other\n{'4:memory' if version == 1 else '0:'}:/slurm/job_7/step_0\n")
    assert node_checks.memory(tmp_path / "groups", mine) == {"total": 1e6, "available": 6e5}
    assert node_checks.memory(tmp_path / "groups", tmp_path / "none")["total"] > 1e6


def test_a_full_disk_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert states(verdicts.disk("n1", facts(), 10 * GB, 0)) == ["ok"]
    full = os.statvfs_result((4096, 4096, 10**9, 1000, 1000, 0, 0, 0, 0, 255))  # 4 MB free
    monkeypatch.setattr(node_checks.os, "statvfs", lambda path: full)
    found = verdicts.disk("n2", facts(root=node_checks.disk(tmp_path)), 10 * GB, 0)
    assert states(found) == ["refused"] and found[0].node == "n2"
    assert "0.00 GB free" in found[0].text and "10.00 GB to be written" in found[0].text
    for free, state in ((1 * GB, "warning"), (0.01 * GB, "refused")):
        temporary = {"path": "/tmp", "free": free, "files": None}
        assert states(verdicts.disk("n1", facts(temporary=temporary), 10 * GB, 0)) == ["ok", state]
    assert states(verdicts.disk("n1", facts(cache={"path": "/c", "free": 5 * GB}), 10 * GB, 6 * GB)) == [
        "ok",
        "warning",
    ]
    assert states(verdicts.disk("n1", facts(), 95 * GB, 0)) == ["warning"]


def test_what_is_there_already_needs_no_more_disk(tmp_path: Path) -> None:
    from pipeline.artifacts import Store
    from pipeline.stages import graph

    found = config(tmp_path)
    steps = graph.plan(found, Store(tmp_path))
    need = questions.bytes_to_come(found, steps)
    folder = Store(tmp_path).folder("diffusion", steps[3].fingerprint)
    folder.mkdir(parents=True)
    (folder / "part").write_bytes(bytes(1000))
    assert questions.bytes_to_come(found, steps) == need - 1000


# ---- between machines


def test_a_wrong_clock_is_named() -> None:
    def late(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments) - 100

    offsets = questions.clock_offsets([Here("n1"), Here("n2", late)])  # type: ignore[list-item]
    assert abs(offsets["n2"][0] + 100) <= offsets["n2"][1] + 0.01
    found = verdicts.clocks(offsets)
    assert [(f.node, f.state) for f in found] == [("n2", "refused")] and "behind the other clocks" in found[0].text
    assert states(verdicts.clocks({"n1": (0.2, 0.001)})) == ["ok"]
    assert states(verdicts.clocks({"n1": (2.0, 0.001), "n2": (0.0, 0.001)})) == ["warning"]
    assert states(verdicts.clocks({"n1": (31.0, 5.0)})) == ["warning"]  # it may be 26 s
    drivers = {"n1": (0.0, 0.001), "n2": (40.0, 0.001), "n3": (40.1, 0.001), "n4": (40.2, 0.001)}
    found = verdicts.clocks(drivers)  # the driver's own machine is wrong
    assert [(f.node, f.state) for f in found] == [("n1", "refused")] and "behind" in found[0].text


def test_a_node_that_is_silent_is_asked_once() -> None:
    asked = []

    def dead(function: Callable[..., Any], *arguments: Any) -> Any:
        asked.append(function)
        raise TimeoutError("no answer")

    assert questions.clock_offsets([Here("n1", dead)]) == {} and len(asked) == 1  # type: ignore[list-item]


def test_a_root_that_is_not_shared_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, empty = tmp_path / "shared", tmp_path / "empty"
    monkeypatch.setattr(questions, "ROOT_WAIT", 0.2)

    def local(function: Callable[..., Any], folder: str, *arguments: Any) -> Any:
        return function(str(empty), *arguments)  # the same path on its own disk: nobody made the folder there

    def read_only(function: Callable[..., Any], *arguments: Any) -> Any:
        raise PermissionError(30, "Read-only file system")

    def look(*nodes: Here) -> list[Finding]:
        shutil.rmtree(shared, ignore_errors=True)
        shared.mkdir()
        (shared / "0").touch()  # nodes of a test run one after another; a real first one would wait for the second
        (shared / "1").touch()
        if nodes[1].change in (local, read_only):
            (shared / "1").unlink()
        return verdicts.shared_root("/runs", questions.who_sees(nodes, shared))  # type: ignore[arg-type]

    assert states(look(Here("n1"), Here("host/2"))) == ["ok"]
    found = look(Here("n1"), Here("n3", local))
    assert {f.node for f in found if f.state == "refused"} == {"n1", "n3"} and "not one folder" in found[0].text
    assert not empty.exists()
    found = look(Here("n1"), Here("n4", read_only))
    assert [f.node for f in found if "Read-only" in f.text] == ["n4"]


def test_a_closed_port_is_named() -> None:
    def closed(function: Callable[..., Any], *arguments: Any) -> Any:
        answer = function(*arguments)
        if function is node_checks.listen:
            node_checks._listening.pop().close()  # as a firewall that refuses one of the ports
        return answer

    with socket.create_server(("127.0.0.1", 0)) as open_:
        port = open_.getsockname()[1]
        assert reach.reach([("n2", "127.0.0.1", port)], 2) == []
    assert "refused" in reach.reach([("n2", "127.0.0.1", port)], 2)[0]
    there = [SimpleNamespace(name="n2", address="127.0.0.1", port=lambda p=p: p) for p in (port, None)]
    silent = [questions.why(node, TimeoutError("no answer within 60 s")) for node in there]  # type: ignore[arg-type]
    assert silent[0].startswith(f"cannot reach Ray's worker on n2 at 127.0.0.1:{port}: ")
    assert silent[1].startswith("no answer within 60 s; ")
    failed = questions.unreachable([Here("n1"), Here("n2", closed)])  # type: ignore[list-item]
    found = verdicts.ports(failed, 2)
    assert [f.node for f in found if f.state == "refused" and "cannot reach n2 at 127.0.0.1" in f.text] == ["n1"]
    assert verdicts.ports([], 1)[0].state == verdicts.ports([], 2)[0].state == "ok"


def test_a_name_that_stands_for_the_loopback_is_refused() -> None:
    nodes = {"n1": facts(own_name="127.0.1.1"), "n2": facts(host="n2")}
    assert [(f.node, f.state) for f in verdicts.names(nodes, False)] == [("n1", "refused")]
    assert (
        states(verdicts.names({"n1": facts(own_name="127.0.1.1", interface="eth0"), "n2": facts(host="n2")}, False))
        == []
    )
    assert verdicts.names({"n1": facts(own_name="127.0.1.1")}, False) == []  # one machine talks to itself


# ---- tracker


def test_a_tracker_that_is_down_is_a_warning(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    asked = questions.ask_tracker(config(tmp_path, uri=f"http://user:secret@127.0.0.1:{port}"))
    assert "secret" not in asked[0]
    found = verdicts.tracker(*asked, False)
    assert states(found) == ["warning"] and "ldm mlflow sync" in found[0].text
    assert "refused" in found[0].text.lower()  # the connection, says the reason
    assert states(verdicts.tracker(*asked, True)) == ["refused"]
    assert states(verdicts.tracker("sqlite:///x", "", 1.0, True)) == ["ok"]
    assert states(verdicts.tracker("http://x", "", 60.0, True)) == ["warning"]


# ---- storage, step, forecast


def test_slow_storage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = node_checks.read_cold

    def throttled(place: str) -> Iterator[int]:
        """A disk of a hundred kilobytes a second at most."""
        for size in read(place):
            time.sleep(size / 1e5)
            yield size

    def slow(function: Callable[..., Any], *arguments: Any) -> Any:
        if function is not node_checks.read_rate:
            return function(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(node_checks, "read_cold", throttled)
            return function(*arguments)

    monkeypatch.setattr(questions, "PROBE_BYTES", 2**18)
    storage = questions.Storage("a test file in the root", [], 0, {"autoencoder": 1e3})
    nodes: Any = [Here("n1"), Here("n2", slow)]
    rates: dict[str, Any] = questions.read_rates(nodes, storage, tmp_path, 1e12)
    assert rates["n2"] <= 1e5
    found = verdicts.storage({**rates, "n1": 2e9}, {"autoencoder": 1.1e5}, "shards", False)
    assert (
        found[0].state == "ok"
        and found[1].state != "ok"
        and found[1].node == "n2"
        and found[1].text.startswith("slow: ")
    )

    needs = {"autoencoder": 1.5e7, "diffusion": 5e5}
    cases = ((2e7, False, "ok"), (5e6, False, "warning"), (1e6, False, "refused"), (1e6, True, "warning"))
    for rate, cached, state in cases:
        found = verdicts.storage({"n1": rate}, needs, "shards", cached)
        assert states(found) == [state] and "15.0 MB/s needed (autoencoder)" in found[0].text
    assert "first epoch" in found[0].text


def test_storage_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    nodes: Any = [Here("n1")]
    storage = questions.Storage("the image shards", [str(tmp_path / "gone.tar")], 0, {"autoencoder": 1e3})
    rates = questions.read_rates(nodes, storage, tmp_path, 1e9)
    found = verdicts.storage(rates, {"autoencoder": 1e3}, storage.what, False)
    assert states(found) == ["refused"] and "No such file" in found[0].text


def measured(**changed: Any) -> dict[str, Any]:
    one = {"images": 64.0, "step": 0.5, "load": 0.1, "memory": 1e9, "parameters": 1e6, "loss": 1.0}
    rows = [
        {"bytes": 4096.0, "seconds": 1e-3, "bandwidth": 4e6},
        {"bytes": 2.0**24, "seconds": 0.1, "bandwidth": 1.6e8},
    ]
    return {
        "world": 2, "device": "cpu", "hosts": ["n1", "n2"], "notes": [], "collective": rows,
        "stages": {"autoencoder": {**one, **changed}},
    }  # fmt: skip


def test_a_slow_network_and_a_loss_that_is_not_finite() -> None:
    assert states(verdicts.collective(measured())) == ["ok"]
    heavy = verdicts.collective(measured(parameters=1e8))  # 400 MB at 160 MB/s against half a second
    assert states(heavy) == ["warning"] and "500%" in heavy[0].text
    assert verdicts.collective({**measured(), "collective": []})[0].text.startswith("one rank")
    assert states(verdicts.steps(measured(), "image")) == ["ok"]
    assert states(verdicts.steps(measured(loss=None), "image")) == ["warning"]


def test_the_forecast_names_what_is_slowest(tmp_path: Path) -> None:
    found = config(tmp_path)

    def outlook(rate: float, *readers: str, **changed: Any) -> dict[str, Any]:
        sizes = dict.fromkeys(readers, 1e3)
        told: dict[str, Any] = questions.forecast_of(found, measured(**changed), sizes, rate)
        return told["autoencoder"]  # type: ignore[no-any-return]

    usual = outlook(1e9, "autoencoder")
    assert usual["bottleneck"] == "the step"
    # 64 images are read in 0.1 s, then a step takes 0.5 s: 64 / 0.6 images a second
    assert usual["images_per_second"] == pytest.approx(64 / 0.6)
    assert usual["hours"] == pytest.approx(16 * 32 / (64 / 0.6) / 3600)
    assert outlook(4e4, "autoencoder")["bottleneck"] == "the storage"  # 40 images a second
    assert outlook(4e4)["bottleneck"] == "the step"  # of another stage than this one
    assert outlook(1e9, "autoencoder", load=2.0)["bottleneck"] == "the loader"
    assert outlook(1e9, "autoencoder", parameters=1e9)["bottleneck"] == "the collective"
    text = str(verdicts.outlook({"autoencoder": usual}, "image")[0])
    assert "bottleneck: the step" in text and "107 images/s" in text
