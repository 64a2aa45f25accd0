"""The page of learning for the same compute: what its ratios say."""

from __future__ import annotations

import pytest

from tests.benchmarks import efficiency


def curve(*distances: float) -> list[dict[str, float]]:
    return [{"samples": 100.0 * (i + 1), "fd": distance} for i, distance in enumerate(distances)]


def test_ratios_of_curves() -> None:
    own = [{"samples": 400.0, "fd": 4.0}]

    def shown(*curves: list[dict[str, float]], axis: str = "samples") -> str:
        return efficiency.ratio([[[own, theirs], [1.0, 2.0]] for theirs in curves], "fd", axis)

    assert shown(curve(16, 4)) == "0.50" and shown(curve(16, 4), axis="seconds") == "1.00"
    assert shown(curve(16, 1)) == f"{2**0.5 / 4:.2f}"  # straight lines in logarithms
    assert shown(curve(16, 4), curve(16, 4)) == "0.50 [0.50, 0.50]"
    assert (
        shown(curve(16, 8)) == "more (ends at 2.00 times the distance)"
        and shown(curve(16, 8), axis="seconds") == "more"
    )
    # as near at the first point that was looked at: it may have been so before
    assert shown(curve(3, 2)) == "at most 0.25"
    assert shown(curve(3, 2), curve(4, 2)) == "at most 0.25" and shown(curve(3, 2), axis="seconds") == "at most 0.50"


@pytest.mark.parametrize("asked", ["muon:6", "muons", "muon,swiglu:0"])
def test_what_cannot_be_a_row_is_refused_before_hours_of_training(
    asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["efficiency.py", "--config", "x.yaml", "--alexnet", "x.pth", "--candidates", asked]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        efficiency.main()
    assert "expected 1 to 5 seeds of some of config, muon" in capsys.readouterr().err
