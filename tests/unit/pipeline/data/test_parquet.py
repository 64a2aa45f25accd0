"""Parquet files: bytes, paths or both; class names in the metadata; splits in files' names; read by batches."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data import parquet_files, sources
from pipeline.data.listing import Digests, Unread
from pipeline.data.parquet import identity, list_parquet
from pipeline.errors import UserError
from pipeline.schema.data import Data

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, images: Any, kind: Any, group: int = 3, features: Any = None, **columns: Any) -> Path:
    table = pa.table({"image": pa.array(images, kind), **columns})
    if features:
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def data(path: Path, limit: int | None = None, split: str = "key", **source: Any) -> Data:
    given = {"kind": "table", "path": str(path), **source}
    return Data.model_validate({"source": given, "limit": limit, "split": {"by": split}})


def read(one: Data) -> dict[str, bytes]:
    reader = sources.reader(one.source)
    return {row.key: bytes(reader(row.location)) for row in sources.open_listing(one).rows}  # type: ignore[arg-type]


CLASSES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog", "eel"]}}


@pytest.mark.parametrize("kind", [STRUCT, pa.binary(), pa.large_binary()])
def test_images_inside(tmp_path: Path, kind: Any) -> None:
    contents = [png(i) for i in range(8)]
    given = [{"bytes": c, "path": f"{i}.png"} for i, c in enumerate(contents)] if kind == STRUCT else contents
    path = write(tmp_path / "d.parquet", given, kind, features=CLASSES, label=[0, 1, 1, 0, -1, None, 1, 0], x=[1.5] * 8)
    one = data(path, label="label")
    found = sources.open_listing(one)
    assert [row.label for row in found.rows] == ["cat", "dog", "dog", "cat", None, None, "dog", "cat"]
    assert found.classes == ["cat", "dog", "eel"] and found.rows[0].attributes == {"x": 1.5}
    assert [row.key for row in found.rows] == [f"d/{i:08d}" for i in range(8)]
    assert [row.digest for row in found.rows] == [hashlib.sha256(c).hexdigest() for c in contents]
    reader = sources.reader(one.source)
    for i in (0, 7, 3, 4, 1):  # forwards, backwards, across row groups
        assert reader(found.rows[i].location) == contents[i]


def test_where_bytes_are_missing_the_path_is_read(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "1.png").write_bytes(png(1))
    given = [{"bytes": png(0), "path": None}, {"bytes": None, "path": "i/1.png"}, {"bytes": None, "path": "i/2.png"}]
    path = write(tmp_path / "d.parquet", [*given, None], STRUCT)
    assert read(data(path)) == {"d/00000000": png(0), "i/1": png(1)}
    assert sources.open_listing(data(path)).missing == ["i/2.png", "d, row 3: no image"]
    before = sources.source_fingerprint(data(path))
    (tmp_path / "i" / "1.png").write_bytes(png(9))
    assert sources.source_fingerprint(data(path)) != before


def test_a_column_of_paths_alone(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    path = write(tmp_path / "d.parquet", ["1.png", "2.png"], pa.string())
    assert read(data(path)) == {"1": png(1)} and sources.open_listing(data(path)).missing == ["2.png"]


def test_several_captions_of_a_sample(tmp_path: Path) -> None:
    """A column of lists is several captions, none is none; the fingerprint is not that of one text."""
    said = [["a hat", "", "red"], [], None, [None], ["one"], ["x", "y"]]
    path = write(tmp_path / "a.parquet", [png(i) for i in range(6)], pa.binary(), said=said)
    found = list_parquet(data(path, caption="said").source, Unread())  # type: ignore[arg-type]
    assert [row.caption for row in found.rows] == [["a hat", "red"], None, None, None, ["one"], ["x", "y"]]
    texts = write(tmp_path / "b.parquet", [png(i) for i in range(6)], pa.binary(), said=["a"] * 6)
    keys = {
        name: identity(data(file, caption="said").source, Digests(None))[0]  # type: ignore[arg-type]
        for name, file in (("lists", path), ("texts", texts))
    }
    assert "several captions" in keys["lists"] and keys["texts"] == ["image", None, "said", None]


def test_a_folder_of_hugging_face_with_its_own_split(tmp_path: Path) -> None:
    for number, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "validation-0-of-1", "test-0-of-1")):
        images = [{"bytes": png(10 * number + i), "path": None} for i in range(4)]
        write(tmp_path / "data" / f"{name}.parquet", images, STRUCT, features=CLASSES, label=[0, 1, 0, 1])
    found = sources.open_listing(data(tmp_path, split="source", label="label"))
    assert [row.attributes["split"] for row in found.rows] == ["train"] * 8 + ["val"] * 4
    assert found.rows[0].key == "data/train-00000-of-00002/00000000"
    assert "1 .parquet file named for tests left out" in found.notes
    pattern = data(tmp_path / "data" / "test-*.parquet")
    assert len(sources.open_listing(pattern).rows) == 4
    assert len(sources.open_listing(data(tmp_path, limit=6, split="source", label="label")).rows) == 6


def test_the_column_of_images_is_named_by_the_metadata(tmp_path: Path) -> None:
    table = pa.table({"img": pa.array([{"bytes": png(0), "path": None}], STRUCT), "thumb": [b"x"]})
    features = {"img": {"_type": "Image"}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
                   tmp_path / "d.parquet")  # fmt: skip
    found = sources.open_listing(data(tmp_path / "d.parquet"))
    assert len(found.rows) == 1 and found.rows[0].attributes == {}
    assert found.notes == [
        "images are read from column 'img', as the files' metadata say",
        "columns of bytes are not kept beside the images: thumb",
    ]
    with pytest.raises(UserError, match=r"no column 'pic'; there are img, thumb; 'img' is one of images"):
        sources.open_listing(data(tmp_path / "d.parquet", image="pic"))


def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", [b"x"] * 3, pa.binary(), label=[["a"], ["b"], ["c"]], n=[1, 2, 3],
                 f=[1.0, float("inf"), 0.0])  # fmt: skip
    for options, message in (
        ({"label": "label"}, r"d\.parquet, row 0: column 'label' holds a list"),
        ({"label": "no"}, "no column 'no'; there are image, label, n, f"),
        ({"image": "n"}, "column 'n' is of type int64; expected an image's bytes, a path, or both"),
        ({}, r"row 1: column 'f' holds infinity"),
        ({"delimiter": ";"}, "not of Parquet"),
    ):
        with pytest.raises(UserError, match=message):
            sources.open_listing(data(path, **options))  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"d\.parquet is no whole Parquet file"):
        sources.open_listing(data(path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.parquet files"):
        sources.open_listing(data(tmp_path / "empty"))


def test_a_fingerprint_and_a_limited_listing_read_no_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        tmp_path / "d.parquet", [{"bytes": png(i), "path": None} for i in range(40)], STRUCT, 20, label=[0, 1] * 20
    )
    limited = sources.open_listing(data(path, limit=10, label="label"))
    whole = {row.key: row for row in sources.open_listing(data(path, label="label")).rows}
    assert len(limited.rows) == 10 and all(whole[row.key] == row for row in limited.rows)
    asked: list[str] = []
    real = parquet_files._Reader.read
    monkeypatch.setattr(
        parquet_files._Reader, "read", lambda self, *place: asked.append(str(place)) or real(self, *place)
    )
    sources.source_fingerprint(data(path, label="label"))
    assert asked == []
    sources.open_listing(data(path, limit=10, label="label"))
    assert len(asked) == 10


def test_a_large_row_group_is_read_by_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "BATCH", 4)
    path = write(tmp_path / "d.parquet", [bytes([i]) * 10 for i in range(50)], pa.binary(), 50)
    batches = list(parquet_files._images(path, 0, "image"))
    assert max(len(batch) for batch in batches) <= 4 and sum(len(batch) for batch in batches) == 50


def test_a_damaged_page_is_told_where_it_has_a_checksum(tmp_path: Path) -> None:
    texts = [f"Text {i} of many." for i in range(200)]
    pq.write_table(
        pa.table({"text": texts}), tmp_path / "t.parquet", compression="none", use_dictionary=False,
        write_page_checksum=True,
    )  # fmt: skip
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[content.index(b"Text 100 ")] ^= 1
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(UserError, match="no whole Parquet file"), parquet_files.opened(tmp_path / "t.parquet") as table:
        table.read()
