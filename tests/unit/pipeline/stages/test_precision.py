"""`precision: auto` on a CPU: measured once, kept in the root; what a root holds already goes on as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.inline import Inline
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.stages import diffusion, precision

SLOW, FAST = {"fp32": 100.0, "bf16": 120.0}, {"fp32": 100.0, "bf16": 400.0}


def made(root: Path, **training: Any) -> Config:
    sections = {
        "run": {"name": "x", "root": str(root)},
        "data": {"source": {"kind": "digits"}},
        "autoencoder": {"training": {"steps": 1000}},
        "diffusion": {"training": {"steps": 60, **training}},
    }
    return Config.model_validate(sections)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def resolved(config: Config, monkeypatch: pytest.MonkeyPatch, rates: dict[str, float], keep: bool = True) -> list[str]:
    monkeypatch.setattr(precision, "cpu_rates", lambda: rates)
    found = precision.resolve(config, Inline(), keep=keep)  # type: ignore[arg-type]
    return [found.autoencoder.training.precision, found.diffusion.training.precision]


@pytest.mark.parametrize(("rates", "wanted"), [(SLOW, "fp32"), (FAST, "bf16")])
def test_the_first_run_of_a_root_decides_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rates: dict[str, float], wanted: str
) -> None:
    assert resolved(made(tmp_path), monkeypatch, rates, keep=False) == [wanted, wanted]
    assert not list(tmp_path.iterdir())  # a dry run keeps nothing
    assert resolved(made(tmp_path), monkeypatch, rates) == [wanted, wanted]
    kept = read_json(tmp_path / precision.FILE)
    assert kept["cpu"] == wanted and f"{rates['bf16']:.0f} GFLOP/s in bf16" in kept["said"]
    for other in (SLOW, FAST):  # another machine
        assert resolved(made(tmp_path), monkeypatch, other) == [wanted, wanted]
    assert [path.name for path in tmp_path.iterdir()] == [precision.FILE]


def test_of_two_first_runs_on_two_machines_one_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile() -> dict[str, float]:
        monkeypatch.setattr(precision, "cpu_rates", lambda: SLOW)
        assert precision.resolve(made(tmp_path), Inline(), keep=True)  # type: ignore[arg-type]
        return FAST

    monkeypatch.setattr(precision, "cpu_rates", meanwhile)
    found = precision.resolve(made(tmp_path), Inline(), keep=True)  # type: ignore[arg-type]
    assert found.diffusion.training.precision == "fp32"
    assert [path.name for path in tmp_path.iterdir()] == [precision.FILE]


@pytest.mark.parametrize("stage", ("autoencoder", "diffusion"))
def test_a_root_of_before_goes_on_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    (tmp_path / "artifacts" / stage / "0123").mkdir(parents=True)
    assert resolved(made(tmp_path), monkeypatch, FAST) == ["fp32", "fp32"]
    (tmp_path / "artifacts" / stage / "0123").rmdir()
    assert resolved(made(tmp_path), monkeypatch, FAST) == ["fp32", "fp32"]  # it was kept


@pytest.mark.parametrize("content", ("", "{", "[]", "null", '{"cpu": "auto"}', '{"cpu": "bfloat16"}', "{}"))
def test_a_damaged_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    (tmp_path / precision.FILE).write_text(content)
    with pytest.raises(UserError, match=r"precision\.json: damaged; write"):
        resolved(made(tmp_path), monkeypatch, FAST)


@pytest.mark.parametrize("number", sorted(precision.NO_LINKS))
def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def link(*_: Any) -> None:
        raise OSError(number, "no links")

    monkeypatch.setattr("os.link", link)
    for rates in (FAST, SLOW):
        assert resolved(made(tmp_path), monkeypatch, rates) == ["bf16", "bf16"]
    assert [path.name for path in tmp_path.iterdir()] == [precision.FILE]


def test_what_is_given_stays_and_is_the_same_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved(made(tmp_path, precision="fp32"), monkeypatch, FAST) == ["bf16", "fp32"]
    found = precision.resolve(made(tmp_path), Inline())  # type: ignore[arg-type]
    assert diffusion.recipe(found) == diffusion.recipe(made(tmp_path, precision="bf16"))


def test_rates_are_of_this_machine() -> None:
    assert all(rate > 0 for rate in precision.cpu_rates().values())
