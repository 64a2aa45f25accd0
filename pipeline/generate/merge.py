"""A whole model of an adapter and its base: `ldm merge`. What is summed up is in `models/lora.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.data import tokens
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.generate import adapters
from pipeline.generate import folder as models
from pipeline.generate.exchange import fresh

KEPT = ("latent", "backbone", "condition", "classes", "path", "prediction")  # options that a whole model has as well
SOME = ("values", "clip", "sound", "before", "self_conditioning")  # those that some models have


def merge(model: str, out: Path, root: Path, base: str | None = None) -> str:
    """Write the model that an adapter and its base make together as a folder that needs neither; gives a line.

    model: whatever `ldm sample` takes. base: as of `load_pretrained`. UserError for a model that is no adapter.
    """
    out, source = fresh(out), models.place(model, root)
    made = models.load_pretrained(source, "cpu", root, base=base)
    if made.base is None:
        raise UserError(f"{model}: no adapter, but a whole model already; there is nothing to merge")
    options, tokenizer = made.options, source / tokens.FILE
    if "image" not in options:  # of an artifact, not of a model's folder
        folder = models.inputs_of(Artifact.load(source))["autoencoder"].path
        autoencoder, tokenizer = read_json(folder / "model.json"), folder / tokens.FILE
        side = made.shapes[0][0] if made.tokenizer is None else made.autoencoder.length
        image: dict[str, Any] = {"size": side, "channels": autoencoder["channels"]}
        if "buckets" in options["latent"]:
            image["buckets"] = [list(shape) for shape in made.shapes]
        if made.clip is not None:
            image["frames"] = made.clip["frames"]
        options = {**options, "image": image, "autoencoder": autoencoder["model"]}
    weaker = None
    if made.defaults["guidance_kind"] == "autoguidance":
        file = made.averages[str(made.defaults["guidance_weak"])]
        weaker = adapters.whole(made.network, file, made.options, made.base)
    models.save_pretrained(
        out,
        name=made.about["name"],
        image=options["image"],
        options={key: options[key] for key in (*KEPT, *SOME) if key in options},
        autoencoder=options["autoencoder"],
        autoencoder_weights=made.autoencoder.state_dict(),
        denoiser_weights=made.network.state_dict(),
        space=made.space,
        defaults=made.defaults,
        lineage=made.about["lineage"],
        weaker_weights=weaker,
        tokenizer=tokenizer if tokenizer.exists() else None,
    )
    return f"a whole model in {out}, of {made.about['name']} and its base {made.base}"
