"""Clips and values that stand for those of a run: of its size, its length, its depth, and its own ingest."""

from __future__ import annotations

import pytest

from pipeline.artifacts import Store
from pipeline.config import Config
from pipeline.data.index import Index, read_image
from pipeline.preflight.synthetic import make_inputs, synthetic_clips


@pytest.mark.parametrize(("frames", "rate"), [(5, 8.0), (3, 30.0)])
def test_as_many_frames_as_the_config_asks_for(tmp_path, frames, rate):
    config = Config.model_validate(
        {
            "run": {"name": "x", "root": str(tmp_path)},
            "data": {"source": {"kind": "clips", "path": "none"}, "size": 16, "clip": {"frames": frames, "rate": rate}},
            "autoencoder": {"model": {"kind": "clips"}, "training": {"steps": 1, "batch_size": 1}},
            "diffusion": {"backbone": {"kind": "dit"}, "training": {"steps": 1, "batch_size": 1}},
        }
    )
    made = synthetic_clips(config, Store(tmp_path / "made"))
    index = Index.open(made.path, "train")
    assert sum(made.summary["images"].values()) == 128 and made.summary["clip"] == {"frames": frames, "rate": rate}
    assert read_image(index, 0, config.data).shape == (3, frames, 16, 16)


@pytest.mark.parametrize("source", ["rasters", "webdataset"])
def test_values_have_the_bands_and_depth_of_the_config(tmp_path, source):
    config = Config.model_validate(
        {
            "run": {"name": "x", "root": str(tmp_path / "root")},
            "data": {
                "source": {"kind": source, "path": "none"}, "size": 16, "channels": 2,
                "values": {"dtype": "float32", "percentiles": [1, 99]},
            },
            "autoencoder": {"model": {"kind": "kl"}, "training": {"steps": 1, "batch_size": 1}},
            "diffusion": {"backbone": {"kind": "dit"}, "training": {"steps": 1, "batch_size": 1}},
        }
    )  # fmt: skip
    inputs, notes = make_inputs(config, {}, tmp_path / "made", ["autoencoder"])
    image = read_image(Index.open(inputs["ingest"].path, "train"), 0, config.data)
    assert image.shape == (2, 16, 16) and image.dtype == "float32" and "noise" in notes[0]
    assert not (tmp_path / "root").exists()
