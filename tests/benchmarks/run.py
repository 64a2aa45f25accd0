"""Run all benchmarks, each in its own process on one thread; print the figures and write docs/results/bench.md.

    python tests/benchmarks/run.py                   all of them
    python tests/benchmarks/run.py engine --short    one of them, few rounds, nothing written

Timings depend on the machine and on what else it does: nothing here is asserted, a missed target is only said.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = {  # name: (rounds, in short)
    "latents": (9, 3),
    "draws": (15, 2),
    "engine": (10, 3),
    "save": (15, 2),
    "lora": (10, 2),
    "cache": (9, 2),
    "captions": (7, 2),
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "ignore",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--short", action="store_true", help="few rounds: to see that it runs")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(BENCHMARKS)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if options.child:
        return _child(options.names[0], options.short, Path(options.child))
    results = {}
    began = time.monotonic()
    for name in options.names or BENCHMARKS:
        start = time.monotonic()
        results[name] = _run(name, options.short)
        print(f"\n{name} ({time.monotonic() - start:.0f} s)")
        print("\n".join(_plain(figure) for figure in results[name]), flush=True)
    if not options.names and not options.short:
        path = ROOT / "docs" / "results" / "bench.md"
        path.write_text(_markdown(results, time.monotonic() - began))
        print(f"\nwritten to {path.relative_to(ROOT)}")
    return 0


def _run(name: str, short: bool) -> list[dict[str, Any]]:
    """A benchmark in a process of its own: its memory and its imports are nobody else's."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, __file__, name, "--child", str(out), *(["--short"] if short else [])]
        subprocess.run(command, env={**os.environ, **ENVIRONMENT}, check=True)
        figures: list[dict[str, Any]] = json.loads(out.read_text())
        return figures


def _child(name: str, short: bool, out: Path) -> int:
    import torch

    torch.set_num_threads(1)
    figures = importlib.import_module(name).measure(BENCHMARKS[name][short])
    out.write_text(json.dumps([{**asdict(figure), "verdict": figure.verdict} for figure in figures]))
    return 0


# ---- what is shown ---------------------------------------------------------------------------------------------------


def _plain(figure: dict[str, Any]) -> str:
    target = f"  target {figure['target']}: {figure['verdict']}" if figure["target"] else ""
    return f"  {figure['what']:<78} {_value(figure):>24}{target}"


def _value(figure: dict[str, Any]) -> str:
    text = f"{_number(figure['value'])} {figure['unit']}".strip()
    return text if figure["low"] is None else f"{text} ({_number(figure['low'])} to {_number(figure['high'])})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _markdown(results: dict[str, list[dict[str, Any]]], seconds: float) -> str:
    lines = [
        "# Benchmarks",
        "",
        "`make bench` writes this page. Each benchmark runs in its own process, on one thread; its variants take turns",
        "in each round. A ratio is the median over rounds of the ratio within a round, quartiles in parentheses; times",
        "are CPU seconds of the process and its children, or wall seconds where it says so.",
        "",
        f"- Machine: {machine()}",
        f"- Versions: Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "numpy", "webdataset")),
        f"- Date: {time.strftime('%Y-%m-%d', time.gmtime())}; the whole run took {seconds / 60:.1f} minutes",
    ]
    for name, figures in results.items():
        about = importlib.import_module(name).__doc__ or ""
        lines += ["", f"## {name}", "", about.strip(), "", "| figure | value | target | |", "|---|---|---|---|"]
        lines += [f"| {f['what']} | {_value(f)} | {f['target']} | {f['verdict']} |" for f in figures]
    return "\n".join(lines) + "\n"


def machine() -> str:
    """The CPU in words, from /proc/cpuinfo where there is one."""
    cpuinfo = Path("/proc/cpuinfo")
    rows = [line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line] if cpuinfo.exists() else []
    fields = {key.strip(): value.strip() for key, value in rows}
    model = fields.get("model name", platform.processor() or platform.machine())
    flags = [flag for flag in ("avx2", "avx512f", "amx_tile") if flag in fields.get("flags", "").split()]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    parts = [f"{os.cpu_count()} cores of {model}{family}", *flags, f"{memory:.0f} GiB of memory", platform.system()]
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
