"""An evaluation in words: key figures by name, the verdict in one line, the report as lines of text."""

from __future__ import annotations

from typing import Any

from pipeline.evaluation import agreement, band_scores, clip_words, sound_scores, text_scores
from pipeline.evaluation.metrics import sets


def key_figures(report: dict[str, Any]) -> dict[str, float]:
    """The figures that go into curves and tables, by name; those that could not be had are absent."""
    if "text" in report:
        return text_scores.key_figures(report)
    found = {name: report["reconstruction"].get(name) for name in ("psnr", "ssim")}
    found |= sets.key_figures(report)
    if "classes" in report:
        found["class_accuracy"] = report["classes"]["right"]
        found["classifier_accuracy"] = report["extractor"]["facts"]["held_out_accuracy"]
    for space, values in report["neighbours"].items():
        found[f"nearest_{space}_share"] = values["share_below"]
        if values["held_out_median"]:  # else the report says why there is none (`neighbours_of`)
            found[f"nearest_{space}_ratio"] = values["sample_median"] / values["held_out_median"]
    found |= agreement.key_figures(report.get("agreement", {})) | clip_words.key_figures(report)
    found |= sound_scores.key_figures(report.get("sound", {}))
    found |= band_scores.key_figures(report.get("band_covariance", {}))
    return {name: float(value) for name, value in found.items() if value is not None}


def headline(summary: dict[str, Any]) -> str:
    """The verdict in one line. A distance is never alone."""
    values, parts = summary["key_figures"], []
    if "exact_tokens" in values:
        return text_scores.headline(values)
    if "fd" in values:
        count = summary["images"]["compared"]
        passed = f"reconstructions: {values['fd_reconstructions']:.3g}, " if "fd_reconstructions" in values else ""
        parts.append(
            f"Fréchet distance {values['fd']:.3g} ({passed}real data: {values['fd_real']:.3g}, {count} images a set)"
        )
    if summary.get("verdict"):
        parts.append(summary["verdict"])
    if "class_accuracy" in values:
        parts.append(f"{values['class_accuracy']:.1%} of samples in their class")
    if name := agreement.headline(values):
        parts.append(name)
    if name := clip_words.headline(values):
        parts.append(name)
    if "psnr" in values:
        parts.append(f"PSNR {values['psnr']:.2f} dB from posterior means")
    return ", ".join(parts) or "no figure: " + "; ".join(summary["missing"].values())


def lines(report: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    if "text" in report:
        return text_scores.lines(report)
    extractor, counts, result = report["extractor"], report["images"], clip_words.lines(report)
    for name, value in report["reconstruction"].items():
        result.append(f"{name.upper()} {value:.4g} of {counts['held_out']} reconstructed held-out images")
    if "buckets" in report:
        side, shapes = report["buckets"]["stretched_to"], report["buckets"]["samples"]
        result.append(
            f"images of {len(shapes)} shapes: samples have those of training images, reconstructions are compared in "
            f"their own; for all else real images, reconstructions and samples are stretched to {side}x{side} alike"
        )
    result.append(f"features: {extractor['description']}, digest {extractor['digest'][:12]}")
    result += sets.lines(report)
    if "classes" in report:
        asked, right = report["classes"]["asked"], report["classes"]["right"]
        measured = extractor["facts"]["held_out_accuracy"]
        worst = min(report["classes"]["table"], key=lambda row: row["right"])
        result.append(
            f"{right:.1%} of {asked} samples in the class asked for (held-out images: {measured:.1%}); worst class "
            f"{worst['class']}: {worst['right']:.1%} of {worst['asked']}"
        )
    for space, near in report["neighbours"].items():
        result.append(
            f"nearest training image by {space}: median distance {near['sample_median']:.3g} of {near['samples']} "
            f"samples, {near['held_out_median']:.3g} of {near['held_out']} held-out images; {near['share_below']:.1%} "
            f"of samples nearer than the first percentile of these ({near['threshold']:.3g})"
        )
    result += sound_scores.lines(report.get("sound", {})) + band_scores.lines(report.get("band_covariance", {}))
    result += [f"agreement, {line}" for line in agreement.lines(report.get("agreement", {}))]
    return result + [f"{name} is not given: {reason}" for name, reason in report["missing"].items()]
