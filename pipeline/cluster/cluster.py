"""Work on machines: a Ray cluster (local, or the one we are in), tasks and actors over items, training by Ray Train.

The cluster starts when the first stage needs it, so that a run whose stages are all cached starts none. How Ray Train
minds the ranks is in `trainer.py`; what a rank does in `loop.py`; which ranks talk to each other how, in `ranks.py`.
"""

from __future__ import annotations

import math
import os
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster import fork_server
from pipeline.cluster.folders import INNER, PREFIX, Claim, remove, short_folder, sweep
from pipeline.cluster.inline import Inline
from pipeline.cluster.joining import join, mind_job_stop, start_few_servers
from pipeline.cluster.reach import reach
from pipeline.cluster.said import Said
from pipeline.cluster.stopping import Stopped, in_main_thread, in_thread
from pipeline.config import ClusterConfig
from pipeline.errors import UserError, brief, many
from pipeline.files import SOURCE, disk_trouble, read_json

if TYPE_CHECKING:
    from pipeline.cluster.nodes import Node

IN_FLIGHT = 2  # tasks submitted ahead of each slot, so that none waits for the driver
FEW = 2  # tasks that are done here before a local Ray would have started
LOOK = 0.5  # seconds between two looks at what a task has printed
START_FAILURES = 2  # times that Ray Train may fail to place the ranks; without a limit it tries for ever
WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"  # a process of Ray Train's that looks whether nodes are drained
HEALTH_CHECK = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"  # Ray Train's seconds until a silent rank is given up: 600

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "PYTHONWARNINGS": "ignore::FutureWarning",
}


class Cluster:
    """A Ray cluster that starts when it is first used. Use as a context manager: it leaves no process behind."""

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.started = False
        self._temporary: str | None = None
        self._claim: Claim | None = None
        self._forks: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.started:
                import ray

                ray.shutdown()
        finally:
            if self._forks:
                fork_server.stop(self._forks)
            if self._temporary:
                remove(Path(self._temporary))  # Ray's own logs and sockets; nothing of ours
            if self._claim:
                self._claim.file.close()

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
            self._temporary = short_folder()
            with suppress(OSError):  # a file system without locks: what a kill leaves there stays
                self._claim = Claim(Path(self._temporary))
            sweep(Path(self._temporary).parent.glob(f"{PREFIX}*"))
            self._forks = fork_server.start(self._temporary, os.environ)
        import ray

        handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if in_main_thread() else {}
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        if self._ours:
            variables = _variables(self.config.least_threads) | ({} if address else {"GLOO_SOCKET_IFNAME": "lo"})
            common["runtime_env"] = {"env_vars": variables}  # of the job: workers that wait for work have it already
        if address:
            join(address, common)
            mind_job_stop()
        else:
            start_few_servers()
            try:
                ray.init(
                    address="local",
                    num_cpus=cpus(),
                    include_dashboard=False,
                    object_store_memory=200 * 2**20,  # results are small: shards and latents travel by the file system
                    _temp_dir=f"{self._temporary}/{INNER}",  # which Ray lets everybody write into
                    **common,
                )
            except Exception as error:
                if type(error) is not Exception:  # Ray raises that where its processes are not up in half a minute
                    raise
                raise UserError(f"Ray did not start: {brief(error)} Wait until this machine has less to do") from error
        for number, handler in handlers.items():
            signal.signal(number, handler)  # ray.init puts its own in place
        self.started = True

    def _address(self) -> str | None:
        address = self.config.address or os.environ.get("RAY_ADDRESS")
        return None if address == "local" else address  # Ray's word for one of its own

    # ---- tasks and actors over items ---------------------------------------------------------------------------------

    def map(
        self,
        function: Callable[..., Any],
        items: Sequence[Any],
        threads: int = 1,
        setup: Callable[[], Any] | None = None,
        gpus: float = 0,
        said: Said | None = None,
    ) -> Iterator[Any]:
        """`function(item)` for each item, in parallel, results in the order of the items. said: where tasks without
        `setup` leave what they print, which is shown here as it comes.

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
            printed = said.folder if said else None
            pending = _bounded(lambda item: call.remote(function, item, printed), items, limit)
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
                while said and not ray.wait([reference], timeout=LOOK)[0]:
                    said()
                if said:
                    said()
                yield ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise

    def _environment(self, threads: int) -> dict[str, Any]:
        """The environment of a task, an actor or a rank; in a cluster of our own that of the job, which all have."""
        return {} if self._ours else {"env_vars": _variables(threads)}

    @property
    def _ours(self) -> bool:
        """Whether the cluster ends with this run: started by it, or by the Slurm job that is this run."""
        return self._temporary is not None or "LDM_RAY_NODES" in os.environ

    def nodes(self) -> list[Node]:
        """The machines of the cluster, each with an actor on it (`nodes.py`)."""
        from pipeline.cluster.nodes import attend

        self.start()
        return attend(self._environment(1))

    # ---- training ----------------------------------------------------------------------------------------------------

    def _room(self, threads: int, gpus: float) -> int:
        """How many workers of so many threads and GPUs there is room for, each on one node."""
        rooms = [(n.get("CPU", 0) // threads, n.get("GPU", 0) // gpus if gpus else math.inf) for n in _resources()]
        return max(1, sum(int(min(room)) for room in rooms))

    def workers(self) -> int:
        """Ranks: what the config asks for, as far as there is room; auto: all GPUs, or CPUs over `threads`."""
        self.start()
        threads = self.config.least_threads
        room = self._room(threads, 1 if _gpus() else 0)
        if self.config.workers == "auto":
            return room
        if self.config.workers > room:
            print(f"cluster: {many(self.config.workers, 'worker')} asked for, room for {room}", flush=True)
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

    def alone(self) -> int:
        """CPU threads of a task beside which nothing else runs: those of all ranks, as far as one machine has them."""
        least, asked = self.config.least_threads, self.config.workers
        if self.started or self._address():
            self.start()
            most = max(int(node.get("CPU", 0)) for node in _resources())
        else:
            most = cpus()
        return max(least, most if asked == "auto" else min(asked * least, most))

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

        from pipeline.cluster.trainer import OwnTrainer, Trainer

        # a rank that does not answer at all (stopped, swapped out) is given up as early as one that others wait for
        os.environ[HEALTH_CHECK] = str(self.config.collective_timeout)
        if self._temporary:  # this machine has no notice of its end but a signal, which is ours
            os.environ.setdefault(WATCHER, "0")
        stop = mail / "stop"
        stop.unlink(missing_ok=True)
        attempt = 0
        while True:
            ranks = world()
            threads = self.threads(ranks)
            trainer = (OwnTrainer if self._ours else Trainer)(
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
            failure = in_thread(trainer.fit, watch, stop)
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


def _variables(threads: int) -> dict[str, str]:
    path = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**QUIET, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}


def _call(function: Callable[[Any], Any], item: Any, printed: Path | None = None) -> Any:
    with disk_trouble(), ExitStack() as stack:
        if printed:
            printed.mkdir(parents=True, exist_ok=True)
            stack.enter_context(
                redirect_stdout(stack.enter_context(open(printed / f"{os.getpid()}.txt", "a", buffering=1)))
            )
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


def cpus() -> int:
    """CPUs that this process may use (a Slurm step or a container may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0))


def _resources() -> list[dict[str, float]]:
    """What each machine has that there is and stays. Stopped where none does: the run goes on elsewhere."""
    import ray

    leaving = _draining()
    # Ray counts a lost node as alive for some 15 s more, and would ask for ranks there that nobody can place
    there = (n for n in ray.nodes() if n["Alive"] and n["NodeID"] not in leaving)
    raylets = ((n, (n["NodeManagerHostname"], n["NodeManagerAddress"], n["NodeManagerPort"])) for n in there)
    found = [n["Resources"] for n, raylet in raylets if not reach([raylet])]
    if not found:  # drained ones are soon gone: Ray ends a node without work at once, whatever time it was given
        print("cluster: no machine is left to go on with", flush=True)
        raise Stopped(again=True)
    return found


def _draining() -> set[str]:
    """Ids of nodes that are being drained (`ray drain-node`, an autoscaler's or a spot machine's notice)."""
    import ray

    return set(ray._private.state.state.get_draining_nodes())


def _gpus() -> bool:
    import ray

    return bool(ray.cluster_resources().get("GPU", 0))
