"""What is said of an address where no Ray cluster answers, and where Ray's session lies; no Ray is started."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from ray._private import services
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from pipeline.cluster import folders, joining
from pipeline.cluster.cluster import Cluster
from pipeline.config import ClusterConfig
from pipeline.errors import UserError


class Head(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):  # type: ignore[misc]  # generated, without types
    """As much of a cluster's head as is asked: whether it is there."""

    refused = False

    def CheckAlive(self, request: object, context: grpc.ServicerContext) -> object:
        if self.refused:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        return gcs_service_pb2.CheckAliveReply()


@pytest.fixture
def head() -> Iterator[tuple[Head, str]]:
    server, service = grpc.server(futures.ThreadPoolExecutor(1)), Head()
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"127.0.0.1:{port}"
    server.stop(0)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "LDM_RAY_NODES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: set())
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    monkeypatch.setattr(services, "resolve_ip_for_localhost", lambda host: host)


def test_a_head_that_answers_is_found(head: tuple[Head, str], monkeypatch: pytest.MonkeyPatch) -> None:
    service, address = head
    assert joining.unanswered(address) == ""
    assert joining.find(address) == address
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert joining.find("auto") == address
    service.refused = True
    assert "wants a token" in joining.unanswered(address)


def test_who_accepts_and_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = joining.unanswered(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)
        assert said.startswith("something listens there, and does not answer")
        # a Ray client's server is another program: only that it listens is known
        assert joining.find(f"ray://127.0.0.1:{silent.getsockname()[1]}").startswith("ray://")


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("http://127.0.0.1:8265", "dashboard"),
        ("auto", "no cluster runs on this machine"),
        ("nonsense", "is no address"),
        ("127.0.0.1:1", "cannot reach it"),
        ("ray://127.0.0.1:1", "cannot reach it"),
    ],
)
def test_no_cluster_is_one_line(address: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=word) as raised:
        joining.join(address, {})
    assert str(raised.value).startswith(f"RAY_ADDRESS: {address}") and "\n" not in str(raised.value)
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(UserError, match=r"^`cluster\.address`: "):
        joining.find(address)


def test_local_is_a_cluster_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert Cluster(ClusterConfig())._address() is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert Cluster(ClusterConfig())._address() == "10.0.0.1:6379"
    assert Cluster(ClusterConfig(address="local"))._address() is None


def test_rays_session_gets_a_short_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    short = tempfile.mkdtemp(prefix="t", dir="/tmp")
    long = tmp_path / ("x" * 70)
    long.mkdir()
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(long))
        made = Path(folders.short_folder([str(tmp_path / "none"), short]))
        assert made.parent == Path(short) and made.is_dir() and made.stat().st_mode & 0o777 == 0o700
        # the longest of Ray's paths in it, as its node.py writes them
        socket_path = f"{made}/{folders.INNER}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
        assert len(socket_path) <= 107
        made.rmdir()
        monkeypatch.setattr(tempfile, "tempdir", short)
        made = Path(folders.short_folder([]))
        assert made.parent == Path(short)
        made.rmdir()
        monkeypatch.setattr(tempfile, "tempdir", str(long))
        with pytest.raises(UserError, match=r"^TMPDIR: .* at most 22 characters$"):
            folders.short_folder([str(tmp_path / "none")])
    finally:
        Path(short).rmdir()


def test_the_length_is_counted_in_bytes() -> None:
    assert folders.fits("/" + 38 * "x") and not folders.fits("/" + 39 * "x")
    assert not folders.fits("/" + 21 * "é")


def test_folders_that_nobody_holds_are_removed(tmp_path: Path) -> None:
    names = ("ours", "held", "left", "fresh", "away", "unclaimed")
    ours, held, left, fresh, away, unclaimed = (tmp_path / name for name in names)
    for folder in (ours, held, left, fresh, away, unclaimed):
        (folder / "session").mkdir(parents=True)
    for folder in (left, fresh, away):
        (folder / "lock").write_text("another" if folder == away else os.uname().nodename)
    claim = folders.Claim(held)
    for folder in (held, left, away, unclaimed):
        os.utime(folder, (1, 1))
    assert folders.sweep(tmp_path.iterdir()) == [left]
    assert folders.sweep(tmp_path.iterdir(), ours) == [ours]
    assert {path.name for path in tmp_path.iterdir()} == {"held", "fresh", "away", "unclaimed"}
    with pytest.raises(UserError, match="held by another process"):
        folders.sweep([held], held)
    claim.file.close()
    assert folders.sweep([held], held) == [held]
