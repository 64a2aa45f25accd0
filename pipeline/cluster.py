"""Work on machines: a Ray cluster (local, or the one we are in), tasks and actors over items, training by Ray Train.

The only file beside `nodes.py` that imports ray. The cluster starts when the first stage needs it, so that a run whose
stages are all cached starts none. What a rank does is in `loop.py`; which ranks talk to each other how, in `ranks.py`.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import ClusterConfig
from pipeline.errors import UserError, brief
from pipeline.files import disk_trouble, read_json
from pipeline.node_checks import reach

if TYPE_CHECKING:
    from pipeline.nodes import Node

IN_FLIGHT = 2  # tasks submitted ahead of each slot, so that none waits for the driver
FEW = 2  # tasks that are done here before a local Ray would have started
START_FAILURES = 2  # times that Ray Train may fail to place the ranks; without a limit it tries for ever
STOP_GRACE = 600  # seconds that workers have, after a stop was asked for, to save and end
HEALTH_CHECK = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"  # Ray Train's seconds until a silent rank is given up: 600
JOB_STOP_WAIT, RAY_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S", 3  # seconds between notice and kill: Ray's default
LEAST_STOP_WAIT = 60  # seconds: the ranks' next look at the stop, a checkpoint, the tracker's last lines
SOURCE = Path(__file__).resolve().parent.parent

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "PYTHONWARNINGS": "ignore::FutureWarning",
}


class Stopped(Exception):
    """A person or the scheduler asked for an end; what was to be saved is saved.

    again: it was a notice that the machines go away, so the same command is to be given again elsewhere.
    asked: a signal asked for it, or a drain; False where a rank asked (a hopeless element of a sweep).
    """

    def __init__(self, again: bool = False, asked: bool = True) -> None:
        super().__init__()
        self.again, self.asked = again, asked


class Cluster:
    """A Ray cluster that starts when it is first used. Use as a context manager: it leaves no process behind."""

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.started = False
        self._temporary: str | None = None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self.started:
            import ray

            ray.shutdown()
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)  # Ray's own logs and sockets; nothing of ours

    def start(self) -> None:
        """Join the cluster at `cluster.address` or RAY_ADDRESS, or start a local one with token authentication."""
        if self.started:
            return
        for key, value in QUIET.items():
            os.environ.setdefault(key, value)
        address = self._address()
        if not address:
            # Ray's ports listen on every interface whatever they are told: nobody without this token gets in
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            self._temporary = tempfile.mkdtemp(prefix="ldm-ray-")  # short: socket paths end at 107 characters
        import ray

        handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if _in_main_thread() else {}
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        if address:
            _join(address, common)
            _mind_job_stop()
        else:
            ray.init(
                num_cpus=cpus(),
                include_dashboard=True,  # without it Ray Train's state actor floods the log (Ray 2.60)
                dashboard_host="127.0.0.1",
                object_store_memory=200 * 2**20,  # results are small: shards and latents travel by the file system
                _temp_dir=self._temporary,
                **common,
            )
        for number, handler in handlers.items():
            signal.signal(number, handler)  # ray.init puts its own in place
        self.started = True

    def _address(self) -> str | None:
        return self.config.address or os.environ.get("RAY_ADDRESS")

    # ---- tasks and actors over items ---------------------------------------------------------------------------------

    def map(
        self,
        function: Callable[..., Any],
        items: Sequence[Any],
        threads: int = 1,
        setup: Callable[[], Any] | None = None,
        gpus: float = 0,
    ) -> Iterator[Any]:
        """`function(item)` for each item, in parallel, results in the order of the items.

        With `setup`, actors call it once each (a model that is loaded, say) and then `function(state, item)`.
        A UserError in a task is raised here as it is. A few tasks without `setup` start no local Ray: they run here.
        """
        if not items:
            return
        if setup is None and len(items) <= FEW and not self.started and not self._address():
            yield from Inline().map(function, items)
            return
        self.start()
        import ray

        gpus = gpus if _gpus() else 0
        per_task = {"num_cpus": threads, "num_gpus": gpus, "runtime_env": self._environment(threads)}
        if setup is None:
            call = ray.remote(_call).options(**per_task)
            limit = self._room(threads, gpus) * IN_FLIGHT
            pending = _bounded(lambda item: call.remote(function, item), items, limit)
        else:
            count = min(self.workers(), self._room(threads, gpus), len(items))
            lost = {"max_restarts": self.config.max_failures, "max_task_retries": self.config.max_failures}
            actors = [ray.remote(_Actor).options(**per_task, **lost).remote(setup, function) for _ in range(count)]
            turn = iter(range(len(items)))
            pending = _bounded(
                lambda item: actors[next(turn) % len(actors)].call.remote(item), items, len(actors) * IN_FLIGHT
            )
        try:
            for reference in pending:
                yield ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise

    def _environment(self, threads: int) -> dict[str, Any]:
        path = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {**QUIET, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
        if not _gpus():
            variables["DS_ACCELERATOR"] = "cpu"
        if self._temporary:
            variables["GLOO_SOCKET_IFNAME"] = "lo"
        return {"env_vars": variables}

    def nodes(self) -> list[Node]:
        """The machines of the cluster, each with an actor on it (`nodes.py`)."""
        from pipeline.nodes import attend

        self.start()
        return attend(self._environment(1))

    # ---- training ----------------------------------------------------------------------------------------------------

    def _room(self, threads: int, gpus: float) -> int:
        """How many workers of so many threads and GPUs there is room for, each on one node."""
        import ray

        leaving = _draining()
        # Ray counts a lost node as alive for some 15 s more, and would ask for ranks there that nobody can place
        there = (n for n in ray.nodes() if n["Alive"] and n["NodeID"] not in leaving)
        raylets = ((n, (n["NodeManagerHostname"], n["NodeManagerAddress"], n["NodeManagerPort"])) for n in there)
        nodes = [n["Resources"] for n, raylet in raylets if not reach([raylet])]
        if leaving and not nodes:
            raise Stopped(again=True)
        rooms = [(n.get("CPU", 0) // threads, n.get("GPU", 0) // gpus if gpus else math.inf) for n in nodes]
        return max(1, sum(int(min(room)) for room in rooms))

    def workers(self) -> int:
        """Ranks: what the config asks for, as far as there is room; auto: all GPUs, or CPUs over `threads`."""
        self.start()
        threads = 1 if self.config.threads == "auto" else self.config.threads
        room = self._room(threads, 1 if _gpus() else 0)
        if self.config.workers == "auto":
            return room
        if self.config.workers > room:
            print(f"cluster: {self.config.workers} workers asked for, room for {room}", flush=True)
        return min(self.config.workers, room)

    def threads(self, workers: int) -> int:
        """CPU threads of a rank; auto: as many as leave room for all."""
        if self.config.threads != "auto":
            return self.config.threads
        self.start()
        import ray

        threads = max(1, int(ray.cluster_resources()["CPU"] // workers))
        while threads > 1 and self._room(threads, 1 if _gpus() else 0) < workers:
            threads -= 1
        return threads

    def train(
        self,
        function: Callable[[dict[str, Any]], None],
        arguments: dict[str, Any],
        mail: Path,
        world: Callable[[], int],
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """Run `function(arguments)` on `world()` ranks by Ray Train, and again after one died, from its checkpoints.

        `world` is asked anew for each attempt: what is left after a loss may be fewer. `arguments` gets `threads`.

        mail: where this process and the ranks leave each other files: `function` writes `outcome.json` ({"error": one
        line} for a user's mistake) and looks for `stop`.
        Ranks that had notice of their node's end (a drain) have saved, and go on on the others; no attempt is spent.
        `watch` is called a few times a second (progress). Raises UserError, Stopped, or what Ray Train raised.
        """
        self.start()
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig
        from ray.train.v2.api.exceptions import TrainingFailedError

        # a rank that does not answer at all (stopped, swapped out) is given up as early as one that others wait for
        os.environ[HEALTH_CHECK] = str(self.config.collective_timeout)
        stop = mail / "stop"
        stop.unlink(missing_ok=True)
        attempt = 0
        while True:
            ranks = world()
            threads = self.threads(ranks)
            trainer = _trainer()(
                function,
                train_loop_config={**arguments, "threads": threads},
                torch_config=TorchConfig(timeout_s=self.config.collective_timeout),
                scaling_config=ScalingConfig(
                    num_workers=ranks,
                    use_gpu=ray.cluster_resources().get("GPU", 0) > 0,
                    resources_per_worker={"CPU": threads},
                ),
                run_config=RunConfig(
                    name="train",
                    storage_path=str(mail / "ray"),
                    # we restart: a user's mistake is not tried again
                    failure_config=FailureConfig(
                        max_failures=0, max_preemption_failures=0, controller_failure_limit=START_FAILURES
                    ),
                    worker_runtime_env=self._environment(threads),
                ),
            )
            (mail / "outcome.json").unlink(missing_ok=True)
            failure = _in_thread(trainer.fit, watch, stop)
            outcome = read_json(mail / "outcome.json") if (mail / "outcome.json").exists() else {}
            if "error" in outcome:
                raise UserError(outcome["error"])
            for raised in getattr(failure, "worker_failures", {}).values():
                mistake = getattr(raised, "_base_exc", raised)  # Ray wraps what a rank raised, to keep its traceback
                if isinstance(mistake, UserError):
                    raise UserError(str(mistake)) from None
            if stop.exists():
                who = stop.read_text()
                raise Stopped(again=who == signal.SIGUSR1.name, asked=bool(who))
            if outcome.get("drained"):
                print("a node is being drained: saved, going on on the others", flush=True)
                continue
            if failure is None:
                return
            if not isinstance(failure, TrainingFailedError) or attempt == self.config.max_failures:
                raise failure
            print(
                f"a rank died ({str(failure).splitlines()[0][:200]}); starting again from the last checkpoint",
                flush=True,
            )
            attempt += 1


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


def _trainer() -> Any:
    """Ray Train's trainer; in a cluster that ends with this run, without the actor that would clean up after a lost
    controller. It asks the dashboard, of which a Slurm job starts none (Ray 2.60)."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            return [c for c in super()._create_default_callbacks() if not isinstance(c, PlacementGroupCleanerCallback)]

    return Trainer if "LDM_RAY_NODES" in os.environ else TorchTrainer


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    with disk_trouble():
        return function(item)


class _Actor:
    def __init__(self, setup: Callable[[], Any], function: Callable[[Any, Any], Any]) -> None:
        self.state, self.function = setup(), function

    def call(self, item: Any) -> Any:
        with disk_trouble():
            return self.function(self.state, item)


def _bounded(submit: Callable[[Any], Any], items: Sequence[Any], limit: int) -> Iterator[Any]:
    """References in order, with at most `limit` submitted and not yet taken."""
    waiting: list[Any] = []
    for item in items:
        waiting.append(submit(item))
        if len(waiting) >= limit:
            yield waiting.pop(0)
    yield from waiting


def _in_thread(run: Callable[[], Any], watch: Callable[[], None], stop: Path) -> BaseException | None:
    """Run in a thread, so that this one can look at signals and progress. Returns what was raised."""
    raised: list[BaseException] = []

    def target() -> None:
        try:
            run()
        except BaseException as error:  # handed to the main thread, which raises it
            raised.append(error)

    thread = threading.Thread(target=target, name="ray-train", daemon=True)
    thread.start()
    asked = None
    with _on_signal(stop):
        while thread.is_alive():
            thread.join(0.3)
            watch()
            if stop.exists():
                asked = asked or time.monotonic()
                if time.monotonic() - asked > STOP_GRACE:
                    raise TimeoutError(f"the workers did not end within {STOP_GRACE} s of the request to stop")
    watch()
    return raised[0] if raised else None


@contextmanager
def _on_signal(stop: Path) -> Iterator[None]:
    """Ctrl-C, SIGTERM (a job's end) and SIGUSR1 (notice: to go on elsewhere) ask the ranks to save and stop.

    Ctrl-C twice stops at once. A SIGTERM after a notice makes it an end; a notice after it changes nothing.
    """
    if not _in_main_thread():
        yield
        return

    def ask(number: int, _: Any) -> None:
        if stop.exists() and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGUSR1 and stop.exists() and stop.read_text():
            return
        stop.write_text(signal.Signals(number).name)
        print(f"{signal.Signals(number).name}: saving, then stopping", flush=True)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def in_ray_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _mind_job_stop() -> None:
    """Say it now if `ray job stop` will not leave the time to save."""
    given = int(os.environ.get(JOB_STOP_WAIT, RAY_STOP_WAIT))
    if in_ray_job() and given < LEAST_STOP_WAIT:
        print(
            f"cluster: `ray job stop` will kill this run {given} s after its notice, which may be too short to save; "
            f"submit with --runtime-env jobs/ray_job.yaml, or set {JOB_STOP_WAIT} where Ray's head starts",
            flush=True,
        )


def cpus() -> int:
    """CPUs that this process may use (a Slurm step or a container may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0))


def _join(address: str, options: dict[str, Any]) -> None:
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


def _draining() -> set[str]:
    """Ids of nodes that are being drained (`ray drain-node`, an autoscaler's or a spot machine's notice)."""
    import ray

    return set(ray._private.state.state.get_draining_nodes())


def preempted() -> bool:
    """Whether Ray Train has notice that a node of these ranks is going away. On a rank; costs nothing.

    `ray.train.get_preemption_info` is a barrier of all ranks: this is what it looks at, and the ranks agree on it with
    the rest of a step's flags.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    try:
        return get_train_context().preemption_context.preemption_info is not None
    except RuntimeError:
        return False  # no process of Ray Train's


def _gpus() -> bool:
    import ray

    return bool(ray.cluster_resources().get("GPU", 0))


def device() -> Any:
    """The device that Ray Train gave this rank; None in a process that it did not start."""
    import ray.train.torch

    try:
        return ray.train.torch.get_device()
    except RuntimeError:
        return None


class Inline:
    """The same `map` in this process, without Ray: for tests and for work too small to place."""

    def map(
        self,
        function: Callable[..., Any],
        items: Sequence[Any],
        threads: int = 1,
        setup: Callable[[], Any] | None = None,
        gpus: float = 0,
    ) -> Iterator[Any]:
        state = [setup()] if setup else []
        for item in items:
            yield function(*state, item)
