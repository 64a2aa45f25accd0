"""Stage 6, register: one folder that is a model by itself, and a new version of it in MLflow's registry.

The folder's form is `generate/folder.py`'s; the version is made by the shipper from the spool, so that a tracker that
is down delays it and loses nothing. With a gate (`register.gate`) the model is audited first, and one that is over a
bound leaves nothing but its report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact, Writer
from pipeline.cluster.said import Said
from pipeline.config import Config
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster
    from pipeline.cluster.inline import Inline
    from pipeline.tracking.tracker import Spool


AUDIT, AUDIT_OF_STUDENT = 1, 2  # raised when an audit measures otherwise


def recipe(config: Config) -> dict[str, Any]:
    """The name and how the model samples where it is not told."""
    audit_format = AUDIT_OF_STUDENT if config.diffusion.distil else AUDIT
    return {
        "name": config.tracking.model_name or config.run.name,
        "alias": config.tracking.alias,
        "defaults": defaults(config),
        **result_fields(config.register_),  # a gate, and what its audit looks at
        **({"audit": [audit_format, config.evaluate.samples, config.evaluate.seed]} if config.register_.gate else {}),
    }


def defaults(config: Config) -> dict[str, Any]:
    """How the model samples where it is not told: as it was evaluated."""
    from pipeline.generate.sampling import configured

    return configured(config.evaluate)


def run(
    config: Config, inputs: dict[str, Artifact], writer: Writer, cluster: Cluster | Inline, spool: Spool
) -> dict[str, Any]:
    """Write `model/`, and leave to the shipper to register it under the config's name and alias. UserError for a model
    that does not pass the gate."""
    from safetensors.torch import load_file

    from pipeline.data import tokens
    from pipeline.data.latents import LatentSpace
    from pipeline.evaluation import audit_report
    from pipeline.files import read_json
    from pipeline.generate import adapters
    from pipeline.generate.averages import weights_path
    from pipeline.generate.folder import averages, save_pretrained

    audited = audit(config, inputs, writer, cluster, spool) if config.register_.gate else {}
    name, alias = config.tracking.model_name or config.run.name, config.tracking.alias
    section, weaker = config.evaluate, None
    if section.guidance_kind == "autoguidance":
        weaker = load_file(averages(inputs["diffusion"])[str(section.guidance_weak)])
    image: dict[str, Any] = {"size": config.data.size, "channels": config.data.channels}
    if config.data.buckets is not None:
        image["buckets"] = [list(shape) for shape in config.data.shapes]
    if config.data.clip is not None:
        image["frames"] = config.data.clip.frames
    lineage = {a.stage: {"fingerprint": a.fingerprint, "content": a.content} for a in inputs.values()}
    options = adapters.options_of(inputs["diffusion"])
    adapter: dict[str, Any] = {}
    if adapted := options.get("adapter"):
        adapter = {
            "adapter": read_json(inputs["diffusion"].path / adapters.FOLDER / adapters.CONFIG),
            "base": adapters.find_base(adapted, config.run.root),
        }
    tokenizer = inputs["autoencoder"].path / tokens.FILE
    save_pretrained(
        writer.path / "model",
        name=name,
        image=image,
        options=options,
        autoencoder=read_json(inputs["autoencoder"].path / "model.json")["model"],
        autoencoder_weights=load_file(inputs["autoencoder"].path / "ema.safetensors"),
        denoiser_weights=load_file(weights_path(inputs["diffusion"], config.evaluate.weights)),
        space=LatentSpace.load(inputs["encode"].path / "latents.json"),
        defaults=defaults(config),
        lineage=lineage,
        weaker_weights=weaker,
        tokenizer=tokenizer if tokenizer.exists() else None,
        **adapter,
    )
    if audited:
        audit_report.write(writer.path / "model" / "audit", audit_report.public(audited), None)
    spool.model(
        writer.path / "model",
        name,
        alias,
        description(inputs, spool.run, audited),
        {"ldm.diffusion": inputs["diffusion"].fingerprint},
    )
    figures = {"audit": audit_report.figures(audited)} if audited else {}
    return {"name": name, "alias": alias, "uri": f"models:/{name}@{alias}", **figures}


def audit(
    config: Config, inputs: dict[str, Artifact], writer: Writer, cluster: Cluster | Inline, spool: Spool
) -> dict[str, Any]:
    """Audit the model on a worker; returns the report. UserError where a figure is over its bound: the report then lies
    in the stage's scratch, and the run in the tracker has the figures."""
    import numpy as np
    from PIL import Image

    from pipeline.evaluation import audit_report
    from pipeline.evaluation.audit_data import audited

    assert config.register_.gate
    threads, where = cluster.alone(), writer.work / "audit"
    arguments = {
        "config": config.model_dump(mode="json", by_alias=True),
        "inputs": {name: str(artifact.path) for name, artifact in inputs.items()},
        "path": str(where),
        "parts": str(where / "parts"),
        "threads": threads,
    }
    report: dict[str, Any] = next(
        iter(cluster.map(audited, [arguments], threads=threads, gpus=1, said=Said(where / "said")))
    )
    spool.metrics({f"audit/{name}": round(value, 6) for name, value in audit_report.figures(report).items()}, 0)
    spool.file(where / "report.md")
    with Image.open(where / "copies.png") as picture:
        spool.image("audit/copies", np.asarray(picture), 0)
    for line in audit_report.lines(report):
        print(f"register: {line}", flush=True)
    audit_report.refuse(report, config.register_.gate.model_dump(), where / "report.md")
    return report


def headline(summary: dict[str, Any]) -> str:
    return str(summary["uri"])


NAMES = {"ingest": "data", "autoencoder": "autoencoder", "encode": "latents", "diffusion": "denoiser"}


def description(inputs: dict[str, Artifact], run: str, audited: dict[str, Any] | None = None) -> str:
    """Markdown: the score first (the list of versions shows that line only), then links to what the model was made of.

    `run` is the run key of this stage, audited the report of an audit.
    """
    from pipeline.evaluation import audit_report
    from pipeline.generate.adapters import options_of
    from pipeline.stages import autoencoder, diffusion, encode, evaluate, ingest
    from pipeline.tracking.runs import run_key

    made_by = {"ingest": ingest, "autoencoder": autoencoder, "encode": encode, "diffusion": diffusion}
    made_by["evaluate"] = evaluate

    lines = [
        evaluate.headline(inputs["evaluate"].summary),
        "",
        "| made of | key figure | artifact |",
        "| --- | --- | --- |",
    ]
    for stage, artifact in inputs.items():
        figure = made_by[stage].headline(artifact.summary)
        link = f"[{NAMES.get(stage, 'scores')}]({{{{run:{run_key(artifact)}}}}})"
        lines.append(f"| {link} | {figure} | `{stage} {artifact.fingerprint}`, content `{artifact.content[:12]}` |")
    trained = inputs.get("diffusion")
    if trained and (adapted := options_of(trained).get("adapter")):
        places = ", ".join(adapted["places"])
        lines.append(f"| base, without which it is nothing | {places} | weights of content `{adapted['base'][:12]}` |")
    if audited:
        figures = ", ".join(f"{name} {value:.3g}" for name, value in audit_report.figures(audited).items())
        lines.append(f"| audit | {figures} | `audit/report.md` in the model's folder |")
    lines.append(f"| [config]({{{{config:{run}}}}}) | all keys, with defaults | `config.yaml` of the pipeline's run |")
    return "\n".join(lines)
