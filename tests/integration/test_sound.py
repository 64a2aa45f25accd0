"""Sound through every stage: from files to a model that makes sounds, stopped and gone on with, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts import Artifact
from pipeline.files import read_json, sha256_file
from tests.integration.modality import is_equal_bit_for_bit_once_stopped, is_refused_by_verbs_of_images

CONFIG = """\
run: {{name: small, root: {root}}}
data:
  source: {{kind: sound, path: {folder}}}
  channels: 2
  sound: {{rate: 8000, seconds: 0.256, mels: 16, hop: 64, window: 256, dtype: float32}}
  shard_size: 16
  split: {{val_fraction: 0.4}}
autoencoder:
  model: {{kind: kl, width: 4, multipliers: [1, 1, 2], blocks: 1, latent_channels: 2, groups: 2, attention: false}}
  training: {{precision: fp32, steps: 4, batch_size: 4, save_every: 2, half_lives: [100]}}
diffusion:
  backbone: {{kind: dit, width: 16, depth: 1, heads: 2, patch: 2}}
  condition: {{kind: class, drop: 0.1}}
  training: {{precision: fp32, steps: 4, batch_size: 4, save_every: 2, half_lives: [100]}}
evaluate: {{samples: 8, steps: 2, batch_size: 8, extractor: {{kind: classifier, steps: 2}}}}
cluster: {{workers: 1, threads: 1}}
tracking: {{deadline: 1}}
"""


def write(folder: Path, root: Path) -> None:
    """small.yaml, and decaying tones of two classes, mono; models see them as stereo."""
    from scipy.io import wavfile

    for i in range(24):
        t = np.arange(1500 + 40 * i) / 8000
        wave = 0.5 * np.exp(-9 * t) * np.sin(2 * np.pi * (300 + 50 * i + 600 * (i % 2)) * t)
        file = folder / "sounds" / "ab"[i % 2] / f"{i:02d}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        wavfile.write(file, 8000, (wave * 32767).astype(np.int16))
    (folder / "small.yaml").write_text(CONFIG.format(root=root, folder=folder / "sounds"))


def test_from_files_to_a_model_that_sounds(small):
    from pipeline.data.waves import from_wav
    from pipeline.generate import load_pretrained
    from pipeline.pages.commands import python_lines
    from pipeline.pages.sampling_page import archive

    write(small.folder, small.root)
    said = small.run("run")
    assert said.code == 0, said.err
    assert said.out.count("sounds/s") >= 5 and "images/s" not in said.out
    ingest, autoencoder, encode, diffusion, evaluate, register = (
        Artifact.load(small.manifests(stage)[0].parent)
        for stage in ("ingest", "autoencoder", "encode", "diffusion", "evaluate", "register")
    )
    assert ingest.summary["classes"] == ["a", "b"] and ingest.summary["sound"]["rates"] == {"8000": 24}
    assert encode.summary["shape"] == [2, 4, 8] and autoencoder.summary["pca_psnr"] > 0
    report = read_json(evaluate.path / "report.json")
    assert set(report["sound"]) == {"log_spectral", "inversion", "heard"} and min(report["sound"].values()) > 0
    assert report["conditions"]["resolution"] == "16x32"
    assert {"log_spectral_db", "class_accuracy"} <= set(evaluate.summary["key_figures"])
    wav, rate = from_wav((evaluate.path / "sounds" / "00.wav").read_bytes())
    assert rate == 8000 and wav.shape == (2048, 2) and wav.dtype == np.float32

    found = []
    for place in (diffusion.path, register.path / "model"):
        model = load_pretrained(place, "cpu", small.root)
        request = model.request(n=3, seed=1, steps=2, batch_size=2)
        sounds = model.sounds(request)
        assert sounds.shape == (3, 2, 2048) and sounds.dtype == np.float32 and np.isfinite(sounds).all()
        found.append(sounds)
    assert np.array_equal(*found)
    assert "model.sounds(" in python_lines("m", model, request, Path("runs"))
    assert len(archive(model, model.images(request), request)) > 1000

    out = small.folder / "samples"
    name = str(register.path / "model")
    said = small.ldm("sample", name, "--out", str(out), "-n", "2", "--steps", "2")
    assert said.code == 0 and "2 sounds" in said.out, said.err
    said = small.ldm("sample", name, "--out", str(out), "--add", "-n", "1", "--steps", "2")
    assert said.code == 0, said.err
    info = read_json(out / "samples.json")
    assert [entry["file"] for entry in info["images"]] == ["000000.wav", "000001.wav", "000002.wav"]
    assert all(sha256_file(out / entry["file"]) == entry["sha256"] for entry in info["images"])
    assert [entry["class"] for entry in info["images"]] == [0, 1, 0]
    with Image.open(out / "000000.png") as picture, Image.open(out / "grid.png") as grid:
        assert picture.size == (32, 16) and grid.size == (64, 32)
    (out / "000001.wav").unlink()  # a sound that is lost is listed no more
    said = small.ldm("sample", name, "--out", str(out), "--add", "-n", "1", "--steps", "2")
    assert said.code == 0 and len(read_json(out / "samples.json")["images"]) == 3

    said = small.run("run")
    assert said.code == 0 and all(len(small.manifests(stage)) == 1 for stage in ("ingest", "autoencoder", "evaluate"))

    is_refused_by_verbs_of_images(small, name, "sound")


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_stopped_and_gone_on_with_is_equal_bit_for_bit(small, stage, monkeypatch):
    write(small.folder, small.root)
    is_equal_bit_for_bit_once_stopped(small, stage, monkeypatch)


@pytest.mark.parametrize(
    "key, said",
    [
        ("data.sound.mels=18", "no multiples of 4"),
        ("data.sound.mels=128", "narrower than the 31.2 Hz"),
        ("latents.views=[as_is,flip]", "`latents.views`"),
        ("data.sound.seconds=0.3", "no whole number of hops"),
        ("data.channels=3", "mono"),
        ("data.size=64", "`sound.mels`"),
        ("autoencoder.loss.perceptual.kind=classifier", "8-bit pictures"),
        ("evaluate.judge={width: 16}", "`evaluate.judge`"),
        ("data.source.path=/nowhere", "does not exist"),
    ],
)
def test_what_does_not_go_with_sound(small, key, said):
    write(small.folder, small.root)
    found = small.run("run", key)
    assert found.code == 2 and said in found.err and len(found.err.strip().splitlines()) == 1, found.err
