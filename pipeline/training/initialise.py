"""DeepSpeed, imported without what nobody here uses, and initialised with everything off that the engine does itself.

The only import of deepspeed.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.training.ranks import Ranks

if TYPE_CHECKING:
    from pipeline.schema.training import Training

BUCKET = 50_000_000  # elements that DeepSpeed reduces or gathers at once


def import_deepspeed() -> Any:
    """The library, without what takes each rank five seconds to import and nobody here uses (0.19.8): mlflow, which has
    its autotuner imported if it is installed, and torch's compiler, which its Muon calls as it is defined."""
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # an import of it fails, and DeepSpeed goes on without
    try:
        import deepspeed
        from deepspeed.runtime import compiler
    finally:
        if hidden:
            del sys.modules["mlflow"]
    compiled, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer
    finally:
        compiler.compile = compiled
    return deepspeed


def initialise(
    model: nn.Module, adam: torch.optim.Optimizer, training: Training, ranks: Ranks, precision: str, micro_batch: int
) -> Any:
    """deepspeed.initialize, quiet, with everything off that the engine does itself."""
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))
    if ranks.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.ERROR)  # its import and start say what a user can do nothing about
    deepspeed = import_deepspeed()
    logger.setLevel(logging.ERROR)
    # A table of what could be compiled here, of which only this is ever asked: a minute of compiling for what training
    # never uses. Asked for, the table is made, by compilers that each rank starts for half a second.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    numel = sum(p.numel() for p in model.parameters())
    zero: dict[str, Any] = {"stage": training.zero_stage, "reduce_bucket_size": max(1, min(BUCKET, numel))}
    if training.zero_stage in (1, 2):
        zero |= {"compute_grad_norm": False, "allgather_bucket_size": BUCKET}
    config: dict[str, Any] = {
        "train_batch_size": training.batch_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # a torch AdamW under another name
        "gradient_clipping": 0.0,  # the default is not: it would clip at ZeRO 0
        "steps_per_print": 10**9,
        "timers": {"throughput": {"enabled": False}},  # it would synchronise the device in every step
    }
    if precision != "fp32":
        config["torch_autocast"] = {"enabled": True, "dtype": {"bf16": "bfloat16", "fp16": "float16"}[precision]}
    # ZeRO 3 writes the numbers of each parameter into a line that it does not print, for 2 ms each (0.19.8)
    shown: Any = nn.Parameter.__repr__
    nn.Parameter.__repr__ = object.__repr__  # type: ignore[assignment]
    try:
        engine, wrapper, _, _ = deepspeed.initialize(model=model, optimizer=adam, config=config)
    finally:
        nn.Parameter.__repr__ = shown  # type: ignore[method-assign]
    logger.setLevel(logging.WARNING)
    if torch.device(engine.device) != ranks.device and ranks.device.type == "cuda":
        raise RuntimeError(f"DeepSpeed took {engine.device}, this rank's device is {ranks.device}")
    engine.torch_autocast_z0_gradscaler = None  # the loss scale of fp16 is ours
    if hasattr(wrapper, "torch_autocast_gradscaler"):
        wrapper.torch_autocast_gradscaler = None
    if training.zero_stage == 0 and ranks.world == 1:
        engine.enable_backward_allreduce = False  # it would copy the whole gradient twice
    return engine
