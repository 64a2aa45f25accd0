"""The table of solvers: what is best, and how it is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

from jobs.sample import GRIDS, SAMPLERS
from pipeline.applications.solvers import Row, Table, best, markdown, usual, verdict
from pipeline.schema.diffusion import Distil
from pipeline.schema.stages import Evaluate

ROWS = [
    Row("heun", "uniform", 10, 19, 3.0, 2.5, 3.5, 1.0),
    Row("ddim", "karras", 10, 10, 3.2, 2.9, 3.6, 0.5),
    Row("euler", "uniform", 10, 10, 9.0, 8.0, 10.0, 0.5),
    Row("heun", "uniform", 20, 39, 1.0, 0.8, 1.2, 2.0),
    Row("heun", "uniform", 5, 9, 3.1, 2.6, 3.6, 0.5),
]
TABLE = Table(ROWS, "diffusion/ab12", 200, "classifier_free 1.5", "0.4 [0.3, 0.5]", "classifier, digest 0123")


def test_best_is_by_distance_among_equal_steps() -> None:
    assert [row.sampler for row in best(ROWS)] == ["heun", "ddim", "euler"]
    assert best(ROWS, 7) == []


def test_verdict_names_the_best_the_cheap_and_those_that_cannot_be_told_apart() -> None:
    text = verdict(TABLE)
    assert text.startswith("Best of 10 steps: heun on uniform, 3 [2.5, 3.5], 19 evaluations")
    assert "of at most 10 evaluations: heun on uniform, 5 steps" in text
    assert text.endswith("Intervals that reach it: ddim on karras.")


def test_without_ten_steps_the_most_steps_count() -> None:
    table = Table([ROWS[3], ROWS[4]], *list(vars(TABLE).values())[1:])
    assert verdict(table).startswith("Best of 20 steps: heun")


def test_markdown_has_a_row_a_combination_and_its_command() -> None:
    text = markdown(TABLE, "ldm solvers --config a.yaml")
    assert "    ldm solvers --config a.yaml" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "sampler" not in line]
    assert rows[1:][0] == "| 5 | heun | uniform | 9 | 3.1 | 2.6 to 3.6 | 0.5 |"
    assert len(rows) == 1 + len(ROWS)


def test_a_student_has_a_sampler_of_its_own_and_all_others_are_a_denoiser_s() -> None:
    def named(distil: Any) -> tuple[list[str], list[str], list[int]]:
        return usual(SimpleNamespace(diffusion=SimpleNamespace(distil=distil)))  # type: ignore[arg-type]

    assert named(Distil(steps=3)) == (["few"], ["few"], [3])
    samplers, grids, steps = named(None)
    assert steps == [5, 10, 20]
    fields = Evaluate.model_fields
    assert {*samplers, "few"} == set(get_args(fields["sampler"].annotation)) == set(SAMPLERS)
    assert {"auto", *grids, "few"} == set(get_args(fields["grid"].annotation)) == set(GRIDS)
