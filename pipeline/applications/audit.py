"""`ldm audit`: whether a trained model has kept its training images. Finds by lineage what it was trained on.

The attack and its figures are `pipeline/evaluation/audit.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.applications import made_images
from pipeline.artifacts import Artifact, Store
from pipeline.config import Config, load
from pipeline.errors import UserError
from pipeline.evaluation import audit_data, audit_report
from pipeline.evaluation.audit import audit as looked_at
from pipeline.evaluation.extractors import pool_path
from pipeline.files import sha256_file
from pipeline.past import history, lineage

if TYPE_CHECKING:
    from pipeline.generate.generator import Generator

PARTS = "parts"


def audit(
    model: Generator,
    out: Path,
    root: Path,
    count: int = 1000,
    seed: int = 0,
    reference: Generator | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Audit a model of a run under `root`, write `audit_report.FILES` to `out`; returns the report.

    count: samples, and images of either split, at most. how: steps, guidance and the like, as `Generator.sample` has
    them. A call that was killed goes on. Raises UserError.
    """
    config, ingest, diffusion, known = trained_on(model, root)
    if reference:
        audit_data.check_reference(reference, model, ingest, known)
    audit_data.check(config, ingest, diffusion)
    model.request(n=count, seed=seed, **how)
    pool, file = pool_path(config, ingest), config.evaluate.extractor.path
    extractor = pool.stem if pool else sha256_file(str(file))
    asked = {"data": ingest.content, "count": count, "seed": seed, "extractor": extractor, **how}
    made_images.begin(out, model, [], {**asked, **({"reference": reference.about} if reference else {})})
    subject, told = audit_data.subject_of(model, config, ingest, diffusion, count)
    request = audit_data.request_of(model, told, count, seed, **how)
    theirs = (reference, *audit_data.told_to(reference, config, ingest, diffusion, count)) if reference else None
    report, picture = looked_at(subject, request, out / PARTS, theirs)
    audit_report.write(out, report, picture)
    return report


def trained_on(model: Generator, root: Path, verb: str = "audit") -> tuple[Config, Artifact, Artifact, list[Artifact]]:
    """The config of the run that made a model, its data, its diffusion stage, and all artifacts there are. UserError
    where they are not under `root`, which names the `verb` that asks."""
    made = model.about.get("lineage", {}).get("diffusion")
    if not made:
        raise UserError(f"{verb}: this model does not say what it was trained on; give a model of a run here")
    known = lineage.everything(Store(root))
    diffusion = next((a for a in known if a.stage == "diffusion" and a.content == made["content"]), None)
    if diffusion is None:
        raise UserError(f"{verb}: diffusion/{made['fingerprint']}, whose weights these are, is not under {root}")
    ingest = next((a for a in lineage.parents(diffusion, known) if a.stage == "ingest"), None)
    if ingest is None:
        raise UserError(f"{verb}: the images that {diffusion.name} was trained on are not under {root}")
    runs = [past for past in history.pipelines(root) if past.folders.get("diffusion") == diffusion.path]
    files = [past.folder / "config.yaml" for past in runs if (past.folder / "config.yaml").is_file()]
    if not files:
        raise UserError(
            f"{verb}: no run under {root} says how {diffusion.name} was trained (pipelines/KEY/config.yaml)"
        )
    config = load(files[-1])
    here = config.run.model_copy(update={"root": str(root.absolute())})  # a root that was moved or copied
    return config.model_copy(update={"run": here}), ingest, diffusion, known
