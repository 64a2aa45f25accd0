"""Names that MLflow takes: our rules are asked beside MLflow's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.config import Tracking
from pipeline.schema import tracker_names

MODELS = [
    "plain",
    "plain-v1.2",
    "my model",
    "é",
    "a/b",
    "a:b",
    "..",
    ".",
    "..a",
    " ",
    "",
    "a@b",
    "a?b",
    "it's",
    "x" * 256,
]
ALIASES = ["latest-good", "latest", "Latest", "v1", "V22", "v1a", "best_1", "a b", "a.b", "a@b", "", "x" * 256, "a\n"]
EXPERIMENTS = ["mine", "a/b", "", "x" * 500, "x" * 501]


def takes(check: Callable[[str], object], name: str) -> bool:
    try:
        check(name)
    except Exception:  # MlflowException, ValueError
        return False
    return True


def test_no_name_is_taken_that_mlflow_refuses_or_cannot_address() -> None:
    from mlflow.store.artifact.utils.models import _parse_model_uri
    from mlflow.utils import validation

    for name in MODELS:
        if takes(tracker_names.model_name, name):
            validation._validate_model_name(name)
            parsed = _parse_model_uri(f"models:/{name}@good")
            assert (parsed.name, parsed.alias) == (name, "good")
            validation._validate_logged_model_name(tracker_names.logged_name(name))
    for name in ALIASES:
        if takes(tracker_names.alias, name):
            validation._validate_model_alias_name(name)
            validation._validate_model_alias_name_reserved(name)
    for name in EXPERIMENTS:
        assert takes(tracker_names.experiment, name) == takes(validation._validate_experiment_name, name)


def test_what_mlflow_takes_of_usual_names_is_taken() -> None:
    assert [n for n in MODELS if takes(tracker_names.model_name, n)] == [
        "plain",
        "plain-v1.2",
        "my model",
        "é",
        "x" * 256,
    ]
    assert [n for n in ALIASES if takes(tracker_names.alias, n)] == ["latest-good", "v1a", "best_1"]
    assert tracker_names.logged_name("plain-v1.2") == "plain-v1-2"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [("alias", "latest", "for itself"), ("model_name", "a/b", "no '/'"), ("experiment", "", "expected the name")],
)
def test_a_config_says_it_before_anything_runs(key: str, value: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Tracking.model_validate({key: value})
