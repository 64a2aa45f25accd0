"""Computed data sets: an image depends on its number alone, and what is said of it is true."""

from __future__ import annotations

import colorsys
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.cluster.inline import Inline
from pipeline.data import sources, synthetic
from pipeline.data.index import Index
from pipeline.schema.data import Data
from pipeline.stages import ingest

SHAPES = {"kind": "shapes", "count": 60, "sizes": [[40, 40], [60, 40], [40, 60]]}
GAUSSIANS = {"kind": "gaussians", "count": 3000, "side": 8, "components": 2, "weights": [3, 1]}


def source(**options):
    return Data(source=options).source


@pytest.mark.parametrize("options", [SHAPES, GAUSSIANS])
def test_an_image_depends_on_options_and_number_alone(options):
    whole, longer = source(**options), source(**{**options, "count": options["count"] + 7})
    read, other = synthetic.reader(whole), synthetic.reader(source(**{**options, "seed": 1}))
    np.testing.assert_array_equal(read(5), synthetic.reader(longer)(5))
    assert not np.array_equal(read(5), read(6)) and not np.array_equal(read(5), other(5))
    assert synthetic.factors(longer)[1][: whole.count] == synthetic.factors(whole)[1]
    assert sources.source_fingerprint(Data(source=options)) != sources.source_fingerprint(Data(source=longer))


def test_images_are_pinned():
    """A change of these numbers needs another VERSION: artifacts are found by it."""
    sums = [int(synthetic.reader(source(**options))(3).astype(int).sum()) for options in (SHAPES, GAUSSIANS)]
    assert (synthetic.VERSION, sums) == (1, PINNED)


PINNED = [391851, 8156]


def test_gaussians_have_the_moments_of_the_closed_form():
    made = source(**GAUSSIANS)
    weights, means, covariances = synthetic.mixture(made)
    np.testing.assert_allclose(weights, [0.75, 0.25])
    names, known = synthetic.factors(made)
    read = synthetic.reader(made)
    images = np.stack([read(i).reshape(-1) for i in range(made.count)]).astype(np.float64)  # [n, d]
    assert images.min() > 0 and images.max() < 255
    labels = np.array([names.index(one["class"]) for one in known])
    np.testing.assert_allclose((labels == 0).mean(), 0.75, atol=0.03)
    for k in range(2):
        mine = images[labels == k]
        deviation = np.sqrt(np.diagonal(covariances[k]) + 1 / 12)
        assert np.abs((mine.mean(0) - means[k]) / deviation).max() < 4.5 / np.sqrt(len(mine))
        expected = covariances[k] + np.eye(64) / 12  # rounding
        assert np.abs(np.cov(mine.T) - expected).max() < 6 * deviation.max() ** 2 / np.sqrt(len(mine))


def test_shapes_show_the_factors_that_are_said():
    made = source(**SHAPES)
    names, known = synthetic.factors(made)
    read = synthetic.reader(made)
    assert names == ["circle", "square", "triangle"] and {one["class"] for one in known} == set(names)
    for i, one in enumerate(known):
        image = read(i) / 255
        height, width, _ = image.shape
        assert [width, height] in SHAPES["sizes"] and (one["width"], one["height"]) == (width, height)
        background = round(255 * (0.1 + 0.4 * one["background"])) / 255
        colour = np.array(colorsys.hsv_to_rgb(one["hue"], 0.8, 0.9))
        axis = np.abs(colour - background).argmax()  # where shape and background differ most
        cover = (image[:, :, axis] - background) / (colour[axis] - background)
        rows, columns = np.mgrid[:height, :width] + 0.5
        place = [(cover * at).sum() / cover.sum() for at in (columns, rows)]
        np.testing.assert_allclose(place, [one["x"], one["y"]], atol=0.25)
        area = {"circle": np.pi, "square": 2.0, "triangle": 3**1.5 / 4}[one["class"]] * one["size"] ** 2
        np.testing.assert_allclose(cover.sum(), area, rtol=0.04)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"weights": [1]}, "1 `weights` for 2 `components`"), ({"modes": 9}, "`modes` 9 is over `side` 8")],
)
def test_impossible_options(change, message):
    with pytest.raises(ValidationError, match=message):
        source(**{**GAUSSIANS, **change})


def test_shapes_through_ingest_keep_class_and_factors(tmp_path):
    config = SimpleNamespace(run=SimpleNamespace(root=str(tmp_path / "root")), data=Data(source=SHAPES, size=16))
    writer = SimpleNamespace(path=tmp_path / "out", work=tmp_path / "out" / "work")
    summary = ingest.run(config, {}, writer, Inline(), None)
    assert sum(summary["images"].values()) == 60 and summary["distinct_sizes"] == 3
    names, known = synthetic.factors(config.data.source)
    index = Index.open(writer.path, "train")
    for i in range(len(index)):
        one = known[int(index.key(i))]
        assert {"class": names[index.label(i)], **index.meta(i)} == one
