"""Filters, balance and views of several crops through the graph: what they change, and what they leave cached."""

from __future__ import annotations

from typing import Any

import numpy as np

CROPS = "latents.views=[as_is, flip, crop, crop_flip]"


def newest(small: Any, stage: str) -> Any:
    from pipeline.artifacts import Artifact

    return Artifact.load(max(small.manifests(stage), key=lambda path: path.stat().st_mtime_ns).parent)


def test_views_of_several_crops_are_encoded_each_and_drawn(small):
    import torch

    from pipeline.config import load
    from pipeline.data.index import Index, read_views
    from pipeline.data.latent_pool import shard_paths
    from pipeline.data.latent_shards import LatentIndex
    from pipeline.networks import load_model

    refused = small.run("encode", CROPS)
    assert refused.code == 2 and "`latents.views` has crop, but images are stored without a margin" in refused.err
    overrides = (CROPS, "data.augment.crop=random")
    said = small.run("diffusion", *overrides)
    assert said.code == 0, said.err
    config = load(small.config, overrides)
    latents = LatentIndex.open(shard_paths(newest(small, "encode"), "train"))
    images = Index.open(newest(small, "ingest").path, "train")
    model = load_model(newest(small, "autoencoder").path)
    assert latents.views == 4
    for i in (0, 5, len(images) - 1):
        cut, _, _ = read_views(images, i, config.data, config.latents.views)  # [4, 3, 8, 8]
        with torch.no_grad():
            expected = model.encode(torch.from_numpy(cut).float() / 127.5 - 1).numpy()
        for view in range(4):
            found = latents.moments([i], view)[0].astype(np.float32)
            np.testing.assert_allclose(found, expected[view], rtol=2e-3, atol=2e-3)  # float16


def test_a_balance_trains_other_models_on_the_same_data(small):
    assert small.run("encode").code == 0
    said = small.run("diffusion", "data.balance={power: 1, weights: {b: 0}}")
    assert said.code == 0, said.err
    assert len(small.manifests("ingest")) == 1 and len(small.manifests("autoencoder")) == 2
    recipe = newest(small, "diffusion").recipe
    assert recipe["balance"] == {"power": 1, "weights": {"b": 0}}
    said = small.run("diffusion", "data.balance={weights: {c: 2}}")
    assert said.code == 2 and "'c' is no class; there are a, b, (none)" in said.err


def test_a_balanced_run_that_goes_on_is_equal_bit_for_bit_to_one_that_was_never_stopped(small):
    options = ("data.balance={power: 1}", "autoencoder.training.save_every=2")
    assert small.run("autoencoder", *options).code == 0
    said = small.run("autoencoder", *options, "autoencoder.training.steps=8")
    assert said.code == 0 and "goes on from step 4" in said.out, said.err
    resumed = newest(small, "autoencoder")
    whole = small.folder / "whole"
    said = small.run("autoencoder", *options, "autoencoder.training.steps=8", f"run.root={whole}")
    assert said.code == 0, said.err
    for name in ("ema.safetensors", "live.safetensors"):
        other = whole / "artifacts" / "autoencoder" / resumed.fingerprint / name
        assert (resumed.path / name).read_bytes() == other.read_bytes()


def test_filters_make_other_data(small):
    assert small.run("ingest").code == 0
    said = small.run("ingest", "data.filters=[{kind: median}, {kind: wavelet, wavelet: haar}]")
    assert said.code == 0, said.err
    assert len(small.manifests("ingest")) == 2
    assert newest(small, "ingest").recipe["filters"][0] == {"kind": "median", "size": 3}
