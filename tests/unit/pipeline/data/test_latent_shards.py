"""Latent shards have the same bytes each time, little overhead, and give back any samples in any order."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from pipeline.data import latent_shards
from pipeline.data.latent_shards import LatentIndex
from pipeline.errors import UserError


def make(folder, counts=(5, 12, 7), views=2, shape=(8, 3, 4), member=4):
    rng = np.random.default_rng(0)
    moments = [rng.standard_normal((n, views, *shape)).astype(np.float16) for n in counts]
    paths, start = [], 0
    for number, values in enumerate(moments):
        keys = [f"key{start + i}" for i in range(len(values))]
        paths.append(folder / f"{number}.tar")
        latent_shards.write(paths[-1], values, np.arange(start, start + len(values)), keys, member)
        start += len(values)
    return paths, np.concatenate(moments)


def test_any_samples_of_any_views_come_back(tmp_path):
    paths, moments = make(tmp_path)
    index = pickle.loads(pickle.dumps(LatentIndex.open(paths)))
    assert len(index) == 24 and index.counts.tolist() == [5, 12, 7] and index.views == 2 and index.shape == (8, 3, 4)
    rng = np.random.default_rng(1)
    for _ in range(10):
        chosen, view = rng.integers(24, size=9), rng.integers(2, size=9)
        got, labels = index.read(chosen, view)
        np.testing.assert_array_equal(got, moments[chosen, view])
        np.testing.assert_array_equal(labels, chosen)
    np.testing.assert_array_equal(index.moments(np.arange(24), 1), moments[:, 1])
    np.testing.assert_array_equal(index.labels([23, 0]), [23, 0])
    assert index.keys(1) == [f"key{i}" for i in range(5, 17)]
    with pytest.raises(IndexError):
        index.moments([24])


def test_bytes_are_the_same_and_few(tmp_path):
    rng = np.random.default_rng(0)
    moments, labels = rng.standard_normal((2500, 1, 8, 8, 8)).astype(np.float16), np.arange(2500)
    keys = [f"train{i:06d}" for i in range(2500)]
    for name in ("a.tar", "b.tar"):
        latent_shards.write(tmp_path / name, moments, labels, keys)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert (tmp_path / "a.tar").stat().st_size <= 1.01 * (moments.nbytes + 2500 * (8 + 11))


def test_members_are_plain_npy(tmp_path):
    import tarfile

    paths, moments = make(tmp_path)
    with tarfile.open(paths[0]) as tar:
        assert tar.getnames()[:3] == ["00000.moments.npy", "00000.label.npy", "00000.key.npy"]
        (tmp_path / "00001.moments.npy").write_bytes(tar.extractfile("00001.moments.npy").read())
    np.testing.assert_array_equal(np.load(tmp_path / "00001.moments.npy"), moments[4:5])


def test_damage_is_named(tmp_path):
    paths, _ = make(tmp_path)
    content = bytearray(paths[1].read_bytes())
    content[512:518] = b"broken"
    paths[1].write_bytes(content)
    with pytest.raises(UserError, match=r"1\.tar: member 00000\.moments\.npy is damaged"):
        LatentIndex.open(paths)
    latent_shards.write(tmp_path / "x.tar", np.zeros((2, 1, 2, 3, 3), np.float16), np.zeros(2), ["a", "b"])
    with pytest.raises(UserError, match="different shapes"):
        LatentIndex.open([paths[0], tmp_path / "x.tar"])
    with pytest.raises(ValueError, match="do not fit"):
        latent_shards.write(tmp_path / "y.tar", np.zeros((2, 1, 2, 3, 3), np.float16), np.zeros(3), ["a", "b"])
    assert not (tmp_path / "y.tar").exists()


@pytest.mark.parametrize("shape", [(8, 5), (8, 3, 4), (4, 2, 3, 5)], ids=str)
def test_latents_of_any_sides(tmp_path, shape):
    paths, moments = make(tmp_path, shape=shape)
    index = LatentIndex.open(paths)
    assert index.shape == shape and not index.unequal
    np.testing.assert_array_equal(index.moments([20, 3, 3], [1, 0, 1]), moments[[20, 3, 3], [1, 0, 1]])
    for wrong in ((8,), (8, 2, 2, 2, 2)):
        with pytest.raises(ValueError, match="do not fit"):
            latent_shards.write(tmp_path / "y.tar", np.zeros((1, 1, *wrong), np.float16), np.zeros(1), ["a"])


def test_latents_of_unequal_length(tmp_path):
    """The places of each come back; other bytes of a shard are what they were."""
    rng = np.random.default_rng(0)
    moments, lengths = rng.standard_normal((9, 1, 4, 5, 3)).astype(np.float16), rng.integers(1, 4, (9, 2))
    labels, keys = np.arange(9), [f"{i}" for i in range(9)]
    latent_shards.write(tmp_path / "a.tar", moments, labels, keys, 4, lengths)
    index = LatentIndex.open([tmp_path / "a.tar"])
    assert index.unequal
    chosen = [7, 0, 4]
    places = index.places(chosen)
    assert places.shape == (3, 5, 3) and places.dtype == bool
    for row, i in enumerate(chosen):
        assert places[row].sum() == lengths[i].prod() and places[row, : lengths[i, 0], : lengths[i, 1]].all()
    np.testing.assert_array_equal(index.moments(chosen), moments[chosen, 0])
    for bad in (lengths[:5], lengths * 0, lengths + 3, lengths[:, :1]):
        with pytest.raises(ValueError, match="expected for each latent 1 to"):
            latent_shards.write(tmp_path / "b.tar", moments, labels, keys, 4, bad)
    latent_shards.write(tmp_path / "b.tar", moments, labels, keys, 4)
    with pytest.raises(UserError, match="not all say how long latents are"):
        LatentIndex.open([tmp_path / "a.tar", tmp_path / "b.tar"])
