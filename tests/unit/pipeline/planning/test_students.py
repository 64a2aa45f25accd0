"""What is asked of a student of few steps before anything long starts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import distil
from pipeline import config as configs
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluation.audit_data import teacher_file
from pipeline.evaluation.curve import Curve
from pipeline.files import sha256_file, write_json
from pipeline.past import history
from pipeline.planning import memory
from pipeline.planning.fits import check_models
from pipeline.tasks.begin import first_weights


def config(evaluate: dict[str, Any], steps: int = 2, **training: Any) -> Config:
    training = {"steps": 10, "batch_size": 8, "precision": "fp32", **training}
    backbone = {"kind": "dit", "width": 32, "depth": 1, "heads": 2}
    student = {"distil": {"steps": steps}} if training.get("init_from") else {}
    return Config.model_validate(
        {
            "run": {"name": "digits"},
            "data": {"source": {"kind": "digits"}, "size": 32},
            "autoencoder": {"model": {"kind": "kl", "latent_channels": 4}, "training": {"steps": 10}},
            "diffusion": {"backbone": backbone, "training": training, **student},
            "evaluate": evaluate,
        }
    )


def few(steps: int, **more: Any) -> dict[str, Any]:
    return {"sampler": "few", "steps": steps, "guidance": 1, **more}


def test_a_student_s_evaluation_has_its_own_steps_and_grid() -> None:
    for grid in ("auto", "few"):
        check_models(config(few(2, grid=grid), init_from="teacher"))
    for asked, words in ((few(2, grid="karras"), "evaluate.grid.*jumps"), (few(4), "steps 4.*set .*steps: 2")):
        with pytest.raises(UserError, match=words):
            check_models(config(asked, init_from="teacher"))


def test_a_teacher_that_is_told_its_own_guess_has_no_student() -> None:
    asked = config(few(2), init_from="teacher").model_dump(by_alias=True)
    asked["diffusion"]["self_conditioning"] = True
    with pytest.raises(UserError, match="no guess before them, so there is none of a teacher that is told its own"):
        check_models(Config.model_validate(asked))


@pytest.mark.parametrize(("student", "how"), [(True, "few, 2 steps"), (False, "heun, 10 steps")])
def test_a_curve_says_how_its_samples_are_made(student: bool, how: str) -> None:
    curve = object.__new__(Curve)
    made = {"real": 1.0, "extractor": SimpleNamespace(digest="ab"), "name": "fd_50", "count": 50}
    vars(curve).update(made, config=config(few(2), init_from="teacher") if student else config({}))
    assert f"50 samples ({how}, guidance 1)" in str(curve)


def test_all_jumps_of_a_sample_are_in_memory_at_once() -> None:
    needed = [memory.of_rank(config(few(k), k, init_from="teacher"), "diffusion", 1, "cpu")[1] for k in (1, 8)]
    assert needed[1] > 2 * needed[0]


def test_an_audit_of_a_student_needs_the_teacher_and_the_images_of_both(tmp_path: Path) -> None:
    (tmp_path / "ema.safetensors").write_bytes(b"weights")
    begun, made_of = sha256_file(tmp_path / "ema.safetensors"), SimpleNamespace(content="ab", name="ingest/ab")
    asked: Any = config(few(2), init_from=str(tmp_path))
    write_json(tmp_path / "manifest.json", {"inputs": {"ingest": {"content": "ab"}}})
    assert teacher_file(asked, made_of, begun) == tmp_path / "ema.safetensors"  # type: ignore[arg-type]
    write_json(tmp_path / "manifest.json", {"inputs": {"ingest": {"content": "cd"}}})
    with pytest.raises(UserError, match=r"was trained on other images than ingest/ab; .* audit that one"):
        teacher_file(asked, made_of, begun)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"teacher of this student, weights of content 0{12}, .*; bring it back"):
        teacher_file(asked, made_of, "0" * 64)  # type: ignore[arg-type]


def test_a_student_is_no_teacher(tmp_path: Path) -> None:
    (tmp_path / "ema.safetensors").write_bytes(b"")
    about: dict[str, Any] = {"backbone": {"kind": "dit"}}
    (tmp_path / "model.json").write_text(json.dumps(about))
    asked = config(few(2), init_from=str(tmp_path))
    assert first_weights(asked, "diffusion") == tmp_path / "ema.safetensors"
    (tmp_path / "model.json").write_text(json.dumps({**about, "student": {"steps": 2}}))
    with pytest.raises(UserError, match=r"is a student itself, .*; give its teacher"):
        first_weights(asked, "diffusion")


def test_guidance_that_is_no_scale_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past = SimpleNamespace(
        folder=tmp_path, root=tmp_path, folders={"diffusion": tmp_path}, summary=lambda stage: {"steps": 10}
    )
    monkeypatch.setattr(history, "find", lambda root, run: past)
    evaluated = config({"guidance": 2, "guidance_interval": [0.1, 1]})
    monkeypatch.setattr(distil, "read", lambda path, words, **how: evaluated)
    started: list[Any] = []
    monkeypatch.setattr(distil, "run_stages", lambda *given: started.append(given[2]))
    how = {"run": "digits", "overrides": (), "steps": 2, "name": None, "root": tmp_path}
    with pytest.raises(UserError, match=r"guidance 2 in \(0.1, 1\], .* give --guidance"):
        distil.command.callback(guidance=None, **how)  # type: ignore[misc]
    distil.command.callback(guidance=1.5, **how)  # type: ignore[misc]
    assert "diffusion.distil={guidance: 1.5, steps: 2}" in started[0]
    with pytest.raises(UserError, match=r"--name digits: is the teacher's"):
        distil.command.callback(guidance=1.5, **{**how, "name": "digits"})  # type: ignore[misc]


def test_weights_of_the_teacher_s_evaluation_are_not_the_student_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = config(
        {"weights": "ema-50", "guidance_kind": "autoguidance", "guidance_weak": "20"}, half_lives=[9, 50, 20]
    )
    write_json(tmp_path / "config.yaml", teacher.model_dump(mode="json", by_alias=True))
    past = SimpleNamespace(
        folder=tmp_path, root=tmp_path, folders={"diffusion": tmp_path}, summary=lambda stage: {"steps": 10}
    )
    monkeypatch.setattr(history, "find", lambda root, run: past)
    read: list[Config] = []
    monkeypatch.setattr(distil, "read", lambda path, words, **how: read.append(configs.load(path, words)) or read[-1])
    monkeypatch.setattr(distil, "run_stages", lambda *given: None)
    distil.command.callback(  # type: ignore[misc]
        run="digits", overrides=(), steps=2, guidance=None, name=None, root=tmp_path
    )
    assert (read[-1].evaluate.weights, read[-1].evaluate.guidance_weak) == ("ema", "live")


@pytest.mark.parametrize("condition", [{"kind": "none"}, {"kind": "class", "drop": 0}])
def test_guidance_needs_a_teacher_that_knows_images_of_which_nothing_is_told(condition: dict[str, Any]) -> None:
    asked = config(few(2), init_from="teacher").model_dump(by_alias=True)
    asked["diffusion"] |= {"condition": condition, "distil": {"steps": 2, "guidance": 1.5}}
    with pytest.raises(UserError, match=r"`diffusion\.distil\.guidance`: 1\.5 needs a teacher"):
        check_models(Config.model_validate(asked))
    asked["diffusion"]["distil"]["guidance"] = 1
    check_models(Config.model_validate(asked))
