"""`ldm ls`: fits a terminal, whole in a pipe, JSON for programs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.ls import command, print_rows

ROWS = [
    {
        "stage": "evaluate",
        "fingerprint": "cd96044ab3dc1a72",
        "content": "0092b0dfc5b3",
        "size": 559_700,
        "work": 0,
        "made": 0,
        "what": "Fréchet distance 22.3 " + "of many words " * 20,
        "used_by": ["digits (5915a4)", *(f"register/{i:06d}" for i in range(20))],
    }
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_is_not_overrun_and_fingerprints_are_whole(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    print_rows(ROWS, False, "what")
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= columns and lines[1].startswith("evaluate  cd96044ab3dc1a72  559.7 kB")
    assert " ".join(" ".join(lines[2:]).split()).endswith("register/000018, register/000019")


def test_a_pipe_gets_whole_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, False, "what")
    head, row = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert head == list(ROWS[0]) and row[1] == "cd96044ab3dc1a72" and row[-1].endswith("register/000019")
    assert len(row) == len(head) and row[-2].count("of many words") == 20


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, True, "what")
    assert json.loads(capsys.readouterr().out) == ROWS
    (tmp_path / "artifacts").mkdir()
    for more in ([], ["--runs"]):
        assert json.loads(CliRunner().invoke(command, ["--root", str(tmp_path), "--json", *more]).stdout) == []
