"""Calls of MLflow that fail: is the tracker down, so that the same call goes through later, or does it refuse?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

REFUSED = (  # MLflow's error codes for what will be wrong tomorrow as well
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_STATE",
)


class Down(Exception):
    """The tracker cannot take anything now: keep everything, try again later."""


class Held(Down):
    """The tracker cannot take what is of one run now (its experiment was deleted): keep that, and send the rest."""


class Refused(Exception):
    """The tracker will never take this."""


@contextmanager
def reaching() -> Iterator[None]:
    """Sort MLflow's errors into Down and Refused."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code in REFUSED:
            raise Refused(" ".join(str(error).split())[:300]) from error
        raise Down(_reason(error)) from error
    except requests.RequestException as error:
        raise Down(_reason(error)) from error
    except OSError as error:  # a full disk, a share that hangs, a file without rights: all that can be mended
        raise Down(_reason(error)) from error
    except (TypeError, ValueError) as error:  # a field of the wrong type
        raise Refused(f"{type(error).__name__}: {error}") from error


def _reason(error: BaseException) -> str:
    """The first cause in a few words ("Connection refused", "database is locked"): clients wrap it several times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    place = getattr(error, "filename", None)
    return " ".join((f"{place}: {text}" if place else text).split())[:200]


@contextmanager
def default_tracker(uri: str) -> Iterator[None]:
    """MLflow's default is `uri` for the length of a `with`: told none, it makes a data base in the current folder."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before
