"""Objectives x samplers x steps on one data set: trains the diffusion stage of a config once for each objective, on the
same autoencoder and latents (cached), and measures Fréchet distances by `pipeline/applications/solvers.py`.

    python tests/benchmarks/objectives.py --config jobs/configs/cifar10_cpu.yaml [KEY=VALUE]...

What is trained or measured already is not done again. Writes docs/results/objectives.md (or --out).
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline import config as configs  # noqa: E402
from pipeline.applications import solvers  # noqa: E402
from pipeline.errors import UserError  # noqa: E402
from pipeline.files import atomic_write  # noqa: E402

PLAIN = ["diffusion.times={kind: uniform}", "diffusion.weighting=uniform"]
LOGIT = ["diffusion.times={kind: logit_normal}", "diffusion.weighting=uniform"]
FLOW = ["diffusion.path={kind: rectified_flow, schedule: cosine}"]
COSINE = ["diffusion.path={kind: variance_preserving, schedule: cosine}"]
LINEAR = ["diffusion.path={kind: variance_preserving, schedule: linear}"]
ZERO_SNR = ["diffusion.path={kind: variance_preserving, schedule: zero_terminal_snr}"]
EDM = [
    "diffusion.path={kind: edm, schedule: cosine}",
    "diffusion.prediction=v",
    "diffusion.weighting=edm",
]
OBJECTIVES: dict[str, list[str]] = {
    "flow": [*FLOW, *PLAIN, "diffusion.prediction=velocity"],
    "flow-logit-normal": [*FLOW, *LOGIT, "diffusion.prediction=velocity"],
    "flow-x0": [*FLOW, *PLAIN, "diffusion.prediction=x0"],
    "cosine-v": [*COSINE, *PLAIN, "diffusion.prediction=v"],
    "cosine-eps": [*COSINE, *PLAIN, "diffusion.prediction=eps"],
    "cosine-eps-min-snr": [*COSINE, *PLAIN, "diffusion.weighting=min_snr", "diffusion.prediction=eps"],
    "linear-eps": [*LINEAR, *PLAIN, "diffusion.prediction=eps"],
    "zero-snr-v": [*ZERO_SNR, *PLAIN, "diffusion.prediction=v"],
    "edm": [*EDM, "diffusion.times={kind: edm, mean: -0.5, std: 1.2}"],  # Karras et al. 2022 at sigma_data = 1
    "edm2": [*EDM, "diffusion.times={kind: edm, mean: 0.3, std: 1.0}"],  # Karras et al. 2024, for latents, at the same
}


def train(config: Path, overrides: Sequence[str]) -> None:
    """`ldm diffusion`, in a process of its own. What is finished is skipped."""
    command = [sys.executable, "-m", "jobs.diffusion", "--config", str(config), *overrides]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        raise UserError(f"`{shlex.join(command)}` ended with {code}")


def cell(row: solvers.Row, smallest: float) -> str:
    """Distance with interval; the column's smallest is bold."""
    text = f"{row.distance:.3g} [{row.low:.3g}, {row.high:.3g}]"
    return f"**{text}**" if row.distance == smallest else text


def report(tables: dict[str, solvers.Table], command: str) -> str:
    """All tables as one: a row an objective and sampler, a column a number of steps; the winner first."""
    rows = {(name, row.sampler, row.grid, row.steps): row for name, table in tables.items() for row in table.rows}
    steps = sorted({key[3] for key in rows})
    first = min(rows, key=lambda key: rows[key].distance)
    some = next(iter(tables.values()))
    lines = [
        "# Objectives, samplers and steps",
        "",
        f"Best of all: **{first[0]}** with {first[1]} on {first[2]}, {first[3]} steps, {cell(rows[first], -1)}.",
    ]
    for n in steps:
        of_n = min((key for key in rows if key[3] == n), key=lambda key: rows[key].distance)
        lines.append(f"Best of {n} steps: {of_n[0]} with {of_n[1]} on {of_n[2]}, {cell(rows[of_n], -1)}.")
    lines += [
        "",
        f"Fréchet distance of {some.images} samples to {some.images} held-out images, with 95% intervals (real data: "
        f"{some.real}); guidance: {some.guidance}; features: {some.extractor}. Same autoencoder, latents, backbone, "
        "steps of training and noise for all. Made by:",
        "",
        f"    {command}",
        "",
        "| objective | sampler | grid | " + " | ".join(f"{n} steps" for n in steps) + " |",
        "| --- | --- | --- | " + " | ".join("---:" for _ in steps) + " |",
    ]
    smallest = {n: min(row.distance for key, row in rows.items() if key[3] == n) for n in steps}
    for name, sampler, grid in dict.fromkeys(key[:3] for key in rows):
        found = [rows.get((name, sampler, grid, n)) for n in steps]
        cells = [cell(row, smallest[row.steps]) if row else "" for row in found]
        lines.append(f"| {name} | {sampler} | {grid} | {' | '.join(cells)} |")
    lines += ["", "What the names mean, as overrides of the config:", ""]
    lines += [f"- {name}: `{shlex.join(OBJECTIVES[name])}`" for name in tables]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--objectives", default=",".join(OBJECTIVES))
    parser.add_argument("--samplers", default="euler,heun,dpmpp_2m,ddim,ddpm")
    parser.add_argument("--grids", default="auto")
    parser.add_argument("--steps", default="5,10,20,40")
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "objectives.md")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    try:
        tables = {}
        for name in given.objectives.split(","):
            if name not in OBJECTIVES:
                raise UserError(f"--objectives {name}: expected some of {', '.join(OBJECTIVES)}")
            overrides = [*given.overrides, *OBJECTIVES[name]]
            train(given.config, overrides)
            print(f"== {name}", flush=True)
            config = configs.load(given.config, overrides)
            steps = [int(n) for n in given.steps.split(",")]
            tables[name] = solvers.measure(
                config, given.samplers.split(","), given.grids.split(","), steps, given.samples
            )
            command = shlex.join(["python", "tests/benchmarks/objectives.py", *sys.argv[1:]])
            atomic_write(given.out, report(tables, command))  # what there is so far
    except UserError as error:
        sys.exit(f"error: {error}")
    print(given.out.read_text())


if __name__ == "__main__":
    main()
