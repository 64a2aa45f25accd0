"""All distances between sets of features at once, each beside that of real images, as a report holds and prints them.

The measures themselves are in `frechet.py`, `kernel.py` and `manifold.py`; which images are compared, in
`stages/evaluate.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.evaluation.metrics import frechet, kernel, manifold

Array = np.ndarray[Any, np.dtype[Any]]
KINDS = ("frechet", "kernel", "manifold")


def measure(
    features: Mapping[str, Array], n: int, *, extractor: str, real: str, resamples: int, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """(figures by kind and pair, reasons by kind that could not be measured), at n images a set.

    features: `train`, `held_out` and `samples`, and `reconstructions` of the held-out images where there are any. The
    pairs: `real`, training against held-out images, the baseline. `samples`, against held-out images. `reconstructions`
    against training images, which is `real` with one side passed through the autoencoder (rFD). A kind is given for all
    pairs or for none, since no figure means anything without its baseline. Beside the kinds `gap`: what the Fréchet
    distance of the samples is above that of real images, value and interval; {} where there is none.
    """
    pairs = {
        "real": (features["train"], features["held_out"]),
        "samples": (features["samples"], features["held_out"]),
    }
    if "reconstructions" in features:
        pairs["reconstructions"] = (features["train"], features["reconstructions"])
    cut = {name: (first[:n], second[:n]) for name, (first, second) in pairs.items()}
    found: dict[str, dict[str, Any]] = {kind: {} for kind in (*KINDS, "gap")}
    missing, drawn = {}, {}
    for kind in KINDS:
        try:
            for name, (first, second) in cut.items():
                if kind == "frechet":
                    drawn[name] = frechet.measured(
                        first, second, extractor=extractor, real=real, resamples=resamples, seed=seed
                    )
                    shown: Any = drawn[name][0]
                elif kind == "kernel":
                    shown = kernel.figure(first, second, extractor=extractor, real=real)
                else:  # the second set is the real one, but for reconstructions
                    one, other = (first, second) if name == "reconstructions" else (second, first)
                    shown = manifold.measure(one, other, extractor=extractor, real_digest=real)
                found[kind][name] = shown.json()
            if kind == "frechet":
                found["gap"] = frechet.gap(drawn["samples"], drawn["real"])
        except ValueError as error:
            found[kind], missing[kind] = {}, str(error)
    return found, missing


def key_figures(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures for curves and tables: fd, kd (each with _real and _reconstructions), precision and its like."""
    found = {}
    for kind, name in (("frechet", "fd"), ("kernel", "kd")):
        for key, suffix in (("samples", ""), ("real", "_real"), ("reconstructions", "_reconstructions")):
            if key in report.get(kind, {}):
                found[name + suffix] = float(report[kind][key]["value"])
    for name in ("precision", "recall", "density", "coverage"):
        if "samples" in report.get("manifold", {}):
            found[name] = float(report["manifold"]["samples"][name])
    return found


def lines(report: Mapping[str, Any]) -> list[str]:
    """The figures as lines of text, each with its interval and baseline, and the verdict at the end."""
    result = []
    distances = {name: frechet.Figure.of(values) for name, values in report["frechet"].items()}
    for name in ("samples", "reconstructions"):
        if name in distances:
            result.append(frechet.line(f"Fréchet distance of {name}", distances[name], distances["real"]))
    if report.get("verdict"):
        result.append(str(report["verdict"]))
    kernels = {name: kernel.Figure(**values) for name, values in report.get("kernel", {}).items()}
    for name in ("samples", "reconstructions"):
        if name in kernels:
            result.append(kernel.line(f"kernel distance of {name}", kernels[name], kernels["real"]))
    manifolds = {name: manifold.Manifold(**values) for name, values in report.get("manifold", {}).items()}
    if manifolds:
        result.append(manifold.line(manifolds["samples"], manifolds["real"]))
    return result
