"""How a student of few steps samples (models/diffusion/distillation.py): its own jumps, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError


def defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a request of a student says where nobody says more; nothing of another model. UserError for a student of a
    version that learned another way."""
    if "student" not in options:
        return {}
    if "steps" not in options["student"]:
        raise UserError("this model is a student for a sampler that is gone; `ldm distil` its teacher again")
    return {"sampler": "few", "steps": options["student"]["steps"]}


def need_means(options: Mapping[str, Any], what: str) -> None:
    """UserError, begun by what asks, for a student: it answers with samples of its jumps."""
    if "student" in options:
        raise UserError(f"{what}: this model is a student, whose answers are no means; give its teacher")


def check(options: Mapping[str, Any], filled: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """UserError for a request that a student cannot answer, and for its sampler asked of another model. filled: how is
    sampled; given: what is told."""
    if "student" not in options:
        if filled["sampler"] == "few":
            raise UserError("sampler: few is for a student of few steps (`ldm distil`), which this model is not")
        return
    own = defaults(options)
    for key in ("sampler", "steps"):
        if filled[key] != own[key]:
            raise UserError(f"{key}: this model is a student that samples by few in {own['steps']} steps alone; give "
                            f"{own[key]}, not {filled[key]}")  # fmt: skip
    if filled["grid"] not in ("auto", "few"):
        raise UserError(f"grid: this model is a student, whose jumps have their own; give few, not {filled['grid']}")
    if filled["noise_left"]:
        raise UserError("noise_left: this model is a student, whose last jump leaves none; give 0")
    if filled["guidance"] != 1 or given.get("scales"):
        raise UserError("guidance: this model is a student, which has its teacher's in its answers; give 1")
