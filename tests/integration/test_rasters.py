"""Images of many bands and 16 bits through the trained stages, stopped and gone on with. What comes behind them, and
what a value means in each, is in tests/unit/pipeline/stages/test_values.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import Artifact
from tests.integration.modality import is_equal_bit_for_bit_once_stopped

CONFIG = """\
run: {{name: small, root: {root}}}
data:
  source: {{kind: rasters, path: {folder}}}
  size: 8
  channels: 6
  values: {{dtype: uint16, percentiles: [1, 99]}}
  shard_size: 8
  split: {{val_fraction: 0.3}}
autoencoder:
  model: {{kind: kl, width: 8, multipliers: [1, 2], blocks: 1, latent_channels: 2, groups: 4, attention: false}}
  training: {{precision: fp32, steps: 4, batch_size: 8, save_every: 2, half_lives: [100]}}
diffusion:
  backbone: {{kind: dit, width: 16, depth: 1, heads: 2, patch: 2}}
  condition: {{kind: none}}
  training: {{precision: fp32, steps: 4, batch_size: 8, save_every: 2, half_lives: [100]}}
cluster: {{workers: 1, threads: 1}}
tracking: {{deadline: 1}}
"""


def write(folder: Path, root: Path) -> None:
    """small.yaml, and forty images of six bands."""
    (folder / "planes").mkdir()
    values = np.random.default_rng(0).integers(0, 4000, (40, 6, 8, 8)).astype(np.uint16)
    np.save(folder / "planes" / "a.npy", values)
    (folder / "small.yaml").write_text(CONFIG.format(root=root, folder=folder / "planes"))


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_stopped_and_gone_on_with_is_equal_bit_for_bit(small, stage, monkeypatch):
    write(small.folder, small.root)
    is_equal_bit_for_bit_once_stopped(small, stage, monkeypatch)
    ingest = next((small.folder / "whole").glob("artifacts/ingest/*/manifest.json"))
    assert Artifact.load(ingest.parent).summary["images"]["train"] > 16
