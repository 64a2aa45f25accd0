"""`~` and `$VAR` wherever a path is taken: YAML, overrides, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click
import pytest

from jobs.cli import VERBS, group, main
from jobs.common import Place
from pipeline.config import Config, load
from pipeline.errors import UserError
from pipeline.files import expanded, plain
from pipeline.schema.section import Section
from pipeline.schema.words import sections_of

TEXT = """
run: {name: x, root: ~/runs}
data: {source: {kind: folder, path: $DATA/images}, cache: {path: "${DATA}/cache"}}
autoencoder: {from: "$DATA/ae", training: {steps: 1000, init_from: ~/weights.safetensors}}
diffusion: {training: {steps: 1000}}
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_put_in() -> None:
    assert expanded("~/x") == "/home/ann/x" and expanded("~") == "/home/ann"
    assert expanded("$DATA/a") == expanded("${DATA}/a") == "/data/a"
    assert expanded("s3://bucket$DATA/~x") == "s3://bucket/data/~x"
    assert expanded("a/~/b") == "a/~/b" and expanded("cost$5/100%") == "cost$5/100%"


def test_what_cannot_be_put_in(home: Path) -> None:
    for path, said in (("$NOWHERE/x", "variable NOWHERE is not set"), ("~nobody-here/x", "no home of ~nobody-here")):
        with pytest.raises(ValueError, match=said):
            expanded(path)
    (home / "~old").touch()
    assert expanded("~old") == "~old"


def test_in_yaml_and_overrides(home: Path) -> None:
    file = home / "my.yaml"
    file.write_text(TEXT)
    made = load(file, ["evaluate.weights=~/w.safetensors", "tracking.uri=$DATA/mlruns"])
    assert made.run.root == "/home/ann/runs" and made.data.source.path == "/data/images"  # type: ignore[union-attr]
    assert (made.data.cache.path, made.autoencoder.from_) == ("/data/cache", "/data/ae")
    assert made.autoencoder.training.init_from == "/home/ann/weights.safetensors"
    assert (made.evaluate.weights, made.tracking.uri) == ("/home/ann/w.safetensors", "/data/mlruns")
    with pytest.raises(UserError, match=r"override `run.root=\$NOWHERE/r`: `run.root`: the variable NOWHERE is not"):
        load(file, ["run.root=$NOWHERE/r"])
    assert sorted(path.name for path in home.iterdir()) == ["my.yaml"]


def _paths(section: type[Section], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, field in section.model_fields.items():
        found.append((f"{prefix}{name}", field))
        for inner in sections_of(field.annotation):
            found += _paths(inner, f"{prefix}{name}.")
    return found


def test_every_key_that_names_a_file_or_folder_is_a_place() -> None:
    words = ("folder", "file", "Pattern of", ".safetensors")
    known = {
        "data.on_corrupt",
        "evaluate.extractor.kind",
        "evaluate.extractor.digest",
        "sweep.folder",
        "diffusion.align.digest",
    }
    known |= {f"data.source.{key}" for key in ("delimiter", "encoding", "images_key", "labels_key", "class_from")}
    for name, field in _paths(Config):
        if any(word in (field.description or "") for word in words) and name not in known:
            hints = (field.annotation, *get_args(field.annotation))
            metadata = [*field.metadata, *(m for hint in hints for m in getattr(hint, "__metadata__", ()))]
            marked = [getattr(each, "func", None) for each in metadata]
            assert expanded in marked or str not in hints, name


def _options(command: click.Command) -> list[click.Parameter]:
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    return [*command.params, *(option for one in inner for option in _options(one))]


def test_no_option_takes_a_path_as_it_is() -> None:
    for verb in VERBS:
        command = group.get_command(click.Context(group), verb)
        assert command
        for option in _options(command):
            assert not isinstance(option.type, click.Path), (verb, option.name)
            if option.name in ("root", "out", "output", "source", "config", "path", "images", "html", "clean", "model"):
                assert isinstance(option.type, Place), (verb, option.name)


def test_options_of_verbs(home: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, said in (
        (["ls", "--root", "$NOWHERE/x"], "Invalid value for '--root': $NOWHERE/x: the variable NOWHERE is not set"),
        (["ls", "--root=~/none"], "/home/ann/none: holds no artifacts"),
        (["init", "--source=~/none"], "--source /home/ann/none: does not exist"),
        (["config", "validate", "--config=$DATA/none.yaml"], "/data/none.yaml: cannot be read"),
    ):
        monkeypatch.setattr("sys.argv", ["ldm", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2 and said in capsys.readouterr().err
    assert not list(home.iterdir())


def test_paths_without_dots(home: Path) -> None:
    (home / "a" / "b").mkdir(parents=True)
    (home / "link").symlink_to(home / "a" / "b")
    assert plain("a/../x*.tar") == home / "x*.tar"
    assert plain("link/../x") == home / "a" / "x"
    assert plain("link/x") == home / "link" / "x"
