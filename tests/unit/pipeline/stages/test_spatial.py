"""Pictures of tables and tars as maps: in the order of the images, by content, one shard a change; what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.diffusion.denoiser import build_network
from pipeline.config import Config
from pipeline.data import map_shards, maps
from pipeline.data.condition_pool import maps_of, open_conditions
from pipeline.data.index import Index
from pipeline.data.maps import PACKED
from pipeline.data.shards import TarWriter
from pipeline.errors import UserError
from pipeline.stages import conditions, diffusion, ingest
from tests.unit.pipeline.stages.test_conditions import COUNT, made

SPATIAL: dict[str, Any] = {"outline": {"column": "mask"}}


def grey(value: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """A picture whose left half is `value`, the other black; twice as wide as the grid's places."""
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[:, : size[0] // 2] = value
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def image(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def table(folder: Path, changed: dict[int, bytes | None] | None = None) -> Path:
    """Images with a mask each, of ten times its number; `changed`: other bytes by row, None for no file."""
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    lines = ["image,mask"]
    for i in range(COUNT):
        (folder / f"{i:02d}.png").write_bytes(image(i))
        content = (changed or {}).get(i, grey(10 * i))
        (folder / "masks" / f"{i}.png").unlink(missing_ok=True)
        if content is not None:
            (folder / "masks" / f"{i}.png").write_bytes(content)
        lines.append(f"{i:02d}.png,{'' if i == 3 else f'masks/{i}.png'}")
    (folder / "table.csv").write_text("\n".join(lines))
    return folder / "table.csv"


def config(source: dict[str, Any], root: Path, spatial: Any = SPATIAL, data: Any = None, **more: Any) -> Config:
    images = {"source": source, "size": 16, "shard_size": 8, "split": {"val_fraction": 0.2}, **(data or {})}
    return Config.model_validate(
        {
            "run": {"name": "told", "root": str(root)},
            "data": images,
            "autoencoder": {
                "model": {"kind": "kl", "width": 32, "multipliers": [1, 2]},
                "training": {"steps": 1, "batch_size": 4},
            },
            "diffusion": {
                "condition": {"kind": "none", "spatial": spatial},
                "training": {"steps": 1, "batch_size": 4},
            },
            **more,
        }
    )


def of_table(folder: Path, changed: dict[int, bytes | None] | None = None, **more: Any) -> Config:
    return config({"kind": "table", "path": str(table(folder, changed))}, folder / "runs", **more)


def rows_of(artifacts: Any, split: str) -> tuple[list[int], Any]:
    images, told = artifacts
    (index,) = open_conditions(told, images, SimpleNamespace(summary={}), split, None)  # type: ignore[arg-type]
    known = Index.open(images.path, split)
    return [int(known.key(i)) for i in range(len(known))], index.read(np.arange(len(known)))["outline"]


def expected(i: int) -> Any:
    """[2, 8, 8]: the left half as the picture, in [-1, 1], and where it is told."""
    row = np.full((2, 8, 8), -1, np.float32)
    row[0, :, :4] = np.float32(10 * i) / 127.5 - 1
    row[1] = 1
    return np.zeros_like(row) if i == 3 else row


def test_maps_lie_in_the_order_of_the_images(tmp_path: Path) -> None:
    where = of_table(tmp_path)
    summary, artifacts = made(where)
    assert summary["spatial"] == {
        "outline": {"column": "mask", "channels": 1, "side": 8, "background": [255, 255, 255]}
    }
    assert summary["told"] == {"outline": COUNT - 1}
    for split in ("train", "val"):
        numbers, rows = rows_of(artifacts, split)
        assert rows.dtype == np.float32 and len(numbers) > 2
        for i, row in zip(numbers, rows, strict=True):
            assert np.allclose(row, expected(i), atol=1e-6), i
    packed = maps_of(artifacts[1], "train", [0])["outline"][0]
    assert packed is not None and packed.startswith(PACKED)


@pytest.mark.parametrize("mirrored", [False, True])
def test_detail_tells_each_place_all_the_pixels_in_it(tmp_path: Path, mirrored: bool) -> None:
    """Of a map of 16 x 16 on latents of 8 x 8, in RGB: the values that lie in a place, channel by channel, row by row;
    of a mirrored image those of the mirrored picture."""
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    options = {"channels": 3, "side": 8, "background": [255, 255, 255], "detail": 2}
    given = maps.taken(pixels, options)
    assert given.shape == (3, 16, 16)
    row = map_shards.rows({"a": given[None], "a.told": np.ones(1)}, {"a": options}, 0, mirrored)["a"]
    shown = pixels[:, ::-1] if mirrored else pixels
    assert row.shape == (13, 8, 8) and (row[12] == 1).all()
    for channel, y, x in ((0, 0, 0), (1, 0, 1), (2, 1, 0), (2, 1, 1)):
        place = row[4 * channel + 2 * y + x]
        np.testing.assert_allclose(place, shown[y::2, x::2, channel] / 127.5 - 1, atol=1e-6)
    assert not maps.row(None, options).any() and maps.row(None, options).shape == row.shape


def test_detail_comes_through_the_stage_and_to_the_network(tmp_path: Path) -> None:
    plain, fine = of_table(tmp_path), of_table(tmp_path, spatial={"outline": {"column": "mask", "detail": 2}})
    assert "detail" not in str(conditions.recipe(plain)) and conditions.recipe(plain) != conditions.recipe(fine)
    summary, artifacts = made(fine)
    assert summary["spatial"]["outline"]["detail"] == 2
    _, rows = rows_of(artifacts, "train")
    assert rows.shape[1:] == (5, 8, 8)
    told = {"outline": {"channels": 1, "detail": 2}}
    backbone = {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 2}
    network = build_network(backbone, "none", 4, 8, spatial=told)
    condition = {"outline": torch.from_numpy(rows[:2])}
    assert network(torch.zeros(2, 4, 8, 8), torch.full((2,), 0.5), condition).shape == (2, 4, 8, 8)


def test_a_changed_picture_is_another_stage_and_costs_one_shard(tmp_path: Path) -> None:
    def pool() -> set[str]:
        return {path.name for path in (tmp_path / "runs" / "conditions").glob("*.safetensors")}

    first = of_table(tmp_path)
    before = conditions.recipe(first)
    made(first)
    kept = pool()
    made(first)
    assert pool() == kept and conditions.recipe(of_table(tmp_path)) == before
    second = of_table(tmp_path, {5: grey(7)})
    assert conditions.recipe(second) != before
    made(second)
    assert len(pool() - kept) == 1 and kept < pool()


def test_pictures_that_cannot_be_read_are_counted_and_too_many_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {5: b"no picture", 6: grey(9)[:60], 7: None, 8: grey(9, (64, 64))}
    more = {"max_quarantine": 0.5, "max_pixels": 1000}
    where = of_table(tmp_path, bad, data=more)
    summary, artifacts = made(where)
    assert summary["told"] == {"outline": COUNT - 5}
    said = capsys.readouterr().out
    assert "4 of 23 pictures cannot be used" in said and "outline: 19 pictures; 5 of 24 images (21%) have none" in said
    listed = (artifacts[1].path / "quarantine.jsonl").read_text()
    for reason in ("undecodable", "missing", "oversized"):
        assert reason in listed
    with pytest.raises(UserError, match=r"spatial`: 4 of 23 pictures cannot be used.*data.max_quarantine") as error:
        made(of_table(tmp_path, bad, data={**more, "max_quarantine": 0.1}))
    assert "\n" not in str(error.value)


def test_a_column_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column 'outline', or more than one; there are image, mask"):
        made(of_table(tmp_path, spatial={"outline": {}}))
    where = of_table(tmp_path, dict.fromkeys(range(COUNT)), data={"max_quarantine": 1})
    with pytest.raises(UserError, match=r"spatial.outline`: no image has a picture 'mask' that can be read"):
        made(where)


def tar(path: Path, names: tuple[str, str]) -> None:
    """A tar of samples with an image and a mask each, members in this order."""
    with open(path, "wb") as file:
        writer = TarWriter(file)
        for i in range(COUNT):
            for name in names:
                if not (i == 3 and name == "mask.png"):
                    writer.add(f"{i:02d}.{name}", grey(10 * i) if name == "mask.png" else image(i))
        writer.close()


def test_maps_of_tars_are_the_members_beside_the_images(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", ("png", "mask.png"))
    where = config({"kind": "webdataset", "path": str(tmp_path / "a.tar")}, tmp_path / "runs")
    _, artifacts = made(where)
    for split in ("train", "val"):
        numbers, rows = rows_of(artifacts, split)
        for i, row in zip(numbers, rows, strict=True):
            assert np.allclose(row, expected(i), atol=1e-6), i
    tar(tmp_path / "a.tar", ("mask.png", "png"))
    with pytest.raises(UserError, match=r"a.tar: 0\d.mask.png is the first .* say which is: `data.source.image`"):
        made(where)
    source = {"kind": "webdataset", "path": str(tmp_path / "a.tar"), "image": "PNG"}
    named = config(source, tmp_path / "runs")
    assert ingest.recipe(named, tmp_path) != ingest.recipe(where, tmp_path)
    numbers, rows = rows_of(made(named)[1], "train")
    for i, row in zip(numbers, rows, strict=True):
        assert np.allclose(row, expected(i), atol=1e-6), i


def test_maps_of_parquet_are_bytes_or_paths(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table(tmp_path)
    inside = [None if i == 3 else {"bytes": grey(10 * i), "path": None} for i in range(COUNT)]
    values = {
        "bytes": [{"bytes": image(i), "path": f"{i:02d}.png"} for i in range(COUNT)],
        "image": [f"{i:02d}.png" for i in range(COUNT)],
        "mask": inside,
        "path": [None if i == 3 else f"masks/{i}.png" for i in range(COUNT)],
    }
    pq.write_table(pa.table(values), tmp_path / "a.parquet", row_group_size=7)
    for column in ("mask", "path"):
        source = {"kind": "table", "path": str(tmp_path / "a.parquet"), "image": "image"}
        _, artifacts = made(config(source, tmp_path / column, {"outline": {"column": column}}))
        numbers, rows = rows_of(artifacts, "train")
        for i, row in zip(numbers, rows, strict=True):
            assert np.allclose(row, expected(i), atol=1e-6), (column, i)


def test_a_config_of_before_has_no_trace_of_them_in_its_recipes(tmp_path: Path) -> None:
    told = of_table(tmp_path, spatial={}).model_dump(by_alias=True)
    told["diffusion"]["condition"]["attributes"] = {"mask": {"kind": "categorical"}}
    where = Config.model_validate(told)
    assert conditions.recipe(where).keys() == {"attributes", "caption", "label"}
    assert "spatial" not in diffusion.recipe(where)["condition"]
    shares = of_table(tmp_path, spatial={"outline": {"column": "mask", "drop": 0.5}})
    assert conditions.recipe(shares) == conditions.recipe(of_table(tmp_path))  # how often it is withheld costs no stage


TABLE = {"kind": "table", "path": "x.csv"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": {"kind": "digits"}}, "comes from a table or from tars; `data.source.kind` is digits"),
        (
            {"source": TABLE, "data": {"buckets": {"multiple": 8}}},
            "square images only; leave it out with `data.buckets`",
        ),
        ({"source": TABLE, "data": {"augment": {"crop": "random"}}}, "`data.augment.crop` is random; take the views"),
        ({"source": TABLE, "spatial": {"class": {}}}, "`spatial.class`: the name is taken"),
        ({"source": TABLE, "spatial": {"mask": {"channels": 2}}}, "channels"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_config(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(root=Path("runs"), **given)
