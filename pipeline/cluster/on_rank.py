"""What a rank asks Ray Train: its device, and whether its node goes away."""

from __future__ import annotations

from typing import Any


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


def device() -> Any:
    """The device that Ray Train gave this rank; None in a process that it did not start."""
    import ray.train.torch

    try:
        return ray.train.torch.get_device()
    except RuntimeError:
        return None
