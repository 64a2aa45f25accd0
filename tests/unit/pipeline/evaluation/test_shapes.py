"""Evaluation of images of several shapes: what is made by shape comes back in the order of the images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data import split
from pipeline.data.index import Index, read_image
from pipeline.evaluation import shapes
from pipeline.evaluation.metrics import pixel
from pipeline.schema.stages import Evaluate

SHAPES = [(12, 4), (8, 8), (4, 12)]


def images(n: int = 9) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (*SHAPES[i * i % 3], 3)).astype(np.uint8) for i in range(n)]


def test_results_by_shape_come_in_the_order_of_the_images() -> None:
    found = shapes.by_shape(images(), lambda same: [image + 1 for image in same])
    for one, image in zip(found, images(), strict=True):
        np.testing.assert_array_equal(one, image + 1)


def test_a_mean_over_images_of_all_shapes() -> None:
    ours, others = (
        images(),
        [np.clip(image.astype(int) + i, 0, 255).astype(np.uint8) for i, image in enumerate(images(), 1)],
    )
    each = [pixel.psnr(a[None], b[None]) for a, b in zip(ours, others, strict=True)]
    assert shapes.pixel_means(ours, others, pixel.psnr) == pytest.approx(np.mean(each), rel=1e-12)


def test_cells_and_squares() -> None:
    plain = [np.full((*shape, 3), i, np.uint8) for i, shape in enumerate(SHAPES)]
    cells = shapes.cells(plain)
    assert cells.shape == (3, 12, 12, 3) and (cells[0][:, 4:8] == 0).all() and (cells[0][:, :4] == 255).all()
    assert (cells[2][4:8] == 2).all() and (cells[2][:4] == 255).all()
    squares = shapes.squares(plain, 8)
    assert squares.shape == (3, 8, 8, 3) and [square.max() for square in squares] == [0, 1, 2]


class Painter:
    """A generator whose image i of a shape says class, number and height."""

    def request(self, classes: Any, n: int, seed: int, shape: Any, **how: Any) -> dict[str, Any]:
        return {"classes": classes, "n": n, "seed": seed, "shape": list(shape), **how}

    def images(self, request: dict[str, Any], first: int) -> np.ndarray:
        height, width = request["shape"]
        rows = [[label, first + i, height] for i, label in enumerate(request["classes"])]
        return np.broadcast_to(np.array(rows, np.uint8)[:, None, None], (request["n"], height, width, 3))


def test_each_sample_has_its_class_and_shape_and_noise_of_its_own() -> None:
    asked, classes = [SHAPES[i] for i in (0, 2, 2, 1, 0)], [0, 1, 0, 1, 1]
    made, said = shapes.samples(Painter(), classes, asked, {"batch_size": 4}, 7)  # type: ignore[arg-type]
    assert [image.shape[:2] for image in made] == asked and [int(image[0, 0, 0]) for image in made] == classes
    assert sorted(int(image[0, 0, 1]) for image in made) == [0, 1, 2, 3, 4]
    assert said["n"] == 5 and said["seed"] == 7


def test_real_images_stand_as_squares_and_in_their_shapes(tmp_path: Path) -> None:
    from pipeline.cluster.inline import Inline
    from pipeline.schema.data import Data
    from pipeline.stages import ingest

    sizes = [[40, 40], [60, 34], [32, 48]]
    source = {"kind": "shapes", "count": 60, "sizes": sizes}
    data = Data(source=source, size=32, buckets={"multiple": 8}, split={"val_fraction": 0.3})
    config: Any = SimpleNamespace(
        run=SimpleNamespace(root=str(tmp_path)), data=data, evaluate=Evaluate(samples=100, seed=3)
    )
    ingest.run(config, {}, SimpleNamespace(path=tmp_path / "o", work=tmp_path / "o" / "w"), Inline(), None)  # type: ignore[arg-type]
    squares, _ = split.load_split(tmp_path / "o", "val", config, 3)
    native = shapes.native(tmp_path / "o", config, 10)
    assert native is not None and squares.shape[1:] == (32, 32, 3)
    np.testing.assert_array_equal(shapes.squares(native.held_out, 32), squares[:10])
    train = Index.open(tmp_path / "o", "train")
    rows, _ = split.split_order(tmp_path / "o", "train", config, 3)
    assert len(native.shapes) == 100
    assert all(read_image(train, int(rows[i]), data).shape[1:] == native.shapes[i] for i in range(len(rows)))
    assert sum(native.told["buckets"]["samples"].values()) == 100
    config.data = data.model_copy(update={"buckets": None})
    assert shapes.native(tmp_path / "o", config, 10) is None

    class Same:
        def encode(self, images: np.ndarray, batch_size: int) -> torch.Tensor:
            return torch.from_numpy(images)

        def decode(self, latents: torch.Tensor, batch_size: int) -> np.ndarray:
            return latents.numpy()

    back = shapes.reconstructed(Same(), native.held_out, 4)  # type: ignore[arg-type]
    assert all(np.array_equal(a, b) for a, b in zip(back, native.held_out, strict=True))
