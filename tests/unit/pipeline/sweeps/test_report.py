"""The winner and its interval, against closed forms; what is not comparable or not finished."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.past import sweep_folder
from pipeline.sweeps import report, study

LR = "diffusion.training.learning_rate"
BASE = """\
run: {{name: base, root: {root}}}
data: {{source: {{kind: digits}}}}
autoencoder: {{training: {{steps: 1}}}}
diffusion: {{training: {{steps: 10, batch_size: 8}}}}
"""


def made_study(tmp_path: Path, more: str = "", keys: str = f"{{{LR}: [1.0e-4, 1.0e-3, 1.0e-2]}}") -> study.Study:
    (tmp_path / "base.yaml").write_text(BASE.format(root=tmp_path / "root"))
    (tmp_path / "s.yaml").write_text(f"name: s\nconfig: base.yaml\nkeys: {keys}\n{more}")
    return study.read(tmp_path / "s.yaml")


def end(read: study.Study, number: int, state: str = "finished", **more: Any) -> None:
    values = study.point_values(read, number // len(sweep_folder.repeats(read.sweep)))
    result = {"state": state, "values": values, "pipeline": f"p{number}", "seconds": 1.0, **more}
    write_json(read.folder.element(number) / "result.json", result)


def test_the_interval_of_a_mean_is_students() -> None:
    assert report.interval([1.0, 1.0]) == (1.0, 1.0)
    assert report.interval([0.0, 1.0]) == (pytest.approx(0.5 - 12.7062 / 2), pytest.approx(0.5 + 12.7062 / 2))
    half = 2.776445 * 2.5**0.5 / 5**0.5  # tables: t(0.975, 4)
    assert report.interval([1.0, 2.0, 3.0, 4.0, 5.0]) == (pytest.approx(3 - half), pytest.approx(3 + half))


def test_seeds_of_one_fold_are_no_further_evidence(tmp_path: Path) -> None:
    read = made_study(tmp_path, "folds: {column: person, k: 2}\nseeds: [0, 1, 2]\n")
    for number, value in enumerate([1.0, 1.1, 1.2, 3.0, 3.1, 3.2]):
        end(read, number, value=value)
    (first, *_) = report.points(read)
    assert first.interval == pytest.approx(report.interval([1.1, 3.1]))
    assert report.independent(made_study(tmp_path, "seeds: [0, 1, 2]\n"), [1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]


def test_several_seeds_give_an_interval_and_points_are_compared_seed_by_seed(tmp_path: Path) -> None:
    read = made_study(tmp_path, "seeds: [0, 1, 2]\n")
    for number, value in enumerate([1.0, 2.0, 3.0, 0.9, 1.9, 2.9, 5.0, 6.0]):
        end(read, number, value=value)
    found = report.points(read)
    assert [point.value for point in found] == [2.0, pytest.approx(1.9), None]
    assert found[1].interval == pytest.approx((1.9 - 4.30265 / 3**0.5, 1.9 + 4.30265 / 3**0.5), rel=1e-5)
    text = report.verdict(read, found)
    assert text.startswith("Best so far: learning_rate 0.001: diffusion/val_loss 1.9 [-0.5841, 4.384], the mean of 3")
    assert "It is clearly ahead of the second (learning_rate 0.0001" in text
    assert "by 0.1 [0.1, 0.1]" in text and text.endswith("1 of 9 elements to go.")
    table = report.rows(read, found)
    assert [row[0] for row in table] == ["elements", "3-5", "0-2", "6-8"] and table[3][-1] == "2 of 3 finished"


def test_the_distance_has_its_own_interval_and_only_like_figures_are_compared(tmp_path: Path) -> None:
    read = made_study(tmp_path, "metric: eval/fd\n")
    like = {"extractor": "e", "images": 50, "resolution": 8, "channels": 1, "real": "r", "guidance": "1"}
    end(read, 0, value=5.0, interval=[4.0, 6.0], conditions=like)
    end(read, 1, value=3.0, interval=[2.5, 3.5], conditions=like)
    end(read, 2, value=3.2, interval=[2.7, 3.7], conditions=like)
    text = report.verdict(read, report.points(read))
    assert text.startswith("Winner: learning_rate 0.001: eval/fd 3 [2.5, 3.5]. Its interval reaches that of the second")
    assert "gives no interval" not in text
    end(read, 2, value=3.2, interval=[2.7, 3.7], conditions=like | {"images": 60})
    with pytest.raises(UserError, match="element 0 and element 2 cannot be compared: 50 and 60 images"):
        report.points(read)


def test_guidance_may_vary_on_purpose(tmp_path: Path) -> None:
    read = made_study(tmp_path, "metric: eval/fd\n", "{evaluate.guidance: [1.0, 2.0]}")
    for number in range(2):
        end(read, number, value=1.0 + number, interval=[0, 9], conditions={"images": 50, "guidance": str(number)})
    assert len(report.points(read)) == 2


def test_one_run_each_says_that_there_is_no_interval(tmp_path: Path) -> None:
    read = made_study(tmp_path)
    assert report.verdict(read, report.points(read)).startswith("No winner: no point has finished (3 of 3")
    end(read, 0, value=2.0)
    end(read, 1, "pruned", value=9.0, samples=80, why="worse than the median 2 of 2 others")
    end(read, 2, "failed", why="the gradient | is not finite")
    found = report.points(read)
    text = report.markdown(read, found)
    assert text.startswith(
        "Winner: learning_rate 0.0001: diffusion/val_loss 2. No other point has finished. One run each"
    )
    assert "pruned: 9 at 80 samples, worse than the median 2 of 2 others" in text
    assert "failed: the gradient \\| is not finite" in text
    assert f"ldm run {tmp_path / 'base.yaml'} {LR}=0.0001" in text
    assert "[0]({{run:pipeline/p0}})" in report.markdown(read, found, link=True)


def test_two_seeds_that_agree_by_chance_are_no_clear_lead(tmp_path: Path) -> None:
    read = made_study(tmp_path, "seeds: [0, 1]\n")
    for number, value in enumerate([1.0, 2.0, 1.1, 2.5]):
        end(read, number, value=value)
    assert "It is not clearly ahead of the second" in report.verdict(read, report.points(read))


def test_a_description_keeps_to_what_mlflow_shows(tmp_path: Path) -> None:
    read = made_study(tmp_path, keys=f"{{{LR}: {[round(1e-4 * n, 6) for n in range(1, 201)]}}}")
    for number in range(200):
        end(read, number, value=float(number))
    found = report.points(read)
    whole, linked = report.markdown(read, found), report.markdown(read, found, link=True)
    shown = linked.count("{{run:")
    assert whole.count("\n| ") == 202 and 20 < shown < 200
    link = "#/experiments/100000000000000000/runs/" + 32 * "0" + "?workflowType=machine_learning"
    assert len(re.sub(r"\{\{.*?\}\}", link, linked)) < 8000
    assert f"\n{200 - shown} more: {read.folder.path / 'report.md'}" in linked
    assert f"{LR}=0.0001" in linked


def test_the_direction_can_be_given(tmp_path: Path) -> None:
    read = made_study(tmp_path, "direction: max\n")
    for number in range(3):
        end(read, number, value=float(number))
    assert "learning_rate 0.01: " in report.verdict(read, report.points(read))
