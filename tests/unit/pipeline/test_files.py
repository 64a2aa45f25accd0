"""Files of tensors: with the rights of other files, and a disk that takes no more is told in one line."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import UserError
from pipeline.files import disk_trouble, save_tensors, write_json


def test_who_may_read_the_other_files_may_read_weights(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    save_tensors(tmp_path / "a.safetensors", {"a": torch.arange(3)}, {"b": "c"})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "a.json").stat().st_mode
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=r"a\.safetensors: File too large; make room"), disk_trouble():
            save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
