"""Images a second, utilisation and memory of training and sampling on the device at hand.

    python tests/gpu/throughput.py [--minutes 6] [--out docs/results/throughput.md]

On a GPU DiT-XL/2 and DiT-B/2 at 256 pixels (latents of 4x32x32, random ones: reading them is `tests/benchmarks`'),
bf16, compiled and not, at batch sizes up to what fits, each beside a lean loop (`lean_dit.py`, the same products and no
options) in the same run; then the sampler. On a CPU a tiny model, to see that it runs. A variant whose turn comes after
the minutes are over is left out, and it is said.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

import torch  # noqa: E402
from lean_dit import LeanDiT, lean_loss  # noqa: E402
from steps import CLASSES, bare_step, loss_function, network, random_batch  # noqa: E402

from models import registry  # noqa: E402
from models.backbones import dit  # noqa: E402
from models.diffusion import grids, samplers  # noqa: E402
from models.diffusion.denoiser import denoiser  # noqa: E402
from models.diffusion.guidance import guided  # noqa: E402
from models.diffusion.process import make_path  # noqa: E402
from pipeline.errors import UserError  # noqa: E402
from pipeline.files import atomic_write  # noqa: E402
from pipeline.schema.training import Training  # noqa: E402
from pipeline.training.engine import Engine  # noqa: E402
from pipeline.training.meter import product_rate  # noqa: E402
from pipeline.training.ranks import Ranks, open_ranks  # noqa: E402

CHANNELS = 4
GPU = {"side": 32, "models": ("dit-xl/2", "dit-b/2"), "batches": (64, 128, 256, 512), "warm_up": 3, "steps": 10}
CPU = {"side": 8, "models": ("dit-xxs/2",), "batches": (2, 4), "warm_up": 1, "steps": 2}
SAMPLED, SAMPLER_STEPS, GUIDANCE = {"cuda": 64, "cpu": 2}, 20, 1.5


def seconds_a_step(step: Callable[[], Any], ranks: Ranks, warm_up: int, steps: int) -> float:
    for _ in range(warm_up):
        step()
    wait(ranks)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait(ranks)
    return (time.perf_counter() - start) / steps


def wait(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)


def clean(ranks: Ranks) -> None:
    gc.collect()
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(ranks.device)


def peak_gb(ranks: Ranks) -> str:
    return f"{torch.cuda.max_memory_allocated(ranks.device) / 1e9:.1f}" if ranks.device.type == "cuda" else "-"


def on_device(batch: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    return {key: value.to(ranks.device) for key, value in batch.items()}


def ours(preset: str, side: int, batch: int, compiled: bool, ranks: Ranks, how: dict[str, Any]) -> float:
    """Seconds a step of the engine, as the loop calls it."""
    training = Training(
        batch_size=batch, steps=10**6, learning_rate=1e-4, clip=1.0, zero_stage=0, compile=compiled, precision="auto"
    )
    engine = Engine(network({"preset": preset}, CHANNELS, side).to(ranks.device), space_on(ranks), training, ranks)
    data, at = on_device(random_batch(batch, CHANNELS, side), ranks), [0]

    def step() -> None:
        engine.step(data, at[0])
        at[0] += batch

    try:
        return seconds_a_step(step, ranks, how["warm_up"], how["steps"])
    finally:
        engine.close()


def space_on(ranks: Ranks) -> Any:
    """The loss, with its normalisation where the latents are."""
    with torch.device(ranks.device):
        return loss_function(CHANNELS)


def lean(preset: str, side: int, batch: int, ranks: Ranks, how: dict[str, Any]) -> float:
    """Seconds a step of the loop that one writes by hand."""
    config = registry.make_config("backbones", {"kind": "dit", "preset": preset})
    torch.manual_seed(0)
    model = LeanDiT(config.width, config.depth, config.heads, config.patch, CHANNELS, side, CLASSES).to(ranks.device)
    half = torch.autocast(ranks.device.type, torch.bfloat16, enabled=ranks.device.type == "cuda")

    def loss(module: Any, data: dict[str, Any]) -> dict[str, torch.Tensor]:
        with half:
            return lean_loss(module, data)

    step, data = bare_step(model, loss), on_device(random_batch(batch, CHANNELS, side), ranks)
    return seconds_a_step(lambda: step(data), ranks, how["warm_up"], how["steps"])


def sampling(preset: str, side: int, ranks: Ranks) -> float:
    """Latents a second, dpmpp_2m with guidance: two evaluations a step."""
    count, path = SAMPLED[ranks.device.type], make_path("rectified_flow")
    model = network({"preset": preset}, CHANNELS, side).to(ranks.device).eval()
    label = torch.arange(count, device=ranks.device) % CLASSES
    x = torch.randn(count, CHANNELS, side, side, device=ranks.device)
    denoise = guided(denoiser(model, path, "velocity"), GUIDANCE, model.null(1, ranks.device))
    times = grids.grid("auto", SAMPLER_STEPS, path)
    half = torch.autocast(ranks.device.type, torch.bfloat16, enabled=ranks.device.type == "cuda")

    @torch.no_grad()
    def once() -> None:
        with half:
            samplers.sample("dpmpp_2m", denoise, path, x, times, {"class": label}, lambda step: x)

    return count / seconds_a_step(once, ranks, 1, 2)


def variants(how: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """(preset, loop, batch), the most telling first."""
    for batch in how["batches"]:
        for preset in how["models"]:
            for loop in ("engine", "engine, compiled", "lean"):
                yield preset, loop, batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--out", type=Path, help="a page of Markdown")
    given = parser.parse_args()
    began, ranks = time.monotonic(), open_ranks()
    gpu = ranks.device.type == "cuda"
    how: dict[str, Any] = GPU if gpu else CPU
    name = torch.cuda.get_device_name(ranks.device) if gpu else "CPU"
    rate = product_rate(ranks, "bf16" if gpu else "fp32")
    lines = [
        f"# Throughput: {name}",
        "",
        f"torch {torch.__version__}; large products reach {rate / 1e12:.3g} TFLOP/s in {'bf16' if gpu else 'fp32'}; "
        f"latents of {CHANNELS}x{how['side']}x{how['side']}. Made by `python tests/gpu/throughput.py`.",
        "",
        "| model | loop | batch | images/s | TFLOP/s | of large products | over lean | peak GB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    print("\n".join(lines), flush=True)

    def show(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    speed: dict[tuple[str, str, int], float] = {}
    late, rows = [], {}
    for preset, loop, batch in variants(how):
        key = (preset, loop, batch)
        if time.monotonic() - began > 60 * given.minutes - 45:
            late.append(key)
            continue
        if loop == "engine, compiled" and not gpu:
            continue  # it needs a compiler there, and minutes
        clean(ranks)
        try:
            seconds = (
                lean(preset, how["side"], batch, ranks, how)
                if loop == "lean"
                else ours(preset, how["side"], batch, loop != "engine", ranks, how)
            )
        except (UserError, torch.OutOfMemoryError):
            rows[key] = "does not fit"
            continue
        speed[key] = batch / seconds
        flops = 3 * dit.flops(
            registry.make_config("backbones", {"kind": "dit", "preset": preset}), CHANNELS, how["side"]
        )
        share = flops * speed[key]
        rows[key] = f"{speed[key]:.4g} | {share / 1e12:.3g} | {share / rate:.0%} | RATIO | {peak_gb(ranks)}"
        print(f"{preset}, {loop}, batch {batch}: {speed[key]:.4g} images/s", file=sys.stderr, flush=True)
    for (preset, loop, batch), row in rows.items():
        beside = speed.get((preset, "lean", batch))
        over = f"{speed[preset, loop, batch] / beside:.3f}" if beside and (preset, loop, batch) in speed else "-"
        filled = row.replace("RATIO", over) if "RATIO" in row else f"{row} | | | |"
        show(f"| {preset} | {loop} | {batch} | {filled} |")
    for preset in how["models"]:
        if time.monotonic() - began < 60 * given.minutes - 20:
            clean(ranks)
            rate_of = sampling(preset, how["side"], ranks)
            show("") if preset == how["models"][0] else None
            show(f"Sampler, {preset}, dpmpp_2m, {SAMPLER_STEPS} steps, guidance {GUIDANCE}: {rate_of:.4g} latents/s.")
    if late:
        show(f"\nLeft out for want of time: {'; '.join(f'{p}, {loop}, batch {b}' for p, loop, b in late)}.")
    if given.out:
        atomic_write(given.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
