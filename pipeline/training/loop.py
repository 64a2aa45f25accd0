"""THE training loop, top to bottom, for every trained stage.

Restore, then for each batch: step, guard, log, preview, validate, save; then finish. What a step computes is
engine.py's business, which samples come next data/order.py's, what the losses and pictures are `tasks/`'s (`Task`).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.errors import UserError
from pipeline.training import snapshots as averages
from pipeline.training.arithmetic import stable_steps
from pipeline.training.checkpoint import NoneWhole, Saver, restore
from pipeline.training.engine import Engine, LossFn, StepStats, Teach
from pipeline.training.guard import Guard, Stretch, Watchdog
from pipeline.training.meter import Meter, product_rate
from pipeline.training.profile import Tracer
from pipeline.training.ranks import Ranks

if TYPE_CHECKING:
    from torch import nn

    from pipeline.schema.training import Training
    from pipeline.training.duel import Fight

STALL_S = 600.0  # seconds; what `stall_s` is unless told otherwise


class Log(Protocol):
    """Where curves and pictures go (pipeline/tracking/tracker.py has one)."""

    def metrics(self, values: dict[str, float], step: int) -> None: ...
    def file(self, path: str | Path, artifact_path: str = "") -> None: ...
    def image(self, key: str, image: np.ndarray, step: int, cells: Sequence[str] = ()) -> None: ...


Preview = Callable[[Engine], Mapping[str, np.ndarray | tuple[np.ndarray, list[str]]]]


@dataclass(frozen=True)
class Task:
    """What a stage trains. All callables run on all ranks.

    name: prefix of its curves. loss: for `Engine`. batches: this rank's shares from a position on, endless, each with
    the `position` at which its global batch begins. validate: metric -> value, equal on all ranks. preview: key ->
    uint8 image [H, W, 3] (rank 0's are shown), or that and what each of its cells is of; validate may give such
    images as well. measure: more metrics, rank 0's, every `measure_every` steps. teach: for `Engine`. fight: where the
    network is trained against another one (duel.py).
    """

    name: str
    loss: LossFn
    batches: Callable[[int], Iterator[dict[str, Any]]]
    validate: Callable[[Engine], dict[str, Any]] | None = None
    preview: Preview | None = None
    measure: Callable[[Engine], dict[str, float]] | None = None
    measure_every: int = 1
    teach: Teach | None = None
    fight: Fight | None = None

    def engine(self, model: nn.Module, training: Training, ranks: Ranks) -> Engine:
        """The engine that trains `model` for this task."""
        if self.fight is None:
            return Engine(model, self.loss, training, ranks, self.teach)
        from pipeline.training.duel import Duel

        return Duel(model, self.loss, training, ranks, self.fight)


@dataclass(frozen=True)
class Progress:
    """Where training is, for a bar or a line. Seconds left are an estimate from the last interval's rate.

    loss: of this step, None if it is not finite.
    """

    name: str
    step: int
    steps: int
    loss: float | None
    images_per_second: float
    seconds_left: float

    def __str__(self) -> str:
        left = time.strftime("%H:%M:%S", time.gmtime(self.seconds_left))
        loss = "not finite" if self.loss is None else f"{self.loss:.5g}"
        return (
            f"{self.name}: step {self.step}/{self.steps}, loss {loss}, "
            f"{self.images_per_second:.4g} images/s, {left} left"
        )


@dataclass(frozen=True)
class Summary:
    """How a call of `train` ended. `finished` is False after a stop request: the same call again goes on from there.

    loss: of the last good step, also where it was an earlier call's; None where there was none. efficiency: as of
    meter.py, of this call's steps; empty on ranks that log nothing.
    """

    position: int
    step: int
    finished: bool
    resumed_from: int | None
    loss: float | None
    bad_steps: int
    skipped: tuple[Stretch, ...]  # positions [from, to) that were left out
    seconds: float
    efficiency: dict[str, float]


def train(
    engine: Engine,
    task: Task,
    training: Training,
    ranks: Ranks,
    folder: Path,
    log: Log,
    stop: Callable[[], bool],
    *,
    token: int = 0,
    begin_from: tuple[Path, int] | None = None,
    snapshots: Path | None = None,
    on_step: Callable[[int, StepStats], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] | None = None,
    stall_s: float = STALL_S,
    flops: Callable[[], float | None] = lambda: None,
    system: bool = False,
) -> Summary:
    """Train to `training.steps`, or until any rank's `stop()` is true; go on from the newest checkpoint in `folder`.

    folder: where checkpoints lie; token: of the lease that guards it. begin_from: the checkpoints of another run, and
    the position up to which they fit, to go on from where `folder` has none. snapshots: where averages are stored in
    training, as `training.snapshot_every` says. on_step: told each step's position and stats.
    progress: gets a line each log_every steps on rank 0 (default: printed). say: gets warnings (default: to
    stderr). stall_s: seconds without a step after which it is said where a rank hangs. flops: model FLOPs of a training
    sample, once they are known. system: log curves of rank 0's machine too. All ranks call.
    """
    say, progress = say or _say, progress or _show
    began, folder = time.monotonic(), Path(folder)
    batch, end = training.batch_size, training.steps * training.batch_size
    guard = Guard(training.max_bad_steps, training.skip)
    stable = stable_steps(training) * batch  # runs of other lengths may go on from here: this checkpoint stays
    saver = Saver(folder, training.keep, token, engine, pinned=stable)
    position, resumed_from, loss = _begin(engine, guard, saver, folder, begin_from, say)

    meter = Meter(ranks.device, product_rate(ranks, engine.precision), flops, system)
    stopped, failed = False, False
    tracer = Tracer(training.profile, folder.parent / "profile", log) if training.profile and ranks.first else None
    batches: Iterator[dict[str, Any]] | None = None
    try:
        with Watchdog(stall_s, say) as watchdog:
            while position < end and not stopped and not failed:
                if guard.jump(position) != position:
                    position = guard.jump(position)
                    _close(batches)
                    batches = None
                    continue
                watchdog.beat(f"waiting for the batch at position {position}")
                batches = batches or task.batches(position)
                with meter.part("data"):
                    data = next(batches)
                _check_position(data, position)

                watchdog.beat(f"in the step at position {position}")
                if tracer:
                    tracer.before(position // batch + 1)
                with meter.part("step"):
                    stats = engine.step(data, position, flags=(stop(), saver.failed()))
                meter.add("all_reduce", stats.all_reduce_seconds)
                stopped, failed = stats.flags
                if on_step:
                    on_step(position, stats)
                bad_stretch = guard.look(position, batch, stats.skipped)
                if bad_stretch:
                    position, loss = _roll_back(engine, guard, saver, folder, begin_from, bad_stretch, say)
                    _close(batches)
                    batches = None
                    continue
                if not stats.skipped:
                    loss = stats.loss
                    _tell_spike(guard, stats, position, ranks, say)

                position += batch
                step, last = position // batch, position >= end
                meter.count(batch)
                if ranks.first and (step % training.log_every == 0 or last):
                    _log(task.name, training, meter.read(), stats, guard, step, log, progress)
                with meter.pause():
                    if task.preview and (step % training.preview_every == 0 or last):
                        watchdog.beat(f"in the preview at step {step}")
                        _preview(task.preview, engine, ranks, log, step)
                    if task.validate and (step % training.validate_every == 0 or last):
                        watchdog.beat(f"in validation at step {step}")
                        _validate(task, task.validate, engine, ranks, log, step)
                    if task.measure and (step % task.measure_every == 0 or last):
                        watchdog.beat(f"measuring at step {step}")
                        _validate(task, task.measure, engine, ranks, log, step)
                    if snapshots and averages.due(training, engine.averaged) and not stats.skipped:
                        watchdog.beat(f"in the snapshot at step {step}")
                        averages.save(engine, snapshots)  # before the checkpoint, which then never lacks one
                    due = step % training.save_every == 0 or position == stable
                    if last or stopped or (due and not stats.skipped):
                        watchdog.beat(f"in the checkpoint at step {step}")
                        with meter.part("checkpoint"):
                            saver.save(position, {"guard": guard.state(), "loss": loss}, guard.good_until(position))
            if tracer:
                tracer.close(position // batch)
            watchdog.beat("writing the last checkpoint")
            _finish(saver, ranks)
    finally:
        _close(batches)
        saver.close()
    seconds, skipped = time.monotonic() - began, tuple(guard.skip)
    efficiency = meter.summary() if ranks.first else {}
    state = (position, position // batch, position >= end, resumed_from, loss, guard.total, skipped, seconds)
    return Summary(*state, efficiency)


def _begin(
    engine: Engine,
    guard: Guard,
    saver: Saver,
    folder: Path,
    begin_from: tuple[Path, int] | None,
    say: Callable[[str], None],
) -> tuple[int, int | None, float | None]:
    """(position to begin at, the same if a checkpoint gave it, the last loss before). There is a checkpoint to go back
    to afterwards."""
    here = restore(folder, engine, say=say)
    found = restore(begin_from[0], engine, before=begin_from[1], say=say) if here is None and begin_from else here
    if here is None and begin_from is not None and found is None:
        raise UserError(f"{begin_from[0]}: no whole checkpoint to go on from")
    if found is not None:
        guard.load(found["guard"])
    position, loss = (0, None) if found is None else (int(found["position"]), found.get("loss"))
    if here is None:
        saver.save(position, {"guard": guard.state(), "loss": loss})
    elif position and engine.ranks.first:  # of another run's checkpoint the driver has told
        batch, steps = engine.training.batch_size, engine.training.steps
        say(f"goes on from step {position // batch} of {steps}, its last whole checkpoint")
    return position, None if found is None else position, loss


def _roll_back(
    engine: Engine,
    guard: Guard,
    saver: Saver,
    folder: Path,
    begin_from: tuple[Path, int] | None,
    stretch: Stretch,
    say: Callable[[str], None],
) -> tuple[int, float | None]:
    """Back to the last checkpoint before a bad stretch, which the guard leaves out; gives its position and loss."""
    saver.wait()
    try:
        found = restore(folder, engine, before=stretch[0], say=say)
    except NoneWhole:
        if not begin_from:
            raise
        found = None
    if found is None and begin_from:  # the other run's last steps were bad already, or ours are damaged
        found = restore(begin_from[0], engine, before=stretch[0], say=say)
    if found is None:
        raise UserError(
            f"{folder}: the gradient is not finite from position {stretch[0]} on, and no whole checkpoint is left"
        )
    position = int(found["position"])
    guard.load(found["guard"])
    if engine.ranks.first:
        say(
            f"the gradient was not finite from position {stretch[0]} to {stretch[1]}: back to the checkpoint at "
            f"{position}, and on without that stretch"
        )
    return position, found.get("loss")


def _tell_spike(guard: Guard, stats: StepStats, position: int, ranks: Ranks, say: Callable[[str], None]) -> None:
    usual = guard.spike(stats.grad_norm)
    if usual is not None and ranks.first:
        say(
            f"the gradient's norm spikes at position {position}: {stats.grad_norm:.3g}, where the median of the last "
            f"good steps is {usual:.3g}"
        )


def _check_position(data: dict[str, Any], position: int) -> None:
    if data.get("position", position) != position:
        raise RuntimeError(f"the loader gave the batch at position {data['position']} where {position} was asked for")


def _close(batches: Iterator[dict[str, Any]] | None) -> None:
    """End an iterator of batches, and with it the processes of its loader."""
    close = getattr(batches, "close", None)
    if close is not None:
        close()


def _finish(saver: Saver, ranks: Ranks) -> None:
    """Wait for the last checkpoint; trouble on one rank is trouble on all."""
    trouble: UserError | None = None
    try:
        saver.wait()
    except UserError as error:
        trouble = error
    told = [text for text in ranks.gather_objects(str(trouble) if trouble else None) if text]
    if told:
        raise trouble or UserError(told[0])


# ---- what is shown ---------------------------------------------------------------------------------------------------


def _log(
    name: str,
    training: Training,
    read: dict[str, float],
    stats: StepStats,
    guard: Guard,
    step: int,
    log: Log,
    progress: Callable[[Progress], None],
) -> None:
    """The step's own values (not a mean over an interval: a resumed run logs the same points), and how fast it was."""
    rate = read["images_per_second"]
    values = {
        "train_loss": stats.loss,
        **{f"train_{name}": value for name, value in stats.parts.items()},
        "grad_norm": stats.grad_norm,
        "learning_rate": stats.learning_rate,
        "images_per_second": rate,
        "spikes": float(guard.spikes),
    }
    if stats.loss_scale != 1:
        values["loss_scale"] = stats.loss_scale
    points = {f"{name}/{key}": value for key, value in values.items()}
    # by stage, as all else: in the pipeline's run lie the curves of all its stages
    own = {key.replace("efficiency/", f"efficiency/{name}_"): value for key, value in read.items()}
    points |= {key: value for key, value in own.items() if key.startswith(("efficiency/", "system/"))}
    log.metrics({key: value for key, value in points.items() if math.isfinite(value)}, step)
    left = (training.steps - step) * training.batch_size / rate
    loss = stats.loss if math.isfinite(stats.loss) else None
    progress(Progress(name, step, training.steps, loss, rate, left))


def _preview(preview: Preview, engine: Engine, ranks: Ranks, log: Log, step: int) -> None:
    for key, shown in preview(engine).items():
        if ranks.first:
            image, cells = shown if isinstance(shown, tuple) else (shown, [])
            log.image(key, image, step, *([cells] if cells else []))


def _validate(
    task: Task, validate: Callable[[Engine], dict[str, Any]], engine: Engine, ranks: Ranks, log: Log, step: int
) -> None:
    found = validate(engine)
    if not ranks.first:
        return
    numbers = {f"{task.name}/{key}": value for key, value in found.items() if not isinstance(value, np.ndarray)}
    log.metrics({key: value for key, value in numbers.items() if math.isfinite(value)}, step)
    for key, value in found.items():
        if isinstance(value, np.ndarray):
            log.image(key, value, step)


def _show(progress: Progress) -> None:
    print(progress, flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
