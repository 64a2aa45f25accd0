"""Captions and attributes of a first config: what is switched on, what is proposed, and that it may be taken up."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, load
from pipeline.data.shards import TarWriter
from pipeline.planning import look, starter, starter_told
from pipeline.planning.fits import check_models
from pipeline.planning.starter import Machine
from tests.unit.pipeline.planning.test_starter import CPU, GPU, picture, table

ROWS = [
    {"file": f"{i}.png", "label": "ab"[i % 2], "caption": f"number {i}", "hair colour": ("red", "", "dark")[i % 3],
     "age": f"{i / 4}", "id": f"{i + 7}", "worn": ("hat", "hat;scarf", "scarf; ring")[i % 3], "class": "xy"[i % 2]}
    for i in range(60)
]  # fmt: skip


def both(found: look.Found, tmp_path: Path, machine: Machine = CPU) -> tuple[Config, Config, str]:
    """The config as it is written, that with all proposals taken up, and the text."""
    text = starter.write_config(found, starter.plan(found, machine, "name"), machine)
    (tmp_path / "c.yaml").write_text(text)
    proposed = re.sub(r"^    # (attributes:|  \w+: \{|caption: )", r"    \1", text, flags=re.MULTILINE)
    (tmp_path / "all.yaml").write_text(proposed)
    configs = load(tmp_path / "c.yaml"), load(tmp_path / "all.yaml")
    check_models(configs[0])
    return *configs, text


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_captions_of_most_images_are_told_and_other_columns_are_proposed(machine: Machine, tmp_path: Path) -> None:
    config, taken, text = both(look.look(str(table(tmp_path / "set", ROWS))), tmp_path, machine)
    condition = config.diffusion.condition
    assert condition.caption is not None and condition.caption.tokens == 128 and not condition.attributes
    assert (condition.kind, condition.class_drop, config.evaluate.guidance) == ("class", 0.1, 1.5)
    assert config.diffusion.backbone["tokens"] == "cross"
    assert "100% of the images have one: half of them up to 9 bytes, the longest 9" in text
    assert {name: own.model_dump(exclude={"drop"}) for name, own in taken.diffusion.condition.attributes.items()} == {
        "hair_colour": {"kind": "categorical", "column": "hair colour", "values": None},
        "age": {"kind": "continuous", "column": None, "range": (0.0, 14.75)},
        "worn": {"kind": "multi_label", "column": None, "values": None, "separator": ";"},
        "the_class": {"kind": "categorical", "column": "class", "values": None},
    }
    assert "# 2 values: red, dark; 33% have none" in text


def test_captions_of_few_images_are_left_to_the_user(tmp_path: Path) -> None:
    rows = [{**row, "caption": row["caption"] if i < 25 else ""} for i, row in enumerate(ROWS)]
    config, _, text = both(look.look(str(table(tmp_path / "set", rows))), tmp_path)
    assert config.diffusion.condition.caption is None and "tokens" not in config.diffusion.backbone
    assert config.diffusion.condition.class_drop == 0 and "# caption: {tokens: 128}   # 42% of the images" in text


def test_columns_of_tars_are_looked_at(tmp_path: Path) -> None:
    with open(tmp_path / "x-0.tar", "wb") as file:
        tar = TarWriter(file)
        for i in range(40):
            buffer = io.BytesIO()
            picture(i).save(buffer, "PNG")
            tar.add(f"{i:04d}.png", buffer.getvalue())
            if i % 2:
                tar.add(f"{i:04d}.txt", f"picture {i}".encode())
            else:
                meta = {"caption": [f"{'long ' * 30}{i}", "another"], "mood": ["glad"] * (i % 4 > 1) + ["calm"]}
                tar.add(f"{i:04d}.json", json.dumps(meta).encode())
        tar.close()
    config, taken, text = both(look.look(str(tmp_path / "x-0.tar")), tmp_path)
    assert config.diffusion.condition.kind == "none" and config.diffusion.condition.caption is not None
    assert config.diffusion.condition.caption.tokens == 160 and "are cut" not in text
    assert list(taken.diffusion.condition.attributes) == ["mood"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "b"] * 9, "categorical"),
        ([True, False] * 9, "categorical"),
        ([1, 2, 3] * 9, "categorical"),
        ([f"{i}.5" for i in range(40)], "continuous"),
        ([i % 30 for i in range(90)], "continuous"),
        (list(range(90)), None),  # numbers of rows
        ([f"word {i}" for i in range(51)] * 4, None),
        (["the only one"] * 9, None),
        ([float("inf")] + [i / 7 for i in range(90)], None),
        ([{"a": 1}, {"a": 2}] * 9, None),
        ([], None),
    ],
)
def test_what_a_column_could_be(values: list[Any], kind: str | None) -> None:
    found = starter_told.proposal(values)
    assert (found and found[0]["kind"]) == kind
