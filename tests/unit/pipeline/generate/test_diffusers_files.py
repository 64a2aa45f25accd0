"""Which files hold the weights: in shards, as variants, by the names that diffusers itself gives and has given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.generate import diffusers_read
from pipeline.generate.diffusers_files import choose, load
from pipeline.generate.exchange import import_diffusers

diffusers = pytest.importorskip("diffusers")

STEM = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).half()  # fmt: skip


@pytest.fixture
def sharded(model, tmp_path: Path) -> Path:
    """A half precision variant in several files, as diffusers writes it."""
    folder = tmp_path / "vae"
    model.save_pretrained(folder, variant="fp16", max_shard_size="12KB")
    names = {path.name for path in folder.iterdir()}
    assert f"{STEM}.safetensors.index.fp16.json" in names
    assert any(name.startswith(f"{STEM}.fp16-00002-of-0000") for name in names)
    return folder


def test_a_variant_in_shards_is_read_whole(model, sharded: Path) -> None:
    found = diffusers_read.read(sharded)
    assert found.notes == ("of the variant fp16", "weights stored as float16 were made float32")
    wanted = model.state_dict()
    assert found.weights.keys() == wanted.keys()
    for name, value in found.weights.items():
        assert value.dtype == torch.float32 and torch.equal(value, wanted[name].float()), name
    said = import_diffusers(sharded, sharded.parent / "out")
    assert "# of the variant fp16\n" in said


@pytest.mark.parametrize("old", [False, True])
def test_shards_are_read_by_old_names_and_without_an_index(sharded: Path, old: bool) -> None:
    """Before diffusers 0.30 the variant stood behind the number; a copy may have lost the index."""
    (sharded / f"{STEM}.safetensors.index.fp16.json").unlink()
    wanted = {}
    for path in sorted(sharded.glob("*.safetensors")):
        wanted |= load_file(path)
        if old:
            number = path.name.removeprefix(f"{STEM}.fp16-").removesuffix(".safetensors")
            path.rename(sharded / f"{STEM}-{number}.fp16.safetensors")
    weights, _ = load(sharded)
    assert weights.keys() == wanted.keys()
    next(sharded.glob("*00002-of*")).unlink()
    with pytest.raises(UserError, match=r"\d of \d files of weights are there; fetch it again"):
        load(sharded)


def test_what_an_index_names_must_be_there(sharded: Path) -> None:
    next(sharded.glob("*00002-of*")).unlink()
    with pytest.raises(UserError, match=rf"{STEM}\.fp16-00002-of-0000\d\.safetensors is missing"):
        load(sharded)
    index = sharded / f"{STEM}.safetensors.index.fp16.json"
    for text in ("", "[]", json.dumps({"weight_map": ["a"]}), json.dumps({"weight_map": {"a": 3}})):
        index.write_text(text)
        with pytest.raises(UserError, match="not an index of weights"):
            load(sharded)


def test_the_weights_without_a_variant_come_first_and_several_are_asked_for(tmp_path: Path) -> None:
    values = {"bf16": torch.ones(1).bfloat16(), "fp16": torch.ones(1).half() * 2, "": torch.ones(1) * 3}
    for variant, value in values.items():
        save_file({"a": value}, tmp_path / f"{STEM}{'.' if variant else ''}{variant}.safetensors")
    (tmp_path / "note.safetensors").touch()
    assert load(tmp_path) == ({"a": torch.tensor([3.0])}, [])
    assert load(tmp_path, "fp16")[0]["a"].tolist() == [2.0]
    with pytest.raises(UserError, match="no weights of the variant 'ema' are there; found: bf16, fp16, none"):
        load(tmp_path, "ema")
    (tmp_path / f"{STEM}.safetensors").unlink()
    with pytest.raises(UserError, match="several variants are there: bf16, fp16; say which by --variant"):
        load(tmp_path)
    (tmp_path / f"{STEM}.fp16.safetensors").unlink()
    assert choose(tmp_path) == ("bf16", [tmp_path / f"{STEM}.bf16.safetensors"])
    assert load(tmp_path)[1] == ["of the variant bf16", "weights stored as bfloat16 were made float32"]
