"""What MLflow takes as a name, asked when a config is read: what it refuses would be told after all the training.

Copied from mlflow 3.17.2, since to import it takes seconds: `mlflow/utils/validation.py` (`_validate_model_name`,
`_validate_model_alias_name`, `_validate_model_alias_name_reserved`, `_validate_experiment_name`,
`_validate_logged_model_name`) and `mlflow/store/artifact/utils/models.py` (`_parse_model_uri`). A test asks MLflow.
"""

from __future__ import annotations

import posixpath
import re

LONGEST_EXPERIMENT = 500  # characters
LONGEST_MODEL = 256  # the width of the column in MLflow's data bases
LONGEST_ALIAS = 255
UNFIT = "/:@?#;%\"'\\"  # MLflow forbids / and :, a models:/NAME@ALIAS address or a search for the name breaks at others


def model_name(name: str) -> str:
    """A registered model's name as it is. ValueError for one that MLflow refuses, or that no address can hold."""
    if not name.strip() or name != name.strip():
        raise ValueError("expected the name of a model, without blanks around it")
    bad = "".join(dict.fromkeys(c for c in name if c in UNFIT or not c.isprintable()))
    if bad:
        raise ValueError(
            f"MLflow takes no {bad!r} in a model's name or its address; use letters, digits, '.', '_', '-'"
        )
    if posixpath.normpath(name) != name or name == "." or name.startswith(".."):
        raise ValueError("MLflow takes no name that reads as another path; begin with a letter or digit")
    if len(name) > LONGEST_MODEL:
        raise ValueError(f"{len(name)} characters, expected {LONGEST_MODEL} at most")
    return name


def alias(name: str) -> str:
    """An alias as it is. ValueError for one that MLflow refuses."""
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError("expected letters, digits, '_' and '-' only: MLflow takes no other alias")
    if name.lower() == "latest" or re.fullmatch(r"[vV]\d+", name):
        raise ValueError("MLflow keeps `latest` and `v1`, `v2`, ... for itself; give another, such as latest-good")
    if len(name) > LONGEST_ALIAS:
        raise ValueError(f"{len(name)} characters, expected {LONGEST_ALIAS} at most")
    return name


def experiment(name: str) -> str:
    """An experiment's name as it is. ValueError for one that MLflow refuses."""
    if not name.strip():
        raise ValueError("expected the name of an experiment")
    if len(name) > LONGEST_EXPERIMENT:
        raise ValueError(f"{len(name)} characters, expected {LONGEST_EXPERIMENT} at most")
    return name


def logged_name(name: str) -> str:
    """The name of the model as it is logged with a run. MLflow takes fewer characters there than in the registry:
    `plain-v1.2` is registered as that, and logged as `plain-v1-2`."""
    return re.sub(r"[/:.%\"']", "-", name)
