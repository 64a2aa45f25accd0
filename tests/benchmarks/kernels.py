"""Where the CPU time of a training step goes, by kind of kernel, in fp32 and in bf16.

    python tests/benchmarks/kernels.py [--batch 4]

The step is that of `run.py engine`: a DiT-S/2 on latents of 4x32x32, one thread, a bare loop. Prints a Markdown table:
the share of each kind in the kernels' own time, and what the products would take alone at the rate of a large product.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

import torch  # noqa: E402
from steps import bare_step, loss_function, network, random_batch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

KINDS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "convolution", "mkldnn"),
    "attention": ("scaled_dot_product", "flash_attention", "softmax"),
    "casts and copies": ("copy_", "_to_copy", "clone", "cat", "contiguous", "stack"),
    "norms": ("layer_norm", "rms_norm", "native_norm"),
    "gelu, silu": ("gelu", "silu"),
    "optimizer and average": ("_foreach", "_fused_adam", "adamw", "lerp"),
    "sums": ("sum", "mean"),
    "multiplications and additions": ("mul", "add", "sub", "div"),
}
STEPS = 4


def kind_of(name: str) -> str:
    """The kind of a kernel by its name, such as aten::mm."""
    for kind, words in KINDS.items():
        if any(name.removeprefix("aten::").startswith(word) or word in name for word in words if len(word) > 3):
            return kind
        if name.removeprefix("aten::") in words:
            return kind
    return "other"


def shares(precision: str, batch: int) -> tuple[dict[str, float], float]:
    """Share of each kind, and seconds of a step."""
    model = network({"preset": "dit-s/2"}, 4, 32)
    data, step = random_batch(batch, 4, 32), bare_step(model, loss_function(4))

    def go() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            step(data)

    go()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            go()
    spent: dict[str, float] = {}
    for event in seen.key_averages():
        spent[kind_of(event.key)] = spent.get(kind_of(event.key), 0.0) + event.self_cpu_time_total / 1e6
    whole = sum(spent.values())
    return {kind: seconds / whole for kind, seconds in spent.items()}, whole / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    batch = parser.parse_args().batch
    torch.set_num_threads(1)
    (fp32, slow), (bf16, fast) = shares("fp32", batch), shares("bf16", batch)
    print(f"| batch {batch}, a step | fp32, {slow:.2f} s | bf16, {fast:.2f} s |\n| --- | ---: | ---: |")
    for kind in sorted(fp32 | bf16, key=lambda kind: -fp32.get(kind, 0.0)):
        print(f"| {kind} | {fp32.get(kind, 0.0):.1%} | {bf16.get(kind, 0.0):.1%} |")


if __name__ == "__main__":
    main()
