"""The forecast of a rank's memory against what the engine takes; `tests/benchmarks/memory.py` has more rows."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from models.diffusion import objectives
from models.diffusion.denoiser import build_network
from models.diffusion.process import make_path
from pipeline.config import Config
from pipeline.planning import memory
from pipeline.planning.forecast import memory_words
from pipeline.training.engine import Engine
from pipeline.training.ranks import open_ranks

COUNT = 16


def config(workers: int | str = 1, **training: Any) -> Config:
    own = {"steps": 10, "batch_size": COUNT, "precision": "fp32", **training}
    return Config.model_validate(
        {
            "run": {"name": "digits"},
            "data": {"source": {"kind": "digits"}, "size": 32},
            "autoencoder": {"model": {"kind": "kl", "latent_channels": 4}, "training": {"steps": 10}},
            "diffusion": {"backbone": {"kind": "dit", "width": 64, "depth": 2, "heads": 2}, "training": own},
            "cluster": {"workers": workers},
        }
    )


@pytest.mark.parametrize("how", [{"zero_stage": 0}, {"zero_stage": 2, "micro_batch": 4}], ids=["whole", "shared"])
def test_what_the_engine_takes(how: dict[str, Any]) -> None:
    made = config(**how)
    section, path = made.diffusion, make_path("rectified_flow", "linear")

    def loss(module: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        x0 = batch["x0"]
        t = torch.full((len(x0),), 0.5)
        return {"loss": objectives.loss(module, x0, torch.ones_like(x0), t, {}, path, "velocity").mean()}

    latent = memory.check_models(made)
    batch = {"x0": torch.zeros(COUNT, latent[0], *latent[1])}

    def most() -> int:
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
            engine = Engine(build_network(section.backbone, "none", *latent), loss, section.training, open_ranks())
            with record_function("in steps"):
                for i in range(2):
                    engine.step(batch, i * COUNT)
        events = sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns())
        begin = next(i for i, event in enumerate(events) if event.name() == "in steps")
        bytes_now = itertools.accumulate(event.nbytes() if event.name() == "[memory]" else 0 for event in events)
        return max(list(bytes_now)[begin:])

    stays, highest = memory.of_rank(made, "diffusion", 1, "cpu")
    for _ in range(4):  # on a busy machine a bucket that was reduced may be given back late
        found = most()
        if found <= 1.15 * highest:
            break
    assert stays < found and highest == pytest.approx(found, rel=0.15)


def test_it_is_said_where_it_is_known() -> None:
    words = memory_words(config(2, zero_stage=1), "diffusion", on_gpu=False)
    assert words.startswith("; tensors of a rank 0.") and words.endswith(" GB between steps")
    assert memory_words(config("auto"), "diffusion", on_gpu=False) == ""
    recomputed, plain = (
        memory.of_rank(config(activation_checkpointing=on), "diffusion", 1, "cpu")[1] for on in (True, False)
    )
    assert recomputed < plain
