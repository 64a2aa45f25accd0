"""A config for images that nobody has described: what is found in a folder, a table, tars; what is chosen, and why."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models import registry
from models.diffusion.denoiser import build_network
from pipeline.config import Config, load
from pipeline.data import listing
from pipeline.data.held_out import held_out
from pipeline.data.shards import TarWriter
from pipeline.data.sources import source_fingerprint
from pipeline.errors import UserError
from pipeline.generate import diffusers_write
from pipeline.planning import look, starter, starter_data
from pipeline.planning.fits import check_models
from pipeline.planning.starter import Machine

CPU, GPU = Machine(0, 0, 2), Machine(4, int(24e9), 32)
SHARED = Path(__file__).parents[5] / "shared" / "data"


def picture(seed: int, size: tuple[int, int] = (40, 50), mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], {"RGB": 3, "RGBA": 4, "L": 1}[mode])
    pixels = np.random.default_rng(seed).integers(0, 255, shape, np.uint8)
    return Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels)


def written(found: look.Found, tmp_path: Path, machine: Machine = CPU, quick: bool = False) -> Config:
    """The config that is written for what was found, read back and checked whole."""
    chosen = starter.plan(found, machine, "some name!", quick)
    (tmp_path / "c.yaml").write_text(starter.write_config(found, chosen, machine))
    config = load(tmp_path / "c.yaml")
    check_models(config)
    source_fingerprint(config.data)  # it can be listed
    return config


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder as people have them: sizes, modes and formats mixed, a copy, a broken file, a text."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(40):
        mode = ("RGB", "RGBA", "L")[i % 3]
        picture(i, (90 + 7 * i, 130 + i), mode).save(folder / f"IMG {i:03d}.{'PNG' if i % 3 else 'jpg'}")
    (folder / "copy.jpg").write_bytes((folder / "IMG 000.jpg").read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff" + b"0" * 50)
    picture(99).save(folder / "named.jpg", "PNG")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_of_mixed_photos(photos: Path, tmp_path: Path) -> None:
    found = look.look(str(photos))
    assert found.count == 43 and not found.classes and found.looked == 43
    assert {k: v for k, v in found.problems.items() if v} == {"duplicate": 1, "undecodable": 1, "wrongly named": 1}
    config = written(found, tmp_path)
    assert (config.data.size, config.data.channels, config.diffusion.condition.kind) == (64, 3, "none")
    assert 3 / 43 < config.data.max_quarantine <= 0.13
    assert config.evaluate.guidance == 1 and config.run.name == "some-name"


def test_subfolders_are_classes_unless_each_image_has_its_own(tmp_path: Path) -> None:
    for i in range(40):
        for folder in (f"few/{'ab'[i % 2]}", f"many/{i}"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            picture(i).save(tmp_path / folder / f"{i}.png")
    assert written(look.look(str(tmp_path / "few")), tmp_path).diffusion.condition.kind == "class"
    config = written(look.look(str(tmp_path / "many")), tmp_path)
    assert config.diffusion.condition.kind == "none" and config.evaluate.guidance == 1


def table(folder: Path, rows: list[dict[str, Any]], name: str = "labels.csv") -> Path:
    import csv

    folder.mkdir(exist_ok=True)
    for i, row in enumerate(rows):
        picture(i).save(folder / row["file"])
    with open(folder / name, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def test_a_table_tells_labels_captions_and_who_is_on_several_images(tmp_path: Path) -> None:
    rows = [
        {
            "id": i,
            "file": f"{i}.png",
            "species": "cat" if i % 3 else "dog",
            "patient": f"p{i // 3}",
            "text": f"animal {i}",
        }
        for i in range(60)
    ]
    path = table(tmp_path / "set", rows)
    for given in (path, path.parent):  # the folder of a table that names images is that table
        found = look.look(str(given))
        assert found.source == {
            "kind": "table", "path": str(path), "image": "file", "label": "species", "caption": "text"
        }  # fmt: skip
        assert found.groups is not None and found.groups[0] == "patient"
    config = written(found, tmp_path)
    assert (config.data.split.by, config.data.split.column) == ("column", "patient")
    expected = sum(held_out(f"p{i // 3}", config.data.split.val_fraction) for i in range(60))
    assert expected >= 2 and f"{60 - expected} to train, {expected} held out" in (tmp_path / "c.yaml").read_text()


def test_a_table_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("image,label\nnowhere.png,a\n")
    with pytest.raises(UserError, match="no column names image files"):
        look.look(str(tmp_path / "x.csv"))


def test_tars_are_split_as_they_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "classes.json").write_text('["cat", "dog"]')
    for name, start, count in (("train-00000", 0, 30), ("train-00001", 30, 30), ("val-00000", 60, 12)):
        with open(folder / f"{name}.tar", "wb") as file:
            tar = TarWriter(file)
            for i in range(start, start + count):
                buffer = io.BytesIO()
                picture(i, (32, 32)).save(buffer, "PNG")
                tar.add(f"{i:04d}.png", buffer.getvalue())
                tar.add(f"{i:04d}.cls", str(i % 2).encode())
            tar.close()
    found = look.look(str(folder))
    assert (found.count, found.held_out, dict(found.classes)) == (60, 12, {"cat": 30, "dog": 30})
    config = written(found, tmp_path)
    assert config.data.split.by == "shards" and config.data.source.val == str(folder / "val*.tar")  # type: ignore[union-attr]
    alone = look.look(str(folder / "train-*.tar"))
    assert alone.held_out is None and written(alone, tmp_path).data.split.by == "key"


def test_arrays_are_gray_where_they_have_one_channel(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (50, 28, 28), np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(50) % 5)
    config = written(look.look(str(tmp_path / "set.npz")), tmp_path)
    assert (config.data.size, config.data.channels, config.data.augment.flip) == (32, 1, False)
    assert config.diffusion.condition.kind == "class"


def test_digits_by_name(tmp_path: Path) -> None:
    found = look.look("digits")
    assert found.count == 1797 and len(found.classes) == 10 and written(found, tmp_path).data.channels == 1


def test_drawings_in_white_are_put_on_black(tmp_path: Path) -> None:
    (tmp_path / "icons").mkdir()
    for i in range(20):
        pixels = np.zeros((32, 32, 4), np.uint8)
        pixels[4 : 8 + i % 20, 4:20] = (250, 250, 255, 255)
        Image.fromarray(pixels).save(tmp_path / "icons" / f"{i}.png")
    config = written(look.look(str(tmp_path / "icons")), tmp_path)
    assert config.data.background == (0, 0, 0) and not config.data.augment.flip


def made_up(count: int, side: int) -> look.Found:
    keys = [str(i) for i in range(count)]
    return look.Found({"kind": "digits"}, count, keys, sizes=[(side, side)], looked=count)


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("count", [16, 100, 3_000, 60_000])
@pytest.mark.parametrize("side", [20, 50, 100, 150, 260, 4000])
def test_every_choice_is_a_valid_config_that_the_data_can_fill(
    machine: Machine, count: int, side: int, tmp_path: Path
) -> None:
    config = written(made_up(count, side), tmp_path, machine)
    chosen = starter.plan(made_up(count, side), machine, "x")
    for training in (config.autoencoder.training, config.diffusion.training):
        assert training.batch_size * 2 <= chosen.train and training.warmup < training.steps
    assert chosen.val >= 2 and chosen.train + chosen.val == count
    assert config.data.size <= max(32, side * 1.1)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="at least 16 are needed"):
        starter.plan(made_up(10, 64), CPU, "x")


def test_quick_is_quick(tmp_path: Path) -> None:
    config = written(made_up(3000, 64), tmp_path, quick=True)
    assert config.autoencoder.training.steps + config.diffusion.training.steps <= 100
    assert config.evaluate.samples <= 100 and config.data.limit is None


@pytest.mark.parametrize(("side", "limit"), [(64, 4000), (1000, 4000), (2000, 1000), (9000, 500)])
def test_quick_takes_a_part_of_many_images_and_says_so(side: int, limit: int, tmp_path: Path) -> None:
    found = made_up(60_000, side)
    chosen = starter.plan(found, CPU, "x", quick=True)
    assert chosen.limit == limit == chosen.train + chosen.val
    text = starter.write_config(found, chosen, CPU)
    assert f"limit: {limit}   # of 60,000 images" in text
    config = written(found, tmp_path, quick=True)
    for which, training in enumerate(("autoencoder", "diffusion")):  # validation sees fewer images than training
        section = getattr(config, training).training
        assert section.steps / section.validate_every * chosen.val < section.steps * chosen.batch[which]
    assert starter.plan(found, CPU, "x").limit is None


@pytest.mark.parametrize(
    ("samples", "train", "said"),
    [(2560, 55_184, "2,560 of 55,184 images are met once"), (60_000, 55_184, "about one pass"),
     (400_000, 1000, "400 passes over the images")],
)  # fmt: skip
def test_steps_are_told_in_shares_of_the_images(samples: int, train: int, said: str) -> None:
    assert starter.about_passes(samples, train) == said


def test_counts_of_classes_that_are_numbers_can_be_read() -> None:
    found = made_up(100, 32)
    found.classes = Counter({"9": 6000, "0": 6000})
    assert starter.about_classes(found, starter.plan(found, CPU, "x"))[0] == "2 classes: 9: 6,000, 0: 6,000"


@pytest.mark.parametrize(
    ("text", "reason"),
    [("/nowhere", "does not exist"), ("s3://b/*.tar", "local files only"), ("*.tar", "no such file")],
)
def test_what_cannot_be_looked_at_is_said(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        look.look(text)


@pytest.mark.parametrize(
    ("name", "size", "classes", "split"),
    [("cifar10", 32, 10, "shards"), ("faces64", 64, 8, "column"), ("emoji", 64, 10, "key")],
)
def test_real_folders(name: str, size: int, classes: int, split: str, tmp_path: Path) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not there")
    found = look.look(str(SHARED / name))
    config = written(found, tmp_path)
    assert (config.data.size, len(found.classes), config.data.split.by) == (size, classes, split)


def test_a_look_reads_a_listing_without_hashing_it(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "sha256_file", lambda path: pytest.fail("all bytes were read"))
    look.look(str(photos))


def test_what_is_left_out_and_what_is_too_little_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for name in ("many", "one", ".thumbnails"):
        (folder / name).mkdir(parents=True)
    fraction = 0.3
    alone = next(f"{i}" for i in range(99) if held_out(f"one/{i}", fraction))
    for i in range(40):
        picture(i, (32, 32)).save(folder / "many" / f"{i}.png")
    picture(50, (32, 32)).save(folder / "one" / f"{alone}.png")
    picture(51, (32, 32)).save(folder / ".thumbnails" / "1.png")
    (folder / "many" / "x.jxl").write_bytes(b"x")
    found = look.look(str(folder))
    assert starter_data.about_losses(found, fraction) == [
        "Not taken from the source: 1 hidden folders (such as .thumbnails); 1 .jxl files, a format that is not read "
        "(such as many/x.jxl).",
        "1 class has no training image, and no model can learn it: 'one' (1 held out); give more images, or take them "
        "out.",
    ]
    chosen = starter.plan(found, CPU, "x")
    assert chosen.told and chosen.told[0] in starter.write_config(found, chosen, CPU)


def test_a_limit_is_raised_for_broken_files_and_never_to_hide_a_loss() -> None:
    def limit(**problems: int) -> tuple[float, list[str]]:
        found = made_up(100, 64)
        found.problems.update({name.replace("_", " "): count for name, count in problems.items()})
        return starter_data.choose_quarantine(found), starter_data.about_losses(found, None)

    assert limit() == (0.01, [])
    assert limit(undecodable=4, duplicate=4) == (
        0.13,
        ["Of 100 images looked at 8 cannot be used (4 undecodable, 4 duplicate), left out."],
    )
    for losses in ({"duplicate_key": 48}, {"no_image": 5}, {"oversized": 5, "undecodable": 5}, {"undecodable": 30}):
        bound, told = limit(**losses)
        assert (
            bound == 0.01 and "ingest will refuse them: mend them, or raise `data.max_quarantine` yourself" in told[0]
        )


def test_copies_are_no_images(tmp_path: Path) -> None:
    for i in range(40):
        Image.new("RGB", (32, 32), (i % 3, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match="40 images, but 3 of them different"):
        starter.plan(look.look(str(tmp_path)), CPU, "x")


def test_one_picture_in_two_files_counts_as_a_copy(tmp_path: Path) -> None:
    for i in range(40):
        picture(i, (32, 32)).save(tmp_path / f"{i}.png")
    for i in range(3):
        picture(i, (32, 32)).save(tmp_path / f"again{i}.webp", lossless=True)
        picture(i, (32, 32)).save(tmp_path / f"same{i}.png")  # the same bytes: counted once
    found = look.look(str(tmp_path))
    assert found.problems["duplicate"] == 6
    assert written(found, tmp_path).data.max_quarantine == 0.21


def test_stems_with_several_suffixes_lose_nothing(tmp_path: Path) -> None:
    for i in range(40):
        picture(i, (32, 32)).save(tmp_path / f"{i // 2}.{('png', 'webp')[i % 2]}", lossless=True)
    found = look.look(str(tmp_path))
    assert found.count == 40 and not sum(found.problems.values())
    assert written(found, tmp_path).data.max_quarantine == 0.01


def test_tars_by_a_range_and_what_their_names_lose(tmp_path: Path) -> None:
    for number in range(2):
        with open(tmp_path / f"s-{number}.tar", "wb") as file:
            tar = TarWriter(file)
            for i in range(20):
                buffer = io.BytesIO()
                picture(20 * number + i, (32, 32)).save(buffer, "PNG")
                tar.add(f"{number}{i:02}.0.png", buffer.getvalue())
                tar.add(f"{number}{i:02}.0.cls", b"1")
                tar.add(f"._{number}{i:02}.png", b"x")
            tar.close()
    found = look.look(f"{tmp_path}/s-{{0..1}}.tar")
    assert found.count == 40 and not found.classes
    reasons = found.left_out.json()
    assert reasons["hidden members"] == [40, "._000.png"] and len(reasons) == 2
    from pipeline.planning.outlook import outlook

    (line,) = outlook(written(found, tmp_path).data, None)
    assert line.startswith(
        "not taken from the tars: 40 hidden members (such as ._000.png); 40 members that end in .cls"
    )


def test_a_dry_run_says_what_ingest_would_leave_out(tmp_path: Path) -> None:
    from pipeline.planning.outlook import outlook
    from pipeline.schema.data import Data

    (tmp_path / ".hidden").mkdir()
    (tmp_path / "t.csv").write_text("image,label\n" + "".join(f"{i}.png,{'ab'[i == 7]}\n" for i in range(9)))
    for i in range(8):
        picture(i).save(tmp_path / f"{i}.png")
    folder = Data.model_validate({"source": {"kind": "folder", "path": str(tmp_path)}})
    assert outlook(folder, None) == ["not taken from the source: 1 hidden folders (such as .hidden)"]
    fraction = next(f / 100 for f in range(1, 99) if held_out("7", f / 100))
    table = Data.model_validate(
        {
            "source": {"kind": "table", "path": str(tmp_path / "t.csv"), "label": "label"},
            "split": {"val_fraction": fraction},
        }
    )
    missing, alone = outlook(table, None)
    assert missing == "1 image for quarantine, as far as names tell: 1 missing"
    assert alone.startswith("1 class has no training image, and no model can learn it: 'b' (1 held out)")


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_the_models_of_a_first_config_can_be_written_for_diffusers(machine: Machine, tmp_path: Path) -> None:
    config = written(made_up(30_000, 64), tmp_path, machine)
    with torch.device("meta"):
        network = build_network(config.diffusion.backbone, "class", 4, 16, 3)
        autoencoder = registry.build("autoencoders", config.autoencoder.model, channels=3)
    assert diffusers_write.describe(network, size=16)[0]["_class_name"] == "DiTTransformer2DModel"
    assert diffusers_write.describe(autoencoder, size=64)[0]["_class_name"] == "AutoencoderKL"


def test_tables_of_spreadsheets_and_parquet_are_known(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"file": f"{i}.png", "kind": f"{i % 2}.0", "split": "test" if i % 10 == 0 else "train"} for i in range(60)]
    path = table(tmp_path / "t", rows)
    path.write_bytes(path.read_text().replace(",", ";").encode("utf-16"))
    found = look.look(str(tmp_path / "t"))
    assert found.classes == {"0": 24, "1": 30} and len(found.notes) == 2
    config = written(found, tmp_path)
    assert config.data.split.by == "source" and found.held_out == 6

    images = [{"bytes": (tmp_path / "t" / row["file"]).read_bytes(), "path": None} for row in rows]
    features = {"img": {"_type": "Image"}, "y": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    columns = pa.table({"y": [i % 2 for i in range(60)], "img": images})
    columns = columns.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "p" / "data").mkdir(parents=True)
    pq.write_table(columns, tmp_path / "p" / "data" / "train-00000-of-00001.parquet")
    for where in ("p", "p/data/train-00000-of-00001.parquet", "p/data/train-*.parquet"):
        found = look.look(str(tmp_path / where))
        assert found.classes == {"cat": 30, "dog": 30} and found.sizes[0] == (40, 50)
        config = written(found, tmp_path)
        assert (config.data.source.image, config.data.source.label) == ("img", "y")  # type: ignore[union-attr]


def test_a_column_that_could_be_classes_is_named(tmp_path: Path) -> None:
    rows = [{"file": f"{i}.png", "Ausdruck": "ab"[i % 2], "split": "test" if i % 10 else "train"} for i in range(60)]
    found = look.look(str(table(tmp_path / "t", rows)))
    assert not found.classes
    (line,) = found.notes
    assert "Ausdruck (2 values)" in line and "`data.source.label: Ausdruck`" in line
    rows = [{**row, "kind": "cd"[i % 2]} for i, row in enumerate(rows)]
    assert not look.look(str(table(tmp_path / "k", rows))).notes


def test_arrays_by_other_names_and_of_floats_are_known(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 28, 28), np.uint8)
    labels = np.arange(80) % 4
    np.savez(tmp_path / "a.npz", pictures=pixels / 255, kinds=labels)
    source = written(look.look(str(tmp_path / "a.npz")), tmp_path).data.source
    assert (source.images_key, source.labels_key, source.range) == ("pictures", "kinds", (0, 1))  # type: ignore[union-attr]
    np.savez(tmp_path / "m.npz", train_images=pixels[:60], train_labels=labels[:60, None], val_images=pixels[60:],
             val_labels=labels[60:, None])  # fmt: skip
    found = look.look(str(tmp_path / "m.npz"))
    config = written(found, tmp_path)
    assert (found.count, found.held_out, config.data.split.by) == (60, 20, "source")
    assert "as the source says" in (tmp_path / "c.yaml").read_text()
