"""The index of a large data set takes little memory: a row a shard, the rest is mapped and let go."""

import json
import os
import subprocess
import sys
from pathlib import Path

from pipeline.data.index import write_index, write_rows

SHARDS, TRAIN, VAL = 10_000, 990, 10
ROOT = Path(__file__).parents[4]
MEASURE = """
import json, sys
import numpy as np, psutil
from pipeline.data.index import Index
from pipeline.data.order import Order, lanes
process = psutil.Process()
before = process.memory_info().rss
index = Index.open(sys.argv[1], "train")
order = Order(index.counts, 256, lanes(256), 0)
labels = {index.label(int(i)) for step in range(40) for i in order.batch(step * 256)}
opened = process.memory_info().rss
print(json.dumps({"samples": len(index), "labels": sorted(labels), "bytes": opened - before}))
"""


def test_ten_million_samples_in_ten_thousand_shards_take_less_than_100_mib(tmp_path: Path) -> None:
    rows = [(i * 1024, 900, i % 10, i >= TRAIN, 0, 0, f"sample{i:06d}".encode()) for i in range(TRAIN + VAL)]
    write_rows(tmp_path / "first.rows.npy", rows)
    shards = []
    for number in range(SHARDS):
        name = f"train-{number:05d}"
        os.link(tmp_path / "first.rows.npy", tmp_path / f"{name}.rows.npy")
        shards.append(
            {"name": name, "location": f"{name}.tar", "sha256": "0" * 64, "bytes": 1, "rows_sha256": "0" * 64}
            | {"train": TRAIN, "val": VAL}
        )
    write_index(tmp_path, [str(i) for i in range(10)], shards)
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["samples"] == SHARDS * TRAIN and found["labels"] == list(range(10))
    print(f"{found['bytes'] / 2**20:.1f} MiB")
    assert found["bytes"] < 100 * 2**20
