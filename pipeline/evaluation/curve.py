"""A curve of the Fréchet distance in training: a few samples of the averaged weights every now and then.

Noise, classes, count, sampler and extractor are the same at each point, in each resumed run, and in every run on the
same images under the same root, so that the curves of two runs may be laid over each other. The count is in the
curve's name (`diffusion/fd_256`), since the distance of few images is larger: it is no figure for a table. The
baseline, the same of real images, is logged beside it (`diffusion/fd_256_real`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluation.metrics import frechet

if TYPE_CHECKING:
    from pipeline.data.pictures import Images
    from pipeline.data.split import Array
    from pipeline.evaluation.metrics.features import Extractor

SAMPLER, GUIDANCE = "heun", 1.0


class Curve:
    """What the points have in common. Raises UserError where there are too few images."""

    def __init__(self, config: Config, ingest: Artifact) -> None:
        from pipeline.evaluation.extractors import compared

        self.config, self.ingest = config, ingest
        self.count = min(config.diffusion.fd.samples, compared(config, ingest))  # none of the classifier's own images
        if self.count < frechet.MIN_IMAGES:
            raise UserError(
                f"`diffusion.fd`: {self.count} images a set are to be had, and a distance needs {frechet.MIN_IMAGES}; "
                "hold out more images (`data.split`), raise `evaluate.samples`, or set `diffusion.fd.every: 0`"
            )
        self.name = f"fd_{self.count}"

    def request(self, options: Mapping[str, Any], conditions: Artifact | None = None) -> dict[str, Any]:
        """The arguments of `Generator.sample`: told what held-out images are, always the same noise. options: of the
        model; conditions: where its maps are, if it knows any."""
        from pipeline.data.split import split_order
        from pipeline.evaluation.scores import asked_classes
        from pipeline.evaluation.told import told_of
        from pipeline.generate.class_numbers import Label

        classes = len(self.ingest.summary["classes"]) if self.config.diffusion.condition.kind == "class" else 0
        labels = split_order(self.ingest.path, "val", self.config, self.config.evaluate.seed)[1]
        student = self.config.diffusion.distil
        return {
            "classes": [Label(c) for c in asked_classes(labels, self.count, classes)] if classes else None,
            **told_of(self.config, self.ingest.path, options, "val", self.count, conditions),
            "n": self.count,
            "seed": self.config.evaluate.seed,
            "steps": student.steps if student else self.config.diffusion.fd.steps,
            "sampler": "few" if student else SAMPLER,
            "guidance": GUIDANCE,
            "batch_size": min(self.count, self.config.evaluate.batch_size),
        }

    @cached_property
    def extractor(self) -> Extractor:
        from pipeline.evaluation.extractors import extractor_of

        return extractor_of(self.config, self.ingest)

    @cached_property
    def held_out(self) -> Array:
        """Features [count, d] of held-out images."""
        return self._features("val")

    @cached_property
    def real(self) -> float:
        """The distance of training images to the held-out ones."""
        return frechet.fast_distance(self._features("train"), self.held_out)

    def point(self, samples: Images) -> dict[str, float]:
        """The curve's values at one step."""
        distance = frechet.fast_distance(self.extractor(samples), self.held_out)
        return {self.name: distance, f"{self.name}_real": self.real}

    def __str__(self) -> str:
        student = self.config.diffusion.distil
        how = f"few, {student.steps}" if student else f"{SAMPLER}, {self.config.diffusion.fd.steps}"
        return (
            f"{self.name}: Fréchet distance of {self.count} samples ({how} steps, guidance {GUIDANCE:g}) to "
            f"{self.count} held-out images, real data {self.real:.3g}, extractor {self.extractor.digest[:12]}"
        )

    def _features(self, split: str) -> Array:
        from pipeline.data.split import load_split

        images, _ = load_split(self.ingest.path, split, self.config, self.config.evaluate.seed, self.count)
        return self.extractor(images)


def prepare(arguments: dict[str, Any]) -> str:
    """On a worker, before training: put the extractor into the pool. Gives the curve in words."""
    import torch

    torch.set_num_threads(arguments["threads"])
    return str(Curve(Config.model_validate(arguments["config"]), Artifact.load(arguments["ingest"])))
