"""The dry run's arithmetic in words, and the cache that remote shards need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.planning.forecast import arithmetic, disk, remote_cache
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
    assert "10 steps x 128 = 1,280 samples in 128 lanes; 2 ranks x 1 x 64 samples; ZeRO" in words(config(2))
    said = words(config(3))
    assert "2 ranks x 1 x 64 samples (1 of 3 workers stay idle" in said
    assert "a batch size of 129 in 129 lanes uses all" in said
    assert "1 ranks x 4 x 32 samples;" in words(config(1, {"micro_batch": 32}))
    assert "ranks" not in words(config("auto"))


def test_the_disk_for_snapshots_is_said() -> None:
    none, sizes = [Step("ingest", "", {}, None)], {"autoencoder": 10**9, "diffusion": 0}
    keys = {"steps": 1000, "half_lives": [5, 6]}
    # 3 checkpoints of 12 + 4 * 2 bytes a parameter, live and two averages
    assert disk(config(training=keys), none, sizes, 1) == "72.00 GB for checkpoints and weights"
    keys |= {"average_lengths": [0.05, 0.1], "snapshot_every": 4000}  # 32 in 128,000 samples, each of 2 lengths
    assert disk(config(training=keys), none, sizes, 1) == (
        "104.00 GB for checkpoints and weights, 256.00 GB for snapshots of averages"
    )


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
