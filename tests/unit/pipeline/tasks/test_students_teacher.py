"""The teacher of a student, as a rank has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.diffusion import distillation, grids
from models.diffusion.denoiser import denoiser
from models.diffusion.guidance import guided
from models.diffusion.process import make_path
from pipeline.config import Config
from pipeline.networks import build_network, save_weights
from pipeline.tasks.diffusion import frozen
from pipeline.training.ranks import open_ranks

WHAT: dict[str, Any] = {
    "latent": {"channels": 2, "size": 4},
    "backbone": {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 2, "tokens": "cross"},
    "condition": {"kind": "none", "caption": {"tokens": 3, "encoder": {"kind": "minilm", "width": 8}}},
    "classes": [],
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_embedded_captions_lead_a_teacher_of_either_precision(tmp_path: Path, precision: str) -> None:
    torch.manual_seed(0)
    student = build_network(WHAT)
    for parameter in student.parameters():  # none of zeros
        torch.nn.init.normal_(parameter, std=0.2)
    save_weights(tmp_path / "ema.safetensors", student.state_dict())
    config = Config.model_validate(
        {
            "run": {"name": "x", "root": str(tmp_path)},
            "data": {"source": {"kind": "digits"}},
            "autoencoder": {"training": {"steps": 1}},
            "diffusion": {"training": {"steps": 1, "init_from": str(tmp_path), "precision": precision}, "distil": {}},
        }
    )
    teacher, path = frozen(config, WHAT, open_ranks("cpu")), make_path("rectified_flow")
    x, t = torch.randn(5, 2, 4, 4), torch.full((5,), 0.5)
    caption = {"caption": torch.randn(5, 3, 8).half(), "caption/pooled": torch.randn(5, 8).half()}  # as in the pool
    told = {**caption, "caption/length": torch.full((5,), 2)}
    exact = torch.equal(teacher(x, t, told), student(x, t, told))
    assert exact == (precision == "fp32") and teacher(x, t, told).dtype == torch.float32
    null = {name: rows[:1] for name, rows in told.items()}
    lead = guided(denoiser(teacher, path, "velocity"), 2.0, null)
    values = distillation.loss(
        denoiser(student, path, "velocity"), 2, lead, grids.walk(2, path), torch.randn(5, 2, 4, 4), told, path
    )
    values.mean().backward()
    assert values.shape == (5,) and values.isfinite().all() and not any(p.requires_grad for p in teacher.parameters())
