"""The stage `conditions` on a table of images: what it lists, what a changed row costs, what it refuses in one line."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cluster.inline import Inline
from pipeline.config import Config
from pipeline.data.condition_pool import open_conditions
from pipeline.data.shards import TarWriter
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.stages import conditions, diffusion, graph, ingest
from pipeline.stages.conditions import recipe

COUNT = 24
CAPTION = {"tokens": 32}
MOOD = {"mood": {"kind": "categorical"}}


def table(folder: Path, **changed: dict[int, str]) -> Path:
    """Images with four columns; `changed`: by column, other values by row."""
    rows = [{"image": f"{i:02d}.png", "who": f"p{i % 3}", "mood": ("glad", "sad")[i % 2], "said": f"number {i}"}
            for i in range(COUNT)]  # fmt: skip
    for column, values in changed.items():
        for i, value in values.items():
            rows[i][column] = value
    folder.mkdir(exist_ok=True)
    for i, row in enumerate(rows):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / row["image"])
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "table.csv"


def config(path: Path, **condition: Any) -> Config:
    source = {"kind": "table", "path": str(path), "label": "who", "caption": "said"}
    return Config.model_validate(
        {
            "run": {"name": "told", "root": str(path.parent / "runs")},
            "data": {"source": source, "size": 8, "shard_size": 8, "split": {"val_fraction": 0.2}},
            "autoencoder": {"training": {"steps": 1, "batch_size": 4}},
            "diffusion": {"condition": condition, "training": {"steps": 1, "batch_size": 4}},
        }
    )


def made(where: Config) -> tuple[dict[str, Any], Any]:
    """The stage's summary, and artifacts of the images and of what is told about them."""
    root = Path(where.run.root)
    folders = {stage: root / "artifacts" / stage / "x" for stage in ("ingest", "conditions")}
    for folder in folders.values():  # anew: what lies in an artifact's folder is taken for a part of it
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    lease, spool = SimpleNamespace(check=lambda: None), SimpleNamespace(metrics=lambda *_: None, note=lambda _: None)
    writer = {stage: SimpleNamespace(path=f, work=f / "work", lease=lease) for stage, f in folders.items()}
    summary = ingest.run(where, {}, writer["ingest"], Inline(), None)  # type: ignore[arg-type]
    images: Any = SimpleNamespace(path=folders["ingest"], summary=summary)
    found = conditions.run(where, {"ingest": images}, writer["conditions"], Inline(), spool)  # type: ignore[arg-type]
    return found, (images, SimpleNamespace(path=folders["conditions"], summary=found))


def test_what_a_split_is_told_in_the_order_of_its_images(tmp_path: Path) -> None:
    from pipeline.data.index import Index

    where = config(
        table(tmp_path), attributes={**MOOD, "person": {"kind": "categorical", "column": "who"}}, caption=CAPTION
    )
    summary, (images, told) = made(where)
    assert summary["attributes"]["person"]["values"] == ["p0", "p1", "p2"]  # the class is a column as well
    assert summary["caption"]["tokens"] == 16 and summary["captions"] == COUNT  # the longest has 9 bytes, and one
    for split in ("train", "val"):
        (index,) = open_conditions(told, images, SimpleNamespace(summary={}), split, None)  # type: ignore[arg-type]
        known = Index.open(images.path, split)
        rows = index.read(np.arange(len(known)))
        number = [int(known.key(i)) for i in range(len(known))]
        assert rows["mood"].tolist() == [i % 2 for i in number] and rows["person"].tolist() == [i % 3 for i in number]
        said = ["".join(chr(symbol - 1) for symbol in row[1:] if symbol) for row in rows["caption"]]
        assert said == [f"number {i}" for i in number]


def test_a_changed_row_costs_one_shard_and_the_same_again_none(tmp_path: Path) -> None:
    def pool() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "conditions").glob("*.safetensors")}

    made(config(table(tmp_path), attributes=MOOD, caption=CAPTION))
    first = pool()
    made(config(table(tmp_path), attributes=MOOD, caption=CAPTION))
    assert pool() == first
    made(config(table(tmp_path, said={5: "another"}), attributes=MOOD, caption=CAPTION))
    assert len(pool()) == len(first) + 1 and pool().items() >= first.items()


@pytest.mark.parametrize(
    ("condition", "changed", "message"),
    [
        (
            {"attributes": {"age": {"kind": "categorical"}}},
            {},
            "age`: no image has a value of 'age'; there are: caption, mood, who",
        ),
        ({"attributes": {"mood": {"kind": "categorical", "values": ["glad"]}}}, {}, "mood`: the images have 'sad'"),
        ({"attributes": {"mood": {"kind": "continuous", "range": [0, 1]}}}, {}, "column 'mood' of .*is no number"),
        (
            {"caption": CAPTION},
            {"said": dict.fromkeys(range(COUNT), "")},
            "caption`: no image has one; name its column",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(tmp_path: Path, condition: Any, changed: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        made(config(table(tmp_path, **changed), **condition))
    assert "\n" not in str(error.value)


def test_too_many_values_are_no_category(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "MOST_VALUES", 10)
    with pytest.raises(UserError, match=r"24 different values, 10 at most; .* a sentence is `caption`"):
        made(config(table(tmp_path), attributes={"said": {"kind": "categorical", "column": "caption"}}))


def test_missing_values_and_cut_captions_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary, _ = made(
        config(table(tmp_path, mood={0: "", 1: ""}, said={2: "x" * 50}), attributes=MOOD, caption=CAPTION)
    )
    assert summary["told"]["mood"] == COUNT - 2 and summary["cut"] == 1
    said = capsys.readouterr().out
    expected = [
        "mood: 2 values (glad 11, sad 11); 2 of 24 images (8%) have none",
        "caption: 24 captions, half of them up to 9 bytes, the longest 50; 1 longer than the model reads, and cut",
    ]
    assert [f"conditions: {line}" for line in expected] == said.splitlines()[-2:]
    assert summary["seen"]["mood"] == {"told": 22, "different": 2, "values": {"glad": 11, "sad": 11}}


def test_a_dry_run_says_the_same_before_anything_is_read(tmp_path: Path) -> None:
    from pipeline.planning.outlook import told_outlook

    attributes = {**MOOD, "who": {"kind": "categorical"}, "age": {"kind": "continuous", "range": [0, 9]}}
    path = table(tmp_path, mood={0: ""}, said={2: "x" * 50})
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0] + ",age", *(f"{row},{i % 9 or ''}" for i, row in enumerate(rows[1:]))]))
    asked = config(path, attributes=attributes, caption=CAPTION)
    _, (_, finished) = made(asked)
    lines = told_outlook(asked, None)
    assert lines[2] == "age: numbers from 1 to 8, 4.143 in the mean; 3 of 24 images (12%) have none"
    assert sorted(told_outlook(asked, finished)) == sorted(lines) and len(lines) == 4
    with pytest.raises(UserError, match="age`: column 'age' of 05: 5 is not in the range from 0 to 4"):
        told_outlook(config(path, attributes={"age": {"kind": "continuous", "range": [0, 4]}}), None)
    with pytest.raises(UserError, match="`: no image has a value of 'aeg'; there are: age, caption, mood, who"):
        told_outlook(config(path, attributes={"aeg": {"kind": "categorical"}}), None)
    assert told_outlook(config(path), None) == []


def test_a_config_without_them_has_no_such_stage_and_its_recipe_no_trace_of_them(tmp_path: Path) -> None:
    from pipeline.artifacts import Store
    from pipeline.stages import diffusion

    path = table(tmp_path)
    plain, told = config(path), config(path, attributes=MOOD)
    assert "conditions" not in plain.stages and told.stages[1] == "conditions"
    assert diffusion.recipe(plain)["condition"] == {"kind": "class", "drop": 0.1}
    assert "tokens" not in diffusion.recipe(plain)["backbone"]
    with pytest.raises(UserError, match="conditions: this config names neither attributes nor captions nor pictures"):
        graph.plan(plain, Store(plain.run.root), "conditions")
    shares = config(path, attributes={"mood": {"kind": "categorical", "drop": 0.5}})
    assert conditions.recipe(shares) == conditions.recipe(told)  # how often it is withheld costs no stage


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"class_drop": 0.2}, "the class is all that the model is told: give `drop`"),
        ({"kind": "none", "class_drop": 0.2, "attributes": MOOD}, "`kind` is none"),
        ({"attributes": {"caption": MOOD["mood"]}}, "the name is taken"),
    ],
)
def test_conditions_that_would_have_no_effect_are_refused(tmp_path: Path, condition: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(table(tmp_path), **condition)


def test_the_pool_is_listed(tmp_path: Path) -> None:
    _, (_, told) = made(config(table(tmp_path), attributes=MOOD))
    listing = read_json(told.path / "shards.json")
    assert sum(shard["count"] for shard in listing["shards"]) == COUNT
    assert all((tmp_path / "runs" / listing["pool"] / shard["file"]).exists() for shard in listing["shards"])


def test_a_frozen_encoder_reads_each_shard_once_and_a_changed_caption_costs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.data import text_encoders
    from pipeline.data.text_encoders import Embedding

    class Letters:
        """In place of an encoder: as many tokens as a text has letters, and one."""

        def __init__(self, *_: Any) -> None: ...

        def __call__(self, texts: Any) -> tuple[list[Embedding], int]:
            read.append(len(texts))
            rows = [np.full((len(text) + 1, 4), len(text), np.float16) for text in texts]
            return [Embedding(row, row[0]) for row in rows], 0

    read: list[int] = []
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text('{"d_model": 4}')
    (encoder / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(text_encoders, "Frozen", Letters)
    caption = {"encoder": {"kind": "transformers", "path": str(encoder)}, "tokens": 32}
    where = config(table(tmp_path), caption=caption)
    summary, (images, told) = made(where)
    assert sum(read) == COUNT + 1 and summary["captions"] == COUNT and summary["cut"] == 0  # and the empty caption
    assert summary["caption"]["tokens"] == 16 and summary["caption"]["encoder"]["width"] == 4
    before, batches = recipe(where), len(read)
    assert made(where)[0] == summary and len(read) == batches
    train = open_conditions(told, images, SimpleNamespace(summary={}), "train", None)[0]  # type: ignore[arg-type]
    assert train.read(np.arange(3))["caption/length"].tolist() == [9, 9, 9]  # "number 7" has eight letters
    table(tmp_path, said={1: "another"})
    made(where)
    assert len(read) == batches + 1
    (encoder / "model.safetensors").write_bytes(b"other weights")
    assert recipe(where)["caption"]["encoder"]["digest"] != before["caption"]["encoder"]["digest"]
    changed = {"conditions": SimpleNamespace(summary=summary, path=tmp_path)}
    with pytest.raises(UserError, match=r"captions embedded by transformers .* run again with --rebuild conditions"):
        diffusion.check_encoder(where, changed)  # type: ignore[arg-type]


def png(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def tars(folder: Path) -> dict[str, Any]:
    """Tars whose samples have a caption in KEY.txt, or several in KEY.json."""
    with open(folder / "x-0.tar", "wb") as file:
        tar = TarWriter(file)
        for i in range(COUNT):
            tar.add(f"{i:02d}.png", png(i))
            several = json.dumps({"caption": [f"number {i}", f"again {i}"]})
            tar.add(*((f"{i:02d}.txt", f"number {i}".encode()) if i % 2 else (f"{i:02d}.json", several.encode())))
        tar.close()
    return {"kind": "webdataset", "path": str(folder / "x-*.tar")}


def parquet(folder: Path) -> dict[str, Any]:
    """The same in Parquet: a column of lists, of one or two."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    said = [[f"number {i}", f"again {i}"][: 2 - i % 2] for i in range(COUNT)]
    pq.write_table(pa.table({"image": [png(i) for i in range(COUNT)], "said": said}), folder / "x.parquet")
    return {"kind": "table", "path": str(folder / "x.parquet"), "caption": "said"}


@pytest.mark.parametrize("source", [tars, parquet])
def test_of_several_captions_one_is_drawn(tmp_path: Path, source: Any) -> None:
    from pipeline.data.index import Index

    where = config(tmp_path / "x", kind="none", caption=CAPTION)
    data = {**where.data.model_dump(mode="json"), "source": source(tmp_path)}
    where = Config.model_validate({**where.model_dump(mode="json", by_alias=True), "data": data})
    summary, (images, told) = made(where)
    assert summary["captions"] == COUNT * 3 // 2 and summary["told"] == {"caption": COUNT}
    (index,) = open_conditions(told, images, SimpleNamespace(summary={}), "train", None)  # type: ignore[arg-type]
    known = Index.open(images.path, "train")
    for which, second in ((0.0, "number"), (0.9, "again")):
        rows = index.read(np.arange(len(known)), which)["caption"]
        said = ["".join(chr(symbol - 1) for symbol in row[1:] if symbol) for row in rows]
        number = [int(known.key(i).split("/")[-1]) for i in range(len(known))]
        assert said == [f"{'number' if i % 2 else second} {i}" for i in number]
