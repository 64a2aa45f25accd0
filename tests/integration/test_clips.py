"""Clips through every stage: from files to a model that makes them, stopped and gone on with, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts import Artifact
from pipeline.data.index import Index
from pipeline.data.video_files import there
from pipeline.files import read_json, sha256_file
from tests.integration.modality import is_equal_bit_for_bit_once_stopped, is_refused_by_verbs_of_images
from tests.unit.pipeline.data.clips import animation

CONFIG = """\
run: {{name: small, root: {root}}}
data:
  source: {{kind: clips, path: {folder}}}
  size: 8
  clip: {{frames: 5, rate: 10}}
  shard_size: 16
  split: {{val_fraction: 0.3}}
autoencoder:
  model: {{kind: clips, width: 8, multipliers: [1, 2], blocks: 1, latent_channels: 2, groups: 4, attention: false}}
  training: {{precision: fp32, steps: 4, batch_size: 4, save_every: 2, half_lives: [100]}}
latents: {{views: [as_is, crop]}}
diffusion:
  backbone: {{kind: dit, width: 16, depth: 1, heads: 2, patch: 2}}
  condition: {{kind: class}}
  training: {{precision: fp32, steps: 4, batch_size: 4, save_every: 2, half_lives: [100]}}
evaluate: {{samples: 4, steps: 2, batch_size: 4, bootstrap: 2, extractor: {{kind: classifier, steps: 2}}}}
cluster: {{workers: 1, threads: 1}}
tracking: {{deadline: 1}}
"""


def write(folder: Path, root: Path) -> None:
    """small.yaml, and two classes of twelve clips of ten frames each."""
    for i in range(24):
        rng = np.random.default_rng(i)
        frames = rng.integers(0, 255, (10, 12, 12, 3), np.uint8)
        animation(folder / "clips" / "ab"[i % 2] / f"{i:02d}.{'webp' if i % 3 else 'gif'}", frames, 100)
    (folder / "small.yaml").write_text(CONFIG.format(root=root, folder=folder / "clips"))


@pytest.fixture
def small(small):
    """Clips in place of images."""
    write(small.folder, small.root)
    return small


def test_from_files_to_a_model_that_makes_clips(small):
    from pipeline.generate import load_pretrained

    animation(
        small.folder / "clips" / "a" / "short.gif", np.random.default_rng(99).integers(0, 255, (3, 9, 9, 3), np.uint8)
    )
    said = small.run("run", "data.max_quarantine=0.1")
    assert said.code == 0, said.err
    assert "1 of 25 clips are in quarantine (1 too short)" in said.out
    assert said.out.count("clips/s") >= 5 and "images/s" not in said.out  # encode, two trainings and their ends
    ingest, encode, diffusion, evaluate, register = (
        Artifact.load(small.manifests(stage)[0].parent)
        for stage in ("ingest", "encode", "diffusion", "evaluate", "register")
    )
    with Image.open(ingest.path / "contact_sheet.png") as sheet:
        assert sheet.size == (64, 64)
    assert encode.summary["shape"] == [2, 3, 4, 4] and encode.summary["views"] == ["as_is", "crop"]
    options = read_json(diffusion.path / "model.json")
    assert options["latent"] == {"channels": 2, "size": [3, 4, 4]} and options["clip"] == {"frames": 5, "rate": 10.0}
    report = read_json(evaluate.path / "report.json")
    assert (
        set(report["flicker"]) == {"real", "samples", "reconstructions", "train"}
        and min(report["flicker"].values()) >= 0
    )
    assert report["flicker"]["real"] > 30  # of noise: a third of the grey levels, resized less
    assert report["clips"]["frames"] == 5 and report["images"]["samples"] == 20
    assert {"flicker", "flicker_real", "psnr"} <= set(evaluate.summary["key_figures"])
    assert "flicker" in said.out
    with Image.open(evaluate.path / "samples.webp") as moving:
        assert moving.n_frames == 5 and moving.size == (16, 16)
    with Image.open(evaluate.path / "samples.png") as strips:
        assert strips.size == (40, 32)
    assert read_json(register.path / "model" / "config.json")["image"] == {"size": 8, "channels": 3, "frames": 5}

    request, found = {"n": 3, "seed": 1, "steps": 2, "batch_size": 2}, []
    for place in (diffusion.path, register.path / "model"):
        model = load_pretrained(place, "cpu", small.root)
        clips = model.sample(**request)
        assert clips.shape == (3, 5, 8, 8, 3) and clips.dtype == np.uint8 and model.shapes == [(8, 8)]
        np.testing.assert_array_equal(model.sample(**{**request, "n": 1}), clips[:1])
        assert model.decode(model.encode(clips)).shape == clips.shape
        found.append(clips)
    np.testing.assert_array_equal(*found)

    out = small.folder / "samples"
    model = str(register.path / "model")
    for more in ("-n", "2"), ("--add", "-n", "1"):
        said = small.ldm("sample", model, "--out", str(out), *more, "--steps", "2")
        assert said.code == 0, said.err
    entries = read_json(out / "samples.json")["images"]
    assert [(entry["file"], entry["index"]) for entry in entries] == [(f"00000{i}.webp", i) for i in range(3)]
    assert all(sha256_file(out / entry["file"]) == entry["sha256"] for entry in entries)
    with Image.open(out / "000000.webp") as clip:
        assert clip.is_animated and clip.size == (8, 8)
    assert (out / "000000.mp4").exists() == there()

    said = small.run("run", "data.max_quarantine=0.1")
    assert said.code == 0 and all(len(small.manifests(stage)) == 1 for stage in ("ingest", "autoencoder", "evaluate"))

    is_refused_by_verbs_of_images(small, model, "clips")


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_stopped_and_gone_on_with_is_equal_bit_for_bit(small, stage, monkeypatch):
    is_equal_bit_for_bit_once_stopped(small, stage, monkeypatch)


def test_windows_are_a_function_of_the_position_and_shards_hold_all_frames(small):
    from pipeline.config import load
    from pipeline.data import loader
    from pipeline.data.index import read_image, read_pixels
    from pipeline.data.order import Order

    assert small.run("ingest").code == 0
    config = load(small.config)
    folder, data = small.manifests("ingest")[0].parent, config.data
    index = Index.open(folder, "train")
    every = read_pixels(index, 0, data).pixels
    assert every.shape == (3, 10, 8, 8) and read_image(index, 0, data).shape == (3, 5, 8, 8)
    order = Order(index.counts, 4, 4, 0)

    def batches(position: int, rank: int, world: int):
        return loader.image_batches(index, order, data, 0, rank, world, position, (2, 3, 4, 4))

    first = [next(made) for made in [batches(0, 0, 1)] * 40]
    assert first[0]["images"].shape == (4, 3, 5, 8, 8) and first[0]["noise"].shape == (4, 2, 3, 4, 4)
    starts = set()
    for batch in first:
        for row, i in zip(batch["images"].numpy(), batch["index"].tolist(), strict=True):
            whole = read_pixels(index, i, data).pixels
            starts |= {s for s in range(6) if np.array_equal(whole[:, s : s + 5], row)}
    assert starts == {0, 1, 2, 3, 4, 5}
    again = next(batches(first[7]["position"], 0, 1))
    np.testing.assert_array_equal(again["images"], first[7]["images"])
    halves = [next(batches(first[7]["position"], rank, 2))["images"] for rank in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), first[7]["images"])


def test_an_autoencoder_of_clips_begins_with_that_of_images(small, tmp_path):
    import torch

    from models import registry
    from pipeline.networks import save_weights
    from pipeline.tasks.begin import inflated_weights

    shape = {"width": 8, "multipliers": [1, 2], "blocks": 1, "latent_channels": 2, "groups": 4, "attention": False}
    flat = registry.build("autoencoders", {"kind": "kl", **shape}, channels=3)
    save_weights(tmp_path / "kl.safetensors", flat.state_dict())
    said = small.run("autoencoder", f"autoencoder.training.init_from={tmp_path / 'kl.safetensors'}")
    assert said.code == 0, said.err
    network = registry.build("autoencoders", {"kind": "clips", **shape}, channels=3)
    whole = inflated_weights(network, tmp_path / "kl.safetensors")
    assert torch.equal(whole["encoder.conv_in.weight"], flat.state_dict()["encoder.conv_in.weight"])
    save_weights(tmp_path / "clips.safetensors", network.state_dict())
    same = inflated_weights(network, tmp_path / "clips.safetensors")
    assert all(torch.equal(same[name], value) for name, value in network.state_dict().items())


def test_what_does_not_go_with_clips_is_one_line(small):
    for *given, line in (
        ("autoencoder.model={kind: kl}", "kind clips and source clips go together"),
        ("data.clip.frames=4", "time: 2 takes 1 + 2 m frames, such as 3 or 5, not 4"),
        ("autoencoder.loss.adversarial={weight: 1}", "`autoencoder.loss.adversarial` is of images"),
        ("data.buckets={multiple: 8}", "`buckets` is of images"),
        ("diffusion.backbone={kind: unet, preset: tiny}", "unet takes latents of two sides"),
        ("data.clip=null", "`clip` and `source.kind: clips` go together"),
        (f"data.source.path={small.folder / 'none'}", "does not exist"),
        ("data.clip.start=first", "but images are stored without a margin to crop in"),
    ):
        said = small.run("run", "--dry-run", *given)
        assert said.code == 2 and line in said.err and len(said.err.strip().splitlines()) == 1, said.err


def test_animations_among_images_are_said(small):
    animation(
        small.folder / "images" / "a" / "moving.gif", np.random.default_rng(7).integers(0, 255, (3, 9, 9, 3), np.uint8)
    )
    said = small.run("ingest", f"data={{source: {{kind: folder, path: {small.folder / 'images'}}}, size: 8}}",
                     "autoencoder.model={kind: kl, preset: tiny-f2}", "latents.views=[as_is]")  # fmt: skip
    assert said.code == 0, said.err
    assert "1 animations, of which the first frame is taken and the others not (such as a/moving)" in said.out
