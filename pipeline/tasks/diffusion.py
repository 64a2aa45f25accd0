"""What the diffusion model learns: the network, its loss on cached latents, validation and previews, on a rank.

Paths, predictions and weightings are in `models/diffusion/`, the loop in `training/loop.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluation.curve import Curve
from pipeline.schema.section import result_fields

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.data import loader
    from pipeline.data.text_encoders import Embedding
    from pipeline.training.engine import Engine
    from pipeline.training.loop import Task
    from pipeline.training.ranks import Ranks

PREVIEW_IMAGES = 16
PREVIEW_STEPS = 20  # of a denoiser; a student takes its few


def options(config: Config, inputs: dict[str, Artifact]) -> dict[str, Any]:
    """All that is needed to build the network again and to sample with it, as plain values."""
    from models.patches import size_of
    from pipeline.data.buckets import usual
    from pipeline.data.value_map import ValueMap
    from pipeline.data.waves import transform_of

    condition = result_fields(config.diffusion.condition)
    if "conditions" in inputs:
        made = inputs["conditions"].summary
        condition |= {key: made[key] for key in ("attributes", "caption", "spatial") if key in made}
        if condition.get("caption"):  # what is trained, and where a frozen one lies, is as the config says now
            encoder = config.diffusion.condition.caption.encoder.model_dump()  # type: ignore[union-attr]
            condition["caption"] = {**made["caption"], "encoder": {**made["caption"]["encoder"], **encoder}}
    values = ValueMap.load(inputs["ingest"].path) if config.data.measured else None
    sound = {"sound": asdict(transform_of(config.data.sound))} if config.data.sound else {}
    source, summary = config.data.source, inputs["encode"].summary
    (channels, *sides), buckets = summary["shape"], {}
    if "buckets" in summary:  # [height, width] of the latents, those that training meets; the usual one first
        rows = [row for row in summary["buckets"] if row["train"]]
        first = usual([row["shape"] for row in rows], [row["train"] for row in rows], sides[0])
        buckets = {"buckets": [rows[first]["shape"], *(row["shape"] for i, row in enumerate(rows) if i != first)]}
    return {
        "latent": {"channels": channels, "size": size_of(sides), **buckets},
        "backbone": config.diffusion.backbone,
        "condition": condition,
        "classes": inputs["ingest"].summary["classes"],
        "path": result_fields(config.diffusion.path),
        "prediction": config.diffusion.prediction,
        **({"values": values.json()} if values else {}),
        **({"clip": {"frames": clip.frames, "rate": clip.rate}} if (clip := config.data.clip) else {}),
        **sound,
        **({"before": source.before_bytes} if source.kind == "text" and source.before else {}),
        **({"self_conditioning": True} if config.diffusion.self_conditioning else {}),
        **({"student": result_fields(config.diffusion.distil)} if config.diffusion.distil else {}),
    }


def flops(config: Config, inputs: dict[str, Artifact]) -> int:
    """Of the backbone's forward pass for a sample in training, of a student one for each of its jumps; of a caption 64
    tokens. Without what a teacher does."""
    from models import costs, registry
    from pipeline.tasks.inside import routed

    section, latent = config.diffusion, options(config, inputs)["latent"]
    route = None
    if section.route:
        depth = registry.resolve("backbones", section.backbone)["depth"]
        route = (section.route.share, *routed(section.route, depth))
    jumps = section.distil.steps if section.distil else 1
    return jumps * costs.backbone(section.backbone, latent["channels"], latent["size"], route).flops


def told(config: Config, inputs: dict[str, Artifact], split: str) -> loader.Told | None:
    """What the samples of a split are told besides their class; None where that is nothing."""
    from pipeline.data import maps
    from pipeline.data.condition_pool import open_conditions
    from pipeline.data.condition_values import null_rows
    from pipeline.data.loader import Told

    section = config.diffusion.condition
    if "conditions" not in inputs:
        return None
    made = inputs["conditions"]
    several = {**section.attributes, **section.spatial}
    drops = {name: own.drop for name, own in several.items()} | {"class": section.class_drop}
    if section.caption:
        drops["caption"] = section.caption.drop
    null = null_rows(made.summary["attributes"], made.summary["caption"])
    null |= maps.null_rows(made.summary.get("spatial", {}))
    mirrored = tuple(view == "flip" for view in config.latents.views) if section.spatial else ()
    return Told(
        open_conditions(made, inputs["ingest"], inputs["encode"], split, config.data.cache), null, drops, mirrored
    )


def read_of(inputs: dict[str, Artifact], request: Mapping[str, Any]) -> dict[str, Embedding]:
    """What a frozen encoder gave for the held-out captions of a request: no rank loads it."""
    from pipeline.data.condition_pool import embeddings
    from pipeline.generate.prompts import pieces

    texts = [text for prompt in request.get("prompts", []) for text in pieces(prompt)]
    return embeddings(inputs["conditions"], "val", texts) if texts else {}


def frozen(config: Config, what: dict[str, Any], ranks: Ranks) -> Any:
    """The teacher of a student: the network of `init_from`, which has to be of the student's own form."""
    import torch

    from pipeline.networks import build_network, load_weights
    from pipeline.tasks.begin import first_weights

    teacher: Any = build_network(what)
    load_weights(teacher, first_weights(config, "diffusion"))
    # The network alone: embedded captions are float16, which autocast to bf16 refuses to join
    half = torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.diffusion.training.precision == "bf16")
    teacher.forward = half(teacher.forward)
    return teacher.to(ranks.device).eval().requires_grad_(False)


def build(config: Config, inputs: dict[str, Artifact], ranks: Ranks) -> tuple[nn.Module, Task]:
    """The network with its first weights, and what the loop needs to know about this stage."""
    import torch

    from models.diffusion import distillation, grids, objectives, self_conditioning
    from models.diffusion.denoiser import denoiser, start_time
    from models.diffusion.guidance import guided
    from models.diffusion.process import make_path
    from pipeline.data import loader, tokens
    from pipeline.data.balance import training_order
    from pipeline.data.latent_pool import open_latents
    from pipeline.data.latents import LatentSpace
    from pipeline.data.order import seeded
    from pipeline.data.pictures import grid
    from pipeline.data.split import split_order
    from pipeline.data.text_pictures import picture
    from pipeline.evaluation.scores import asked_classes
    from pipeline.evaluation.told import told_of
    from pipeline.generate.class_numbers import Label
    from pipeline.generate.generator import generator
    from pipeline.generate.text_samples import headings
    from pipeline.generate.told import words
    from pipeline.networks import build_network, load_model
    from pipeline.tasks import noise_levels
    from pipeline.tasks.inside import Inside, wanted
    from pipeline.tasks.trained import to_device
    from pipeline.training.loop import Task

    section, training, seed = config.diffusion, config.diffusion.training, config.run.seed
    what = options(config, inputs)
    torch.manual_seed(seeded(seed, "diffusion/weights"))
    network = build_network(what, activation_checkpointing=training.activation_checkpointing)
    path = make_path(**result_fields(section.path))
    space = LatentSpace.load(inputs["encode"].path / "latents.json")
    train, val = (open_latents(inputs["encode"], split) for split in ("train", "val"))
    null = len(what["classes"])
    given = {split: told(config, inputs, split) for split in ("train", "val")}
    order = training_order(train, config.data, what["classes"], training.batch_size, seed)

    times = objectives.Times(section.times.kind, section.times.mean, section.times.std)
    edges = noise_levels.levels(times, path)

    teacher = frozen(config, what, ranks) if section.distil else None
    untold = {"class": null, **(given["train"].null if given["train"] else {})}  # the rows that stand for no condition
    decoder = load_model(inputs["autoencoder"].path).to(ranks.device)
    tokenizer = tokens.of_model(decoder, inputs["autoencoder"].path)
    inside = None
    if asked := wanted(section):
        if any(part.unequal for part in train.parts):
            raise UserError(f"`diffusion.{asked[0]}`: its tokens would be padding too, of latents of unequal length")
        inside = Inside(section, network, path, times, space, decoder, ranks)

    def per_sample(network: nn.Module, batch: dict[str, Any], learning: bool = False) -> Tensor:
        """The weighted squared error of the prediction, a mean over elements, in learning with the terms beside it; of
        a student that of its jumps along its teacher's walk: [n]."""
        condition = loader.told_in(batch)
        if teacher is not None and section.distil:
            said = {name: rows for name, rows in condition.items() if name in untold}
            nothing = {name: torch.tensor(untold[name]).to(rows)[None] for name, rows in said.items()}
            jumps = section.distil.steps
            way = grids.walk(jumps, path, start_time(path, section.prediction))
            student, lead = (denoiser(each, path, section.prediction) for each in (network, teacher))
            lead = guided(lead, section.distil.guidance, nothing)
            return distillation.loss(student, jumps, lead, way, batch["noise"], condition, path)
        x0 = space.draw(batch["moments"], batch["posterior"])  # [n, C, *sides]
        t = times(batch["u"], path)
        if section.self_conditioning:
            drawn = batch["guess"] if learning else None
            condition = self_conditioning.told(
                network, x0, batch["noise"], t, condition, path, section.prediction, drawn
            )
        sample = (x0, batch["noise"], t, condition)
        beside = (section.cosine, section.contrastive) if learning else (0.0, 0.0)
        if inside is None or not learning:
            return objectives.loss(network, *sample, path, section.prediction, section.weighting, *beside)
        answer, seen = inside.watched(network, batch)
        each = objectives.loss(answer, *sample, path, section.prediction, section.weighting, *beside)
        return each + inside.terms(seen, batch)

    def loss(network: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"loss": per_sample(network, batch, learning=True).mean()}

    def batches(position: int) -> Iterator[dict[str, Any]]:
        return loader.latent_batches(
            train,
            order,
            config.data,
            seed,
            ranks.rank,
            ranks.world,
            position,
            section.condition.drop,
            null,
            given["train"],
            {**(inside.draws if inside else {}), **({"guess": False} if section.self_conditioning else {})} or None,
        )

    def validation() -> Iterator[dict[str, Any]]:
        return loader.latent_validation(
            val, training.batch_size, config.data, seed, ranks.rank, ranks.world, null, given["val"]
        )

    @torch.no_grad()
    def validate(engine: Engine) -> dict[str, Any]:
        """Mean loss over the held-out latents, and by noise level; times spread evenly, every sample once, conditions
        never dropped."""
        total, by_level = torch.zeros(2, dtype=torch.float64), torch.zeros(2, noise_levels.BINS, dtype=torch.float64)
        with engine.weights("ema"):
            for batch in validation():
                batch = to_device(batch, ranks.device)
                weight = batch["weight"]
                values = per_sample(engine.module, batch)
                total += torch.stack([(values * weight).sum(), weight.sum()]).double().cpu()
                by_level += noise_levels.sums(batch["u"], values, weight)
        value, count, *parts = ranks.sum_floats([*total.tolist(), *by_level.flatten().tolist()])
        if teacher is not None:  # its jumps have levels of their own
            return {"val_loss": value / count}
        found = noise_levels.named(parts[: noise_levels.BINS], parts[noise_levels.BINS :])
        return {"val_loss": value / count, **found, "levels/val_loss": noise_levels.picture(found, edges)}

    def preview(engine: Engine) -> dict[str, Any]:
        """Samples of the averaged weights from fixed noise, told what the first held-out images are, or classes in
        turn where a class is all there is; every rank computes the same."""
        shown = told_of(config, inputs["ingest"].path, what, "val", PREVIEW_IMAGES, inputs.get("conditions"))
        classes: list[Any] | None = None
        if null and section.condition.kind == "class":
            turns: Iterable[int] = range(PREVIEW_IMAGES)
            if shown:  # their own classes beside what else is told of them
                labels = split_order(inputs["ingest"].path, "val", config, config.evaluate.seed)[1]
                turns = asked_classes(labels, PREVIEW_IMAGES, null)
            classes = [Label(i % null) for i in turns]
        with engine.weights("ema"):
            sampler = generator(
                what, decoder, engine.module, space, ranks.device, known=read_of(inputs, shown), tokenizer=tokenizer
            )
            steps = None if section.distil else PREVIEW_STEPS
            if tokenizer is not None:
                how: dict[str, Any] = {"n": PREVIEW_IMAGES, "seed": seed, "steps": steps, "batch_size": PREVIEW_IMAGES}
                request = sampler.request(classes, **how, **shown)
                marks = [f"[{heading}] " if heading else "" for heading in headings(sampler, request)]
                texts = [mark + text for mark, text in zip(marks, sampler.texts(request), strict=True)]
                return {"samples/ema": picture([line for text in texts for line in (text, "")])}
            images = sampler.sample(
                classes, n=PREVIEW_IMAGES, seed=seed, steps=steps, batch_size=PREVIEW_IMAGES, **shown
            )
        columns = 4 if config.data.clip is None else 1
        return {"samples/ema": (grid(sampler.shown(images), columns=columns), words(shown, PREVIEW_IMAGES))}

    teach = inside.teach if inside and section.align else None
    if not section.fd.every:
        return network, Task("diffusion", loss, batches, validate, preview, teach=teach)
    curve = Curve(config, inputs["ingest"])
    request = curve.request(what, inputs.get("conditions"))

    def measure(engine: Engine) -> dict[str, float]:
        """A point of the curve of Fréchet distances; every rank samples the same, rank 0 looks at it."""
        with engine.weights("ema"):
            sampler = generator(what, decoder, engine.module, space, ranks.device, known=read_of(inputs, request))
            images = sampler.sample(**request)
        return curve.point(images) if ranks.first else {}

    return network, Task("diffusion", loss, batches, validate, preview, measure, section.fd.every, teach)
