"""Bad input, kind by kind: one clear line on stderr, exit code 2, and nothing that a later run would believe.

Each case writes something wrong and calls the real command, in this process where nothing but Python's start would be
added by another one. Damaged checkpoints and latents of another autoencoder are in test_graph.py as well.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
Case = Callable[[Any], tuple[str, ...]]  # makes the bad input, gives the overrides


def refused(small: Any, said: Any, expected: str, stage: str = "*") -> None:
    """One line that says what is wrong, exit code 2, no artifact of the stage, no half-written file under a name."""
    assert said.code == 2, said
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and said.err.endswith("\n"), said.err
    assert re.search(expected, said.err), said.err
    assert "Traceback" not in said.err + said.out
    assert not small.manifests(stage)
    assert not list(small.root.rglob("*.tmp"))


# ---- the config ------------------------------------------------------------------------------------------------------

CONFIG_MISTAKES = {
    "unknown key": (["diffusion.training.learnin_rate=1"], "unknown key .*did you mean `learning_rate`"),
    "bad type": (["autoencoder.training.steps=ten"], "`autoencoder.training.steps`: expected whole number"),
    "out of range": (["diffusion.training.batch_size=0"], "training.batch_size`: expected whole number, at least 1"),
    "unknown kind of source": (["data.source.kind=foldr"], "`data.source.kind` is 'foldr'; expected one of digits"),
    "unknown model": (["diffusion.backbone.kind=dti"], "no backbones kind 'dti'; did you mean 'dit'"),
    "unknown option of a model": (["autoencoder.model.widht=8"], "widht: kl has no such field; did you mean 'width'"),
    "size and autoencoder": (["data.size=9"], "`data.size`: 9 is not a multiple of 2"),
    "latent and patch": (["diffusion.backbone.patch=3"], "`diffusion.backbone`: patch: .*latent size 4, got 3"),
    "infinite loss": (
        ["diffusion.path={kind: variance_preserving, schedule: linear}", "diffusion.prediction=velocity"],
        "`prediction: velocity` has an infinite mean loss",
    ),
    "no override": (["steps"], "expected KEY=VALUE"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIG_MISTAKES)
def test_a_mistake_in_the_config(small, kind):
    overrides, expected = CONFIG_MISTAKES[kind]
    refused(small, small.ldm("config", "validate", "--config", str(small.config), *overrides), expected)
    refused(small, small.run("run", *overrides), expected)
    assert not small.root.exists()


def test_velocity_on_the_linear_path_is_allowed_where_its_loss_is_finite(small):
    base = ["diffusion.path={kind: variance_preserving, schedule: linear}", "diffusion.prediction=velocity"]
    for more in ("diffusion.times.kind=logit_normal", "diffusion.weighting=min_snr", "diffusion.path.schedule=cosine"):
        said = small.ldm("config", "validate", "--config", str(small.config), *base, more)
        assert said.code == 0, said


def test_a_config_that_is_missing_or_no_yaml(small):
    refused(
        small, small.ldm("run", "--config", str(small.folder / "none.yaml")), r"none\.yaml: cannot be read \(No such"
    )
    small.config.write_text("run: {name: small\ndata: [")
    refused(small, small.run("run"), r"small\.yaml:2: not valid YAML")
    small.config.write_bytes(b"\xff\xfe\x00run")
    refused(small, small.run("run"), r"small\.yaml: cannot be read")


def test_an_option_or_verb_that_does_not_exist(ldm):
    for arguments, expected in ((("run", "--confg", "x"), "No such option"), (("rum",), "No such command 'rum'")):
        said = ldm(*arguments)
        assert said.code == 2 and expected in said.err and "Traceback" not in said.err


# ---- the images ------------------------------------------------------------------------------------------------------


def encoded(kind: str, side: int = 12, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def missing_folder(small: Any) -> tuple[str, ...]:
    return (f"data.source.path={small.folder}/nowhere",)


def empty_folder(small: Any) -> tuple[str, ...]:
    (small.folder / "empty").mkdir()
    return (f"data.source.path={small.folder}/empty",)


def truncated_jpeg(small: Any) -> tuple[str, ...]:
    (small.folder / "images/a/cut.jpg").write_bytes(encoded("JPEG", 64)[:-400])
    return ()


def not_an_image(small: Any) -> tuple[str, ...]:
    (small.folder / "images/a/note.png").write_bytes(b"not an image")
    return ()


def bomb(small: Any) -> tuple[str, ...]:
    Image.new("1", (8_000, 8_000)).save(small.folder / "images/a/bomb.png")  # 64 million pixels in 10 kB
    return ()


def wrong_channels(small: Any) -> tuple[str, ...]:
    np.savez(small.folder / "five.npz", images=np.zeros((10, 8, 8, 5), np.uint8))
    return (f"data.source={{kind: arrays, path: {small.folder}/five.npz}}",)


def wrong_numbers(small: Any) -> tuple[str, ...]:
    np.savez(small.folder / "floats.npz", images=np.zeros((10, 8, 8), np.float32))
    return (f"data.source={{kind: arrays, path: {small.folder}/floats.npz}}",)


def damaged_arrays(small: Any) -> tuple[str, ...]:
    np.savez(small.folder / "cut.npz", images=np.zeros((10, 8, 8), np.uint8), labels=np.zeros(10, np.int64))
    content = (small.folder / "cut.npz").read_bytes()
    (small.folder / "cut.npz").write_bytes(content[: len(content) // 2])
    return (f"data.source={{kind: arrays, path: {small.folder}/cut.npz}}",)


def damaged_member(small: Any) -> tuple[str, ...]:
    np.savez(small.folder / "bits.npz", images=np.zeros((10, 8, 8), np.uint8))
    content = bytearray((small.folder / "bits.npz").read_bytes())
    content[300] ^= 255
    (small.folder / "bits.npz").write_bytes(content)
    return (f"data.source={{kind: arrays, path: {small.folder}/bits.npz}}",)


def cut_gzip(small: Any) -> tuple[str, ...]:
    (small.folder / "images.idx.gz").write_bytes(gzip.compress(b"\0\0\x08\x01" + bytes(100))[:-12])
    return (f"data.source={{kind: arrays, path: {small.folder}/images.idx.gz}}",)


def missing_column(small: Any) -> tuple[str, ...]:
    (small.folder / "t.csv").write_text("file,class\nimages/a/0.png,a\n")
    return (f"data.source={{kind: table, path: {small.folder}/t.csv}}",)


def ragged_table(small: Any) -> tuple[str, ...]:
    (small.folder / "t.csv").write_text("image,class\nimages/a/0.png\n")
    return (f"data.source={{kind: table, path: {small.folder}/t.csv}}",)


def bad_text(small: Any) -> tuple[str, ...]:
    (small.folder / "t.csv").write_bytes(b"image\n\x81\x8d.png\n")
    return (f"data.source={{kind: table, path: {small.folder}/t.csv}}",)


def one_split_empty(small: Any) -> tuple[str, ...]:
    return ("data.split.val_fraction=0.000001",)


def tar(small: Any, members: list[tuple[str, bytes]], name: str = "t.tar") -> str:
    with tarfile.open(small.folder / name, "w") as file:
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return f"data.source={{kind: webdataset, path: {small.folder}/{name}}}"


def pictures(count: int = 8) -> list[tuple[str, bytes]]:
    return [(f"{i}.png", encoded("PNG", seed=i)) for i in range(count)]


def corrupt_tar(small: Any) -> tuple[str, ...]:
    source = tar(small, pictures())
    content = bytearray((small.folder / "t.tar").read_bytes())
    at = content.index(b"3.png\0")
    content[at : at + 100] = os.urandom(100)
    (small.folder / "t.tar").write_bytes(content)
    return (source,)


def truncated_tar(small: Any) -> tuple[str, ...]:
    source = tar(small, pictures())
    (small.folder / "t.tar").write_bytes((small.folder / "t.tar").read_bytes()[:2000])
    return (source,)


def text_for_a_tar(small: Any) -> tuple[str, ...]:
    source = tar(small, [])
    (small.folder / "t.tar").write_text("this is no tar " * 100)
    return (source,)


def empty_tar(small: Any) -> tuple[str, ...]:
    return (tar(small, []),)


def tar_that_climbs(small: Any) -> tuple[str, ...]:
    return (tar(small, [*pictures(), ("../escape.png", encoded("PNG"))]),)


def tar_with_a_link(small: Any) -> tuple[str, ...]:
    source = tar(small, pictures())
    with tarfile.open(small.folder / "t.tar", "a") as file:
        link = tarfile.TarInfo("x.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    return (source,)


def compressed_tar(small: Any) -> tuple[str, ...]:
    tar(small, pictures())
    (small.folder / "t.tar.gz").write_bytes(gzip.compress((small.folder / "t.tar").read_bytes()))
    return (f"data.source={{kind: webdataset, path: {small.folder}/t.tar.gz}}",)


def class_out_of_range(small: Any) -> tuple[str, ...]:
    (small.folder / "classes.json").write_text('["cat", "dog"]')
    return (tar(small, [*pictures(), ("x.png", encoded("PNG", seed=99)), ("x.cls", b"2")]),)


def classes_that_are_no_list(small: Any) -> tuple[str, ...]:
    (small.folder / "classes.json").write_text('["cat", "do')
    return (tar(small, pictures()),)


def no_tar_matches(small: Any) -> tuple[str, ...]:
    return (f"data.source={{kind: webdataset, path: {small.folder}/none-*.tar}}",)


IMAGE_MISTAKES: dict[str, tuple[Case, str]] = {
    "missing folder": (missing_folder, "nowhere does not exist"),
    "empty data set": (empty_folder, "holds no images"),
    "truncated JPEG": (truncated_jpeg, r"1 of 41 images are unusable \(1 truncated; the first: a/cut"),
    "not an image": (not_an_image, r"1 of 41 images are unusable \(1 undecodable; the first: a/note"),
    "decompression bomb": (bomb, r"\(1 oversized; the first: a/bomb: 8000x8000 is over data.max_pixels"),
    "wrong number of channels": (wrong_channels, r"images of shape \(10, 8, 8, 5\); expected"),
    "wrong type of numbers": (wrong_numbers, "images of type float32; expected uint8 or uint16"),
    "damaged .npz": (damaged_arrays, r"cut\.npz is not a readable \.npz file"),
    "damaged array in an .npz": (damaged_member, r"bits\.npz"),
    "truncated .gz": (cut_gzip, r"images\.idx\.gz"),
    "missing column": (missing_column, r"t\.csv:2: no column 'image'; there are file, class"),
    "row of fewer columns": (ragged_table, r"t\.csv:2: a row of more or fewer than 2 columns"),
    "table that is no text": (bad_text, r"t\.csv is neither in UTF-8, UTF-16 nor cp1252"),
    "empty validation split": (one_split_empty, "no val images among 40"),
    "corrupt tar": (corrupt_tar, r"t\.tar .*after member 2\.png"),
    "truncated tar": (truncated_tar, r"t\.tar is truncated"),
    "no tar at all": (text_for_a_tar, r"t\.tar is damaged after its start"),
    "empty tar": (empty_tar, "no|0 images"),
    "tar with ../": (tar_that_climbs, r"member '\.\./escape\.png' points outside"),
    "tar with a link": (tar_with_a_link, "member 'x.png' is a link"),
    "compressed tar": (compressed_tar, r"t\.tar\.gz is compressed.*repack it with `gzip -dc"),
    "class out of range": (class_out_of_range, r"x\.cls: class 2 is out of range; classes.json names 2"),
    "damaged list of classes": (classes_that_are_no_list, r"classes\.json"),
    "no tar matches": (no_tar_matches, "no file matches"),
}  # fmt: skip


@pytest.mark.parametrize("kind", IMAGE_MISTAKES)
def test_bad_images(small, kind):
    make, expected = IMAGE_MISTAKES[kind]
    overrides = make(small)
    refused(small, small.run("ingest", *overrides), expected)
    refused(small, small.run("ingest", *overrides), expected)  # nothing that the first left is believed
    assert not (small.folder.parent / "escape.png").exists()


def test_mended_images_are_taken(small):
    truncated_jpeg(small)
    refused(small, small.run("ingest"), "unusable")
    (small.folder / "images/a/cut.jpg").write_bytes(encoded("JPEG", 64))
    assert small.run("ingest").code == 0 and len(small.manifests("ingest")) == 1


def test_a_class_condition_on_images_without_classes(small):
    for i in range(40):
        (small.folder / "images" / "ab"[i % 2] / f"{i}.png").rename(small.folder / "images" / f"{i}.png")
    said = small.run("diffusion")
    refused(
        small, said, "`diffusion.condition.kind` is class, but the images of ingest/.* have no classes", "autoencoder"
    )
    assert len(small.manifests("ingest")) == 1  # that one is good, and stays


# ---- what is on disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`mounted(options)`: a small file system of its own; skips where this process may not mount."""
    folders: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(folders)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount a file system: {done.stderr.strip()}")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk(small, mounted):
    disk = mounted("size=400k")
    (disk / "ballast").write_bytes(bytes(300 * 1024))
    for i in range(40):
        path = small.folder / "images" / "ab"[i % 2] / f"{i}.png"
        path.write_bytes(encoded("PNG", 64, seed=i))
    said = small.run("ingest", f"run.root={disk}/root", "data.size=64")
    assert said.code == 2 and said.err.count("\n") == 1, said
    assert re.search(r"disk0/root.*No space left on device; make room", said.err), said.err
    assert not list(disk.glob("root/artifacts/*/*/manifest.json")) and not list(disk.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    said = small.run("ingest", f"run.root={disk}/root", "data.size=64")
    assert said.code == 0 and len(list(disk.glob("root/artifacts/ingest/*/manifest.json"))) == 1, said


def test_an_output_that_is_read_only(small, mounted):
    def ingest(*overrides: str) -> Any:
        return small.run("ingest", f"run.root={disk}", *overrides)

    disk = mounted("size=1m,ro")
    refused(small, ingest("run.root=" + str(disk / "root")), r"`run.root`: .*disk0/root .*Read-only file system")
    refused(small, ingest(), r"disk0/.*Read-only file system; make room or give rights there")
    assert small.run("ingest").code == 0
    bind = [["mount", "--bind", small.root, disk], ["mount", "-o", "remount,bind,ro", disk]]
    for command in bind:
        subprocess.run(command, check=True)
    try:
        assert "cached" in ingest().out  # what is there can be used
        said = ingest("data.size=16")
        assert said.code == 2 and said.err.count("\n") == 1 and "Read-only file system" in said.err, said
        assert len(small.manifests("ingest")) == 1
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_root_that_is_no_folder(small):
    (small.folder / "file").write_text("")
    for root in ("/proc/none", small.folder / "file", small.folder / "file" / "root"):
        refused(small, small.run("ingest", f"run.root={root}"), "`run.root`: .* cannot be made")


@pytest.fixture
def pinned(small: Any) -> Path:
    """The folder of an autoencoder that is trained."""
    said = small.run("autoencoder")
    assert said.code == 0, said.err
    return Path(small.manifests("autoencoder")[0].parent)


def test_a_damaged_or_mismatched_autoencoder(small, pinned, tmp_path):
    overrides = [f"autoencoder.from={pinned}"]
    gray = small.run("encode", *overrides, "data.channels=1")
    refused(small, gray, "`data.channels`: 1, but the autoencoder at .* was trained on 3", "encode")
    refused(small, small.run("encode", *overrides, "data.size=9"), "`data.size`: 9 is not a multiple of 2", "encode")
    ingest = small.manifests("ingest")[0].parent
    other = small.run("encode", f"autoencoder.from={ingest}")
    refused(small, other, "an artifact of the stage ingest; give one of autoencoder", "encode")
    nowhere = small.run("encode", f"autoencoder.from={tmp_path}/none")
    refused(small, nowhere, "missing; no finished artifact is at", "encode")
    weights = pinned / "ema.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    for verb in ("encode", "autoencoder", "run"):
        refused(small, small.run(verb), r"ema\.safetensors: \d+ bytes, expected", "encode")
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # of the same size: only a hash tells
    said = small.ldm("verify", "--root", str(small.root))
    assert said.code == 2 and "damaged: ema.safetensors" in said.out and said.err.count("\n") == 1
    (pinned / "manifest.json").write_text("{")
    refused(small, small.run("encode"), r"manifest\.json: not a manifest", "encode")


def test_a_pool_that_lost_a_latent_shard(small):
    assert small.run("encode").code == 0
    shard = next((small.root / "latents").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(small, small.run("diffusion"), rf"{shard.name}: missing or of another size.*--rebuild encode", "diffusion")


def test_a_model_that_is_none(ldm, tmp_path):
    for model, expected in ((tmp_path / "none", "no model is there"), (tmp_path, "no model is there")):
        said = ldm("sample", str(model), "--out", str(tmp_path / "out"))
        assert said.code == 2 and expected in said.err and said.err.count("\n") == 1
        assert not (tmp_path / "out").exists()


# ---- the program as it is installed ----------------------------------------------------------------------------------


def test_the_commands_themselves(small):
    """`python -m jobs.VERB` and `ldm VERB` in their own processes, with the tracker: the same line and code."""
    truncated_jpeg(small)
    config = yaml.safe_load(small.config.read_text())
    config["data"]["sise"] = 8
    (small.folder / "typo.yaml").write_text(yaml.safe_dump(config))
    ldm = [sys.executable, "-m", "jobs.cli"]
    for command, expected in (
        ([sys.executable, "-m", "jobs.config", "validate", "--config", "typo.yaml"], "did you mean `size`"),
        ([*ldm, "ingest", "--config", "small.yaml"], "1 truncated"),
    ):
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=small.folder, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and expected in done.stderr, done
        assert "Traceback" not in done.stdout
    assert not small.manifests()
