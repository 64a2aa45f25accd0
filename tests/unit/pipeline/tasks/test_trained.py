"""What ranks have to tell reaches the driver once; samples that others stand for are named once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster.said import Said
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.generate.finite import NotFinite
from pipeline.tasks import trained
from pipeline.tasks.trained import naming_lost, sayer, where_finite


def test_each_line_of_a_rank_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "said"
    sayer(folder / "0.txt")("of an earlier command")
    said = Said(folder, "diffusion")
    said()
    for rank in (0, 1):
        sayer(folder / f"{rank}.txt")(f"rank {rank}")
    with open(folder / "0.txt", "a") as file:
        file.write("half a li")
    said()
    said()
    assert capsys.readouterr().err.splitlines() == ["diffusion: rank 0", "diffusion: rank 1"]
    with open(folder / "0.txt", "a") as file:
        file.write("ne\n")
    said()
    assert capsys.readouterr().err == "diffusion: half a line\n"


def test_lost_samples_are_named_once_and_told_once_a_shard(tmp_path: Path) -> None:
    lost = [[["a", "shard 1, member a: bad"]], [["b", "shard 1, member b: bad"], ["a", "shard 1, member a: bad"]], []]
    told: list[str] = []
    for _ in range(2):  # a restart reads what is named already
        batches = ({"position": n, "lost": rows} for n, rows in enumerate(lost))
        got = [batch["position"] for batch in naming_lost(batches, tmp_path / "lost" / "0.txt", told.append)]
        assert got == [0, 1, 2]
    assert (tmp_path / "lost" / "0.txt").read_text() == "a\nb\n"
    assert len(told) == 2 and told[0].startswith("shard 1, member a: bad; another sample stands for it")


def test_weights_whose_samples_are_not_finite_show_nothing_and_it_is_said() -> None:
    told: list[str] = []
    engine: Any = None

    def bad(_: object) -> dict[str, Any]:
        raise NotFinite("4 of 4 images are not finite")

    assert where_finite(bad, "preview", told.append)(engine) == {}
    assert told == ["no preview: 4 of 4 images are not finite"]
    assert where_finite(lambda _: {"fd": 1.0}, "measurement", told.append)(engine) == {"fd": 1.0} and len(told) == 1


def test_ranks_begin_with_the_weights_that_were_planned_wherever_they_run(tmp_path: Path) -> None:
    training = {"steps": 3, "batch_size": 2, "init_from": "models:/teacher@latest-good"}
    config = Config.model_validate(
        {
            "run": {"name": "x", "root": str(tmp_path)},
            "data": {"source": {"kind": "digits"}},
            "autoencoder": {"training": {"steps": 1}},
            "diffusion": {"training": training, "distil": {}},
        }
    )
    given: list[dict[str, Any]] = []
    writer: Any = SimpleNamespace(
        work=tmp_path / "work", path=tmp_path / "work", token=1, recipe={"training": {"steps": 3}},
        input_contents=dict, lease=SimpleNamespace(check=lambda: None),
    )  # fmt: skip
    cluster: Any = SimpleNamespace(train=lambda rank, arguments, *others: given.append(arguments))
    spool: Any = SimpleNamespace(run={})
    with pytest.raises(UserError, match="taken over"):  # nobody has trained here
        trained.train("diffusion", config, {}, writer, cluster, spool, tmp_path / "ema.safetensors")
    assert given[0]["config"]["diffusion"]["training"]["init_from"] == str(tmp_path / "ema.safetensors")
    assert given[0]["first_weights"] == str(tmp_path / "ema.safetensors")
