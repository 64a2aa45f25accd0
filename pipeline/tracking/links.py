"""Where the tracker is, what the shipper has noted of it, and the addresses of its pages."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.tracking.spool import process_identity

SERVING = "serving.json"  # in the tracking folder: who serves MLflow's pages, and where
FOLDERS = ("artifacts", "pipelines", "sweeps", "solvers", "set-aside")  # of a root, that hold what is tracked
VIEW = "ldm-pipelines"  # the key of the shared view that `mlflow_store.py` leaves with each experiment
_VIEW = f"workflowType=machine_learning&viewStateShareKey={VIEW}"  # a fresh browser opens the GenAI view without it
CHARTS, TABLE = f"{_VIEW}&compareRunsMode=CHART", f"{_VIEW}&compareRunsMode=TABLE"


def resolve_uri(root: str | Path, uri: str | None = None) -> str:
    """The tracking URI: `uri` (the config's), else MLFLOW_TRACKING_URI, else SQLite beside the runs. Always absolute.

    UserError for a plain folder or file: URI, which MLflow no longer takes as a store.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(root).absolute()}/mlflow.db"
    scheme = uri.partition(":")[0]
    if scheme == "sqlite":
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    if "://" not in uri or scheme == "file":
        raise UserError(
            f"tracking.uri: {uri!r} is not a tracker; expected http(s)://HOST:PORT or sqlite:///FILE; "
            "leave it out for SQLite beside the runs"
        )
    return uri.rstrip("/")


def public_uri(uri: str) -> str:
    """`uri` without a user name and password: for messages and for the state file."""
    return re.sub(r"//[^/@]*@", "//", uri)


def tracking_folder(root: str | Path) -> Path:
    """Where the shipper keeps its lock, its log and `state.json` (offsets and run ids, by tracking URI)."""
    return Path(root) / "tracking"


def read_store(root: str | Path, uri: str) -> dict[str, Any]:
    """What the shipper has noted for `uri` (see `pipeline.tracking.shipping.Shipping`). Empty before its first pass."""
    path = tracking_folder(root) / "state.json"
    stores: dict[str, dict[str, Any]] = read_json(path)["stores"] if path.exists() else {}
    return stores.get(store_key(root, uri, stores), {})


def store_key(root: str | Path, uri: str, stores: Mapping[str, Any]) -> str:
    """The name of `uri` in the state file: that of a root's own SQLite from before, where the root was moved since."""
    key, file = public_uri(uri), Path(uri.removeprefix("sqlite:///"))
    if key in stores or not uri.startswith("sqlite:///") or file.parent != Path(root).absolute() or not file.exists():
        return key
    before = [old for old in stores if old.startswith("sqlite:///") and Path(old).name == file.name]
    return next((old for old in before if not Path(old.removeprefix("sqlite:///")).exists()), key)


def moved(root: str | Path, path: str | Path) -> Path:
    """Where a file of a root lies that was at `path` when that was noted: there, or at the same place in the root."""
    path = Path(path)
    if not path.exists():
        for i, part in enumerate(path.parts):
            if part in FOLDERS and (here := Path(root, *path.parts[i:])).exists():
                return here
    return path


def serving(root: str | Path) -> str | None:
    """The address at which a process of this machine serves MLflow's pages over the root; None if none does."""
    try:
        told = read_json(tracking_folder(root) / SERVING)
        alive = told["process"] == process_identity(told["process"]["pid"])
        return str(told["address"]) if alive else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def chart_link(base: str, experiment: str) -> str:
    """The page that compares pipelines: the runs of an experiment as charts. `base` is the server's address."""
    return f"{base}/#/experiments/{experiment}/runs?{CHARTS}"


def table_link(base: str, experiment: str) -> str:
    """The page that lists the pipelines of an experiment with their scores (`mlflow_store.COLUMNS`)."""
    return f"{base}/#/experiments/{experiment}/runs?{TABLE}"


def run_path(experiment: str, run: str, file: str = "") -> str:
    """The link to a run, or to a file of it, from inside MLflow's pages (markdown of a note)."""
    place = f"/artifacts/{file}" if file else ""
    return f"#/experiments/{experiment}/runs/{run}{place}?workflowType=machine_learning"


def run_url(root: str | Path, run_key: str, uri: str | None = None) -> str | None:
    """The address of a run's page, None while the shipper has not made the run, or nothing serves it (`ldm ui`)."""
    uri = resolve_uri(root, uri)
    run = read_store(root, uri).get("runs", {}).get(run_key)
    if run is None:
        return None
    base = public_uri(uri) if uri.startswith("http") else serving(root)
    return base and f"{base}/{run_path(run['experiment'], run['id'])}"
