"""What a model is told, as its options have it: rows as they were gathered, encoders as the config has them now."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pipeline.config import Config
from pipeline.tasks.diffusion import options


def config(encoder: dict[str, Any]) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "told"},
            "data": {"source": {"kind": "table", "path": "t.csv", "caption": "said"}, "size": 8},
            "autoencoder": {"training": {"steps": 1, "batch_size": 4}},
            "diffusion": {
                "condition": {"kind": "none", "caption": {"encoder": encoder, "tokens": 64}},
                "training": {"steps": 1, "batch_size": 4},
            },
        }
    )


def made(encoder: dict[str, Any]) -> dict[str, Any]:
    told = {"attributes": {}, "caption": {"tokens": 16, "encoder": encoder}}
    summaries = {"conditions": told, "encode": {"shape": [4, 8, 8]}, "ingest": {"classes": []}}
    return {name: SimpleNamespace(summary=summary) for name, summary in summaries.items()}


def test_a_trained_encoder_is_the_config_s_and_its_tokens_are_the_rows() -> None:
    inputs = made({"kind": "trained", "width": 128, "depth": 2, "heads": 4})
    found = options(config({"kind": "trained", "width": 64, "depth": 1}), inputs)["condition"]["caption"]
    assert found == {"tokens": 16, "encoder": {"kind": "trained", "width": 64, "depth": 1, "heads": 4}}


def test_a_frozen_encoder_is_the_one_that_read_and_lies_where_the_config_says() -> None:
    inputs = made({"kind": "transformers", "path": "/old", "digest": "ab", "width": 8})
    found = options(config({"kind": "transformers", "path": "/new"}), inputs)["condition"]["caption"]
    assert found["encoder"] == {"kind": "transformers", "path": "/new", "digest": "ab", "width": 8}
