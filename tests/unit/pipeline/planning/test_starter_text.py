"""`ldm init` for text: what is recognised as text, and a config that is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import config
from pipeline.errors import UserError
from pipeline.planning import starter_text
from pipeline.planning.doubts import doubts
from pipeline.planning.fits import check_models
from pipeline.planning.starter import Machine

CPU, GPU = Machine(0, 0, 2), Machine(1, int(16e9), 8)


def table(tmp_path: Path, rows: list[dict[str, object]], name: str = "t.jsonl") -> Path:
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / name


def books(tmp_path: Path, count: int = 40) -> Path:
    for i in range(count):
        file = tmp_path / "books" / "ab"[i % 2] / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n\n".join(f"Paragraph {j} of book {i}." for j in range(6)))
    return tmp_path / "books"


def test_what_is_text(tmp_path, monkeypatch):
    found = starter_text.look(str(books(tmp_path)))
    assert found and found.source["class_from"] == "folder" and found.listing.classes == ["a", "b"]
    found = starter_text.look(str(tmp_path / "books" / "a"))
    assert found and "class_from" not in found.source
    rows = [{"sentence": f"Sentence {i}.", "genre": "ab"[i % 2], "book": f"b{i // 9}", "id": i} for i in range(60)]
    found = starter_text.look(str(table(tmp_path, rows)))
    assert found and found.source == {
        "kind": "text", "path": str(tmp_path / "t.jsonl"), "column": "sentence", "label": "genre", "document": "book",
    }  # fmt: skip
    assert "60 passages of text in 7 documents, 2 classes" in starter_text.told(found)[0]
    monkeypatch.setattr(starter_text, "ROWS", 20)
    rows = sorted(rows, key=lambda row: str(row["genre"]))  # the first rows are of one class
    found = starter_text.look(str(table(tmp_path, rows, "sorted.jsonl")))
    assert found and found.source["label"] == "genre"


def test_what_is_none(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.txt").write_text("a caption of a.png")
    assert starter_text.look(str(tmp_path)) is None
    assert starter_text.look(str(table(tmp_path, [{"image": "a.png", "text": "a"}]))) is None
    assert starter_text.look(str(table(tmp_path, [{"x": 1}]))) is None
    assert starter_text.look(str(table(tmp_path, [{"text": 1}]))) is None
    assert starter_text.look("digits") is None and starter_text.look("train-*.tar") is None


def test_rows_of_several_kinds(tmp_path):
    rows = [{"text": f"Text {i}.", "label": ["a", "b"], "document": [i // 9]} for i in range(60)]
    found = starter_text.look(str(table(tmp_path, rows)))
    assert found and found.source["document"] == "document" and "label" not in found.source
    for lacks in ("document", "text"):
        other = {key: value for key, value in rows[0].items() if key != lacks}
        with pytest.raises(UserError, match=f"t.jsonl:61: no column '{lacks}'"):
            starter_text.look(str(table(tmp_path, [*rows, other])))


def test_empty_texts_are_room_in_the_quarantine(tmp_path):
    rows = [{"text": f"Text {i}." if i % 10 else ""} for i in range(120)]
    found = starter_text.look(str(table(tmp_path, rows)))
    assert found and "12 texts cannot be used (12 empty): quarantine." in starter_text.told(found)
    (tmp_path / "c.yaml").write_text(starter_text.write_config(found, CPU, "c", False))
    assert config.load(tmp_path / "c.yaml").data.max_quarantine == 0.16
    found = starter_text.look(str(table(tmp_path, [{"text": row["text"] or "x" * 200_000} for row in rows])))
    assert found and "ingest will refuse them" in starter_text.told(found)[1]


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("quick", [False, True])
def test_the_config_is_one_and_its_models_fit(tmp_path, machine, quick):
    found = starter_text.look(str(books(tmp_path)))
    assert found
    (tmp_path / "c.yaml").write_text(starter_text.write_config(found, machine, "books", quick))
    loaded = config.load(tmp_path / "c.yaml")
    assert not list(doubts(loaded))
    assert loaded.diffusion.condition.kind == "class" and check_models(loaded) == (32, (32,))
    with pytest.raises(UserError, match="24 passages of text: at least 100"):
        few = starter_text.look(str(books(tmp_path / "few", 4)))
        starter_text.write_config(few, machine, "few", quick)  # type: ignore[arg-type]


def test_replies_are_told_what_they_are_of(tmp_path):
    rows = [
        {"context": ["Hello", f"Hi {i}"], "reply": f"How is {i}?", "conversation": f"c{i // 5}"} for i in range(200)
    ]
    found = starter_text.look(str(table(tmp_path, rows)))
    assert found and {key: found.source[key] for key in ("column", "before", "document")} == {
        "column": "reply", "before": "context", "document": "conversation",
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(starter_text.write_config(found, CPU, "talks", False))
    chosen = config.load(tmp_path / "c.yaml")
    assert chosen.diffusion.condition.caption and chosen.diffusion.condition.caption.tokens == 201
    check_models(chosen)
    (tmp_path / "c.yaml").write_text(starter_text.write_config(found, CPU, "talks", True))
    quick = config.load(tmp_path / "c.yaml")
    assert quick.diffusion.training.steps == 500 and quick.data == chosen.data and not list(doubts(quick))
    rows = [{**row, "context": 3} for row in rows]
    found = starter_text.look(str(table(tmp_path, rows, "other.jsonl")))
    assert found and "before" not in found.source
