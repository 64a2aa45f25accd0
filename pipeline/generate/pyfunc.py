"""The registered model as MLflow loads it: code that MLflow copies beside the weights ("models from code").

Executed by MLflow (when the model is logged and when it is loaded), imported by nobody. Sampling itself is in
`pipeline/generate/folder.py`, which travels with the model.
"""

from __future__ import annotations

import math
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pipeline.data.request_columns import LABEL, NEGATIVE, PROMPT, attribute_column, columns, scales
from pipeline.errors import UserError, brief

PARAMS = ("seed", "steps", "sampler", "grid", "guidance")


class LatentDiffusion(PythonModel):  # type: ignore[misc]
    """`predict({"label": [3, 3, 7]}, params={"seed": 0, "steps": 20})` -> images, uint8 [3, H, W, C].

    Of a model of clips [3, T, H, W, C]. Labels are class numbers, or names where these are numbers (a model without
    classes makes an image a row). A model that is told more has columns `prompt` and `negative`, one an attribute
    (several labels as in the data set's text, `hat;glasses`), and a parameter `scale_NAME` for each condition. Columns
    that are not there, and values that are None, are not told; a label is given in all rows or in none. The image of
    row i and a seed does not depend on the other rows. Parameters that are left out have the values the model was
    evaluated with.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder that was logged as the artifact `model`."""
        from pipeline.generate.folder import load_pretrained

        self.generator = load_pretrained(context.artifacts["model"])

    def predict(
        self, context: PythonModelContext | None, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Sample an image for each row; of a model of text a text, of sound a sound, float32 [C, samples] of the
        rate in the model's config.json (`sound`). MlflowException, in one line, for a column,
        parameter or value that the model does not know.

        MLflow itself drops, with a warning, parameters and columns that the signature does not name.
        """
        try:
            arguments = self._arguments(_table(model_input), params or {})
            if self.generator.tokenizer is not None:
                return np.array(self.generator.texts(self.generator.request(**arguments)))
            if self.generator.sound is not None:
                return self.generator.sounds(self.generator.request(**arguments))
            images: np.ndarray = self.generator.sample(**arguments)
            return images
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def _arguments(self, table: pd.DataFrame, params: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `Generator.sample`. UserError for what is not known."""
        condition = self.generator.options["condition"]
        given = {name: value for name, value in params.items() if value is not None}
        weights, known = scales(condition), columns(condition)
        for what, unknown, names in (
            ("parameters", set(given) - {*PARAMS, *weights}, [*PARAMS, *weights]),
            ("columns", set(map(str, table.columns)) - set(known), list(known)),
        ):
            if unknown:
                raise UserError(f"unknown {what} {', '.join(sorted(unknown))}; expected some of {', '.join(names)}")
        if not len(table):
            raise UserError(f"no rows with a column of this model; expected some of {', '.join(known)}")
        values = {name: [_plain(value) for value in table[name]] for name in table.columns}
        own = {name: given.pop(key) for key, name in weights.items() if key in given}
        arguments: dict[str, Any] = {**given, "n": len(table), **({"scales": own} if own else {})}
        if self.generator.classes:
            arguments |= self._classes(values.get(LABEL, []), required=list(known) == [LABEL])
        if condition.get("caption"):
            arguments["prompts"] = [text or "" for text in values.get(PROMPT, [""])]
            if any(values.get(NEGATIVE, [])):
                arguments["negative"] = [text or "" for text in values[NEGATIVE]]
        told = {name: attribute_column(name) for name in condition.get("attributes") or {}}
        arguments["attributes"] = {name: values[column] for name, column in told.items() if column in values}
        return arguments

    def _classes(self, labels: list[Any], required: bool) -> dict[str, Any]:
        if not labels and required:
            raise UserError(f"expected a column `{LABEL}` of class numbers")
        if any(label is None for label in labels):
            if required or any(label is not None for label in labels):
                raise UserError(f"{LABEL}: row {labels.index(None)} has none; give one in each row")
            return {}
        return {"classes": [_number(label, row) for row, label in enumerate(labels)]} if labels else {}


def _number(label: Any, row: int) -> int:
    """A class number. UserError for what is no whole number."""
    try:
        number = int(label)
        if isinstance(label, str) or number == label:
            return number
    except (ValueError, TypeError, OverflowError):
        pass
    raise UserError(f"{LABEL}: row {row} has {label!r}; expected a whole number")


def _table(given: Any) -> pd.DataFrame:
    """The rows asked for. {column: list of texts} reaches a model as one row of lists (MLflow 3.17): its rows.

    UserError for columns of unequal length.
    """
    try:
        table = pd.DataFrame(given)
        if len(table) == 1 and any(isinstance(value, (list, np.ndarray)) for value in table.iloc[0]):
            return pd.DataFrame(dict(table.iloc[0]))
        return table
    except ValueError as error:
        raise UserError(f"no table: {brief(error)}; expected columns of one length, an image a row") from None


def _plain(value: Any) -> Any:
    """A cell, None for what is missing."""
    return None if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)) else value


mlflow.models.set_model(LatentDiffusion())
