"""Joining a Ray cluster that runs, or that a Slurm job is just raising; and what is peculiar to a Ray job."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from pipeline.errors import UserError, brief

JOB_STOP_WAIT, RAY_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S", 3  # seconds between notice and kill: Ray's default
LEAST_STOP_WAIT = 60  # seconds: the ranks' next look at the stop, a checkpoint, the tracker's last lines


def ray_program() -> None:
    """The program `ray`, for `ray start` in an allocation that ends with the run.

    Without two servers that nobody uses there, but that it would start and wait for whatever its options say (Ray
    2.60): the Ray client's, and the one of dashboard and jobs. A node has `_join_limit` seconds to start, where Ray has
    30: a hundred nodes that read Python from one file system are slower.
    """
    import psutil
    import ray.scripts.scripts as scripts
    from ray._private import node, services

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
    node.Node.start_api_server = lambda *_, **__: None
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
    gets LDM_JOIN_DEADLINE seconds to be there with all its nodes; then a UserError names those that are not."""
    import ray

    pairs = [pair.split("=") for pair in os.environ.get("LDM_RAY_NODES", "").split()]
    missing = {where: name for name, where in pairs}
    if not missing:
        ray.init(address=address, **options)
        return
    limit, begun, trouble = _join_limit(), time.monotonic(), ""
    while missing:
        try:
            if not ray.is_initialized():
                host, port = address.rsplit(":", 1)
                socket.create_connection((host, int(port)), 5).close()  # ray.init would wait for long, and for nothing
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
