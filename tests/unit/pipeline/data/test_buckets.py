"""Buckets: which shapes there are and which image goes where; the order of batches; what reads and what refuses."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline.cluster.inline import Inline
from pipeline.data import loader, transforms
from pipeline.data.balance import training_order
from pipeline.data.buckets import BucketOrder, bucket_of, bucket_seed, check_filled, parsed, usual
from pipeline.data.index import Index, read_image
from pipeline.data.order import Order
from pipeline.errors import UserError
from pipeline.schema.data import Buckets, Data
from pipeline.stages import ingest

SIZES = [[40, 40], [60, 34], [32, 48], [64, 36]]  # width, height
SHAPES = ((40, 24), (32, 32), (24, 40))  # of 32 x 32 pixels in multiples of 8, up to 2 : 1


# ---- shapes ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 12), st.sampled_from([8, 16, 32]), st.floats(1, 4))
def test_shapes_are_multiples_near_the_area_and_none_can_grow(times: int, multiple: int, ratio: float) -> None:
    size = times * multiple
    shapes = Buckets(multiple=multiple, max_ratio=ratio).near(size)
    assert (size, size) in shapes and {(w, h) for h, w in shapes} == set(shapes)
    assert [w / h for h, w in shapes] == sorted({w / h for h, w in shapes})
    for h, w in shapes:
        assert h % multiple == w % multiple == 0 and h * w <= size * size and max(h, w) <= ratio * min(h, w)
        assert (h + multiple) * w > size * size and h * (w + multiple) > size * size


def test_the_table_of_64_pixels() -> None:
    assert Buckets().near(64) == ((80, 48), (64, 64), (48, 80))
    assert Buckets(multiple=8).near(32) == SHAPES
    assert Buckets(shapes=((24, 40), (40, 24))).near(32) == ((40, 24), (24, 40))
    assert Data(source={"kind": "digits"}, size=48).shapes == ((48, 48),)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"shapes": [[32, 32], [64, 64]]}, "have the same ratio of sides"),
        ({"multiple": 24}, "`buckets.multiple` 24 does not divide `size` 32"),
        ({"shapes": []}, "at least 1 item"),
    ],
)
def test_shapes_that_cannot_be_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Data(source={"kind": "digits"}, size=32, buckets=given)
    with pytest.raises(ValidationError, match="128 at most; give a larger `multiple`"):
        Data(source={"kind": "digits"}, size=2048, buckets={"multiple": 8, "max_ratio": 8})


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 500))
def test_an_image_goes_to_the_nearest_ratio(height: int, width: int) -> None:
    def distance(shape: tuple[int, int]) -> Fraction:  # of two ratios, as the larger over the smaller
        ours, theirs = Fraction(width, height), Fraction(shape[1], shape[0])
        return max(ours / theirs, theirs / ours)

    found = distance(SHAPES[bucket_of(height, width, SHAPES)])
    assert float(found) == pytest.approx(float(min(map(distance, SHAPES))), rel=1e-12)


def test_the_usual_bucket_is_the_square_or_the_fullest() -> None:
    assert usual(SHAPES, [5, 1, 9], 32) == 1 and usual(SHAPES, [5, 0, 9], 32) == 2 and usual(SHAPES, [5, 1, 9], 64) == 2
    assert parsed("48x80") == (48, 80)
    with pytest.raises(UserError, match=r"^--size 48: expected HEIGHTxWIDTH"):
        parsed("48")


def test_a_bucket_with_too_few_images_is_named_with_the_shapes_that_would_do() -> None:
    check_filled(SHAPES, [0, 16, 90], [0, 0, 9], 16)
    with pytest.raises(UserError) as caught:
        check_filled(SHAPES, [7, 16, 90], [3, 0, 9], 16)
    assert str(caught.value) == (
        "`data.buckets`: the bucket 40x24 has 7 training images, fewer than the 16 lanes of a batch: set "
        "data.buckets.shapes=[[32, 32], [24, 40]], a smaller `max_ratio` or batch size, or fewer `data.lanes`"
    )
    with pytest.raises(UserError, match=r"bucket 40x24 has 0 training images.*\(and 1 more buckets\)"):
        check_filled(SHAPES, [0, 8, 90], [3, 0, 9], 16)


# ---- order -----------------------------------------------------------------------------------------------------------


def order(counts: list[int], batch: int, lanes: int, seed: int = 3) -> BucketOrder:
    orders = [Order([n], batch, lanes, bucket_seed(seed, (n, b))) if n else None for b, n in enumerate(counts)]
    return BucketOrder(orders, batch, lanes, seed)


@st.composite
def orders(draw: Any) -> BucketOrder:
    lanes = draw(st.integers(1, 6))
    batch = lanes * draw(st.integers(1, 4))
    filled = st.one_of(st.just(0), st.integers(lanes, 90))
    counts = draw(st.lists(filled, min_size=1, max_size=5).filter(any))
    return order(counts, batch, lanes, draw(st.integers(0, 1000)))


@settings(deadline=None)
@given(orders(), st.integers(1, 8))
def test_shares_are_exact_to_a_batch_at_the_end_of_each_outer_epoch(found: BucketOrder, epochs: int) -> None:
    for epoch in range(epochs + 1):
        had = found.batches(epoch)
        for count, weight in zip(had, found.weights, strict=True):
            assert abs(count - Fraction(epoch * weight, found.batch_size)) < 1
    buckets = [found.bucket(n * found.batch_size) for n in range(sum(found.batches(epochs)))]
    assert [buckets.count(b) for b in range(len(found.weights))] == found.batches(epochs)


@settings(deadline=None)
@given(orders(), st.integers(0, 10**12))
def test_batches_of_a_bucket_are_its_own_order_one_after_the_other(found: BucketOrder, n: int) -> None:
    """From any batch on none is left out, none comes twice: a bucket's samples come as its `Order` has them."""
    places = [found._place(position * found.batch_size) for position in range(n, n + 50)]
    for bucket in {bucket for bucket, _ in places}:
        numbers = [number for other, number in places if other == bucket]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    before = sum(found.batches(found._epoch(n)))
    assert before <= n < sum(found.batches(found._epoch(n) + 1))


@settings(deadline=None)
@given(orders(), st.integers(0, 10**9), st.data())
def test_resume_and_world_size_change_nothing(found: BucketOrder, n: int, data: st.DataObject) -> None:
    world = data.draw(st.sampled_from([w for w in range(1, found.lanes + 1) if found.lanes % w == 0]))
    positions = [(n + i) * found.batch_size for i in range(4)]
    batches = [found.batch(position) for position in positions]
    fresh = BucketOrder(
        [o and Order([o.samples], o.batch_size, o.lanes, o.seed) for o in found.orders], found.batch_size,
        found.lanes, 0,
    )  # fmt: skip
    fresh._key, fresh._offsets = found._key, found._offsets  # as made from the same seed
    for position, batch in reversed(list(zip(positions, batches, strict=True))):
        parts = [fresh.share(position, rank, world) for rank in range(world)]
        np.testing.assert_array_equal(np.concatenate(parts), batch)
        assert fresh.bucket(position) == found.bucket(position)


@settings(deadline=None, max_examples=50)
@given(orders())
def test_every_sample_of_a_bucket_is_met_equally_often(found: BucketOrder) -> None:
    """A bucket's epoch of floor(N/L) L samples has no sample twice; the N mod L left over are others each time."""
    streams: dict[int, list[int]] = {bucket: [] for bucket in range(len(found.weights))}
    for n in range(sum(found.batches(12))):
        position = n * found.batch_size
        streams[found.bucket(position)].append(n)
    for bucket, own in enumerate(found.orders):
        if own is None:
            assert not streams[bucket]
            continue
        lanes = np.concatenate([[np.empty(0, np.int64)], *(
            [found.batch(n * found.batch_size).reshape(found.lanes, -1).T.reshape(-1)] for n in streams[bucket]
        )], axis=None).astype(np.int64)  # fmt: skip  # in the order in which lanes step
        length = own.stretch * found.lanes
        for start in range(0, len(lanes) - length + 1, length):
            assert len(set(lanes[start : start + length].tolist())) == length


def test_batches_of_one_bucket_do_not_bunch() -> None:
    """Neighbours of one bucket are as frequent as in a random sequence, not more."""
    found = order([640, 320, 320], 16, 16)  # in an epoch 40, 20 and 20 batches
    buckets = np.array([found.bucket(n * 16) for n in range(4000)])
    same = (buckets[1:] == buckets[:-1]).mean()
    assert same == pytest.approx(0.5**2 + 2 * 0.25**2, abs=0.03)  # sd 0.008
    first = [tuple(buckets[e * 80 : (e + 1) * 80]) for e in range(40)]
    assert len(set(first)) == 40


def test_another_seed_is_another_order_and_another_batch_size_is_refused() -> None:
    first, second = order([60, 60], 4, 4, 0), order([60, 60], 4, 4, 1)
    assert [first.bucket(n * 4) for n in range(30)] != [second.bucket(n * 4) for n in range(30)]
    assert order([60, 60], 8, 4, 0).batch(16).shape == (8,)  # a position that fits is one of that batch size
    with pytest.raises(UserError, match=r"^position 12 is not a multiple of the batch size 8: with `data.buckets`"):
        order([60, 60], 8, 4, 0).batch(12)


# ---- images ----------------------------------------------------------------------------------------------------------


def made(folder: Path, name: str = "out", **more: Any) -> tuple[Data, dict[str, Any]]:
    """A data set in `folder`/`name`, and its report."""
    section = {
        "source": {"kind": "shapes", "count": 160, "sizes": SIZES, "seed": 1},
        "size": 32,
        "shard_size": 50,
        "split": {"val_fraction": 0.25},
        "buckets": {"multiple": 8},
        **more,
    }
    data = Data(**section)
    config = SimpleNamespace(run=SimpleNamespace(root=str(folder)), data=data)
    writer = SimpleNamespace(path=folder / name, work=folder / name / "work")
    return data, ingest.run(config, {}, writer, Inline(), None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Data, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("buckets")
    augment = {"crop": "random", "flip": True}
    return (folder / "out", *made(folder, augment=augment))


def test_rows_lie_by_split_and_bucket_and_each_bucket_is_an_index(images: Any) -> None:
    folder, data, report = images
    assert data.shapes == SHAPES
    whole = {split: Index.open(folder, split) for split in ("train", "val")}
    wanted = {tuple(row["shape"]): row for row in report["buckets"]}
    for split, index in whole.items():
        assert [len(part) for part in index.parts] == [wanted[shape][split] for shape in SHAPES]
        assert sorted(index.key(i) for i in range(len(index))) == sorted(
            part.key(i) for part in index.parts for i in range(len(part))
        )
        for shape, part in zip(SHAPES, index.parts, strict=True):
            for i in range(len(part)):
                factors = part.meta(i)
                assert SHAPES[bucket_of(factors["height"], factors["width"], SHAPES)] == shape == part.shape_of(i)
                assert read_image(part, i, data).shape == (3, *shape)
            assert sorted(part.labels().tolist()) == sorted(part.label(i) for i in range(len(part)))
        for i in range(len(index)):
            assert read_image(index, i, data).shape[1:] == index.shape_of(i)
        digests = {part.shard_digest(0) for part in index.parts} | {index.shard_digest(0)}
        assert len(digests) == len(SHAPES) + 1


def test_images_of_one_bucket_are_kept_with_a_margin_and_never_resized_again(images: Any) -> None:
    folder, data, _ = images
    for part in Index.open(folder, "train").parts:
        height, width = (transforms.stored_side(side, True) for side in part.shape_of(0))
        for i in range(len(part)):
            with Image.open(io.BytesIO(part.read(i))) as image:
                assert image.width >= width and image.height >= height
                assert image.width == width or image.height == height
                assert transforms.prepare(image, data, part.shape_of(i)) is image


def test_a_tar_that_stays_where_it_is_has_the_same_buckets(images: Any, tmp_path: Path) -> None:
    folder, data, report = images
    names = json.dumps([str(tar) for tar in folder.glob("*.tar")])
    assert len(json.loads(names)) == 4
    source = {"kind": "webdataset", "path": str(folder / "train-*.tar"), "val": str(folder / "val-*.tar")}
    again, found = made(tmp_path, source=source, split={"by": "shards"}, augment={"crop": "random", "flip": True})
    assert found["buckets"] == report["buckets"]  # the margin has kept the ratios
    one, other = (Index.open(place, "train").parts for place in (folder, tmp_path / "out"))
    for ours, theirs in zip(one, other, strict=True):
        assert [ours.key(i) for i in range(len(ours))] == [theirs.key(i) for i in range(len(theirs))]
        np.testing.assert_array_equal(read_image(ours, 3, data), read_image(theirs, 3, again))


def test_without_buckets_sidecar_index_and_recipe_are_as_before(tmp_path: Path) -> None:
    _, report = made(tmp_path, buckets=None)
    rows = np.load(next((tmp_path / "out").glob("train-*.rows.npy")))
    assert rows.dtype.names == ("offset", "length", "label", "split", "meta_offset", "meta_length", "key")
    table = json.loads((tmp_path / "out" / "index.json").read_text())
    assert set(table) == {"version", "classes", "shards"} and "buckets" not in table["shards"][0]
    assert "buckets" not in report and "buckets" not in ingest.headline(report)
    index = Index.open(tmp_path / "out", "train")
    assert index.parts == [index] and index.shape_of(0) is None


def test_covering_a_shape_keeps_the_middle_or_the_whole() -> None:
    ramp = np.tile(np.arange(90, dtype=np.uint8), (30, 1))  # 30 x 90, a column is its number
    image = Image.fromarray(ramp)
    middle = transforms.to_array(transforms.cover(image, (30, 50), whole=False))[0]
    np.testing.assert_array_equal(middle, ramp[:, 20:70])
    assert transforms.cover(image, (15, 30), whole=True).size == (45, 15)
    assert transforms.cover(image, (10, 60), whole=True).size == (60, 20)
    square = transforms.to_array(transforms.cover(image, (16, 16), whole=False))
    np.testing.assert_array_equal(square, transforms.to_array(transforms.shrink(image, 16, square=True)))


# ---- batches ---------------------------------------------------------------------------------------------------------

LATENT = (4, 8, 8)


def stream(images: Any, world: int = 1, rank: int = 0, position: int = 0, **more: Any) -> Any:
    folder, data, _ = images
    data = data.model_copy(update=more)
    index = Index.open(folder, "train")
    found = training_order(index, data, index.classes, 8, 5)
    return loader.image_batches(index, found, data, 5, rank, world, position, LATENT)


def test_a_batch_is_of_one_shape_whatever_the_world_and_where_it_begins(images: Any) -> None:
    batches = list(islice(stream(images), 24))
    shapes = [tuple(batch["images"].shape[2:]) for batch in batches]
    assert set(shapes) == set(SHAPES)
    for (height, width), batch in zip(shapes, batches, strict=True):
        assert batch["images"].shape == (8, 3, height, width)
        assert batch["noise"].shape == (8, 4, height // 4, width // 4)
    for key in ("images", "noise", "index"):
        assert torch.equal(next(stream(images, position=17 * 8))[key], batches[17][key])
        ranks = [next(stream(images, 4, rank, 17 * 8))[key] for rank in range(4)]
        assert torch.equal(torch.cat(ranks), batches[17][key])
    reader = next(stream(images, position=17 * 8, loader_workers=1))
    assert torch.equal(reader["images"], batches[17]["images"])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_validation_meets_each_sample_once_bucket_by_bucket(images: Any, world: int) -> None:
    folder, data, _ = images
    index = Index.open(folder, "val")
    ranks = [list(loader.image_validation(index, 8, data, 5, rank, world, LATENT)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    one = [batch["noise"] for batch in loader.image_validation(index, 8, data, 5, 0, 1, LATENT)]
    assert len({noise[0].flatten()[0].item() for noise in one}) == len(one)  # each sample has its own draws
    met = set()
    for step in zip(*ranks, strict=True):
        assert len({batch["images"].shape for batch in step}) == 1
        for batch in step:
            shape = tuple(batch["images"].shape[2:])
            met |= {(shape, int(i)) for i in batch["index"][batch["weight"] > 0]}
    assert len(met) == len(index) == sum(int((b["weight"] > 0).sum()) for batches in ranks for b in batches)


def test_a_balance_holds_over_all_buckets(images: Any) -> None:
    """Each bucket gets places by the share of a class in the whole set."""
    folder, data, _ = images
    index = Index.open(folder, "train")
    balanced = data.model_copy(update={"balance": Data.model_validate(
        {"source": {"kind": "digits"}, "balance": {"weights": {"circle": 3, "square": 0}}}).balance})  # fmt: skip
    found = training_order(index, balanced, index.classes, 8, 5)
    met = np.zeros(3)
    for n in range(600):
        labels = index.parts[found.bucket(n * 8)].labels()
        met += np.bincount(labels[found.batch(n * 8)], minlength=3)
    counts = np.bincount(index.labels(), minlength=3) * np.array([3, 0, 1])
    np.testing.assert_allclose(met / met.sum(), counts / counts.sum(), atol=0.03)  # a bucket's places are rounded


def test_too_few_images_for_the_lanes_is_one_line(images: Any) -> None:
    folder, data, _ = images
    index = Index.open(folder, "train")
    with pytest.raises(UserError, match=r"^`data.buckets`: the bucket \d\dx\d\d has \d+ training images, fewer than"):
        training_order(index, data, index.classes, 64, 5)
