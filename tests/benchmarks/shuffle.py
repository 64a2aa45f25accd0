"""How well batches mix where shards are sorted by class: `python tests/benchmarks/shuffle.py` prints a table.

Chi-square of a batch's class counts over that of a full shuffle of the same batches, and how often a pair that shared a
batch shares one in the next epoch, over chance. Measures quality, not time; needs no other benchmark's clocks.
"""

from __future__ import annotations

import numpy as np

from pipeline.data.order import Array, Order, lanes

SAMPLES, CLASSES, EPOCHS, PAIR_EPOCHS = 50_000, 10, 60, 3
LABELS = np.repeat(np.arange(CLASSES), SAMPLES // CLASSES)


def chi_square(batches: list[Array]) -> Array:
    """One value a batch of sample indices."""
    expected = len(batches[0]) / CLASSES
    counts = np.stack([np.bincount(LABELS[batch], minlength=CLASSES) for batch in batches])
    values: Array = ((counts - expected) ** 2 / expected).sum(1)
    return values


def pairs_again(order: Order, batch: int) -> float:
    """Share of the pairs of a batch that shared one an epoch before, over chance."""
    an_epoch, again, pairs = SAMPLES // batch, 0, 0
    for epoch in range(PAIR_EPOCHS):
        before = np.full(SAMPLES, -1)
        for i in range(an_epoch):
            before[order.batch((epoch * an_epoch + i) * batch)] = i
        for i in range(an_epoch):
            seen = before[order.batch(((epoch + 1) * an_epoch + i) * batch)]
            together = np.bincount(seen[seen >= 0])
            again += int((together * (together - 1) // 2).sum())
            pairs += len(seen) * (len(seen) - 1) // 2
    return again / pairs / ((batch - 1) / (SAMPLES - 1))


def main() -> None:
    generator = np.random.default_rng(1)
    print("| batch | shards | chi-square over a full shuffle's | standard error | pairs again over chance |")
    print("| --- | --- | --- | --- | --- |")
    for batch in (96, 100, 128, 250, 2048):
        full: list[Array] = []
        for _ in range(EPOCHS):
            shuffled = generator.permutation(SAMPLES)
            full += [shuffled[i : i + batch] for i in range(0, SAMPLES - batch + 1, batch)]
        reference = chi_square(full)
        for shards in (1, 8, 200):
            order = Order([SAMPLES // shards] * shards, batch, lanes(batch), 7)
            ours = chi_square([order.batch(i * batch) for i in range(len(full))])
            error = np.hypot(ours.std() / len(ours) ** 0.5, reference.std() / len(reference) ** 0.5)
            ratio, mean = ours.mean() / reference.mean(), reference.mean()
            print(
                f"| {batch} | {shards} | {ratio:.3f} | {error / mean:.3f} | {pairs_again(order, batch):.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
