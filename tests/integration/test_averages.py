"""`ldm average` and what takes its weights, through the program; snapshots of a run that goes on from a shorter one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.files import read_json, sha256_file

KEYS = ("half_lives=[100,40]", "average_lengths=[0.05,0.1]", "snapshot_every=16")


def train(small: Any, stage: str, steps: int, *more: str) -> Path:
    """Train a stage; its artifact's folder."""
    before = set(small.manifests(stage))
    said = small.run(stage, *(f"{stage}.training.{key}" for key in (*KEYS, f"steps={steps}")), *more)
    assert said.code == 0, said.err
    (made,) = set(small.manifests(stage)) - before
    return made.parent


def snapshots(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted((folder / "snapshots").iterdir())}


def test_a_longer_run_has_the_snapshots_of_one_from_the_beginning(small: Any) -> None:
    short = train(small, "autoencoder", 5)
    times = [int(name[-24:-12]) for name in snapshots(short) if "0.05" in name]
    assert times == [16, 32, 40]  # when due, and at the end
    longer = train(small, "autoencoder", 8)
    assert json.loads((longer / "manifest.json").read_text())["summary"]["resumed_from"] == 5 * 8
    gone_on = snapshots(longer)
    assert [int(name[-24:-12]) for name in gone_on if "0.05" in name] == [16, 32, 48, 64]
    kept = {name: digest for name, digest in snapshots(short).items() if not name.endswith("040.safetensors")}
    assert len(kept) == 4 and kept.items() < gone_on.items()
    for folder in (short, longer):
        folder.rename(folder.with_name(f"{folder.name}.moved"))
    whole = train(small, "autoencoder", 8)
    assert snapshots(whole) == gone_on and whole == longer
    listed = read_json(whole / "manifest.json")["files"]
    assert {f"snapshots/{name}" for name in gone_on} < set(listed)
    assert {"ema.safetensors", "ema-40.safetensors", "live.safetensors", "length-0.05.safetensors"} < set(listed)
    moved = longer.with_name(f"{longer.name}.moved")
    for name in ("ema.safetensors", "ema-40.safetensors", "length-0.1.safetensors"):
        assert sha256_file(whole / name) == sha256_file(moved / name)


def test_weights_of_any_length_are_sampled_and_measured(small: Any) -> None:
    for i in range(300):
        small.draw(f"images/{'ab'[i % 2]}/{i}.png", i)
    folder = train(small, "diffusion", 8)
    made = small.folder / "made.safetensors"

    said = small.ldm("average", folder.name[:8], "--length", "0.12", "-o", str(made), "--root", str(small.root))
    assert said.code == 0, said.err
    assert said.out.splitlines()[0].startswith("length 0.12 at 64 samples, of 8 stored averages, misfit of the profile")
    for name in ("small", f"diffusion/{folder.name[:8]}"):
        said = small.ldm(
            "average", name, "--length", "0.12", "-o", str(small.folder / "same"), "--root", str(small.root)
        )
        assert said.code == 2 and "expected the name of a .safetensors" in said.err, said.err  # it was found
    infos = {}
    for name, weights in {"ema": [], "file": ["--weights", str(made)], "name": ["--weights", "length-0.12"]}.items():
        out = small.folder / name
        said = small.ldm("sample", str(folder), "--out", str(out), "-n", "2", "--steps", "1", *weights)
        assert said.code == 0, said.err
        infos[name] = read_json(out / "samples.json")
    digests = {name: info["model"]["weights"]["denoiser.safetensors"] for name, info in infos.items()}
    assert digests["file"] == sha256_file(made) and digests["ema"] == sha256_file(folder / "ema.safetensors")
    images = {name: [image["sha256"] for image in info["images"]] for name, info in infos.items()}
    assert images["file"] == images["name"] != images["ema"]

    measured = ["evaluate.samples=50", "evaluate.steps=1", "evaluate.bootstrap=2", "evaluate.extractor.steps=2"]
    said = small.ldm(
        "average", str(folder), "--scan", "--lengths", "0.05,0.12", "--config", str(small.config), *measured
    )
    assert said.code == 0, said.err
    rows = [line.split("|")[1:-1] for line in said.out.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in rows[2:]] == [
        "ema", "ema-40", "length-0.05", "length-0.1", "live", "length-0.12"
    ]  # fmt: skip
    values = {row[0].strip(): row[1].strip() for row in rows[2:]}
    assert "best: " in said.out and rows[-1][3].strip() != "kept in training"

    keys = [f"diffusion.training.{key}" for key in (*KEYS, "steps=8")]
    said = small.run("evaluate", *keys, *measured, f"evaluate.weights={made}")
    assert said.code == 0, said.err
    report = read_json(small.manifests("evaluate")[0].parent / "report.json")
    assert report["model"]["weights"]["denoiser.safetensors"] == sha256_file(made)
    assert f"{report['frechet']['samples']['value']:.4g}" == values["length-0.12"]  # what --scan printed


def test_mistakes_are_one_line(small: Any) -> None:
    assert small.run("encode").code == 0
    autoencoder = small.manifests("autoencoder")[0].parent
    for arguments, said in (
        ([str(autoencoder), "--length", "0.1"], "holds no snapshots; train with `average_lengths: [0.05, 0.1]`"),
        ([str(autoencoder)], "give --length"),
        ([str(autoencoder), "--scan"], "give the run's config as well"),
        ([str(autoencoder), "--scan", "--config", str(small.config)], "makes no samples"),
        ([str(small.manifests("encode")[0].parent), "--length", "0.1"], "an artifact of encode"),
        (["no-such", "--length", "0.1", "--root", str(small.root)], "no run of that name"),
    ):
        ended = small.ldm("average", *arguments)
        assert ended.code == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
        assert said in ended.err
