"""Bytes that a training step holds at its highest, counted on tensors without numbers: nothing is computed.

What operations allocate inside themselves and give back is not seen; nor what a process holds besides tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that are alive: now, and at the highest. Under it, tensors of every operation;
    `hold` adds those that were there before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.highest = 0
        self._held: set[int] = set()

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count these storages for as long as they live; each once."""
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if storage._cdata not in self._held:
                self._held.add(storage._cdata)
                self.now += storage.nbytes()
                self.highest = max(self.highest, self.now)
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, place: int, size: int) -> None:
        self._held.discard(place)
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        self.hold(leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor))
        return found


class Step(NamedTuple):
    """Of one training step."""

    parameters: int
    peak: int  # bytes beyond the weights at the highest: activations, and the gradients as far as they are there then


def of_step(module: nn.Module, loss: Callable[[], Tensor], device: str, half: bool, passes: int) -> Step:
    """What forward and backward passes take, that many, whose gradients are added.

    module: on the meta device; comes out without numbers on `device`, which need not be there. loss: a scalar of what
    the module makes of inputs that it allocates. half: under autocast, whose two types are of one size.
    """
    with FakeTensorMode(), torch.device(device), Live() as live:
        for part in module.modules():
            held: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
            for own in held:
                for name, tensor in own.items():
                    if tensor is not None:
                        own[name] = _without_numbers(tensor)
        before = live.highest = live.now
        for _ in range(passes):
            with torch.autocast(device, torch.bfloat16, enabled=half):
                value = loss()
            value.backward()
        return Step(sum(p.numel() for p in module.parameters() if p.requires_grad), live.highest - before)


def _without_numbers(tensor: Tensor) -> Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
