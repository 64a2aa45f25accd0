"""What config keys mean: every key is explained, with the range that the schema holds to."""

from __future__ import annotations

import pytest

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.planning import explain

known_keys = explain.keys


def test_every_key_has_a_meaning_and_a_name_of_its_own() -> None:
    keys = known_keys()
    assert len(keys) > 90
    for key in keys:
        assert key.text, key.name
    assert len({(key.name, key.of) for key in keys}) == len(keys)


def test_every_key_of_a_resolved_config_is_known() -> None:
    """Dotted keys as they are written in a file: `data.source.path`, `autoencoder.from`."""
    values = {
        "run": {"name": "a"},
        "data": {"source": {"kind": "folder", "path": "x"}},
        "autoencoder": {"training": {"steps": 1}},
        "diffusion": {"training": {"steps": 1}},
    }
    known = {key.name for key in known_keys()}

    def walk(section: dict[str, object], prefix: str) -> None:
        for name, value in section.items():
            path = f"{prefix}{name}"
            if isinstance(value, dict):
                walk(value, f"{path}.")
            else:
                assert path in known, path

    walk(Config.model_validate(values).model_dump(mode="json", by_alias=True), "")


@pytest.mark.parametrize(
    ("name", "type_", "default"),
    [
        ("diffusion.training.clip", "number, above 0 or null", "1.0"),
        ("data.size", "whole number, at least 8, at most 2048", "32"),
        ("diffusion.training.steps", "whole number, at least 1", None),
        ("autoencoder.loss.reconstruction", "one of l1, l2", "l1"),
        ("data.split.val_fraction", "number, above 0, below 1", "0.1"),
        ("data.augment.flip", "true or false", "false"),
        ("cluster.workers", "whole number, at least 1 or auto", "auto"),
        ("diffusion.backbone.width", "whole number", "384"),
        ("diffusion.backbone.tokens", "text", "none"),
        ("autoencoder.model.multipliers", "list of: whole number", "(1, 2, 4)"),
    ],
)
def test_types_and_defaults_in_words(name: str, type_: str, default: str | None) -> None:
    key = next(key for key in known_keys() if key.name == name)
    assert (key.type, key.default) == (type_, default)


def test_a_key_in_full_says_what_it_changes() -> None:
    assert "another value is another artifact" in explain.explain("diffusion.training.learning_rate")
    assert "no part of a fingerprint" in explain.explain("diffusion.training.zero_stage")
    assert "where a run is found" in explain.explain("run.name")


def test_a_prefix_lists_its_section_and_a_word_all_keys_of_it() -> None:
    section = explain.explain("evaluate").splitlines()
    assert section[0].startswith("evaluate: ") and any(line.startswith("evaluate.extractor.kind") for line in section)
    assert explain.explain("half_lives").count("half_lives:") == 2
    assert explain.explain("shard_size").startswith("data.shard_size\n")
    assert "data.source.label (table)" in explain.explain("data.source")
    assert set(explain.explain().replace(":", "").split()) >= set(Config.model_fields)


def test_options_of_models_are_the_comments_beside_them() -> None:
    assert "attention heads" in explain.explain("diffusion.backbone.heads")
    assert "tiny-f4" in explain.explain("autoencoder.model.preset")


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean diffusion\.training\.learning_rate"):
        explain.explain("diffusion.training.learning_rte")
