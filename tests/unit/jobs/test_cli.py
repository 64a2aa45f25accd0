"""A mistake on the command line is one line and exit code 2, whatever finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.artifacts import Store
from pipeline.files import write_json


def ended(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """What a command that fails by a user's mistake says."""
    monkeypatch.setattr("sys.argv", ["ldm", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nonsense"], "No such command 'nonsense'; `ldm --help`"),
        (["run"], "Missing the config's file, such as my.yaml; `ldm run --help`"),
        (["models", "--set", "tokns=cross"], "no kind has such a field; did you mean 'tokens'?"),
        (["completion"], "Choose from: bash, zsh, fish; `ldm completion --help`"),
        (["mlflow", "ui", "--port", "99999"], "99999 is not in the range"),
        (["mlflow", "sync", "--root", "no-such-root"], "no-such-root: nothing has been tracked here yet"),
        (["ui", "no-such-model", "--root", "no-such-root"], "no-such-model: no model is there"),
        (["average", "no-such", "--length", "0.1", "--root", "no-such-root"], "no-such: no run of that name"),
    ],
)
def test_one_line(words: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert text in ended(capsys, monkeypatch, *words)
    assert not list(tmp_path.iterdir())


def test_a_path_below_a_file_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    assert "give another path" in ended(capsys, monkeypatch, "import", str(file), "-o", str(tmp_path / "out"))
    said = ended(capsys, monkeypatch, "init", "--source", "digits", "-o", str(file / "below" / "a.yaml"))
    assert "give another path" in said


def test_a_name_does_not_steer_the_terminal(capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    said = ended(capsys, monkeypatch, "ui", "no-such\x1b[31m\u202emodel", "--root", "no-such-root")
    assert "no-such[31mmodel: no model is there" in said


def test_the_printed_command_can_be_pasted(capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ldm", "init", "--source", "digits", "-o", "my config.yaml"])
    main()
    assert "ldm run 'my config.yaml' --dry-run" in capsys.readouterr().out


def test_any_name_of_a_source_becomes_one_of_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "my 'tëxt' #1.csv"
    source.write_text("text\n" + "".join(f"Text {i}.\n" for i in range(120)))
    monkeypatch.setattr("sys.argv", ["ldm", "init", "--source", str(source), "-o", "c.yaml", "--device", "cpu"])
    main()
    assert "name: my-t-xt-1\n" in (tmp_path / "c.yaml").read_text()


def test_verify_names_every_damaged_artifact(capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key in ("a" * 16, "b" * 16):
        folder = tmp_path / "artifacts" / "ingest" / key
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("no manifest")
    monkeypatch.setattr("sys.argv", ["ldm", "verify", "--root", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr()
    assert said.out.count("damaged: ") == 2 and "2 damaged files" in said.err


def test_verify_counts_adapters_without_their_base_apart(
    capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Store(tmp_path).write("diffusion", "a" * 16, {}, {}) as writer:
        write_json(writer.path / "model.json", {"adapter": {"base": "b" * 64, "scale": 1.0}})
        writer.finish({"base": ["/nowhere"]})
    monkeypatch.setattr("sys.argv", ["ldm", "verify", "--root", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr()
    assert "whole, but the base of this adapter" in said.out and "damaged" not in said.out + said.err
    assert said.err.strip().endswith("1 adapter without a base; bring it back")
