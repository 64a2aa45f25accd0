"""The batch at a position is the same for any world size, number of readers and accumulation; corrupt samples too."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cluster.inline import Inline
from pipeline.data import cache, condition_shards, latent_shards, loader, map_shards, maps
from pipeline.data.condition_values import null_rows
from pipeline.data.index import Index, read_image, read_pixels
from pipeline.data.latent_shards import LatentIndex
from pipeline.data.order import Order
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.schema.data import Cache, Data
from pipeline.stages import ingest

LATENT = (2, 3, 3)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 255, (90, 12, 14), np.uint8)
    np.savez(folder / "a.npz", images=pixels, labels=np.arange(90) % 3)
    data = make_data(folder)
    config = SimpleNamespace(run=SimpleNamespace(root=str(folder)), data=data)
    ingest.run(config, {}, SimpleNamespace(path=folder / "out", work=folder / "out" / "work"), Inline(), None)
    return folder


def make_data(folder, **more):
    source = {"kind": "arrays", "path": str(folder / "a.npz")}
    augment = {"crop": "random", "flip": True}
    return Data(source=source, size=8, channels=1, shard_size=20, split={"val_fraction": 0.2}, augment=augment, **more)


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    rng = np.random.default_rng(0)
    for shard in range(3):
        moments = rng.standard_normal((30, 2, 4, 3, 3)).astype(np.float16)
        latent_shards.write(folder / f"{shard}.tar", moments, np.arange(30) % 5 - 1, [f"{i}" for i in range(30)])
    return LatentIndex.open(sorted(folder.glob("*.tar")))


def image_stream(folder, world=1, rank=0, position=0, **more):
    index, data = Index.open(folder / "out", "train"), make_data(folder, **more)
    return loader.image_batches(index, Order(index.counts, 16, 16, 5), data, 5, rank, world, position, LATENT)


def latent_stream(index, world=1, rank=0, position=0, drop=0.2, **more):
    data = Data(source={"kind": "digits"}, **more)
    return loader.latent_batches(index, Order(index.counts, 16, 16, 5), data, 5, rank, world, position, drop, 4)


@pytest.fixture(scope="module")
def conditioned(latents, tmp_path_factory):
    """The latents, and what their samples are told: an attribute, one of two captions, and a map."""
    pool = tmp_path_factory.mktemp("conditions")
    attributes = {"age": {"kind": "continuous", "column": "age", "range": [0, 99]}}
    asked = {"attributes": attributes, "caption": {"tokens": 8}}
    metas = [{"age": i, "caption": [f"a{i}", f"b{i}"], "__key__": str(i)} for i in range(90)]
    records = [condition_shards.write(pool, asked, metas[first : first + 30]) for first in (0, 30, 60)]
    spatial = {"mask": {"channels": 1, "side": 3, "background": [255, 255, 255]}}
    shards = [{"mask": [picture(i) for i in range(first, first + 30)]} for first in (0, 30, 60)]
    files = [map_shards.write(pool, spatial, pictures, 100) for pictures in shards]
    index = condition_shards.ConditionIndex(pool, records, attributes, asked["caption"], spatial=spatial, maps=files)
    drops = {"age": 0.3, "caption": 0.2, "class": 0.1, "mask": 0.3}
    null = null_rows(attributes, asked["caption"]) | maps.null_rows(spatial)
    return latents, loader.Told([index], null, drops, (False, True))


def picture(i):
    """Of every seventh sample none, else one of three columns of which only the left one is not black."""
    content = b"P5 3 3 255 " + bytes([i + 1, 0, 0] * 3)
    return None if i % 7 == 0 else map_shards.Picture(f"{i}", "pgm", lambda: content)


def told_stream(source, world=1, rank=0, position=0, drop=0.2, drops=None, **more):
    (index, told), data = source, Data(source={"kind": "digits"}, **more)
    told = told if drops is None else told._replace(drops=drops)
    return loader.latent_batches(index, Order(index.counts, 16, 16, 5), data, 5, rank, world, position, drop, 4, told)


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(second[name])), name


@pytest.mark.parametrize("world", [2, 4, 8])
def test_any_world_size_reads_the_same_batches(images, latents, conditioned, world):
    for make, source in ((image_stream, images), (latent_stream, latents), (told_stream, conditioned)):
        whole = list(islice(make(source), 8))
        ranks = [list(islice(make(source, world, rank), 8)) for rank in range(world)]
        for step, batch in enumerate(whole):
            joined = {
                name: torch.cat([ranks[r][step][name] for r in range(world)])
                if name not in ("position", "lost")
                else value
                for name, value in batch.items()
            }
            same(batch, joined)


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_readers_gives_the_same_batches(images, latents, conditioned, workers):
    for make, source in ((image_stream, images), (latent_stream, latents), (told_stream, conditioned)):
        for first, second in islice(zip(make(source), make(source, loader_workers=workers), strict=False), 10):
            same(first, second)


def test_a_stream_goes_on_at_its_position(images, latents, conditioned):
    for make, source in ((image_stream, images), (latent_stream, latents), (told_stream, conditioned)):
        stream = list(islice(make(source), 12))
        same(stream[11], next(make(source, position=11 * 16)))
        assert stream[11]["position"] == 11 * 16


def test_latent_batches_hold_what_they_say(latents):
    batches = list(islice(latent_stream(latents, drop=0.5), 30))
    label = torch.cat([b["label"] for b in batches])
    index = torch.cat([b["index"] for b in batches]).numpy()
    true = latents.labels(index)
    assert ((label.numpy() == true) | (label.numpy() == 4)).all()
    assert (label[true == -1] == 4).all() and 0.4 < (label.numpy() == 4)[true >= 0].mean() < 0.6
    moments = torch.cat([b["moments"] for b in batches]).numpy()
    views = [(moments == latents.moments(index, v)).all((1, 2, 3)) for v in (0, 1)]
    assert (views[0] ^ views[1]).all() and 0.4 < views[0].mean() < 0.6
    assert batches[0]["moments"].dtype == torch.float32 and batches[0]["u"].dtype == torch.float64
    assert batches[0]["noise"].shape == batches[0]["posterior"].shape == (16, 2, 3, 3)


def test_maps_are_mirrored_with_the_view_of_the_latents_and_withheld_alone(conditioned):
    latents, told = conditioned
    batches = list(islice(told_stream(conditioned, drop=0.0), 60))
    index, moments, mask = (torch.cat([b[n] for b in batches]).numpy() for n in ("index", "moments", "condition/mask"))
    flipped = (moments == latents.moments(index, 1)).all((1, 2, 3))
    given = mask[:, 1].all((1, 2))
    assert not mask[~given].any() and not given[index % 7 == 0].any()
    assert 0.25 < 1 - given[index % 7 > 0].mean() < 0.35  # its share
    wanted = np.full((len(index), 3, 3), -1, np.float32)
    wanted[np.arange(len(index)), :, np.where(flipped, 2, 0)] = ((index + 1) / np.float32(127.5) - 1)[:, None]
    assert np.allclose(mask[given, 0], wanted[given], atol=1e-6) and 0.4 < flipped[given].mean() < 0.6
    whole = loader.latent_validation(latents, 30, Data(source={"kind": "digits"}), 5, 0, 1, told=told)
    assert all((b["condition/mask"][:, 0, :, 1:] <= 0).all() for b in whole)  # as they are, and none withheld


def test_conditions_are_those_of_the_samples_or_null(conditioned):
    batches = list(islice(told_stream(conditioned, drop=0.2), 60))
    names = ("index", "condition/age", "condition/caption")
    index, age, said = (torch.cat([b[name] for b in batches]).numpy() for name in names)
    untold = conditioned[1].null
    assert np.array_equal(np.where(age == -1, np.float32(index / 99), age), np.float32(index / 99))
    without = (said == untold["caption"]).all(1)
    texts = [bytes((row[1:][row[1:] > 0] - 1).astype(np.uint8)).decode() for row in said]
    assert all(text[1:] == str(i) for text, i in zip(np.array(texts)[~without], index[~without], strict=True))
    second = np.mean([text[0] == "b" for text in np.array(texts)[~without]])
    # all together with probability 0.2, the age alone 0.3, the caption alone 0.2
    assert 0.39 < (age == -1).mean() < 0.49 and 0.31 < without.mean() < 0.41 and 0.45 < second < 0.55
    assert 0.22 < ((age == -1) & without).mean() < 0.30  # 0.2 + 0.8 * 0.3 * 0.2, not the product of the shares


def test_a_condition_more_changes_no_draw_of_the_others(latents, conditioned):
    plain, told = latent_stream(latents), told_stream(conditioned, drops={"age": 0.3, "caption": 0.2})
    other = told_stream(conditioned, drops={"caption": 0.2})
    for first, second, third in islice(zip(plain, told, other, strict=False), 10):
        same(first, {name: value for name, value in second.items() if not name.startswith("condition/")})
        assert torch.equal(second["condition/caption"], third["condition/caption"])


def test_validation_withholds_nothing_and_takes_the_first_caption(conditioned):
    latents, told = conditioned
    batches = list(loader.latent_validation(latents, 16, None, 5, 0, 1, 4, told))
    for batch in batches:
        assert torch.equal(batch["condition/age"], (batch["index"] / 99).float())
        assert (batch["condition/caption"][:, 1] == ord("a") + 1).all()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_validation_meets_each_sample_once_whatever_the_world(images, latents, world):
    index, data = Index.open(images / "out", "val"), make_data(images)
    ways = [
        (len(index), lambda r, w: loader.image_validation(index, 8, data, 5, r, w, LATENT)),
        (len(latents), lambda r, w: loader.latent_validation(latents, 8, data, 5, r, w)),
    ]
    for samples, stream in ways:
        ranks = [list(stream(rank, world)) for rank in range(world)]
        assert len({len(batches) for batches in ranks}) == 1
        assert len({b["index"].shape for batches in ranks for b in batches}) == 1
        met = torch.cat([b["index"][b["weight"] > 0] for batches in ranks for b in batches])
        assert sorted(met.tolist()) == list(range(samples))
        one = {int(i): b["noise"][n] for b in stream(0, 1) for n, i in enumerate(b["index"])}
        for batch in (b for batches in ranks for b in batches):
            assert all(torch.equal(noise, one[int(i)]) for noise, i in zip(batch["noise"], batch["index"], strict=True))


def test_validation_times_are_spread_evenly(latents):
    u = torch.cat([b["u"][b["weight"] > 0] for b in loader.latent_validation(latents, 16, None, 0, 0, 1)]).numpy()
    gap = np.abs(np.sort(u) - (np.arange(len(u)) + 0.5) / len(u)).max()
    assert gap < 3 / len(u)  # of independent draws: about 1 / sqrt(n)


def test_crops_and_flips_move(images):
    index = Index.open(images / "out", "train")
    found = {}
    for batch in islice(image_stream(images), 20):
        for i, image in zip(batch["index"].tolist(), batch["images"], strict=True):
            found.setdefault(i, set()).add(image.numpy().tobytes())
    assert len(found) == len(index) and np.mean([len(v) for v in found.values()]) > 2


@pytest.fixture
def damaged(images, tmp_path):
    """A copy of the artifact with one sample of the second shard overwritten; gives the folder and the sample."""
    shutil.copytree(images, tmp_path / "copy")
    index = Index.open(tmp_path / "copy" / "out", "train")
    sample = index.samples_of(1)[-1]
    shard, row = index.locate(sample)
    place = np.load(index.folder / f"{index._names[shard]}.rows.npy")[row]
    with open(index.folder / index._locations[shard], "r+b") as file:
        file.seek(int(place["offset"]))
        file.write(b"\0" * int(place["length"]))
    return tmp_path / "copy", sample


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_sample_is_one_line_that_names_it(damaged, workers):
    folder, _ = damaged
    with pytest.raises(UserError, match=r"shard train-00001\.tar, member 0000\d+: undecodable") as caught:
        list(islice(image_stream(folder, loader_workers=workers), 20))
    assert "\n" not in str(caught.value)


def test_a_corrupt_sample_is_replaced_and_counted(damaged):
    folder, sample = damaged
    index = Index.open(folder / "out", "train")
    for batch in islice(image_stream(folder, on_corrupt="skip"), 10):
        assert batch["skipped"].tolist() == (batch["index"] == sample).long().tolist()
        assert [key for key, _ in batch["lost"]] == [index.key(sample)] * int(batch["skipped"].sum())
    skip = make_data(folder, on_corrupt="skip")
    pixels, other, why = read_pixels(index, sample, skip)
    assert other != sample and "undecodable" in why
    np.testing.assert_array_equal(pixels, read_pixels(index, other, skip).pixels)


def test_samples_that_are_left_out_and_those_of_lost_shards_are_replaced_alike(damaged):
    """A truncated and a missing shard; the same batches as from whole shards with these samples named."""
    folder, _ = damaged
    index = Index.open(folder / "out", "train")
    rows = np.load(index.folder / f"{index._names[0]}.rows.npy")
    cut = int(rows["offset"][len(rows) // 2]) + 1
    shutil.copytree(folder, folder.with_name("whole"))
    tar = index.folder / index._locations[0]
    os.truncate(tar, cut)
    (index.folder / index._locations[1]).unlink()
    with pytest.raises(UserError, match=r"missing or empty|shorter than when it was indexed"):
        list(islice(image_stream(folder), 20))
    got = list(islice(image_stream(folder, on_corrupt="skip"), 20))
    lost = {key: why for batch in got for key, why in batch["lost"]}
    gone = [index.key(i) for i in index.samples_of(1)]
    gone += [index.key(i) for i in index.samples_of(0) if rows["offset"][i] + rows["length"][i] > cut]
    assert set(lost) == set(gone)
    names = folder / "names.txt"
    names.write_text("\n".join(gone))
    want = islice(image_stream(folder.with_name("whole"), on_corrupt="skip", leave_out=str(names)), 20)
    for one, other in zip(want, got, strict=True):
        assert torch.equal(one["images"], other["images"]) and torch.equal(one["skipped"], other["skipped"])


def test_a_corrupt_image_is_named_wherever_whole_ones_are_expected(damaged):
    folder, sample = damaged
    index = Index.open(folder / "out", "train")
    assert read_image(index, 0, make_data(folder)).shape == (1, 8, 8)
    with pytest.raises(UserError, match=r"shard train-00001\.tar, member 0000\d+: undecodable.*--rebuild ingest"):
        read_image(index, sample, make_data(folder))


# ---- remote shards ---------------------------------------------------------------------------------------------------


def test_a_remote_file_that_changed_is_copied_again_and_one_that_did_not_is_not(tmp_path, monkeypatch):
    import fsspec

    memory, address, kept = fsspec.filesystem("memory"), "memory://changing/a.tar", Cache(path=str(tmp_path))
    memory.pipe("/changing/a.tar", b"first")
    assert cache.local_copy(address, None, kept, "a.tar:5:one").read_bytes() == b"first"
    memory.pipe("/changing/a.tar", b"other")
    other = cache.local_copy(address, None, kept, "a.tar:5:two")
    assert other.read_bytes() == b"other" and other.stem == hashlib.sha256(b"other").hexdigest()
    assert len(list(tmp_path.glob("*.tar"))) == 2 and not list(tmp_path.glob("*.new*"))
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_copy", lambda *_: pytest.fail("copied again"))
        assert cache.local_copy(address, None, kept, "a.tar:5:two") == other
        assert cache.local_copy(address, other.stem, kept) == other  # known by its digest: as training asks for it
    other.unlink()  # as if it had been evicted
    assert cache.local_copy(address, None, kept, "a.tar:5:two").read_bytes() == b"other"


def test_remote_shards_go_through_a_bounded_cache(images, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in (images / "out").glob("train-*.tar"):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    data = Data(
        source={"kind": "webdataset", "path": "memory://bucket/train-*.tar"},
        size=8,
        channels=1,
        split={"val_fraction": 0.5},
        cache={"path": str(tmp_path / "cache"), "gigabytes": 6e-5},
    )
    config = SimpleNamespace(run=SimpleNamespace(root=str(tmp_path)), data=data)
    recipe = ingest.recipe(config, tmp_path)
    summary = ingest.run(
        config, {}, SimpleNamespace(path=tmp_path / "out", work=tmp_path / "out" / "work"), Inline(), None
    )
    assert ingest.recipe(config, tmp_path) == recipe
    index = Index.open(tmp_path / "out", "train", data.cache)
    assert sum(summary["images"].values()) == len(Index.open(images / "out", "train")) > len(index)
    assert all(Image.open(io.BytesIO(index.read(i))).size[0] >= 8 for i in range(len(index)))
    held = list((tmp_path / "cache").glob("*.tar"))
    assert 0 < sum(p.stat().st_size for p in held) <= 60_000 < summary["bytes"]
    sha256 = [shard["sha256"] for shard in read_json(tmp_path / "out" / "index.json")["shards"]]
    assert {p.stem for p in held} <= set(sha256)  # ingest's own copies serve training
    memory.pipe("/bucket/train-00000.tar", b"changed")
    with pytest.raises(UserError, match="changed since it was indexed"):
        cache.local_copy("memory://bucket/train-00000.tar", "0" * 64, Cache(path=str(tmp_path / "other")))
    with pytest.raises(UserError, match="cannot be copied"):
        cache.local_copy("memory://bucket/no.tar", None, data.cache)
    with pytest.raises(UserError, match="raise it"):
        cache.local_copy("memory://bucket/train-00001.tar", None, Cache(path=str(tmp_path / "small"), gigabytes=1e-6))


@pytest.mark.parametrize("sides", [(5,), (2, 3, 2)], ids=str)
def test_latents_of_other_sides_and_of_unequal_length(tmp_path, sides):
    """Draws in the latents' shape; which places are there comes with each sample, in validation too."""
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(1, side + 1, (48, 1)) for side in sides], axis=1)
    moments = rng.standard_normal((48, 1, 4, *sides)).astype(np.float16)
    latent_shards.write(tmp_path / "0.tar", moments, np.arange(48) % 4, [f"{i}" for i in range(48)], 16, lengths)
    index = LatentIndex.open([tmp_path / "0.tar"])
    whole = next(latent_stream(index))
    assert whole["moments"].shape == (16, 4, *sides)
    assert whole["noise"].shape == whole["posterior"].shape == (16, 2, *sides)
    places = loader.told_in(whole)["/places"]
    assert places.dtype == torch.bool
    assert torch.equal(places, torch.from_numpy(latent_shards.places(lengths[whole["index"]], sides)))
    parts = [next(latent_stream(index, 4, rank)) for rank in range(4)]
    assert torch.equal(torch.cat([loader.told_in(part)["/places"] for part in parts]), places)
    data = Data(source={"kind": "digits"})
    batches = list(loader.latent_validation(index, 16, data, 5, 0, 1))
    assert sum(int(loader.told_in(batch)["/places"].sum()) for batch in batches) == lengths.prod(1).sum()
