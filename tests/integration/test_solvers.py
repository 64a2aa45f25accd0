"""`ldm solvers` on a trained pipeline, and a registered model that guides itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.files import read_json
from pipeline.generate.folder import load_pretrained
from pipeline.past import history


def test_autoguided_model_is_registered_whole_and_solvers_are_measured(small: Any) -> None:
    for i in range(40, 300):
        small.draw(f"images/{'ab'[i % 2]}/{i}.png", i)
    how = [
        "diffusion.condition.drop=0",  # autoguidance needs no null condition
        "evaluate={samples: 50, steps: 2, guidance: 2.0, guidance_kind: autoguidance, bootstrap: 5}",
        "evaluate.extractor={kind: classifier, steps: 10}",
    ]
    before = small.run("solvers", *how)
    assert before.code == 2 and "is not finished" in before.err and "ldm diffusion" in before.err
    assert small.run("run", *how).code == 0
    made = small.manifests("register")[0].parent / "model"
    assert (made / "weaker.safetensors").is_file()
    model = load_pretrained(made, device="cpu")
    assert model.defaults["guidance_kind"] == "autoguidance"
    guided, plain = (model.sample(n=2, guidance=g) for g in (5.0, 1.0))
    assert guided.shape == (2, 8, 8, 3) and not np.array_equal(guided, plain)

    table = small.folder / "table.md"
    ask = ["--samplers", "heun,ddpm", "--grids", "uniform,karras", "--steps", "2,3", "--out", str(table)]
    said = small.run("solvers", *how, *ask)
    assert said.code == 0, said.err
    lines = table.read_text().splitlines()
    assert sum(line.startswith(("| 2 |", "| 3 |")) for line in lines) == 8
    assert lines[2].startswith("Best of 3 steps: ")
    (known,) = (small.root / "solvers").glob("*.json")
    rows = read_json(known)
    again = small.run("solvers", *how, *ask[:-2])
    assert again.code == 0 and read_json(known) == rows  # with the seconds of the first time: nothing was sampled
    assert any((small.root / "pipelines").glob("solvers-*/spool/*.jsonl"))

    assert [past.name for past in history.pipelines(small.root)] == ["small"]  # the table is no pipeline

    wrong = small.run("solvers", *how, "--samplers", "magic")
    assert wrong.code == 2 and "sampler: 'magic' is none of" in wrong.err
    assert small.run("solvers", *how, "--steps", "2,x").code == 2
