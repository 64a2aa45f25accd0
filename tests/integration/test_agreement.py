"""Agreement with what a model is told: in the stage evaluate, and of a table by `ldm agreement`."""

from __future__ import annotations

import csv
import re
from typing import Any

import pytest

from pipeline.files import read_json, sha256_file

FEW = ["evaluate.samples=8", "evaluate.steps=1", "evaluate.bootstrap=2", "evaluate.extractor.steps=2"]


@pytest.fixture
def told(small: Any) -> list[str]:
    """Overrides of a config with a class and a caption; `images.csv` has a mood beside them."""
    files = sorted((small.folder / "images").rglob("*.png"))
    with open(small.folder / "images.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "class", "said", "mood"])
        for i, path in enumerate(files):
            mood = ("glad", "sad")[i % 2]
            rows.writerow([path.relative_to(small.folder), path.parent.name, f"a {mood} {path.parent.name}", mood])
    source = f"{{kind: table, path: {small.folder / 'images.csv'}, label: class, caption: said}}"
    caption = "{tokens: 24, encoder: {kind: trained, width: 16, heads: 2}}"
    return [
        f"data.source={source}", f"diffusion.condition.caption={caption}", "diffusion.backbone.tokens=cross", *FEW
    ]  # fmt: skip


def test_a_model_is_told_captions_where_there_are_no_classes(small: Any, told: list[str]) -> None:
    table = [told[0].replace("label: class, ", ""), "diffusion.condition.kind=none"]
    said = small.run("diffusion", *table, *told[1:])
    assert said.code == 0, said.err
    assert read_json(small.manifests("diffusion")[0].parent / "model.json")["classes"] == []
    assert any("samples/ema" in path.read_text() for path in small.root.rglob("*.jsonl"))  # a preview was made


def test_samples_are_judged_by_rows(small: Any, told: list[str]) -> None:
    said = small.run("evaluate", *told, "evaluate.agreement={columns: [mood, class, moods], steps: 2}")
    assert said.code == 2 and "no image has a value of 'moods'; did you mean 'mood'" in said.err, said.err
    assert len(small.manifests()) == 1  # before anything was trained
    said = small.run("evaluate", *told, "evaluate.agreement={columns: [mood, class], captions: true, steps: 2}")
    assert said.code == 0, said.err
    report = read_json(small.manifests("evaluate")[0].parent / "report.json")["agreement"]
    assert set(report["columns"]) == {"mood", "class", "all"} and 2 <= report["rows"] <= 8
    assert (
        report["columns"]["mood"]["samples"]["count"] == report["rows"]
        and 0 <= report["columns"]["all"]["real"]["right"] <= 1
    )
    assert report["captions"]["candidates"] <= 4 and report["captions"]["chance"]["recall_1"] >= 0.25
    assert "agreement, mood: " in said.out
    spools = [path.read_text() for path in small.root.rglob("*.jsonl")]
    assert any("eval/agreement/mood_shuffled" in text for text in spools)

    model, table = small.manifests("diffusion")[0].parent, small.folder / "images.csv"
    words = [str(model), str(table), "--train", str(table), "--caption", "said", "--root", str(small.root)]
    words += ["--judge-steps", "2", "--steps", "1", "-n", "24"]
    several = ["--columns", "mood", "--captions", "--guidance", "1,2", "--label", "class"]
    figures = []
    for out in (small.folder / "one", small.folder / "two"):
        said = small.ldm("agreement", *words, *several, "--out", str(out))
        assert said.code == 0, said.err
        figures.append((read_json(out / "agreement.json"), sha256_file(out / "grid.png")))
    assert figures[0] == figures[1]
    found = figures[0][0]["guidance"]
    assert list(found) == ["1", "2"] and found["1"]["columns"]["mood"]["samples"]["count"] == 24
    rows = [line.split("  ")[0] for line in said.out.splitlines()]
    assert {"guidance 1", "guidance 2", "real images", "through the autoencoder", "chance"} < set(rows)
    assert {"guidance 1, other rows", "guidance 2, other rows"} & set(rows)
    for arguments, expected in (
        ([], "nothing is judged; give --columns, or --captions"),
        (["--columns", "mod"], "--columns, .*images.csv: no image has a value of 'mod'; did you mean 'mood'"),
        (["--columns", "mood", "--guidance", "1,x"], "--guidance 1,x: expected numbers"),
        (["--columns", "mood", "--guidance", "1,nan"], "guidance: nan given"),
        (["--columns", "mood", "--guidance", "1,1.0"], "--guidance 1,1.0: names a number twice"),
        (
            ["--columns", "mood", "--label", "mood"],
            "0 rows can be told to the model, 20 at least; --label names its class",
        ),
        (["--columns", "mood", "--caption", "says"], "no column 'says'; there are image"),
    ):
        _refused(small, [*words, *arguments, "--out", str(small.folder / "bad")], expected)
    one = [*words, *several, "--out", str(small.folder / "one")]
    (small.folder / "one" / "agreement.json").unlink()  # as if killed before
    times = []
    for _ in range(2):  # the second makes nothing
        said = small.ldm("agreement", *one)
        assert said.code == 0 and read_json(small.folder / "one" / "agreement.json") == figures[0][0], said.err
        times.append((small.folder / "one" / "grid.png").stat().st_mtime_ns)
    assert times[0] == times[1]
    _refused(small, [*one, "--seed", "1"], "holds something else than this call makes")
    (record,) = small.root.glob("pipelines/agreement-*")
    assert '"agreement/guidance_2/mood_shuffled"' in next(record.glob("spool/*.jsonl")).read_text()
    assert not (small.folder / "bad").exists()


def _refused(small: Any, words: list[str], expected: str) -> None:
    said = small.ldm("agreement", *words)
    assert said.code == 2 and said.err.count("\n") == 1 and re.search(expected, said.err), said.err
