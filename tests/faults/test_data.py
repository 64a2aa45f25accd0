"""Tars that are damaged after they were indexed, and `data.on_corrupt: skip`: exactly what cannot be read is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipeline.data import shards

from .conftest import CONFIG, Fault, Row

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


def keys(tar: Path, below: int | None = None) -> set[str]:
    """Keys of the samples whose image does not end before a byte of the tar; by default of all."""
    found = shards.samples(shards.scan(tar))
    return {key for key, members in found if below is None or members["png"].offset + members["png"].length > below}


def test_data_damaged(whole: Path, row: Row, tmp_path: Path) -> None:
    """Both trainings end, and are those of a run on whole tars that was told to leave the same samples out."""
    row.fault = "tars damaged: cut, a bit, gone"
    row.how = "one truncated to two thirds, one with a bit flipped, one removed before they were trained on"
    (made,) = (whole / "artifacts" / "ingest").iterdir()
    for name in ("sound", "damaged"):
        (tmp_path / name).mkdir()
        for tar in made.glob("*.tar"):
            shutil.copy2(tar, tmp_path / name)
        shutil.copy2(made / "classes.json", tmp_path / name)

    def run(name: str, *options: str) -> Fault:
        config = tmp_path / f"{name}.yaml"
        config.write_text(CONFIG)
        source = f"data.source={{kind: webdataset, path: '{tmp_path / name}/*.tar'}}"
        return Fault(config, tmp_path / f"{name}-runs", tmp_path / "sound-runs", None, "diffusion",
                     (source, "data.on_corrupt=skip", *options))  # fmt: skip

    cut, flipped, gone = sorted((tmp_path / "damaged").glob("train-*.tar"))[:3]
    members = [member for member in shards.scan(flipped) if member.name.endswith(".png")]
    place = members[len(members) // 2]
    size = cut.stat().st_size * 2 // 3
    lost = keys(cut, size) | {place.name.removesuffix(".png")} | keys(gone)

    hit = run("damaged")
    hit.start()
    hit.wait(lambda: list(hit.root.glob("artifacts/ingest/*/manifest.json")))
    os.truncate(cut, size)
    content = bytearray(flipped.read_bytes())
    content[place.offset + place.length // 2] ^= 8
    flipped.write_bytes(content)
    gone.unlink()
    hit.verb = "autoencoder"
    assert hit.reached() == 0, "training had begun before the damage"
    hit.verb = "diffusion"
    hit.finish()
    (named,) = hit.root.glob("artifacts/encode/*/work/lost.txt")
    assert set(named.read_text().splitlines()) == lost
    trained = {
        key for path in hit.root.glob("artifacts/autoencoder/*/work/lost/*.txt") for key in path.read_text().split()
    }
    assert trained and trained <= lost
    for tar in (cut, gone):
        assert f"shard {tar}" in hit.log

    told = run("sound", f"data.leave_out={named}")
    told.start()
    told.finish()
    hit.verb = "autoencoder"
    hit.equal()
    hit.verb = "diffusion"
    row.end = f"{hit.equal()} to a run told to leave them out"
    row.samples = len(lost)
