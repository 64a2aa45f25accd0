"""Arrays by name, with classes that have names, values of a stated range, one-hot labels, splits of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data import arrays, sources
from pipeline.errors import UserError
from pipeline.schema.data import Data

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 5, 4), np.uint8)
PIXELS[0, 0, :2] = 0, 255


def listed(path: Path, split: str = "key", **options: Any) -> Any:
    arrays._arrays.cache_clear()
    data = {"source": {"kind": "arrays", "path": str(path), **options}, "split": {"by": split}}
    return sources.open_listing(Data.model_validate(data))


def save(path: Path, **given: Any) -> Path:
    np.savez(path, **given)
    return path


def test_keys_and_names_of_classes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", data=PIXELS, fine=np.arange(6) % 3, coarse=np.zeros(6, int))
    with pytest.raises(UserError, match=r"no array `images`, only data, fine, coarse.*`data\.source\.images_key`"):
        listed(path)
    with pytest.raises(UserError, match="no array 'fin', only data, fine, coarse"):
        listed(path, images_key="data", labels_key="fin")
    found = listed(path, images_key="data", labels_key="fine", class_names=["cat", "dog", "axolotl"])
    assert [row.label for row in found.rows] == ["cat", "dog", "axolotl"] * 2
    assert found.classes == ["cat", "dog", "axolotl"]
    with pytest.raises(UserError, match="label 2 is none of the 2 classes"):
        listed(path, images_key="data", labels_key="fine", class_names=["cat", "dog"])


def test_text_labels_are_names(tmp_path: Path) -> None:
    found = listed(save(tmp_path / "a.npz", images=PIXELS, labels=np.array(["b ", "a", "", "a", "b", "b"])))
    assert [row.label for row in found.rows] == ["b", "a", None, "a", "b", "b"] and found.classes == ["a", "b"]


def test_medmnist_with_its_own_splits(tmp_path: Path) -> None:
    parts = {"train": PIXELS[:3], "val": PIXELS[3:5], "test": PIXELS[5:]}
    given = {f"{name}_images": part for name, part in parts.items()}
    given |= {f"{name}_labels": np.arange(len(part))[:, None] % 2 for name, part in parts.items()}
    path = save(tmp_path / "pneumoniamnist.npz", **given)
    for split in ("key", "source"):
        found = listed(path, split)
        assert [row.key for row in found.rows] == [f"train/{i:08d}" for i in range(3)] + [
            f"val/{i:08d}" for i in (0, 1)
        ]
        assert [row.label for row in found.rows] == ["0", "1", "0", "0", "1"]
        assert any("test_images is left out" in note for note in found.notes)
        read = sources.reader(Data.model_validate({"source": {"kind": "arrays", "path": str(path)}}).source)
        np.testing.assert_array_equal(read(found.rows[4].location), PIXELS[4])
    assert len(listed(path, images_key="test_images").rows) == 1
    with pytest.raises(UserError, match="are of unlike shapes"):
        listed(save(tmp_path / "b.npz", train_images=PIXELS, val_images=PIXELS[:, :4]))


def test_keras_holds_its_tests_out(tmp_path: Path) -> None:
    path = save(tmp_path / "k.npz", x_train=PIXELS[:4], y_train=np.arange(4), x_test=PIXELS[4:], y_test=np.arange(2))
    found = listed(path, "source")
    assert [row.attributes["split"] for row in found.rows] == ["train"] * 4 + ["val"] * 2
    with pytest.raises(UserError, match="not split into train and val"):
        listed(save(tmp_path / "t.npz", train_images=PIXELS), "source")


@pytest.mark.parametrize(
    ("ends", "dtype"), [((0, 1), np.float32), ((-1, 1), np.float16), ((0, 255), np.int64), ((0, 4095), np.uint16)]
)
def test_values_of_a_stated_range(tmp_path: Path, ends: tuple[int, int], dtype: Any) -> None:
    values = ends[0] + PIXELS.astype(np.float64) / 255 * (ends[1] - ends[0])
    path = save(
        tmp_path / "a.npz", images=np.rint(values).astype(dtype) if dtype == np.uint16 else values.astype(dtype)
    )
    arrays._arrays.cache_clear()
    source = Data.model_validate({"source": {"kind": "arrays", "path": str(path), "range": ends}}).source
    images, _ = arrays.read_arrays(source)
    assert images.dtype == np.uint8 and np.abs(images.astype(int) - PIXELS).max() <= 1
    assert np.array_equal(images, PIXELS) or dtype in (np.float16, np.int64)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (PIXELS / 255, {}, r"type float64; expected uint8.*values go from 0.* to 1, so write .*range: \[0, 1\]"),
        (PIXELS / 127.5 - 1, {}, r"so write `data\.source\.range: \[-1, 1\]`"),
        (PIXELS.astype(int), {}, r"range: \[0, 255\]"),
        (PIXELS / 100, {"range": (0, 1)}, r"outside of `data\.source\.range: \[0, 1\]`"),
        (np.where(PIXELS > 3, PIXELS / 255, np.nan), {"range": (0, 1)}, "not finite"),
    ],
)
def test_values_without_a_range_are_refused(tmp_path: Path, images: Any, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        listed(save(tmp_path / "a.npz", images=images), **options)


def test_channels_first_and_truth_values(tmp_path: Path) -> None:
    colour = RNG.integers(0, 256, (6, 3, 5, 7), np.uint8)
    arrays._arrays.cache_clear()
    source = Data.model_validate(
        {"source": {"kind": "arrays", "path": str(save(tmp_path / "a.npz", images=colour))}}
    ).source
    assert arrays.read_arrays(source)[0].shape == (6, 5, 7, 3)
    arrays._arrays.cache_clear()
    save(tmp_path / "a.npz", images=PIXELS > 99)
    np.testing.assert_array_equal(arrays.read_arrays(source)[0], np.where(PIXELS > 99, 255, 0))


def test_one_hot_labels_and_no_others(tmp_path: Path) -> None:
    found = listed(save(tmp_path / "a.npz", images=PIXELS, labels=np.eye(3)[[0, 2, 1, 1, 0, 2]]))
    assert [row.label for row in found.rows] == ["0", "2", "1", "1", "0", "2"]
    assert any("one-hot labels of 3 classes" in note for note in found.notes)
    several = np.eye(3)[[0, 2, 1, 1, 0, 2]]
    several[0, 1] = 1
    with pytest.raises(UserError, match="are not one-hot"):
        listed(save(tmp_path / "a.npz", images=PIXELS, labels=several))


def test_keys_are_in_the_fingerprint_where_they_are_set(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", images=PIXELS, labels=np.arange(6) % 2)

    def fingerprint(**options: Any) -> str:
        return sources.source_fingerprint(
            Data.model_validate({"source": {"kind": "arrays", "path": str(path), **options}})
        )

    (tmp_path / "n.txt").write_text("a\nb\n")
    plain, named = fingerprint(), fingerprint(class_names=["a", "b"])
    assert len({plain, named, fingerprint(range=(0, 255)), fingerprint(labels_key="labels")}) == 4
    assert fingerprint(class_names=str(tmp_path / "n.txt")) == named
