"""Where a verb finds its config: an option, or a word among the overrides; help in one screen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click import UsageError
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from jobs.cli import GROUPS, group, main
from jobs.common import config_and_overrides


def offered(*words: str, typed: str) -> list[str]:
    return [item.value for item in ShellComplete(group, {}, "ldm", "_LDM_COMPLETE").get_completions([*words], typed)]


def test_the_file_is_the_word_without_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_and_overrides(None, ["my.yaml", "a=1", "b=x.yaml"]) == (Path("my.yaml"), ("a=1", "b=x.yaml"))
    assert config_and_overrides(None, ["a=1", "my.yaml"]) == (Path("my.yaml"), ("a=1",))
    assert config_and_overrides(Path("my.yaml"), ["a=1", "b"]) == (Path("my.yaml"), ("a=1", "b"))
    (tmp_path / "lr=3.yaml").touch()
    assert config_and_overrides(None, ["lr=3.yaml", "a=1"]) == (Path("lr=3.yaml"), ("a=1",))
    monkeypatch.setenv("CONFIGS", "/there")
    assert config_and_overrides(None, ["$CONFIGS/my.yaml"]) == (Path("/there/my.yaml"), ())


@pytest.mark.parametrize(("words", "text"), [([], "Missing the config's file"), (["a=1"], "Missing the config's file"),
                                             (["a.yaml", "b.yaml"], "Two files, a.yaml and b.yaml")])  # fmt: skip
def test_none_and_two_are_refused(words: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        config_and_overrides(None, words)


@pytest.mark.parametrize("verb", ["run", "ingest", "evaluate", "solvers", "preflight"])
def test_every_verb_takes_the_word(verb: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ldm", verb, "no.yaml", "run.seed=1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: no.yaml: cannot be read")


def test_files_are_completed_until_one_is_there() -> None:
    assert "my" in offered("run", typed="my")
    assert offered("run", "my.yaml", typed="diffusion.training.sch") == ["diffusion.training.schedule="]
    assert offered("run", "my.yaml", "diffusion.training.schedule", "=", typed="c") == ["constant", "cosine"]


def test_help_fits_a_screen_and_is_the_same_without_a_word(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = CliRunner().invoke(group, ["--help"]).output
    monkeypatch.setattr("sys.argv", ["ldm"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert capsys.readouterr().out == asked and ended.value.code == 0
    lines = asked.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    assert {verb for verbs in GROUPS.values() for verb in verbs} <= set(re.findall(r"\w+", asked))
