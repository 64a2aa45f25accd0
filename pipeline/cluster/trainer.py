"""Ray Train's trainer without the processes that it does not need here (Ray 2.60).

Each takes seconds of each stage to start and to import what others have imported: the controller, an actor, which runs
in this process instead; that for Ray Data's data sets; and those that mind a cluster which outlives the run.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from ray.runtime_context import RuntimeContext
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

# Data sets: there are none. Placement groups: what this process made goes with it, a lost actor's had to be cleaned up.
IDLE = (DatasetsCallback, PlacementGroupCleanerCallback)


class Trainer(TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer whose controller runs in the process, and the thread, that calls `fit`."""

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, IDLE)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        os.environ["RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING"] = "0"  # its log is an actor's, in Ray's folder
        logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # what it raises is said by who called `fit`
        RuntimeContext.current_actor = None  # what ranks are given to ask for Ray Train's checkpoints: nobody does
        controller = TrainController(**parts)
        asyncio.run(controller.run())
        return controller.get_result()


class OwnTrainer(Trainer):
    """The same, for a cluster that ends with this run: no autoscaler is asked for machines."""

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        return super()._initialize_and_run_controller(**{**parts, "scaling_policy": _AsItIs(self.scaling_config)})


class _AsItIs(FixedScalingPolicy):  # type: ignore[misc]
    """So many ranks, on the machines that are there."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Nobody is told."""

    def _maybe_send_resource_request(self) -> None:
        """Nobody is asked."""
