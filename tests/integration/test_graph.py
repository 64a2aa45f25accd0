"""The graph on a small data set, in one process: what is cached, what a change costs, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.inline import Inline


def pool(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("latents/*")}


def summary(manifest: Path) -> dict[str, Any]:
    return dict(json.loads(manifest.read_text())["summary"])


def newest(small: Any, stage: str) -> Path:
    return max(small.manifests(stage), key=lambda path: path.stat().st_mtime_ns).parent


def train_again(small: Any, stage: str) -> None:
    """The same recipe with other weights in the end, as another machine or library would give."""
    from safetensors.torch import load_file, save_file

    from pipeline.artifacts import Artifact, Store

    old = Artifact.load(newest(small, stage))
    inputs = {name: Artifact.load(made["path"]) for name, made in old.inputs.items()}
    aside = Store(small.root).set_aside(old)
    with Store(small.root).write(old.stage, old.fingerprint, old.recipe, inputs) as writer:
        for name in old.manifest["files"]:
            shutil.copy(aside / name, writer.path / name)
        weights = load_file(aside / "ema.safetensors")
        save_file({key: value * 1.01 for key, value in weights.items()}, writer.path / "ema.safetensors")
        writer.finish(old.summary)


def test_a_finished_pipeline_is_cached_and_a_change_runs_what_depends_on_it(small):
    first = small.run("diffusion")
    assert first.code == 0, first.err
    manifests = small.manifests()
    assert [path.parts[-3] for path in manifests] == ["autoencoder", "diffusion", "encode", "ingest"]
    again = small.run("diffusion")
    assert again.code == 0 and again.out.count("cached") == 4 and small.manifests() == manifests
    other = small.run("diffusion", "diffusion.training.learning_rate=1e-4", "cluster.workers=2")
    assert other.code == 0 and other.out.count("cached") == 3
    assert len(small.manifests("diffusion")) == 2 and len(small.manifests()) == 5


def test_with_the_autoencoder_pinned_a_changed_shard_costs_one_encoded_shard(small):
    assert small.run("encode").code == 0
    before, whole = pool(small.root), summary(newest(small, "encode") / "manifest.json")
    assert whole["encoded"] == whole["shards"] >= 5
    pinned = f"autoencoder.from={newest(small, 'autoencoder')}"
    small.draw("images/a/2.png", 999)  # the same key: the same split and the same shard
    said = small.run("encode", pinned)
    assert said.code == 0, said.err
    now, after = summary(newest(small, "encode") / "manifest.json"), pool(small.root)
    assert (now["encoded"], now["shards"]) == (1, whole["shards"])
    assert len(after) == len(before) + 2  # a shard and its record
    assert {name: after[name] for name in before} == before
    assert len(small.manifests("autoencoder")) == 1


def test_encode_killed_half_way_and_restarted_gives_the_same_bytes(small, monkeypatch):
    assert small.run("encode").code == 0
    whole, folder = pool(small.root), newest(small, "encode")
    files = {name: (folder / name).read_bytes() for name in ("shards.json", "latents.json")}
    shutil.rmtree(folder)
    shutil.rmtree(small.root / "latents")

    def until(tasks: int) -> Any:
        def cut(self: Any, function: Any, items: Any, threads: int = 1, setup: Any = None, gpus: float = 0) -> Any:
            for done, result in enumerate(Inline.map(self, function, items, threads, setup, gpus)):
                if done == tasks:
                    raise KeyboardInterrupt
                yield result

        return cut

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.cluster.cluster.Cluster.map", until(2))
        assert small.run("encode").code == 130
    assert not small.manifests("encode")
    done = pool(small.root)
    assert 0 < len(done) < len(whole)
    shard = next(name for name in done if name.endswith(".tar"))  # and one as a kill leaves it: no record beside it
    (small.root / "latents" / shard).with_suffix(".json").unlink()
    (small.root / "latents" / shard).write_bytes(done[shard][:1000])
    assert small.run("encode").code == 0
    assert pool(small.root) == whole
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert summary(folder / "manifest.json")["encoded"] == len(whole) // 2 - len(done) // 2 + 1


def test_latents_of_another_autoencoder_are_refused_by_name(small):
    from pipeline.artifacts import Artifact

    assert small.run("encode").code == 0
    old = Artifact.load(newest(small, "autoencoder"))
    train_again(small, "autoencoder")
    new = Artifact.load(newest(small, "autoencoder"))
    assert old.fingerprint == new.fingerprint and old.content != new.content
    said = small.run("diffusion")
    assert said.code == 2 and not small.manifests("diffusion")
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert old.content[:12] in said.err and new.content[:12] in said.err and old.fingerprint in said.err
    assert "--rebuild encode" in said.err
    said = small.ldm("diffusion", "--config", str(small.config), "--rebuild", "encode")
    assert said.code == 0, said.err


def test_stage_two_itself_refuses_them(small):
    """Also where the graph is not asked: the stage's own run, with latents made by another autoencoder."""
    from pipeline import config
    from pipeline.artifacts import Artifact
    from pipeline.errors import UserError
    from pipeline.stages import diffusion

    assert small.run("encode").code == 0
    latents = Artifact.load(newest(small, "encode"))
    train_again(small, "autoencoder")
    inputs = {stage: Artifact.load(newest(small, stage)) for stage in ("ingest", "autoencoder")}
    with pytest.raises(UserError) as refused:
        diffusion.run(config.load(small.config), {**inputs, "encode": latents}, None, None, None)
    assert latents.inputs["autoencoder"]["content"][:12] in str(refused.value)
    assert inputs["autoencoder"].name in str(refused.value)


def test_a_damaged_checkpoint_is_named_and_an_older_one_gives_the_same_weights(small):
    assert small.run("autoencoder").code == 0
    folder = newest(small, "autoencoder")
    whole = (folder / "ema.safetensors").read_bytes()
    for name in ("manifest.json", "ema.safetensors", "live.safetensors"):
        (folder / name).unlink()
    newest_checkpoint = max((folder / "work/checkpoints").iterdir())
    damage(newest_checkpoint)
    said = small.run("autoencoder")
    assert said.code == 0
    assert f"{newest_checkpoint} is not whole" in said.err + said.out and "wrong digest" in said.err + said.out
    assert (folder / "ema.safetensors").read_bytes() == whole


def test_damage_in_all_checkpoints_is_an_error_and_training_does_not_begin_anew(small):
    assert small.run("autoencoder").code == 0
    folder = newest(small, "autoencoder")
    (folder / "manifest.json").unlink()
    for checkpoint in (folder / "work/checkpoints").iterdir():
        damage(checkpoint)
    said = small.run("autoencoder")
    assert said.code == 2 and "every checkpoint is damaged" in said.err.splitlines()[-1]
    assert not (folder / "manifest.json").exists()


def damage(checkpoint):
    """Flip a bit of a checkpoint's weights."""
    weights = next(checkpoint.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def test_a_longer_run_goes_on_from_a_shorter_one(small):
    assert small.run("autoencoder", "autoencoder.training.steps=4").code == 0
    longer = small.run("autoencoder", "autoencoder.training.steps=8")
    assert longer.code == 0, longer.err
    assert "goes on from step 4 of another run of its kind" in longer.out
    assert summary(newest(small, "autoencoder") / "manifest.json")["resumed_from"] == 4 * 8
    again = small.run("autoencoder", "autoencoder.training.steps=8", "--rebuild", "autoencoder")
    assert again.code == 0 and "set aside as" in again.out
    cosine = small.run("autoencoder", "autoencoder.training.steps=12", "autoencoder.training.schedule=cosine")
    assert cosine.code == 0 and "goes on" not in cosine.out


def test_training_begins_from_given_weights(small):
    from safetensors.torch import load_file

    assert small.run("autoencoder").code == 0
    first = newest(small, "autoencoder")
    given = f"autoencoder.training.init_from={first}"
    still = "autoencoder.training.learning_rate=1e-12"
    assert small.run("autoencoder", given, still).code == 0
    second = newest(small, "autoencoder")
    assert second != first
    weights, begun = load_file(first / "ema.safetensors"), load_file(second / "live.safetensors")
    assert all((weights[name] - begun[name]).abs().max() < 1e-6 for name in weights)
    wrong = small.run("autoencoder", "autoencoder.training.init_from=/nowhere")
    assert wrong.code == 2 and "`autoencoder.training.init_from`: /nowhere is neither" in wrong.err
