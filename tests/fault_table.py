"""The table of what faults cost, a row a test: LDM_FAULTS_REPORT names the file. `make test-faults` writes one section
of it, `make test-cluster` the other; each leaves the other's as it is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass
class Row:
    """What a fault did, as the table shows it. samples, metrics: lost; again: steps done twice, at most."""

    fault: str = ""
    how: str = ""
    times: int = 1
    samples: int = 0
    metrics: int = 0
    seconds: list[float] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    end: str = ""
    test: str = ""

    def line(self) -> str:
        seconds, again = span([round(s) for s in self.seconds]), span(self.again)
        cells = (self.fault, self.how, self.times, self.samples, self.metrics, seconds, again, self.end)
        return f"| {' | '.join(map(str, cells))} |"


def span(values: list[int]) -> str:
    """The smallest to the largest."""
    return " to ".join(map(str, sorted({min(values), max(values)}))) if values else "-"


ROWS: list[Row] = []
NOT_DONE: dict[str, str] = {}  # test -> how it ended instead
BELOW: list[str] = []  # paragraphs for below the table


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """The test's row of the table; it counts if the test passes."""
    made = Row(test=request.node.name)
    yield made
    ROWS.append(made)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.outcome != "passed":
        NOT_DONE[report.nodeid.rpartition("::")[2]] = report.outcome


HEADER = """\
# Faults

Each fault is injected into a real run (Ray Train, DeepSpeed, gloo, MLflow), which then has to come to its end by itself
or, where the machine or the command itself was lost, by the same command again.

- *Lost samples*: images that were not trained on in their place. *Lost metrics*: points of the loss's curve that MLflow
  has not in the end, or not with the value that was computed.
- *Seconds to recover*: from the fault to the first step that had not been done before. They are those of two ranks
  that talk by gloo, tiny models, and mostly processes that start and import; on GPUs the time to load NCCL, to compile
  and to read a large checkpoint comes on top. Two CPU cores, some with other work beside: read them as orders of
  magnitude.
- *Steps done again*: those between the last whole checkpoint and the fault; at most the interval (`save_every`), and
  one more where the newest checkpoint is itself what is damaged, or could not be written.
- *End*: "equal" is: the losses of all steps, and the final weights, are those of the undisturbed run, bit for bit.
"""
COLUMNS = ("fault", "how it was injected", "times", "samples lost", "metrics lost", "s to recover", "steps done again",
           "end", "revision", "test")  # fmt: skip


def write_section(title: str, text: str) -> None:
    """Write the section "## title" of the report: `text`, the table, what is below. Rows of tests that did not run this
    time stay; one that failed loses its row."""
    path = os.environ.get("LDM_FAULTS_REPORT")
    if not path or not ROWS:
        return
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    file = Path(path)
    sections = dict(part.split("\n", 1) for part in file.read_text().split("\n## ")[1:]) if file.exists() else {}
    table, _, below = sections.get(title, "").partition("\n\n### ")
    rows = {line.split("`")[-2]: line for line in table.splitlines() if line.endswith("` |")}
    rows |= {row.test: f"{row.line()} {revision} | `{row.test}` |" for row in ROWS}
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
    lines += [rows[test] for test in sorted(rows) if test not in NOT_DONE]
    told = "\n\n".join(BELOW) or (f"### {below.rstrip()}" if below else "")
    sections[title] = "\n\n".join(filter(None, [f"\n{text.rstrip()}", "\n".join(lines), told]))
    file.write_text(HEADER + "".join(f"\n## {name}\n{sections[name].rstrip()}\n" for name in sorted(sections)))


def lost_metrics(uri: str, stage: str, want: dict[int, float]) -> int:
    """How many points (step -> value) of a stage's training loss MLflow has not, or not with their value."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (run,) = [one for one in found if one.info.run_name.endswith(f" {stage}")]
    history = client.get_metric_history(run.info.run_id, f"{stage}/train_loss")
    assert len(history) == len({point.step for point in history})
    got = {point.step: point.value for point in history}
    return sum(got.get(step) != value for step, value in want.items())
