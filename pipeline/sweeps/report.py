"""What came of a sweep: the table of its points, the winner with its interval, and the parent run that shows both.

Reads what elements left (`sweep.py`); an interval over several folds or seeds is made here, that of a single figure is
its own.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.artifacts import Lease
from pipeline.errors import UserError
from pipeline.files import atomic_write
from pipeline.past import comparable, sweep_folder
from pipeline.past.compare import CLOSE
from pipeline.sweeps import search
from pipeline.sweeps.study import Study, as_override, point_values, shown
from pipeline.tracking import tracker
from pipeline.tracking.runs import STOPS

LEVEL = 0.95  # of intervals
NOTE = 7_000  # characters of a description: MLflow keeps 8,000
LINK = 80  # by how many characters a link is longer than its placeholder, at most


@dataclass(frozen=True)
class Point:
    """One point. results: of its folds and seeds that have ended, by number. value: their mean once all have finished,
    else None. interval: 95%, None where nothing gives one."""

    number: int
    values: dict[str, Any]
    results: dict[int, dict[str, Any]]
    value: float | None
    interval: tuple[float, float] | None

    @property
    def finished(self) -> list[float]:
        """Values of what has finished, in the order of folds and seeds."""
        return [r["value"] for _, r in sorted(self.results.items()) if r["state"] == "finished"]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean of at least two independent values by Student's t, which is honest about few (the
    bootstrap of three values is their range, and the true mean lies outside of that every fourth time)."""
    from scipy.stats import t

    mean, n = statistics.fmean(values), len(values)
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return mean - half, mean + half


def independent(study: Study, values: Sequence[float]) -> list[float]:
    """The values of a point's runs as an interval may take them: by fold, a mean over its seeds (these have the same
    images held out, so they are no further evidence); without folds by seed."""
    seeds = max(1, len(study.sweep.seeds)) if study.sweep.folds else 1
    return [statistics.fmean(values[first : first + seeds]) for first in range(0, len(values), seeds)]


def points(study: Study) -> list[Point]:
    """All points whose values are known, in order. Raises UserError for figures that must not be put side by side."""
    each, found = len(sweep_folder.repeats(study.sweep)), []
    for number in range(search.count(study.sweep)):
        values = point_values(study, number, may_ask=False)
        if values is None:
            break
        results = {n: r for n in range(number * each, (number + 1) * each) if (r := study.folder.result(n))}
        done = [r for r in results.values() if r["state"] == "finished"]
        mean = math.fsum(r["value"] for r in done) / each if len(done) == each else None
        bounds = None
        if mean is not None and each > 1:
            bounds = interval(independent(study, [r["value"] for r in done]))
        elif mean is not None and "interval" in done[0]:
            bounds = (float(done[0]["interval"][0]), float(done[0]["interval"][1]))
        found.append(Point(number, values, results, mean, bounds))
    _check(study, found)
    return found


def _check(study: Study, found: Sequence[Point]) -> None:
    """Figures of one fold and seed must rest on the same conditions; guidance may vary on purpose."""
    varied = ("guidance",) if any(key.startswith("evaluate.guidance") for key in study.sweep.keys) else ()
    each = len(sweep_folder.repeats(study.sweep))
    for repeat in range(each):
        named = {
            f"element {n}": r["conditions"]
            for point in found
            for n, r in point.results.items()
            if n % each == repeat and r.get("conditions")
        }
        if named and study.sweep.metric in ("eval/fd", "eval/kd"):
            comparable.check(named, varied)


def ranked(study: Study, found: Sequence[Point]) -> list[Point]:
    """Finished points, the best first."""
    done = [point for point in found if point.value is not None]
    worth = sweep_folder.sign(study.sweep, study.sweep.metric)
    return sorted(done, key=lambda point: (-worth * (point.value or 0.0), point.number))


# ---- the verdict -----------------------------------------------------------------------------------------------------


def verdict(study: Study, found: Sequence[Point]) -> str:
    """Who has won, how sure that is, and by how much, in a sentence or two."""
    order, left = ranked(study, found), study.count - sum(len(point.results) for point in found)
    if not order:
        return f"No winner: no point has finished ({left} of {study.count} elements to go)."
    first, each = order[0], len(sweep_folder.repeats(study.sweep))
    text = f"{'Best so far' if left else 'Winner'}: {shown(first.values)}: {study.sweep.metric} {figure(first)}"
    if each > 1:
        text += f", the mean of {each} runs"
    text += f". {_lead(study, first, order[1])}" if len(order) > 1 else ". No other point has finished."
    if first.interval is None:
        text += " One run each gives no interval: give `seeds` or `folds` for one."
    return text + (f" {left} of {study.count} elements to go." if left else "")


def _lead(study: Study, first: Point, second: Point) -> str:
    """The winner against the second, fold by fold and seed by seed where there are several."""
    other = f"the second ({shown(second.values)}, {figure(second)})"
    ahead = abs((first.value or 0.0) - (second.value or 0.0))
    if len(first.finished) > 1:
        worth = sweep_folder.sign(study.sweep, study.sweep.metric)
        gains = [worth * (a - b) for a, b in zip(first.finished, second.finished, strict=True)]
        low, high = interval(independent(study, gains))
        clear = "It is clearly ahead of" if low > 0 else "It is not clearly ahead of"
        return f"{clear} {other}: by {ahead:.4g} [{low:.4g}, {high:.4g}], the same folds and seeds compared."
    if first.interval and second.interval:
        apart = first.interval[0] > second.interval[1] or second.interval[0] > first.interval[1]
        return f"{'It is clearly ahead of' if apart else 'Its interval reaches that of'} {other}."
    close = ahead <= CLOSE * max(abs(first.value or 0.0), abs(second.value or 0.0))
    return f"{'It is hardly ahead of' if close else 'It is ahead of'} {other}."


def figure(point: Point) -> str:
    """A point's value with its interval."""
    bounds = f" [{point.interval[0]:.4g}, {point.interval[1]:.4g}]" if point.interval else ""
    return f"{point.value:.4g}{bounds}"


def command(study: Study, point: Point) -> str:
    """What runs a point's config to a registered model."""
    own = [as_override(*pair) for pair in point.values.items()]
    return shlex.join(["ldm", "run", str(study.config_path), *study.overrides, *own])


# ---- the table -------------------------------------------------------------------------------------------------------


def rows(study: Study, found: Sequence[Point], link: bool = False) -> list[list[str]]:
    """Heads, then a row a point, the best first, then what has not finished. link: placeholders of MLflow's pages."""
    each = len(sweep_folder.repeats(study.sweep))
    table = [["element" if each == 1 else "elements", *study.sweep.keys, study.sweep.metric, ""]]
    order, begun = ranked(study, found), set(study.folder.begun())
    for point in [*order, *(point for point in found if point not in order)]:
        numbers = range(point.number * each, (point.number + 1) * each)
        names = [_name(n, point.results.get(n), link) for n in numbers]
        listed = ", ".join(names) if link or each == 1 else f"{numbers[0]}-{numbers[-1]}"
        value = figure(point) if point.value is not None else "-"
        state = _state(point, each) or ("" if point.results else "begun" if begun & set(numbers) else "to do")
        table.append([listed, *(str(v) for v in point.values.values()), value, state])
    return table


def _name(number: int, result: Mapping[str, Any] | None, link: bool) -> str:
    known = link and result and result.get("pipeline")  # none where the config was refused
    return f"[{number}]({{{{run:pipeline/{known}}}}})" if known else str(number)


def _state(point: Point, each: int) -> str:
    """What there is to say of a point besides its figure."""
    said = []
    for number, result in sorted(point.results.items()):
        where = f"element {number} " if each > 1 else ""
        if result["state"] == "pruned":
            reached = f"{result['value']:.4g} at {result['samples']:,} samples"
            said.append(f"{where}pruned: {reached}, {result['why']}")
        elif result["state"] == "failed":
            said.append(f"{where}failed: {result['why']}")
    if each > 1 and point.results and point.value is None:
        said.insert(0, f"{len(point.finished)} of {each} finished")
    return "; ".join(said)


def markdown(study: Study, found: Sequence[Point], link: bool = False) -> str:
    """Verdict, the command that runs the winner, table; with links only as many rows as MLflow's pages keep."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows(study, found, link)]
    lines, order = [verdict(study, found), ""], ranked(study, found)
    if order:
        lines += ["The best to a registered model:", "", f"    {command(study, order[0])}", ""]
    lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    room = NOTE - sum(map(len, lines))
    for place, row in enumerate(f"| {' | '.join(cells)} |" for cells in body):
        room -= len(row) + LINK * row.count("{{")
        if link and room < 0:
            return "\n".join([*lines, "", f"{len(body) - place} more: {study.folder.path / 'report.md'}"])
        lines.append(row)
    return "\n".join(lines)


# ---- the parent run --------------------------------------------------------------------------------------------------


class Published:
    """The sweep's parent run in the tracker, while this process runs elements of it. As a context manager.

    Several processes write it in turn, each under a lease. It is RUNNING while somebody is at it, FINISHED once all
    elements have ended.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.spools = study, study.root / "pipelines" / f"sweep-{study.key}" / "spool"

    def __enter__(self) -> Published:
        settings = self.study.base.tracking
        self.shipper = tracker.start(self.study.root, settings.uri, settings.deadline)
        self.again()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self.again("KILLED" if kind.__name__ in STOPS else "FAILED")
        left = self.shipper.drain()
        if left:
            print(tracker.left_message(self.study.root, self.shipper.uri, left), flush=True)

    def again(self, status: str | None = None) -> None:
        """Show how it stands. status: how this process leaves it, unless all has ended."""
        study = self.study
        with Lease(self.spools / "lease", "wait") as lease:  # read what there is under it: who comes last knows most
            found: list[Point] = []
            try:
                found = points(study)
                text, linked = markdown(study, found), markdown(study, found, link=True)
            except UserError as error:  # figures that cannot be compared
                text = linked = str(error)
            atomic_write(study.folder.path / "report.md", text + "\n")
            ended = sum(study.folder.result(n) is not None for n in range(study.count))
            spool = tracker.Spool(self.spools, f"sweep/{study.key}", lease.token)
            spool.start(
                study.sweep.name,
                tags={"ldm.sweep": study.key, "ldm.elements": f"{ended} of {study.count}"},
                params=self.params(),
                experiment=study.base.tracking.experiment,
            )
            best = ranked(study, found)
            if best and best[0].value is not None:
                spool.metrics({f"sweep/best_{study.sweep.metric.partition('/')[2]}": best[0].value}, ended)
            spool.note(linked)
            if ended == study.count:
                spool.end("FINISHED")
            elif status:
                spool.end(status)

    def params(self) -> dict[str, object]:
        """What the sweep varies, and how."""
        found: dict[str, object] = {
            key: domain.model_dump(exclude_none=True) if domain.choice is None else list(domain.choice)
            for key, domain in self.study.sweep.keys.items()
        }
        return found | {"sweep.metric": self.study.sweep.metric, "sweep.search": self.study.sweep.search.kind}
