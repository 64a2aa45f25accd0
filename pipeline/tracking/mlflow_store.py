"""All calls to MLflow, each of which may be made again without a trace; but for the shipper, only here is it imported.

Runs are found by the tag `ldm.run_key`, metrics keep their timestamps (an equal row is one row), pictures and files
their names, model versions their content digest. What to send, and when, is the business of shipper.py.
"""

from __future__ import annotations

import os

for _name, _value in {  # before the import: quiet, and no call that hangs for minutes on a server that is down
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60",
}.items():
    os.environ.setdefault(_name, _value)

import fcntl  # noqa: E402
import getpass  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import tempfile  # noqa: E402
import uuid  # noqa: E402
from collections.abc import Mapping  # noqa: E402
from importlib.metadata import version as package_version  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import mlflow  # noqa: E402
from mlflow.entities import Dataset, DatasetInput, LoggedModelInput, Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.models import Model, ModelSignature  # noqa: E402
from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema  # noqa: E402

from pipeline.data.request_columns import columns, example, scales  # noqa: E402
from pipeline.errors import UserError  # noqa: E402
from pipeline.files import SOURCE, digest, sha256_file  # noqa: E402
from pipeline.schema.tracker_names import logged_name  # noqa: E402
from pipeline.tracking.links import VIEW, chart_link, table_link  # noqa: E402
from pipeline.tracking.mirror import Point  # noqa: E402
from pipeline.tracking.mlflow_calls import Down, Held, Refused, default_tracker, reaching  # noqa: E402
from pipeline.tracking.relocate import relocate  # noqa: E402

if TYPE_CHECKING:
    from PIL import Image

PACKAGES = ("mlflow", "torch", "numpy", "pandas", "pillow", "safetensors")  # what a registered model needs
COLUMNS = {  # of the list of pipelines, after name, time and duration: width in pixels
    "metrics.`eval/fd`": 90,
    "metrics.`eval/fd_real`": 110,
    "metrics.`eval/class_accuracy`": 150,
    "metrics.`eval/psnr`": 100,
    "metrics.`diffusion/val_loss`": 140,
    "metrics.`autoencoder/val_psnr`": 165,
    "params.`diffusion.training.learning_rate`": 220,
}
# the charts: their sections in order, and the pictures
SECTIONS = (
    "eval", "samples_final", "samples", "diffusion", "reconstructions", "autoencoder", "levels", "efficiency",
    "neighbours",
)  # fmt: skip
PICTURES = (
    "samples_final/ema",
    "samples/ema",
    "reconstructions/val",
    "neighbours/features",
    "neighbours/pixels",
    "levels/val_loss",
)
NOTE = "mlflow.note.content"  # the description, of a run or an experiment, that its page shows
WRITTEN = "ldm.written"  # digests of the texts that were written last
BATCH = 1000  # metrics a call: MLflow's limit
THUMBNAIL = 256  # MLflow's own size, pixels of the longer side


def _existing(path: Path) -> Path:
    """A file or folder that is to be sent. Refused if it is gone; Down, by `reaching`, if that cannot be told now."""
    try:
        path.stat()
    except FileNotFoundError:
        raise Refused(f"{path}: no such file") from None
    return path


def _picture(path: Path) -> Image.Image:
    """A picture that is to be sent. Refused if its file is gone or damaged."""
    from PIL import Image

    content = _existing(path).read_bytes()
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except (OSError, SyntaxError) as error:  # the bytes are in memory: it is the picture, not the disk
        raise Refused(f"{path}: no whole picture ({error})") from error
    return image


def create_database(uri: str, root: Path) -> None:
    """Make MLflow's SQLite file if it is not there: whole or not at all, by one process (several at once break it)."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            new.unlink(missing_ok=True)
            store = SqlAlchemyStore(f"sqlite:///{new}", (root / "mlartifacts").as_uri())
            store.engine.dispose()
            new.replace(path)


class MlflowStore:
    """One tracker. All methods raise Down or Refused."""

    def __init__(self, uri: str, root: Path) -> None:
        self.uri, self.root = uri, root
        with reaching():
            create_database(uri, root)
            relocate(uri, root)
            mlflow.set_tracking_uri(uri)
            mlflow.set_registry_uri(uri)
            self.client = mlflow.MlflowClient(uri, uri)
            self.client.search_experiments(max_results=1)

    def experiment(self, name: str) -> str:
        """The experiment's id; made if need be, with its artifacts beside the runs if the tracker is a SQLite file.

        Held if it was deleted: MLflow keeps its name, and takes no run.
        """
        with reaching():
            found = self.client.get_experiment_by_name(name)
            if found is None:
                place = (self.root / "mlartifacts").as_uri() if self.uri.startswith("sqlite") else None
                found = self.client.get_experiment(self.client.create_experiment(name, artifact_location=place))
            if found.lifecycle_stage == "deleted":
                raise Held(f"the experiment {name!r} (id {found.experiment_id}) was deleted there: restore it")
            wanted = experiment_tags(str(found.experiment_id))
            for key, value in unedited(dict(found.tags), wanted).items():
                self.client.set_experiment_tag(found.experiment_id, key, value)
            return str(found.experiment_id)

    def exists(self, run: str) -> bool:
        """Whether the run is there and not deleted."""
        with reaching():
            try:
                return bool(self.client.get_run(run).info.lifecycle_stage == "active")
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise

    def deleted(self, run: str) -> bool:
        """Whether the tracker knows the run as deleted. One that it does not know is not: it may be another's."""
        with reaching():
            try:
                return bool(self.client.get_run(run).info.lifecycle_stage == "deleted")
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise

    def model_tags(self, tag: str) -> set[str]:
        """The values of a tag over all versions of all registered models."""
        with reaching():
            found: set[str] = set()
            token = None
            while True:
                page = self.client.search_model_versions(max_results=1000, page_token=token)
                found |= {version.tags[tag] for version in page if tag in version.tags}
                token = page.token
                if not token:
                    return found

    def start(self, experiment: str, key: str, name: str, tags: dict[str, str], ts_ms: int) -> str:
        """Find the run of a run key or make it, name and tag it, set it RUNNING; its id."""
        with reaching():
            found = self.client.search_runs([experiment], f"tags.`ldm.run_key` = '{key}'", max_results=1)
            tags = tags | {"ldm.run_key": key}
            if found:
                run = str(found[0].info.run_id)
            else:
                fixed = {"mlflow.user": getpass.getuser(), "mlflow.source.name": "ldm", "mlflow.source.type": "LOCAL"}
                run = str(self.client.create_run(experiment, ts_ms, tags | fixed, name).info.run_id)
            self.client.update_run(run, "RUNNING", name)
            self.client.log_batch(run, tags=[RunTag(k, v[:8000]) for k, v in tags.items()])
            return run

    def params(self, run: str, params: dict[str, str]) -> dict[str, str]:
        """Log the params that are not there. Those that are there with another value stay, and are returned."""
        with reaching():
            there = self.client.get_run(run).data.params
            new = [Param(key, value[:6000]) for key, value in params.items() if key not in there]
            for i in range(0, len(new), 100):
                self.client.log_batch(run, params=new[i : i + 100])
            return {k: there[k] for k, value in params.items() if k in there and there[k] != value[:6000]}

    def end(self, run: str, status: str, ts_ms: int) -> None:
        """Close a run with its own time."""
        with reaching():
            self.client.set_terminated(run, status, ts_ms)

    def points(self, run: str, points: list[Point]) -> None:
        """Log values and pictures. What is not finite becomes a NaN, drawn as a gap (MLflow stores inf as 1.8e308)."""
        values = [p for p in points if p.kind == "metrics"]
        with reaching():
            for i in range(0, len(values), BATCH):
                batch = [Metric(p.key, _finite(p.value), p.ts_ms, p.step) for p in values[i : i + BATCH]]
                self.client.log_batch(run, metrics=batch)
            for point in points:
                if point.kind == "image":
                    self._image(run, point)

    def _image(self, run: str, point: Point) -> None:
        """What `MlflowClient.log_image` writes, under a name that is the same each time: again adds no file."""
        unique = uuid.uuid5(uuid.NAMESPACE_URL, f"{point.key}@{point.step}")
        name = f"{point.key.replace('/', '~')}+step+{point.step}+timestamp+{point.ts_ms}+{unique}"
        image = _picture(Path(point.value))
        with tempfile.TemporaryDirectory() as folder:
            image.save(Path(folder) / f"{name}.png")
            scale = THUMBNAIL / max(image.size)
            small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
            small.save(Path(folder) / f"{name}+compressed.webp")
            self.client.log_artifacts(run, folder, "images")
        self.client.set_tag(run, "mlflow.loggedImages", "True")

    def tag(self, run: str, key: str, value: str) -> None:
        """Set a tag."""
        with reaching():
            self.client.set_tag(run, key, value[:8000])

    def note(self, run: str, markdown: str) -> None:
        """Set the run's description, unless a person has edited it."""
        with reaching():
            tags = unedited(dict(self.client.get_run(run).data.tags), {NOTE: markdown[:8000]})
            self.client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])

    def file(self, run: str, path: Path, place: str) -> None:
        """Log a file, or a folder's content, into the folder `place` of the run's artifacts."""
        with reaching():
            log = self.client.log_artifacts if _existing(path).is_dir() else self.client.log_artifact
            log(run, str(path), place or None)

    def dataset(self, run: str, name: str, content: str, source: str) -> None:
        """Log a data set as an input. MLflow takes 36 characters of the digest."""
        entity = Dataset(name, content[:36], "local", json.dumps({"uri": source}))
        with reaching():
            self.client.log_inputs(run, [DatasetInput(entity, [])])

    def register(
        self, run: str, experiment: str, folder: Path, name: str, alias: str, tags: dict[str, str], text: str
    ) -> str:
        """Register a model folder once for each content and point the alias at it; the link to the version's page."""
        with reaching():
            tags = tags | {
                "ldm.content": digest({str(p.relative_to(folder)): sha256_file(p) for p in _files(_existing(folder))})
            }
            there = self.client.search_model_versions(f"name = '{name}'")
            known = [str(v.version) for v in there if v.tags.get("ldm.content") == tags["ldm.content"]]
            if known:
                version = known[0]
            else:
                mlflow.set_experiment(experiment_id=experiment)
                model = log_model(run, folder, logged_name(name))
                version = str(mlflow.register_model(f"models:/{model}", name, tags=tags).version)
            self.client.update_model_version(name, version, text)
            self.client.set_registered_model_alias(name, alias, version)
            return f"#/models/{name}/versions/{version}"

    def uses(self, run: str, name: str, version: str) -> None:
        """Show the run with a model version that it has used. Nothing where that was deleted."""
        with reaching():
            self.client.set_tag(run, "ldm.model", f"{name}/{version}")
            there = self.client.search_model_versions(f"name = '{name}'")
            # `model_id` of a version is None in mlflow 3.17: its source, models:/ID, is what names the logged model
            sources = [v.source for v in there if str(v.version) == version and v.source.startswith("models:/")]
            if sources:
                model = LoggedModelInput(sources[0].removeprefix("models:/"))
                self.client.log_inputs(run, models=[model])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _finite(value: float | str) -> float:
    return float(value) if math.isfinite(float(value)) else math.nan


def unedited(there: dict[str, str], wanted: dict[str, str]) -> dict[str, str]:
    """The tags to set so that `there` shows `wanted`, without those that a person has edited or emptied.

    What was written last is known by its digest, in a tag of its own: a text that is another is a person's.
    """
    try:
        ours: dict[str, str] = dict(json.loads(there.get(WRITTEN, "{}")))
    except (TypeError, ValueError):  # edited as well
        ours = {}
    new = {k: v for k, v in wanted.items() if k not in there or there[k] == v or digest(there[k]) == ours.get(k)}
    record = json.dumps(ours | {key: digest(value) for key, value in new.items()}, sort_keys=True)
    return {key: value for key, value in {**new, WRITTEN: record}.items() if there.get(key) != value}


def experiment_tags(experiment: str) -> dict[str, str]:
    """What makes an experiment's pages readable: links to the list and the charts, and how these two look.

    MLflow adds a chart for each metric and picture that the view does not name. A card of pictures lists all params
    above them unless it is told not to, and pushes them out of sight.
    """
    note = (
        "A row is a pipeline; its stages are the runs below it. "
        f"[Table with scores]({table_link('', experiment)[1:]}), "
        f"[charts that compare pipelines]({chart_link('', experiment)[1:]})."
    )
    image = {"type": "IMAGE", "runsCountToCompare": 10, "deleted": False, "isGenerated": True, "step": 0}
    view = {
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": COLUMNS,
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": False, "deleted": False, "isGenerated": True}
            for name in SECTIONS
        ],
        "compareRunCharts": [
            {"uuid": key, "metricSectionId": key.partition("/")[0], "imageKeys": [key], "showRunParams": False, **image}
            for key in PICTURES
        ],
        "isAccordionReordered": True,
    }
    return {f"mlflow.sharedViewState.{VIEW}": json.dumps(view), NOTE: note}


class Described(Model):  # type: ignore[misc]
    """A model whose input example is kept, and not run: MLflow would load the weights and sample while it logs."""

    def get_serving_input(self, path: str) -> str | None:
        return None


def signature_of(condition: Mapping[str, Any]) -> tuple[ModelSignature, dict[str, Any]]:
    """What a registered model takes, by the conditions in its config.json, and an example, a value a column."""
    known = columns(condition)
    inputs = [ColSpec(form, name, required=len(known) == 1) for name, form in known.items()]
    spec = {"seed": ("long", 0), "steps": ("long", None), "guidance": ("double", None)}
    spec |= {"sampler": ("string", None), "grid": ("string", None)} | dict.fromkeys(scales(condition), ("double", None))
    params = ParamSchema([ParamSpec(name, *values) for name, values in spec.items()])
    return ModelSignature(inputs=Schema(inputs), params=params), example(condition)


def log_model(run: str, folder: Path, name: str) -> str:
    """Log a model folder as a model of the run, with the code that loads it and explicit requirements; its model id."""
    import pandas as pd

    reads = ["tokenizers"] if (folder / "tokenizer.json").exists() else []  # a model of text
    config = json.loads((folder / "config.json").read_text())
    reads += ["scipy"] if "sound" in config else []
    signature, row = signature_of(config["condition"])
    model = Described.log(
        artifact_path=None,
        name=name,
        flavor=mlflow.pyfunc,
        run_id=run,
        python_model=str(SOURCE / "pipeline" / "generate" / "pyfunc.py"),
        artifacts={"model": str(folder)},
        code_paths=[str(SOURCE / "pipeline"), str(SOURCE / "models")],
        signature=signature,
        input_example=pd.DataFrame([row]),
        pip_requirements=[f"{p}=={package_version(p).partition('+')[0]}" for p in (*PACKAGES, *reads)],
    )
    return str(model.model_id)


def download_model(uri: str, tracking_uri: str, root: str | Path) -> Path:
    """The folder with config.json and weights of `models:/NAME@ALIAS` or `models:/NAME/VERSION`. UserError if absent.

    With a SQLite tracker it is the folder in the artifacts itself; else a copy in a temporary folder.
    """
    if tracking_uri.startswith("sqlite:///") and not Path(tracking_uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"{uri}: no tracker at {tracking_uri}; expected a finished run, or MLFLOW_TRACKING_URI")
    mlflow.set_registry_uri(tracking_uri)
    try:
        relocate(tracking_uri, Path(root).absolute())
        with reaching(), default_tracker(tracking_uri):
            path = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, tracking_uri=tracking_uri))
            inside = Model.load(str(path)).flavors["python_function"]["artifacts"]["model"]["path"]
    except (Down, Refused) as error:
        raise UserError(f"{uri}: cannot be had from the tracker: {error}") from error
    return path / str(inside)
