"""Joining a Ray cluster that runs, or that a Slurm job is just raising; and what is peculiar to a Ray job."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.cluster import fork_server
from pipeline.cluster.reach import reach
from pipeline.errors import UserError, brief

JOB_STOP_WAIT, RAY_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S", 3  # seconds between notice and kill: Ray's default
LEAST_STOP_WAIT = 60  # seconds: the ranks' next look at the stop, a checkpoint, the tracker's last lines
ANSWER = 10.0  # seconds that the head of a cluster has for an answer: it takes milliseconds


def start_few_servers() -> None:
    """Let a head that this process starts go without servers that nobody uses in a cluster which ends with the run.

    Each takes a second or more of a processor, and of the dashboard's Ray waits for the start (2.60 starts that one
    without a dashboard too): dashboard and jobs; the autoscaler; what sends the workers' output to the driver. Of each
    node's agent the least is left. Workers start when there is work: those for each CPU that Ray starts with the first
    driver have not its environment, and end unused.
    """
    from ray._private import ray_constants, utils
    from ray._private.node import Node

    if fork_server.ADDRESS in os.environ:
        ray_constants.SETUP_WORKER_FILENAME = str(Path(fork_server.__file__).resolve())
    Node.start_api_server = Node.start_monitor = Node.start_log_monitor = lambda *_, **__: None
    utils.get_dashboard_dependency_error = lambda: "not used"
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")


def ray_program() -> None:
    """The program `ray`, for `ray start` in an allocation that ends with the run.

    Without what `start_few_servers` says, and the Ray client's server, which it would start and wait for whatever its
    options say (Ray 2.60). A node has `_join_limit` seconds to start, where Ray has 30: a hundred nodes that read
    Python from one file system are slower.
    """
    import psutil

    for name in ("ray.serve.scripts", "ray.util.state.state_cli", "ray.dashboard.modules.job.cli"):
        sys.modules[name] = None  # type: ignore[assignment]  # of the program's other words; two thirds of its imports
    import ray.scripts.scripts as scripts
    from ray._private import services

    found = services.get_node

    def patient(*arguments: Any) -> Any:
        begun = time.monotonic()
        while True:
            try:
                return found(*arguments)
            except RuntimeError:
                ended = [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]
                if ended or time.monotonic() - begun > _join_limit():
                    raise

    services.get_node = patient
    start_few_servers()
    scripts.get_ray_client_dependency_error = lambda: "not used"
    scripts.main()


def _join_limit() -> float:
    """Seconds that a cluster which is just being raised has until all its nodes are there."""
    return float(os.environ.get("LDM_JOIN_DEADLINE", "300"))


def in_ray_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def mind_job_stop() -> None:
    """Say it now if `ray job stop` will not leave the time to save."""
    given = int(os.environ.get(JOB_STOP_WAIT, RAY_STOP_WAIT))
    if in_ray_job() and given < LEAST_STOP_WAIT:
        print(
            f"cluster: `ray job stop` will kill this run {given} s after its notice, which may be too short to save; "
            f"submit with --runtime-env jobs/ray_job.yaml, or set {JOB_STOP_WAIT} where Ray's head starts",
            flush=True,
        )


def join(address: str, options: dict[str, Any]) -> None:
    """Join a running cluster. One that slurm/train_ldm.sh is just raising (LDM_RAY_NODES: NAME=ADDRESS, spaces between)
    gets LDM_JOIN_DEADLINE seconds to be there with all its nodes; then a UserError names those that are not.

    Any other is there now, or a UserError says in one line what is wrong with it.
    """
    import ray

    pairs = [pair.split("=") for pair in os.environ.get("LDM_RAY_NODES", "").split()]
    missing = {where: name for name, where in pairs}
    if not missing:
        where = find(address)
        try:
            ray.init(address=where, **options)
        except (OSError, RuntimeError, ValueError, ImportError, ray.exceptions.RayError) as error:
            raise UserError(f"cannot join the Ray cluster at {address}: {brief(error)}") from error
        return
    limit, begun, trouble = _join_limit(), time.monotonic(), ""
    while missing:
        try:
            if not ray.is_initialized():
                if silence := unanswered(address):  # ray.init would wait for long, and for nothing
                    raise OSError(silence)
                ray.init(address=address, **options)
            alive = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
            missing = {where: name for where, name in missing.items() if where not in alive}
        except (OSError, RuntimeError, ray.exceptions.RayError) as error:
            trouble = f" ({brief(error)})"
        if missing and time.monotonic() - begun > limit:
            names = ", ".join(sorted(f"{name} ({where})" for where, name in missing.items()))
            raise UserError(
                f"{len(missing)} of {len(pairs)} nodes did not join Ray at {address} within {limit:.0f} s: {names}"
                f"{trouble}; see ray-JOB.out, or give it longer (LDM_JOIN_DEADLINE=SECONDS)"
            )
        time.sleep(0.2)  # poll: what is not there cannot notify
    has = ray.cluster_resources()
    names = ", ".join(name for name, _ in pairs)
    print(f"cluster: {names} joined ({has.get('CPU', 0):.0f} CPUs, {has.get('GPU', 0):.0f} GPUs)", flush=True)


def find(address: str) -> str:
    """The address that a cluster really answers at, from what `cluster.address` or RAY_ADDRESS says.

    Raises UserError in about `ANSWER` seconds where there is none: Ray itself tries for a quarter of an hour, and ends
    in a traceback.
    """
    from ray._private.services import canonicalize_bootstrap_address

    if address == "auto":  # Ray has it that way
        address = os.environ.get("RAY_ADDRESS") or address
    said = f"{'RAY_ADDRESS' if address == os.environ.get('RAY_ADDRESS') else '`cluster.address`'}: {address}"
    expected = "expected HOST:PORT of a running cluster (PORT is mostly 6379), or nothing, to start a local one"
    if address.startswith(("http://", "https://")):
        raise UserError(f"{said} is a dashboard's address, as `ray job submit` takes it; {expected}")
    client = address.startswith("ray://")  # of a Ray client's server: all that is asked is whether anybody is there
    if "://" in address and not client:
        return address
    try:
        where = address.removeprefix("ray://") if client else canonicalize_bootstrap_address(address)
        host, port = (where or "").rsplit(":", 1)
        failed = "".join(reach([("it", host.strip("[]"), int(port))])) if client else unanswered(f"{host}:{port}")
    except ConnectionError:  # `auto`
        raise UserError(f"{said}, but no cluster runs on this machine; {expected}") from None
    except (ValueError, OSError, OverflowError):
        raise UserError(f"{said} is no address; {expected}") from None
    if failed:
        raise UserError(f"{said}: no Ray cluster is there ({failed}); {expected}")
    return address if client else f"{host}:{port}"


def unanswered(address: str, timeout: float = ANSWER) -> str:
    """Why no head of a Ray cluster answers at HOST:PORT, in a few words; empty where one does."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    host, port = address.rsplit(":", 1)
    if failed := reach([("it", host.strip("[]"), int(port))]):
        return failed[0]
    channel = init_grpc_channel(address, options=[("grpc.enable_http_proxy", 0)])
    try:
        gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).CheckAlive(
            gcs_service_pb2.CheckAliveRequest(), timeout=timeout
        )
    except grpc.RpcError as error:
        code = error.code()
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return "it wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"something listens there, and does not answer within {timeout:.0f} s"
        return f"something listens there that is no head of a Ray cluster: {code.name}"
    finally:
        channel.close()
    return ""
