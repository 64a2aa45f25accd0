"""The registered model's columns and parameters: what its signature says, and what of a table reaches the sampler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("mlflow")
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel

from pipeline.generate.generator import Generator
from pipeline.generate.pyfunc import LatentDiffusion
from pipeline.tracking.mlflow_store import signature_of

CONDITION: dict[str, Any] = {
    "kind": "class",
    "drop": 0.1,
    "attributes": {
        "age": {"kind": "continuous", "range": [0.0, 10.0]},
        "label": {"kind": "categorical", "values": ["glad", "sad"]},
        "worn": {"kind": "multi_label", "values": ["hat", "a, b"], "separator": ";"},
    },
    "caption": {"tokens": 32, "encoder": {"kind": "trained"}},
}
CLASSES_ONLY = {"kind": "class", "drop": 0.1}


class Asked(Generator):
    """Makes no images, and keeps what it was asked for."""

    def sample(self, **given: Any) -> Any:  # type: ignore[override]
        self.about["request"] = self.request(**given)
        return np.zeros((self.about["request"]["n"], 4, 4, 3), np.uint8)


def model(condition: dict[str, Any]) -> tuple[PyFuncModel, Asked, LatentDiffusion]:
    """The model as MLflow wraps it, its generator, and the model as it is."""
    inner, asked = LatentDiffusion(), Asked({"classes": ["a", "b"], "condition": condition}, *[None] * 4)  # type: ignore[arg-type]
    inner.generator = asked

    class Wrapped:
        def predict(self, data: Any, params: Any = None) -> Any:
            return inner.predict(None, data, params)

    return PyFuncModel(Model(signature=signature_of(condition)[0]), Wrapped()), asked, inner


def test_a_row_an_image_with_its_own_prompt_negative_and_attributes() -> None:
    wrapped, asked, _ = model(CONDITION)
    table = pd.DataFrame(
        {
            "prompt": ["a hat", None, "no hat"],
            "negative": [None, "dark", None],
            "age": [3, np.nan, 10],
            "attribute_label": ["sad", None, "glad"],
            "worn": ["hat; a, b", None, "hat"],
        }
    )
    assert len(wrapped.predict(table, params={"seed": 4, "scale_caption": 3.0, "guidance": 2.0})) == 3
    expected = asked.request(
        n=3,
        seed=4,
        guidance=2.0,
        prompts=["a hat", "", "no hat"],
        negative=["", "dark", ""],
        attributes={"age": [3.0, None, 10.0], "label": ["sad", None, "glad"], "worn": [["hat", "a, b"], None, ["hat"]]},
        scales={"caption": 3.0},
    )
    assert asked.about["request"] == expected and expected["classes"] == []


def test_classes_alone_as_before_and_classes_beside_more() -> None:
    wrapped, asked, _ = model(CLASSES_ONLY)
    wrapped.predict({"label": [1, 0, 1]}, params={"seed": 5, "steps": 3})
    assert asked.about["request"] == asked.request(classes=[1, 0, 1], n=3, seed=5, steps=3)
    with pytest.raises(MlflowException, match="missing inputs"):
        wrapped.predict({"lable": [1]})
    wrapped, asked, _ = model(CONDITION)
    wrapped.predict({"label": [1, 0]})
    assert asked.about["request"]["classes"] == [1, 0]
    wrapped.predict({"age": [1.0, 2.0]})
    assert asked.about["request"]["classes"] == []
    wrapped.predict({"prompt": ["a hat", "no hat"], "attribute_label": ["sad", "glad"]})  # no numbers among them
    assert asked.about["request"]["prompts"] == ["a hat", "no hat"]
    assert asked.about["request"]["attributes"] == {"label": ["sad", "glad"]}


@pytest.mark.parametrize(
    ("table", "params", "message"),
    [
        ({"promt": ["a"]}, {}, "unknown columns promt; expected some of label, prompt, negative, age"),
        ({"prompt": ["a"]}, {"scale_aeg": 1.0}, "unknown parameters scale_aeg; expected some of .*scale_caption"),
        ({"age": [11.0]}, {}, "age: 11 is not in the range from 0 to 10"),
        ({"prompt": ["x" * 99]}, {}, "prompt: a prompt of 99 bytes"),
        ({"label": [0, None], "prompt": ["a", "b"]}, {}, "label: row 1 has none"),
        ({"label": [0, "a"]}, {}, "label: row 1 has 'a'; expected a whole number"),
        ({"label": [0.5]}, {}, "label: row 0 has 0.5; expected a whole number"),
        ({"label": [[0, 1]], "prompt": [["a", "b", "c"]]}, {}, "no table: .* expected columns of one length"),
    ],
)
def test_what_the_model_does_not_know_is_one_line(table: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(MlflowException, match=message) as error:
        model(CONDITION)[2].predict(None, pd.DataFrame(table, dtype=object), params)
    assert "\n" not in str(error.value)


def test_a_table_of_which_mlflow_drops_all_columns_is_no_request() -> None:
    with pytest.raises(MlflowException, match="no rows with a column of this model; expected some of label, prompt"):
        model(CONDITION)[0].predict({"promt": ["a"]})


def test_the_example_is_a_request_of_the_model() -> None:
    for condition in (CONDITION, CLASSES_ONLY):
        wrapped, asked, _ = model(condition)
        wrapped.predict(pd.DataFrame([signature_of(condition)[1]]))
        assert asked.about["request"]["n"] == 1
    nothing = signature_of({"kind": "none"})
    assert [column.name for column in nothing[0].inputs.inputs] == ["label"] and nothing[1] == {"label": 0}


def test_a_model_of_sound_gives_sounds() -> None:
    _, asked, inner = model(CLASSES_ONLY)
    transform = {"rate": 8000, "frames": 4, "mels": 8, "hop": 64, "window": 128, "lowest": 20.0, "highest": 4000.0,
                 "floor": -80.0, "ceiling": 10.0}  # fmt: skip
    asked.options["sound"] = transform
    spectrograms = np.full((2, 8, 4, 1), -20, np.float32)
    object.__setattr__(asked, "images", lambda request, first=0: spectrograms[: request["n"]])
    found = inner.predict(None, pd.DataFrame({"label": [0, 1]}))
    assert found.shape == (2, 1, 256) and found.dtype == np.float32 and np.abs(found).max() > 0.01
