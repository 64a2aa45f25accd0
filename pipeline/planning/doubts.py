"""What a config asks for that will not be: intervals beyond the end, a warm-up that never ends, averages of nothing.

Each is legal, none is what somebody wants, and all are known before anything runs. What cannot run is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config import Config
from pipeline.schema.training import Training

UNTRAINED = 0.25  # share of the first weights in an average from which it is told


def doubts(config: Config) -> list[str]:
    """One line each, with key, what will happen and what to set. The config as it was read: keys that nobody set are
    not held against the number of steps."""
    lines = []
    for name in ("autoencoder", "diffusion"):
        if name == "autoencoder" and config.autoencoder.from_:
            continue
        training: Training = getattr(config, name).training
        lines += [f"`{name}.training.{line}" for line in (*_schedule(training), *_intervals(training))]
        lines += [f"`{name}.training.{line}" for line in _averages(training)]
    loss, steps = config.autoencoder.loss.adversarial, config.autoencoder.training.steps
    if loss.weight and loss.start >= steps:
        lines.append(
            f"`autoencoder.loss.adversarial.start`: {loss.start:,} of {steps:,} steps: the discriminator never comes in"
        )
    if config.diffusion.fd.every > config.diffusion.training.steps:
        lines.append(
            f"`diffusion.fd.every`: {config.diffusion.fd.every:,} of {config.diffusion.training.steps:,} steps: the "
            "curve has no point before the end; give fewer"
        )
    condition = config.diffusion.condition
    if condition.tells and condition.drop == 1:
        lines.append("`diffusion.condition.drop`: 1: the model is never told anything; 0.1 is usual")
    return lines


def _schedule(training: Training) -> Iterator[str]:
    steps, warmup = training.steps, training.warmup
    falling = training.schedule == "wsd" and training.decay > 0
    if warmup >= steps:
        yield (
            f"warmup`: {warmup:,} of {steps:,} steps: the learning rate never gets to stay at `learning_rate`; give "
            f"fewer, such as {max(1, steps // 20)}"
        )
    elif falling and warmup > steps * (1 - training.decay):
        yield (
            f"warmup`: {warmup:,} steps of warm-up and {training.decay:.0%} of {steps:,} that fall (`decay`) leave no "
            "plateau, and the peak is not reached; give less of either"
        )
    usual = Training.model_fields["decay"].default  # as the config of a run that is past has it, which names every key
    if training.schedule != "wsd" and "decay" in training.model_fields_set and training.decay != usual:
        yield f"decay`: has no effect with `schedule: {training.schedule}`; it goes with wsd"


def _intervals(training: Training) -> Iterator[str]:
    steps, samples = training.steps, training.steps * training.batch_size
    what = {
        "save_every": "no checkpoint before the end, a stop in between loses everything",
        "validate_every": "no validation before the end",
        "preview_every": "no images before the end",
        "log_every": "curves have one point",
    }
    for key, happens in what.items():
        every = getattr(training, key)
        if every > steps and key in training.model_fields_set:
            yield f"{key}`: {every:,} of {steps:,} steps: {happens}; give fewer"
    if training.snapshot_every and training.snapshot_every > samples:
        yield f"snapshot_every`: {training.snapshot_every:,} of {samples:,} samples: none is stored before the end"
    if training.profile and training.profile.from_ > steps:
        yield f"profile`: from step {training.profile.from_:,} of {steps:,}: there is no trace; give an earlier one"
    for start, end in training.skip:
        if start >= samples:
            yield f"skip`: [{start}, {end}) begins after the last of {samples:,} samples: nothing is left out"


def _averages(training: Training) -> Iterator[str]:
    """An average begins at the untrained weights: with a half-life too long for the training they stay in it."""
    samples, longest = training.steps * training.batch_size, max(training.half_lives)
    share = 0.5 ** (samples / longest)
    if share > UNTRAINED and not training.init_from:
        yield (
            f"half_lives`: {longest:,} for a training of {samples:,} samples: {share:.0%} of the average are the "
            f"untrained weights; [{max(1, samples // 12)}] would fit"
        )
