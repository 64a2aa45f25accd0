"""Which of how many processes this is, on which device, and the few collectives the project makes.

The only file that calls torch.distributed. One process is a world of one: the same code, every collective is free.
A process group that is already open (Ray Train opens one) is adopted; else RANK and WORLD_SIZE decide.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process (`rank` of `world`, `local_rank` on its machine) and the device its tensors live on."""

    rank: int
    world: int
    local_rank: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this rank logs and writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()

    def all_reduce(self, values: torch.Tensor, op: str = "sum") -> torch.Tensor:
        """Combine `values` [any shape] over all ranks, in place; `op` is "sum", "max" or "min".

        Of a view with gaps, as x[:, ::2] is, gloo would combine what lies in the gaps, without an error (torch 2.13,
        findings/gloo_strided.sh), and of transposed ones what each rank holds at the same place: a copy goes round.
        """
        if self.world > 1:
            whole = values.contiguous()  # itself, where it is
            dist.all_reduce(whole, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}[op])
            if whole is not values:
                values.copy_(whole)
        return values

    def stack(self, values: torch.Tensor) -> torch.Tensor:
        """Every rank's `values` [n, ...], one after another in the order of ranks: [world * n, ...], on every rank."""
        if self.world == 1:
            return values
        whole = values.new_zeros(self.world, *values.shape)
        whole[self.rank] = values
        return self.all_reduce(whole).flatten(0, 1)

    def sum_floats(self, values: list[float]) -> list[float]:
        """The sums over all ranks of a few numbers, in float64; one transfer each way."""
        if self.world == 1:
            return list(values)
        packed = torch.tensor(values, dtype=torch.float64, device=self.device)
        return [float(value) for value in self.all_reduce(packed).tolist()]

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's `value` (any pickleable object of our own making), on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's `value`, in the order of ranks, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


def open_ranks(device: torch.device | str | None = None, timeout_s: float = 1800) -> Ranks:
    """This process's place among the ranks; opens a process group where none is open.

    device: where the tensors of this rank live (Ray Train says); default: GPU number LOCAL_RANK, or the CPU.
    timeout_s: seconds after which a collective that a rank never joins is an error.
    Without WORLD_SIZE in the environment the group is one process on a store in memory: no port is opened.
    """
    environment = os.environ
    local_rank = int(environment.get("LOCAL_RANK", "0"))
    if device is None:
        device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        wait = timedelta(seconds=timeout_s)
        if int(environment.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend, timeout=wait)
        else:
            store = dist.HashStore()  # type: ignore[attr-defined]  # exported, says its documentation
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=wait)
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device)


def close_ranks() -> None:
    """Close the process group that `open_ranks` opened; does nothing if none is open."""
    if dist.is_initialized():
        dist.destroy_process_group()
