"""The dry run's arithmetic in words, and the cache that remote shards need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Config
from pipeline.data import sources
from pipeline.data.write_shards import Plan, write_shard
from pipeline.errors import UserError
from pipeline.planning.disk import checkpoints_kept, disk, size
from pipeline.planning.forecast import arithmetic, forecast, remote_cache
from pipeline.stages.graph import Step


def config(workers: int | str = 1, training: dict[str, Any] | None = None, **data: Any) -> Config:
    source = {"kind": "digits"}
    return Config.model_validate(
        {
            "run": {"name": "digits"},
            "data": {"source": source, **data},
            "autoencoder": {"model": {"kind": "kl"}, "training": {"steps": 10, **(training or {})}},
            "diffusion": {"backbone": {"kind": "dit"}, "training": {"steps": 10}},
            "cluster": {"workers": workers},
        }
    )


def words(made: Config) -> str:
    return arithmetic(made, made.autoencoder.training, 128)


def test_ranks_that_divide_the_lanes_run_and_idle_workers_are_named() -> None:
    assert "10 steps x 128 = 1,280 samples in 128 lanes; 2 ranks x 1 pass x 64 samples; ZeRO" in words(config(2))
    said = words(config(3))
    assert "2 ranks x 1 pass x 64 samples (1 of 3 workers stay idle" in said
    assert "a batch size of 129 in 129 lanes uses all" in said
    assert "1 rank x 4 passes x 32 samples;" in words(config(1, {"micro_batch": 32}))
    assert "ranks" not in words(config("auto"))


def test_the_disk_for_snapshots_is_counted() -> None:
    none, sizes = [Step("ingest", "", {}, None)], {"autoencoder": 10**9, "diffusion": 0}
    keys = {"steps": 1000, "half_lives": [5, 6]}
    made = disk(config(training=keys), none, sizes, 1)
    # 2 checkpoints of 12 + 4 * 2 bytes a parameter; live and two averages; the model twice
    assert (made.checkpoints, made.weights, made.snapshots, made.more) == (40e9, 12e9, 0, 0)
    assert made.model == pytest.approx(8e9, rel=0.01)
    keys |= {"average_lengths": [0.05, 0.1], "snapshot_every": 4000}  # 32 in 128,000 samples, each of 2 lengths
    made = disk(config(training=keys), none, sizes, 1)
    assert (made.checkpoints, made.weights, made.snapshots) == (56e9, 20e9, 256e9)
    assert "256 GB snapshots of averages" in str(made)
    assert disk(config(training={**keys, "save_every": 100}), none, sizes, 1).more == 28e9
    assert disk(config(training={**keys, "save_every": 1000}), none, sizes, 1).checkpoints == 28e9


def test_images_are_counted_by_storing_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all of them stored: photographs (noise) and drawings (plain) take unlike room."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, image in (
        ("noise", rng.integers(0, 256, (64, 64, 3), np.uint8)),
        ("plain", np.zeros((64, 64, 3), np.uint8)),
    ):
        (tmp_path / name).mkdir()
        for i in range(50):
            image[0, 0] = i
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
        made = config(source={"kind": "folder", "path": str(tmp_path / name)}, size=32)
        rows = sources.open_listing(made.data).rows
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        write_shard(Plan(name, 0, rows), made.data, [], tmp_path, work)
        stored = sum(file.stat().st_size for file in tmp_path.glob(f"{name}.*"))
        told = disk(made, [Step("ingest", "", {}, None)], {"autoencoder": 0, "diffusion": 0}, 10)
        assert told.images == pytest.approx(stored, rel=0.2)
        assert told.latents == 50 * 10 * 4


def test_what_is_not_known_is_not_counted_and_a_tracker_elsewhere_is_not_here() -> None:
    none, sizes = [Step("ingest", "", {}, None)], {"autoencoder": 10**6, "diffusion": 10**6}
    tars = disk(config(source={"kind": "webdataset", "path": "x/*.tar"}), none, sizes, 1)
    assert (tars.images, tars.latents) == (None, None) and "images and latents are not counted" in str(tars)
    made = config()
    away = made.model_copy(update={"tracking": made.tracking.model_copy(update={"uri": "http://x:5000"})})
    assert disk(away, none, sizes, 1).model == 8e6 < disk(made, none, sizes, 1).model


@pytest.mark.parametrize(
    ("keys", "kept", "written"),
    [
        ({"steps": 100, "save_every": 10}, 2, 10),
        ({"steps": 100, "save_every": 10, "keep": 20}, 10, 10),
        ({"steps": 100, "save_every": 30}, 2, 4),
        ({"steps": 100, "save_every": 500}, 1, 1),
        ({"steps": 100, "save_every": 10, "schedule": "wsd"}, 3, 10),  # 80, 90, 100
        ({"steps": 100, "save_every": 500, "schedule": "wsd"}, 2, 2),  # 80, 100
        ({"steps": 100, "save_every": 10, "schedule": "cosine", "warmup": 5}, 3, 11),  # 5, 90, 100
    ],
)
def test_checkpoints_that_stay(keys: dict[str, Any], kept: int, written: int) -> None:
    assert checkpoints_kept(config(training=keys).autoencoder.training) == (kept, written)


def test_sizes_in_words() -> None:
    assert [size(n) for n in (0, 123_456, 1_234_567, 999_600_000, 2.5e12)] == [
        "0 MB", "0.123 MB", "1.23 MB", "1 GB", "2.5 TB",
    ]  # fmt: skip


def test_a_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the digests of files, which a run remembers."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        Image.fromarray(np.full((32, 32, 3), i, np.uint8)).save(images / f"{i}.png")
    made = config(source={"kind": "folder", "path": str(images)})
    made = made.model_copy(update={"run": made.run.model_copy(update={"root": str(tmp_path / "root")})})
    monkeypatch.setattr("pipeline.stages.precision.resolve", lambda config, cluster: config)
    before = sorted(tmp_path.rglob("*"))
    assert "disk: about" in forecast(made)
    assert sorted(tmp_path.rglob("*")) == before
    sources.source_fingerprint(made.data, sources.digests_folder_of(made.run.root))
    assert list((tmp_path / "root" / "cache").iterdir())


@pytest.fixture
def bucket() -> str:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for i in range(5):
        memory.pipe(f"/forecast/{i}.tar", b"x" * (1_000_000 + i))
    return "memory://forecast/*.tar"


def test_a_cache_that_is_too_small_is_refused(tmp_path: Path, bucket: str) -> None:
    def remote(gigabytes: float) -> Config:
        made = config(source={"kind": "webdataset", "path": bucket}, cache={"gigabytes": gigabytes})
        return made.model_copy(update={"run": made.run.model_copy(update={"root": str(tmp_path)})})

    (line,) = remote_cache(remote(0.006), trained=False)
    assert "5 of 5 may be open at once x 0.001 GB (the largest) = 0.005 GB of cache a node, of 0.006" in line
    with pytest.raises(UserError, match=r"`data.cache.gigabytes` is 0.004, but remote shards: 5 of 5"):
        remote_cache(remote(0.004), trained=False)
    assert "1 of 5" in remote_cache(remote(0.004), trained=True)[0]
    assert remote_cache(config(), trained=False) == []
