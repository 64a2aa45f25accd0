"""An actor on every node of a Ray cluster that runs what it is given: for questions about the machines themselves.

Work that may run anywhere goes through `cluster.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Node:
    """A machine of the cluster. name: its host name, with a number where two nodes share one."""

    name: str
    address: str
    cpus: float
    gpus: float
    actor: Any

    def begin(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run `function(*arguments)` on the node; gives a reference for `gather`."""
        return self.actor.call.remote(function, *arguments)

    def port(self) -> int | None:
        """The port at which the actor's process takes calls: a free one of the node; None as long as there is none."""
        import ray

        place = ray._private.state.actors(self.actor._ray_actor_id.hex()).get("Address", {})
        return int(place["Port"]) if place.get("Port", 0) > 0 else None


def attend(environment: dict[str, Any]) -> list[Node]:
    """The living nodes in the order of their addresses. The actors ask for no CPU: there is room on a busy node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = sorted((n for n in ray.nodes() if n["Alive"]), key=lambda n: (n["NodeManagerAddress"], n["NodeID"]))
    hosts, seen = Counter(n["NodeManagerHostname"] for n in alive), Counter[str]()
    found = []
    for node in alive:
        host = node["NodeManagerHostname"]
        seen[host] += 1
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        actor = ray.remote(_Attendant).options(num_cpus=0, scheduling_strategy=here, runtime_env=environment).remote()
        name = f"{host}/{seen[host]}" if hosts[host] > 1 else host
        has = node["Resources"]
        found.append(Node(name, node["NodeManagerAddress"], has.get("CPU", 0), has.get("GPU", 0), actor))
    return found


def gather(references: Sequence[Any], timeout: float) -> list[Any]:
    """Results in order, within `timeout` seconds in all; an exception stands for what raised, died or did not come."""
    import ray

    deadline, results = time.monotonic() + timeout, []
    for reference in references:
        try:
            results.append(ray.get(reference, timeout=max(0.0, deadline - time.monotonic())))
        except ray.exceptions.GetTimeoutError:
            results.append(TimeoutError(f"no answer within {timeout:.0f} s"))
        except ray.exceptions.RayTaskError as error:
            results.append(error.cause)
        except ray.exceptions.RayError as error:
            results.append(error)
    return results


class _Attendant:
    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)
