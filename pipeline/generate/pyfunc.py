"""The registered model as MLflow loads it: code that MLflow copies beside the weights ("models from code").

Executed by MLflow (when the model is logged and when it is loaded), imported by nobody. Sampling itself is in
`pipeline/generate/folder.py`, which travels with the model.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

PARAMS = ("seed", "steps", "sampler", "grid", "guidance")


class LatentDiffusion(PythonModel):  # type: ignore[misc]
    """`predict({"label": [3, 3, 7]}, params={"seed": 0, "steps": 20})` -> images, uint8 [3, H, W, C].

    Labels are class numbers, or names where these are numbers (a model without classes makes an image a row). The image
    of row i and a seed does not depend on the other rows. Parameters that are left out have the values the model was
    evaluated with.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder that was logged as the artifact `model`."""
        from pipeline.generate.folder import load_pretrained

        self.generator = load_pretrained(context.artifacts["model"])

    def predict(
        self, context: PythonModelContext | None, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Sample an image for each row. ValueError for a parameter that is not one of PARAMS, or a missing column.

        (MLflow itself drops, with a warning, parameters that the signature does not name.)
        """
        given = {name: value for name, value in (params or {}).items() if value is not None}
        if unknown := sorted(set(given) - set(PARAMS)):
            raise ValueError(f"unknown parameters {', '.join(unknown)}; expected some of {', '.join(PARAMS)}")
        if not self.generator.classes:
            unconditional: np.ndarray = self.generator.sample(n=len(model_input), **given)
            return unconditional
        if "label" not in model_input:
            raise ValueError(f"expected a column `label` of class numbers, got {list(model_input.columns)}")
        labels = [int(label) for label in model_input["label"]]
        images: np.ndarray = self.generator.sample(classes=labels, n=len(labels), **given)
        return images


mlflow.models.set_model(LatentDiffusion())
