"""Where the seconds of training go, and how much of the machine they use: the curves `efficiency/...`.

Model FLOPs are those of the network's products, three times a forward pass; what is computed again (activation
checkpointing), losses and optimizer are none. Utilisation is their rate over that of large products in the same
precision, measured on the same devices as training begins.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from pipeline.training.ranks import Ranks

PARTS = ("data", "step", "all_reduce", "checkpoint")  # all_reduce is in step: the wait for the slowest rank is in it
SIDE = {"cpu": 512, "cuda": 4096}  # of the products that are measured
ROUNDS = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Meter:
    """Of rank 0, over the interval since the last reading.

    peak: FLOPs a second of large products on all ranks (`product_rate`). flops: model FLOPs of a training sample, as
    soon as they are known (None before). system: whether curves of the machine are asked for.
    """

    def __init__(
        self,
        device: torch.device,
        peak: float = 0.0,
        flops: Callable[[], float | None] = lambda: None,
        system: bool = False,
    ) -> None:
        self.device, self.peak, self.flops, self.system = device, peak, flops, system
        self.whole = dict.fromkeys(("images", "steps", "seconds", *PARTS), 0.0)  # of all intervals that were read
        self._begin()

    def _begin(self) -> None:
        self._start, self._paused, self._images, self._steps = time.perf_counter(), 0.0, 0, 0
        self._parts = dict.fromkeys(PARTS, 0.0)

    def count(self, images: int) -> None:
        """A step of so many images is done."""
        self._images, self._steps = self._images + images, self._steps + 1

    def add(self, part: str, seconds: float) -> None:
        """Seconds that were measured elsewhere."""
        self._parts[part] += seconds

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part of a step."""
        start = time.perf_counter()
        yield
        self._parts[name] += time.perf_counter() - start

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Validation, previews and saves are not counted in images a second."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """images_per_second, and `efficiency/...` (milliseconds a step, TFLOP/s, utilisation, GB of the peak memory of
        rank 0); the interval begins anew."""
        seconds = max(1e-9, time.perf_counter() - self._start - self._paused)
        new = {"images": self._images, "steps": self._steps, "seconds": seconds, **self._parts}
        self.whole = {name: value + new[name] for name, value in self.whole.items()}
        self._begin()
        return self._values(new) | (system_metrics(self.device) if self.system else {})

    def summary(self) -> dict[str, float]:
        """The same of all that was read."""
        return self._values(self.whole)

    def _values(self, of: dict[str, float]) -> dict[str, float]:
        rate, steps = of["images"] / max(1e-9, of["seconds"]), max(1, of["steps"])
        values = {"images_per_second": rate}
        values |= {f"efficiency/{name}_ms": 1000 * of[name] / steps for name in PARTS}
        flops = self.flops()
        if flops:
            values["efficiency/tflops"] = flops * rate / 1e12
            if self.peak:
                values["efficiency/utilisation"] = flops * rate / self.peak
        values["efficiency/memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        if self.device.type == "cuda":
            values["efficiency/device_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        return values


def system_metrics(device: torch.device) -> dict[str, float]:
    """Of this machine now, or since the last call, by the names that MLflow's own monitor has for them."""
    import psutil  # Ray brings it

    memory, network = psutil.virtual_memory(), psutil.net_io_counters()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_percentage": memory.percent,
        "system_memory_usage_megabytes": memory.used / 1e6,
        "network_receive_megabytes": network.bytes_recv / 1e6,
        "network_transmit_megabytes": network.bytes_sent / 1e6,
    }
    if device.type == "cuda":
        number, (free, total) = device.index or 0, torch.cuda.mem_get_info(device)
        values[f"gpu_{number}_memory_usage_megabytes"] = (total - free) / 1e6
        values[f"gpu_{number}_memory_usage_percentage"] = 100 * (1 - free / total)
        with suppress(ImportError):  # where nvidia-ml-py is installed
            values[f"gpu_{number}_utilization_percentage"] = float(torch.cuda.utilization(device))
    return {f"system/{name}": float(value) for name, value in values.items()}


@contextmanager
def clock(device: torch.device) -> Iterator[Callable[[], float]]:
    """What tells, behind the `with`, the seconds in it: on a GPU those of its queue. A transfer to the host ends it."""
    if device.type != "cuda":
        start, end = time.perf_counter(), [0.0]
        yield lambda: end[0] - start
        end[0] = time.perf_counter()
        return
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()

    def seconds() -> float:
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000

    yield seconds
    last.record()


def product_rate(ranks: Ranks, precision: str) -> float:
    """FLOPs a second of large square products on all ranks at once: the best of some rounds on each. All ranks call."""
    kind, dtype = ranks.device.type, DTYPES[precision]
    side = SIDE.get(kind, 512)
    a, b = (torch.ones(side, side, dtype=dtype, device=ranks.device) for _ in range(2))
    best = math.inf
    for _ in range(ROUNDS):
        if kind == "cuda":
            torch.cuda.synchronize(ranks.device)
        start = time.perf_counter()
        a @ b
        if kind == "cuda":
            torch.cuda.synchronize(ranks.device)
        best = min(best, time.perf_counter() - start)
    return ranks.sum_floats([2 * side**3 / best])[0]


def line(name: str, values: dict[str, float], noun: str) -> str:
    """A stage's training in a line. noun: what a sample is called."""
    text = f"{name}: {values['images_per_second']:.4g} {noun}s/s"
    if "efficiency/tflops" in values:
        text += f", {values['efficiency/tflops']:.3g} TFLOP/s"
    if "efficiency/utilisation" in values:
        text += f" ({values['efficiency/utilisation']:.0%} of what large products reach on these devices)"
    parts = ", ".join(f"{part.replace('_', '-')} {values[f'efficiency/{part}_ms']:.3g}" for part in PARTS)
    text += f"; ms a step: {parts}; memory {values['efficiency/memory_gb']:.2g} GB a rank"
    if "efficiency/device_memory_gb" in values:
        text += f", {values['efficiency/device_memory_gb']:.3g} GB of its device"
    return text
