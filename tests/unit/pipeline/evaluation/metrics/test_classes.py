"""The table of classes: shares, their intervals, what wrong samples are taken for."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.metrics import classes, kernel


def test_wilson_against_known_values() -> None:
    assert classes.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = classes.wilson(0, 20)
    assert low == 0 and high == pytest.approx(0.1611, abs=1e-4)
    assert classes.wilson(20, 20) == pytest.approx((1 - high, 1), abs=1e-12)


def test_the_table() -> None:
    random = np.random.default_rng(0)
    asked = np.repeat([0, 2], [30, 10])
    given = asked.copy()
    given[:6] = [1, 1, 1, 2, 2, 1]
    features, real_features = random.normal(size=(40, 4)), random.normal(size=(60, 4))
    real = np.repeat([0, 1, -1], [25, 25, 10])
    real_given = real.copy()
    real_given[:5] = 1
    rows = classes.table(["a", "b", "c"], asked, given, features, real, real_given, real_features)
    assert [row["class"] for row in rows] == ["a", "c"]
    first, last = rows
    assert (first["asked"], first["right"], first["real"], first["taken_for"]) == (30, 0.8, 0.8, "b")
    assert first["low"] < 0.8 < first["high"]
    assert first["kernel_images"] == 25
    assert first["kernel_distance"] == kernel.distance(features[:25], real_features[:25])
    assert (last["right"], last["real"], last["taken_for"], last["kernel_distance"]) == (1.0, None, None, None)
    text = classes.to_csv(rows).splitlines()
    assert text[0] == ",".join(classes.COLUMNS)
    assert text[1].startswith("a,30,0.8,") and text[2] == f"c,10,1,{last['low']:.4g},1,,,,"
