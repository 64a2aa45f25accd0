"""The gate before a model is registered, `ldm audit` of a model that was, and the lineage that `ldm why` names."""

from __future__ import annotations

import re
import shutil
from typing import Any

from jobs.cli import group
from pipeline.files import read_json, sha256_file
from tests.killed import content, goes_on

FEW = ["data.split.val_fraction=0.6", "evaluate.samples=20", "evaluate.steps=1", "evaluate.bootstrap=2",
       "evaluate.extractor.steps=2"]  # fmt: skip


def test_a_gate_lets_through_what_is_under_it_and_nothing_else(small: Any) -> None:
    small.draw("images/a/more.png", 99)
    for i in range(100, 108):
        small.draw(f"images/b/{i}.png", i)
    said = small.run("run", "register.gate.copies=0.1")
    assert said.code == 2 and re.search(r"`register.gate`: \d+ val images, 20 of either split at least", said.err), (
        said.err
    )
    assert len(small.manifests()) == 1  # before anything was trained
    said = small.run("run", *FEW, "register.gate={membership_auc: 1, copies: 1}")
    assert said.code == 0, said.err
    made = small.manifests("register")[0].parent
    assert read_json(made / "manifest.json")["recipe"]["gate"] == {"copies": 1.0, "membership_auc": 1.0}
    report = read_json(made / "model" / "audit" / "report.json")
    assert "exposed" not in report and report["images"]["samples"] == 20
    figures = read_json(made / "manifest.json")["summary"]["audit"]
    assert any('"audit/membership_auc"' in path.read_text() for path in made.rglob("*.jsonl"))

    spooled = "".join(path.read_text() for path in made.rglob("*.jsonl"))
    assert "| audit | membership_auc " in spooled and '"audit/copies"' in spooled

    name = max(figures, key=lambda name: figures[name] - (0.5 if name == "membership_auc" else 0))
    bound = 0.5 if name == "membership_auc" else 0.0
    assert figures[name] > bound
    said = small.run("run", *FEW, f"register.gate.{name}={bound}")
    assert said.code == 2 and said.err.count("\n") == 1, said.err
    assert f"error: not registered: {name} is " in said.err and f"`register.gate.{name}` allows {bound:g}" in said.err
    assert len(small.manifests("register")) == 1 and len(list(small.root.glob("artifacts/register/*/model"))) == 1
    spools = [path.read_text() for path in small.root.glob("artifacts/register/*/work/spool/*.jsonl")]
    assert sorted("FAILED" in text for text in spools) == [False, True] and sum('"model"' in t for t in spools) == 1
    assert len(list(small.root.glob("artifacts/register/*/work/audit/report.md"))) == 2

    few = ["distil", "small", "--root", str(small.root), "--steps", "1", "diffusion.training.steps=2"]
    said = small.ldm(*few)
    assert said.code == 0, said.err
    assert "register: membership in the teacher, all that a student learns from: AUC" in said.out
    (student,) = (path.parent for path in small.manifests("register") if path.parent != made)
    own = read_json(student / "model" / "audit" / "report.json")["membership"]
    assert own == {**report["membership"], "of_teacher": True}  # the same images and noises

    out = small.folder / "out"
    words = [str(made / "model"), "--root", str(small.root), "-n", "20", "--steps", "1"]
    said = small.ldm("audit", *words, "--out", str(out))
    assert said.code == 0 and "membership: AUC" in said.out, said.err
    files = {name: sha256_file(out / name) for name in ("report.json", "report.md", "copies.png", "asked.json")}
    assert "a/" in (out / "report.md").read_text()  # images by their keys
    (out / "report.json").unlink()
    said = small.ldm("audit", *words, "--out", str(out))
    assert said.code == 0 and "samples 0" not in said.out  # they were there
    assert {name: sha256_file(out / name) for name in files} == files
    (record,) = small.root.glob("pipelines/audit-*")  # one run of both calls, with no name of an image
    assert '"audit/membership_auc"' in next(record.glob("spool/*.jsonl")).read_text()
    assert sorted(path.name for path in record.iterdir()) == ["asked.json", "copies.png", "spool"]
    copied, killed = small.folder / "copied", small.folder / "killed"
    shutil.copytree(small.root, copied, ignore=shutil.ignore_patterns("audit-*"))
    call = ["audit", *words, "--root", str(copied), "--out", str(killed)]
    assert goes_on(lambda: group.main(call, standalone_mode=False), killed, content(out)) > 8
    assert len(list(copied.glob("pipelines/audit-*"))) == 1
    pool = (small.root / "extractors").rename(small.root / "moved")
    for more, expected in (
        (["--seed", "1"], "--out .*holds something else than this call makes"),
        (["--out", str(out / "report.md")], "--out .*: is a file; give a folder"),
        (["--reference", str(made / "model")], "--reference: was trained on the same images"),
        (["--reference", str(student / "model")], "--reference: is a student, whose answers are no means"),
        (["-n", "3"], "3 is not in the range"),
        (["--root", str(small.folder / "none")], "is not under"),
    ):
        said = small.ldm("audit", *words, "--out", str(out), *more)
        assert said.code == 2 and said.err.count("\n") == 1 and re.search(expected, said.err), said.err
    assert not (small.root / "extractors").exists()  # none was trained before that was said
    pool.rename(small.root / "extractors")

    out = small.folder / "why"
    words = [str(made / "model"), "--steps", "2", "-n", "2", "-k", "3"]
    said = small.ldm("why", *words, "--root", str(small.root), "--out", str(out))
    assert said.code == 0 and "2 samples explained" in said.out, said.err
    for one in read_json(out / "why.json")["samples"]:
        for way in ("pixels", "features"):
            assert len(one["nearest"][way]) == 3
            near = one["nearest"][way][0]
            assert near["class"] == near["key"][0] and near["distance"] > 0
            told = small.ldm("lineage", "--uses", near["key"], "--root", str(small.root)).out
            assert f"{near['key']}: train split of {near['data']}, shard {near['shard']}, class {near['class']}" in told
    elsewhere = ["--root", str(small.folder / "none"), "--out", str(small.folder / "other")]
    said = small.ldm("why", *words, *elsewhere, "--show", "nearest")
    assert said.code == 2 and said.err.count("\n") == 1 and "error: nearest: diffusion/" in said.err, said.err
