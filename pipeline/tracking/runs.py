"""What the tracker shows of a pipeline: a parent run named as the config, a child run a stage that ran, links between.

Everything here ends in a spool (`tracking.py`); what MLflow is, only `shipper.py` knows.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pipeline.artifacts import Artifact, Lease, Writer
from pipeline.config import Config, dump
from pipeline.files import atomic_write, read_json, write_json
from pipeline.schema.section import Section, result_fields
from pipeline.tracking import links, tracker
from pipeline.tracking.tracker import Spool

STOPS = ("Stopped", "KeyboardInterrupt", "Notice")  # an end that was asked for, by the name of what was raised


def run_key(made: Artifact | Writer) -> str:
    """The run key of a stage: `STAGE/FINGERPRINT/ATTEMPT`.

    The attempt is drawn when the stage first runs and kept beside its spool: a run that goes on keeps it, an artifact
    that is made again (`--rebuild`) has another, and so another MLflow run. Without that file (an artifact that came
    without its work/): `STAGE/FINGERPRINT`, the key of no run.
    """
    key, path = f"{made.stage}/{made.fingerprint}", made.path / "work" / "spool" / "run.json"
    if isinstance(made, Writer) and not path.exists():  # the lease is ours: nobody else draws one
        write_json(path, {"attempt": secrets.token_hex(4)})
    return f"{key}/{read_json(path)['attempt']}" if path.exists() else key


class PipelineRun:
    """The parent run of one call of the pipeline. As a context manager: it starts and drains the shipper.

    The run key is the pipeline's fingerprint, so that the same pipeline is found again and goes on in the same run. A
    lease lets one process at a time drive it: a second one would close the first one's spool (`follows`).
    """

    def __init__(
        self, config: Config, root: Path, key: str, all_cached: bool, if_busy: Literal["refuse", "wait"] = "refuse"
    ) -> None:
        self.config, self.root, self.run, self.if_busy = config, root, f"pipeline/{key}", if_busy
        self.folder = root / "pipelines" / key / "spool"
        self.all_cached = all_cached and any(self.folder.glob("*.jsonl"))
        self.rows: list[tuple[str, str, str, str]] = []
        self.verdict = ""  # the key figure of the last stage that has one: the run's first line
        self.told = ""  # what the model is told besides a class
        self._lease = ExitStack()

    def __enter__(self) -> PipelineRun:
        """Raises UserError if another process drives this pipeline."""
        if self.all_cached:  # nothing new to say
            return self
        with ExitStack() as stack:
            lease = stack.enter_context(Lease(self.folder / "lease", self.if_busy))
            self.spool = Spool(self.folder, self.run, lease.token)
            self.shipper = tracker.start(self.root, self.config.tracking.uri, self.config.tracking.deadline)
            tags = {"ldm.pipeline": self.run.partition("/")[2], "ldm.seed": str(self.config.run.seed)}
            element = self.config.sweep
            if element:
                tags |= {"ldm.sweep": element.key, "ldm.element": str(element.number)}
            self.spool.start(
                self.config.run.name,
                group=f"sweep/{element.key}" if element else None,
                tags=tags,
                params=flatten(result_fields(self.config)),
                experiment=self.config.tracking.experiment,
            )
            self.spool.file(self._config_file())
            self._lease = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.all_cached:
            return
        with self._lease:
            self.spool.end("FINISHED" if error is None else "KILLED" if kind and kind.__name__ in STOPS else "FAILED")
        left = self.shipper.drain()
        if left:
            print(tracker.left_message(self.root, self.shipper.uri, left), flush=True)
        if tracker.refused(self.root, self.shipper.uri):
            print(tracker.refused_message(self.root, self.shipper.uri), flush=True)

    def _config_file(self) -> Path:
        """The config with all defaults, kept with the run: `ldm run --config` reads it back."""
        uri = self.config.tracking.uri
        tracking_part = self.config.tracking.model_copy(update={"uri": links.public_uri(uri) if uri else None})
        path = self.folder.parent / "config.yaml"
        atomic_write(path, dump(self.config.model_copy(update={"tracking": tracking_part, "sweep": None})))
        return path

    @contextmanager
    def stage(self, stage: str, writer: Writer, steps: int | None) -> Iterator[Spool]:
        """The child run of a stage that runs now."""
        spool = Spool(writer.work / "spool", run_key(writer), writer.token)
        inputs = {f"ldm.input.{name}": f"{a.fingerprint} {a.content[:12]}" for name, a in writer.inputs.items()}
        spool.start(
            f"{self.config.stages.index(stage) + 1} {stage}",
            parent=self.run,
            tags={
                "ldm.stage": stage,
                "ldm.fingerprint": writer.fingerprint,
                "ldm.artifact": str(writer.path),
                **inputs,
            },
            params=flatten(writer.recipe),
            experiment=self.config.tracking.experiment,
            steps=steps,
        )
        try:
            yield spool
        except BaseException as error:
            spool.end("KILLED" if type(error).__name__ in STOPS else "FAILED")
            raise
        spool.end("FINISHED")

    def cached(self, stage: str, artifact: Artifact, headline: str) -> None:
        """A stage that was there already: linked, its curves copied to this parent."""
        self._row(stage, artifact, "cached", headline)
        if not self.all_cached:
            self.spool.adopt(run_key(artifact), artifact.path / "work" / "spool")

    def finished(self, stage: str, artifact: Artifact, seconds: float, headline: str) -> None:
        """A stage that has just run."""
        self._row(stage, artifact, f"{seconds:.0f} s", headline)
        self.spool.metrics({f"time/{stage}": seconds}, 0)
        if stage == "ingest":
            source = self.config.data.source
            self.spool.dataset(source.kind, artifact.content[:32], getattr(source, "path", source.kind))

    def _row(self, stage: str, artifact: Artifact, took: str, headline: str) -> None:
        key = run_key(artifact)
        if stage == "register":  # no figure, but the way to the model
            headline = f"[{headline}]({{{{model:{key}}}}})"
        else:
            self.verdict = headline
        if stage == "conditions":
            beside = ", besides the class," if self.config.diffusion.condition.kind == "class" else ""
            self.told = f"The model is told{beside} of {headline}."
        self.rows.append((f"[{stage}]({{{{run:{key}}}}})", took, headline, f"`{artifact.fingerprint}`"))
        if not self.all_cached:
            table = ["| stage | time | key figure | artifact |", "| --- | --- | --- | --- |"]
            table += [f"| {' | '.join(row)} |" for row in self.rows]
            told = [self.told, ""] if self.told else []
            self.spool.note("\n".join([self.verdict, "", *told, *table]))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested sections as dotted keys: what MLflow shows as params. A mapping by class names is one value."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and all(re.fullmatch(r"\w+", name) for name in value):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key.rstrip("_")] = str(value.model_dump() if isinstance(value, Section) else value)
    return flat
