"""An evaluation of clips in words: what is said besides the figures of their frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def key_figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Flicker of samples, of real clips and training ones, and of reconstructions; nothing where these are no clips."""
    found = report.get("flicker", {})
    return {"flicker" + ("" if name == "samples" else f"_{name}"): value for name, value in found.items()}


def headline(figures: Mapping[str, float]) -> str:
    """Flicker in words; empty where these are no clips."""
    if "flicker" not in figures:
        return ""
    return f"flicker {figures['flicker']:.3g} (real clips: {figures['flicker_real']:.3g})"


def lines(report: Mapping[str, Any]) -> list[str]:
    """What is said of clips besides their frames; nothing where these are none."""
    if "clips" not in report:
        return []
    counts, result = report["clips"], []
    result.append(
        f"of clips of {counts['frames']} frames, {counts['samples']} samples and {counts['held_out']} held out; the "
        f"figures of images are of their frames, so that {counts['compared']} clips stand behind a set"
    )
    if found := report.get("flicker"):
        result.append(
            f"flicker (mean absolute difference of successive frames, grey levels of 255): {found['samples']:.4g} of "
            f"samples, {found['real']:.4g} of held-out clips, {found['reconstructions']:.4g} of their reconstructions, "
            f"{found['train']:.4g} of training clips"
        )
    return result
