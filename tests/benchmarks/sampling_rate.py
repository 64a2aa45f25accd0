"""Images a second of several models, each as it samples by default, in turns; a teacher and its students.

    python tests/benchmarks/sampling_rate.py TEACHER STUDENT... [--root runs] [-n 64]

CPU seconds of one thread, decoding among them; the median over rounds, and of the ratio to the first model in a round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from pipeline.generate import load_pretrained

ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--root", type=Path, default=Path("runs"))
    parser.add_argument("-n", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    models = {name: load_pretrained(name, root=given.root) for name in given.models}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(ROUNDS + 1):
        for name, model in models.items():
            begun = time.process_time()
            model.sample(n=given.n, seed=turn, batch_size=given.n)
            if turn:  # the first warms up
                seconds[name].append(time.process_time() - begun)
    print(
        "| model | sampler | steps | guidance | images/s | times the first |\n| --- | --- | ---: | ---: | ---: | ---: |"
    )
    for name, model in models.items():
        rate = given.n / statistics.median(seconds[name])
        ratio = statistics.median(a / b for a, b in zip(seconds[given.models[0]], seconds[name], strict=True))
        how = model.defaults
        print(f"| {name} | {how['sampler']} | {how['steps']} | {how['guidance']:g} | {rate:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
