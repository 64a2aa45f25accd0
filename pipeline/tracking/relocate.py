"""A root that was moved: MLflow's SQLite in it names its artifacts by absolute addresses, which are mended here.

Imports no MLflow: a few columns of its tables, as mlflow 3.17 has them; a column that is not there is passed over.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

FOLDER = "mlartifacts"
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def relocate(uri: str, root: Path) -> int:
    """Let the rows of a root's own SQLite name the artifacts where they lie now; how many were mended, which is said.

    Only addresses under a folder `mlartifacts` that is gone, and only if the root has one: a tracker that several roots
    share, or a copy whose original is still there, is left as it is.
    """
    file, here = Path(uri.removeprefix("sqlite:///")), root / FOLDER
    if not uri.startswith("sqlite:///") or file.parent != root or not file.exists() or not here.is_dir():
        return 0
    with closing(sqlite3.connect(file, timeout=60)) as base, base:
        columns = [(table, column) for table, column in COLUMNS if _has(base, table, column)]
        if not columns:
            return 0
        told = {row[0] for row in base.execute("SELECT DISTINCT artifact_location FROM experiments") if row[0]}
        before = {place.partition(f"/{FOLDER}")[0] for place in told if f"/{FOLDER}" in place} - {root.as_uri()}
        gone = sorted(
            place for place in before if place.startswith("file:") and not _path(place).joinpath(FOLDER).exists()
        )
        mended = sum(_mend(base, table, column, place, root.as_uri()) for place in gone for table, column in columns)
    if mended:
        print(f"tracker: {mended} rows named artifacts under {_path(gone[0])}, which is gone; now {root}", flush=True)
    return mended


def _has(base: sqlite3.Connection, table: str, column: str) -> bool:
    return any(row[1] == column for row in base.execute(f"PRAGMA table_info({table})"))


def _mend(base: sqlite3.Connection, table: str, column: str, before: str, now: str) -> int:
    old = f"{before}/{FOLDER}"
    done = base.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",  # noqa: S608 - names of ours
        (f"{now}/{FOLDER}", len(old) + 1, old, len(old) + 1, f"{old}/"),
    )
    return done.rowcount


def _path(place: str) -> Path:
    return Path(unquote(urlparse(place).path))
