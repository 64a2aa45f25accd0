"""What a rehearsal trains on where stages before have not run: artifacts of synthetic data, of the right shapes.

Data are written by ingest itself, of files of computed images, random words, noise or colours; latents and conditions
in their shards. What is done with them is `rehearsal.py`'s.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, Store
from pipeline.config import Config
from pipeline.files import digest, sha256_file, write_json
from pipeline.planning.fits import check_models

LEAST_IMAGES = 64  # what the smallest batches need


def make_inputs(
    config: Config, inputs: dict[str, Artifact], folder: Path, stages: list[str]
) -> tuple[dict[str, Artifact], list[str]]:
    """The inputs of the trained stages: of the finished artifacts `inputs`, and synthetic ones under `folder`."""
    inputs, notes, store = dict(inputs), [], Store(folder)
    kind = "rasters" if config.data.values else config.data.source.kind
    if "ingest" not in inputs:
        made, what = {
            "text": (synthetic_text, "text is ingested yet: random words"),
            "sound": (synthetic_sounds, "sounds are ingested yet: noise of the right length"),
            "rasters": (synthetic_values, "images are ingested yet: noise of the right shape"),
            "clips": (synthetic_clips, "clips are ingested yet: computed ones of the right shape"),
        }.get(kind, (synthetic_images, "images are ingested yet: computed ones of the right shape"))
        inputs["ingest"] = made(config, store)
        notes.append(f"no {what} were used")
    if "diffusion" in stages and "autoencoder" not in inputs:
        inputs["autoencoder"] = fresh_autoencoder(config, store, inputs["ingest"])
    if "diffusion" in stages and "encode" not in inputs:
        inputs["encode"] = synthetic_latents(config, store, len(inputs["ingest"].summary["classes"]))
        notes.append("no latents are there yet: random ones of the right shape were used")
    names = ["ingest", "autoencoder", "encode"]
    if "diffusion" in stages and config.diffusion.condition.columns:
        names.append("conditions")
        if "conditions" not in inputs or "images" not in inputs["encode"].summary:  # numbered as the latents are
            inputs["conditions"] = synthetic_conditions(config, store, inputs["encode"])
    return {name: inputs[name] for name in names if name in inputs}, notes


def _images(config: Config) -> int:
    """Synthetic samples of the training split: some batches' worth of lanes, not many, since ingest takes its time."""
    return max(LEAST_IMAGES, 2 * int(config.data.lanes or 1))


def synthetic_images(config: Config, store: Store) -> Artifact:
    """An artifact of computed images in the config's size, written by ingest itself."""
    from pipeline.cluster.inline import Inline
    from pipeline.schema.data import ShapesSource, Split
    from pipeline.stages import ingest

    side = min(1024, max(8, config.data.size))
    source = ShapesSource(kind="shapes", count=2 * _images(config), sizes=((side, side),))
    changed = {"source": source, "split": Split(val_fraction=0.3), "filters": (), "max_quarantine": 1.0, "limit": None}
    data = config.data.model_copy(update=changed)
    of_shapes = config.model_copy(update={"data": data, "run": config.run.model_copy(update={"root": str(store.root)})})
    with store.write("ingest", "rehearsal", {}, {}) as writer:
        return writer.finish(ingest.run(of_shapes, {}, writer, Inline(), None))


def synthetic_values(config: Config, store: Store) -> Artifact:
    """An artifact of noise of the config's bands and depth, written by ingest itself."""
    import numpy as np

    from pipeline.cluster.inline import Inline
    from pipeline.schema.data import Split
    from pipeline.schema.values import RastersSource
    from pipeline.stages import ingest

    assert config.data.values is not None
    generator, dtype = np.random.default_rng(0), np.dtype(config.data.values.dtype)
    for i in range(2 * _images(config)):
        file = store.root / "rehearsal-values" / "ab"[i % 2] / f"{i}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        shape = (config.data.channels, config.data.size, config.data.size)
        np.save(file, generator.integers(0, 256, shape).astype(dtype))
    source = RastersSource(kind="rasters", path=str(store.root / "rehearsal-values"), classes=True)
    changed = {"source": source, "split": Split(val_fraction=0.3), "max_quarantine": 1.0, "limit": None}
    data = config.data.model_copy(update=changed)
    of_values = config.model_copy(update={"data": data, "run": config.run.model_copy(update={"root": str(store.root)})})
    with store.write("ingest", "rehearsal", {}, {}) as writer:
        return writer.finish(ingest.run(of_values, {}, writer, Inline(), None))


def synthetic_text(config: Config, store: Store) -> Artifact:
    """An artifact of random words, in passages that are longer than the autoencoder's, written by ingest itself."""
    import json

    import numpy as np

    from pipeline.cluster.inline import Inline
    from pipeline.schema.data import Split
    from pipeline.schema.text import TextSource
    from pipeline.stages import ingest

    letters, generator = np.array(list("abcdefghijklmnopqrstuvwxyz     ")), np.random.default_rng(0)
    length = text_length(config) * 8  # bytes: more than a token has, mostly
    store.root.mkdir(parents=True, exist_ok=True)
    file = store.root / "rehearsal.jsonl"
    with open(file, "w") as out:
        for i in range(2 * _images(config)):
            text = f"{i} {''.join(generator.choice(letters, length))}"
            out.write(json.dumps({"text": text, "label": "ab"[i % 2]}) + "\n")
    most = max(16, min(length, 65536))
    source = TextSource(kind="text", path=str(file), label="label", passage=most, longest=10 * length + most)
    changed = {"source": source, "split": Split(val_fraction=0.3), "max_quarantine": 1.0, "limit": None}
    of_text = config.model_copy(update={"data": config.data.model_copy(update=changed)})
    with store.write("ingest", "rehearsal", {}, {}) as writer:
        return writer.finish(ingest.run(of_text, {}, writer, Inline(), None))


def synthetic_sounds(config: Config, store: Store) -> Artifact:
    """An artifact of noise of the config's length and rate, written by ingest itself."""
    import numpy as np

    from pipeline.cluster.inline import Inline
    from pipeline.data.waves import to_wav
    from pipeline.schema.data import Split
    from pipeline.schema.sound import SoundSource
    from pipeline.stages import ingest

    sound, generator = config.data.sound, np.random.default_rng(0)
    assert sound is not None
    for i in range(2 * _images(config)):
        file = store.root / "rehearsal-sounds" / "ab"[i % 2] / f"{i}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = generator.integers(-8000, 8000, (sound.frames * sound.hop, config.data.channels), np.int16)
        file.write_bytes(to_wav(noise, sound.rate))
    source = SoundSource(kind="sound", path=str(store.root / "rehearsal-sounds"))
    changed = {"source": source, "split": Split(val_fraction=0.3), "max_quarantine": 1.0, "limit": None}
    of_sound = config.model_copy(update={"data": config.data.model_copy(update=changed)})
    with store.write("ingest", "rehearsal", {}, {}) as writer:
        return writer.finish(ingest.run(of_sound, {}, writer, Inline(), None))


def synthetic_clips(config: Config, store: Store) -> Artifact:
    """An artifact of clips, their frames of one colour, in the config's size and length, written by ingest itself."""
    import numpy as np

    from pipeline.cluster.inline import Inline
    from pipeline.generate.clip_samples import webp
    from pipeline.schema.clips import ClipsSource
    from pipeline.schema.data import Split
    from pipeline.stages import ingest

    assert config.data.clip
    frames, folder = max(2, config.data.clip.frames), store.root / "rehearsal"
    for name in "ab":  # classes, should the model be told some
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(2 * _images(config)):
        colours = np.array([[[[i % 251, 40 * k % 251, (i // 251 + 90 * k) % 251]]] for k in range(frames)], np.uint8)
        moving = webp(colours.repeat(8, 1).repeat(8, 2), config.data.clip.rate)
        (folder / "ab"[i % 2] / f"{i:06d}.webp").write_bytes(moving)
    source = ClipsSource(kind="clips", path=str(folder))
    clip = config.data.clip.model_copy(update={"longest": math.inf, "most_frames": frames})
    changed = {"source": source, "clip": clip, "split": Split(val_fraction=0.3), "max_quarantine": 1.0, "limit": None}
    of_clips = config.model_copy(update={"data": config.data.model_copy(update=changed)})
    with store.write("ingest", "rehearsal", {}, {}) as writer:
        return writer.finish(ingest.run(of_clips, {}, writer, Inline(), None))


def text_length(config: Config) -> int:
    """Tokens of a passage of the config's text autoencoder."""
    from models import registry

    return int(registry.resolve("autoencoders", config.autoencoder.model)["length"])


def fresh_autoencoder(config: Config, store: Store, ingest: Artifact) -> Artifact:
    """An artifact of the config's autoencoder as it is before training, with a tokenizer where it is of text."""
    from models import registry
    from pipeline.data import tokens
    from pipeline.networks import save_weights

    model: Any = registry.build("autoencoders", config.autoencoder.model, channels=config.data.channels)
    with store.write("autoencoder", "rehearsal", {"model": config.autoencoder.model}, {}) as writer:
        save_weights(writer.path / "ema.safetensors", model.state_dict())
        if config.data.source.kind == "text":
            options = registry.resolve("autoencoders", config.autoencoder.model)
            tokens.keep(tokens.trained(options, ingest, store.root), writer.path)
        options = {"model": config.autoencoder.model, "channels": config.data.channels}
        write_json(writer.path / "model.json", options)
        return writer.finish({})


def synthetic_latents(config: Config, store: Store, classes: int) -> Artifact:
    """An artifact of random latents in the config's shape, with the views it asks for."""
    import numpy as np
    import torch

    from pipeline.data import latent_shards
    from pipeline.data.latents import LatentSpace

    channels, sides = check_models(config)
    generator = np.random.default_rng(0)
    shards = []
    pool = store.root / "latents"
    pool.mkdir(parents=True, exist_ok=True)
    for shard, (split, count) in enumerate((("train", _images(config)), ("val", LEAST_IMAGES))):
        shape = (count, len(config.latents.views), 2 * channels, *sides)
        moments = generator.standard_normal(shape, np.float32).astype(np.float16)
        labels = generator.integers(0, max(1, classes), count) if classes else np.full(count, -1)
        path = pool / f"{split}.tar"
        latent_shards.write(path, moments, labels.astype(np.int64), [f"{i:08d}" for i in range(count)])
        entry = {"split": split, "shard": shard, "count": count, "file": path.name}
        shards.append({**entry, "bytes": path.stat().st_size, "sha256": sha256_file(path)})
    with store.write("encode", digest("rehearsal")[:16], {}, {}) as writer:
        write_json(writer.path / "shards.json", {"pool": "latents", "shards": shards})
        LatentSpace(torch.zeros(channels), torch.ones(channels)).save(writer.path / "latents.json")
        return writer.finish({"shape": [channels, *sides]})


def synthetic_conditions(config: Config, store: Store, latents: Artifact) -> Artifact:
    """An artifact that tells each latent the same, captions as long as they may be."""
    import numpy as np

    from pipeline.data import caption_shards, map_shards
    from pipeline.data.condition_shards import KEY, write
    from pipeline.data.text_encoders import Embedding
    from pipeline.stages.conditions import asked, options_of

    condition, caption = asked(config), config.diffusion.condition.caption
    columns: dict[str, Any] = {KEY: "0"}
    for name, own in condition["attributes"].items():
        one = own["range"][0] if own["kind"] == "continuous" else (own["values"] or ["a"])[0]
        own["column"] = name  # a column of its own, where several are told of one
        columns[name] = [one] if own["kind"] == "multi_label" else one
    if caption:
        columns["caption"] = "x" * (caption.tokens - 1)
    pool = store.root / "conditions"
    pool.mkdir(parents=True, exist_ok=True)
    counts = latents.summary.get("images", {"train": _images(config), "val": LEAST_IMAGES})
    records = {split: write(pool, condition, [columns] * count) for split, count in counts.items()}
    shards = [{"split": split, "shard": 0, **record} for split, record in records.items()]
    empty = None
    if caption and (encoder := condition["caption"].get("encoder")):  # which is not run: zeros stand for what it gives
        zeros = np.zeros((caption.tokens, encoder["width"]), np.float16)
        given, empty = Embedding(zeros, zeros[0]), caption_shards.packed(Embedding(zeros[:2], zeros[0]))
        for split, record in records.items():
            texts = [[columns["caption"]]] * counts[split]
            made = caption_shards.write(pool, encoder, caption.tokens, texts, lambda texts: ([given] * len(texts), 0))
            record["embedded"] = made
            shards.append({"split": split, "shard": 0, "embeds": True, **made})
    spatial, grey = condition["spatial"], map_shards.Picture("grey", "pgm", lambda: b"P5 1 1 255 \x80")
    for split, count in counts.items() if spatial else ():
        told = map_shards.write(pool, spatial, {name: [grey] * count for name in spatial}, config.data.max_pixels)
        shards.append({"split": split, "shard": 0, "maps": True, **told})
    more = {"spatial": spatial} if spatial else {}
    with store.write("conditions", digest("rehearsal")[:16], {}, {}) as writer:
        write_json(writer.path / "shards.json", {"pool": "conditions", "shards": shards})
        return writer.finish({**options_of(condition, config, list(records.values()), empty), **more})
