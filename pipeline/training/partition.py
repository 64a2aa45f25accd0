"""Where DeepSpeed 0.19.8 keeps what a rank owns: fp32 weights, AdamW's moments, the reduced gradient, at ZeRO 0 to 3.

All reading of DeepSpeed's private tensors is here; nothing is imported from it. Weights are fp32 (lower precision is
torch.autocast's business), so masters and forward weights have one dtype. Traps that shaped this file:
places are found by address (`_hp_mapping` is wrong under round-robin gradients); AdamW's state is made lazily; forward
weights and ZeRO 3's persistent parameters must be refreshed after masters are set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")
PACK = 1 << 22  # elements that go round at once: 16 MiB


class Piece(NamedTuple):
    """Elements [start, start + numel) of the flattened parameter `name` lie in `flats[flat]` from element `at` on."""

    name: str
    start: int
    numel: int
    flat: int
    at: int


class Partition:
    """What lies where on this rank.

    flats: the fp32 tensors that AdamW steps on this rank, then the frozen parameters (from index `trainable` on).
    held: all that this rank keeps (a load fills it). owned: the part of it that this rank saves. The ranks' `owned`
    together cover each parameter exactly once; `held` is more only where ranks keep copies (ZeRO 0, frozen weights).
    shapes: the whole shape of each parameter, by name. frozen: whether frozen parameters are among all these; they are
    not where they come from elsewhere, as the base of an adapter.
    """

    def __init__(
        self, module: nn.Module, optimizer: Any, stage: int, rank: int, world: int, frozen: bool = True
    ) -> None:
        self.module, self.optimizer, self.stage, self.rank, self.world = module, optimizer, stage, rank, world
        self.adam = optimizer  # the torch optimizer inside DeepSpeed's wrapper
        while hasattr(self.adam, "optimizer"):
            self.adam = self.adam.optimizer
        every = module.named_parameters()  # a tied parameter once, under its first name
        named = {name: p for name, p in every if frozen or p.requires_grad}
        self.shapes = {name: list(getattr(p, "ds_shape", p.shape)) for name, p in named.items()}
        self.flats: list[torch.Tensor] = []
        self.held: list[Piece] = []
        self.owned: list[Piece] = []
        if stage == 0:
            for name, p in named.items():
                if p.requires_grad:
                    self._add_whole(name, p)
        elif stage == 3:
            self._add_stage_3(named)
        else:
            self._add_stage_1_and_2({id(p): name for name, p in named.items()})
        self.trainable = len(self.flats)
        for name, p in named.items():  # frozen weights come last, so that they need no place in moments and averages
            if not p.requires_grad and p.numel() and stage != 3:
                self._add_whole(name, p)
            elif not p.requires_grad and stage == 3:
                self.flats.append(p.ds_tensor)  # type: ignore[attr-defined]
                self._add_third(name, p, len(self.flats) - 1, 0)

    def _add_stage_3(self, named: dict[str, nn.Parameter]) -> None:
        """Each parameter is cut in `world` equal parts, the last ones padded or empty."""
        self.flats = list(self.optimizer.fp32_partitioned_groups_flat)
        for name, p in named.items():
            if p.requires_grad and p.ds_numel:  # type: ignore[attr-defined]
                flat, at, _ = self.optimizer.grad_position[self.optimizer.get_param_id(p)]
                self._add_third(name, p, flat, at)

    def _add_third(self, name: str, p: Any, flat: int, at: int) -> None:
        size = p.ds_tensor.ds_numel
        start = self.rank * size
        filled = max(0, min(size, p.ds_numel - start))
        if filled:
            self._add(Piece(name, start, filled, flat, at))
        with torch.no_grad():  # DeepSpeed leaves there what memory held: a NaN equals nothing, not itself
            self.flats[flat].view(-1)[at + filled : at + size] = 0
            p.ds_tensor.view(-1)[filled:] = 0

    def _add_stage_1_and_2(self, names: dict[int, str]) -> None:
        """Each group of parameters is one flat run, cut in `world` equal parts wherever the cut falls."""
        self.flats = list(self.optimizer.single_partition_of_fp32_groups)
        for i, (flat, run) in enumerate(zip(self.flats, self.optimizer.bit16_groups_flat, strict=True)):
            low = self.rank * flat.numel()
            for p in self.optimizer.bit16_groups[i]:  # a view into its run: its address says where
                begin = (p.data_ptr() - run.data_ptr()) // p.element_size()
                a, b = max(begin, low), min(begin + p.numel(), low + flat.numel())
                if a < b:
                    self._add(Piece(names[id(p)], a - begin, b - a, i, a - low))

    def _add_whole(self, name: str, p: torch.Tensor) -> None:
        """Every rank holds all of it; each saves an equal share."""
        self.flats.append(p)
        flat, share = len(self.flats) - 1, -(-p.numel() // self.world)
        a, b = min(self.rank * share, p.numel()), min((self.rank + 1) * share, p.numel())
        self._add(Piece(name, 0, p.numel(), flat, 0), Piece(name, a, b - a, flat, a))

    def _add(self, held: Piece, owned: Piece | None = None) -> None:
        self.held.append(held)
        self.owned.append(owned or held)

    def masters(self) -> list[torch.Tensor]:
        """The fp32 weights that this rank steps."""
        return [flat.detach() for flat in self.flats[: self.trainable]]

    def gradients(self) -> list[torch.Tensor]:
        """The reduced gradient of what this rank steps, fp32, to be scaled in place; valid after the last backward.

        At ZeRO 0 every rank has all of it, at 1 to 3 its own part, with padding that is zero.
        """
        if self.stage == 0:
            return [p.grad for p in self.flats[: self.trainable] if p.grad is not None]
        groups = self.optimizer.averaged_gradients
        return [gradient.detach() for i in sorted(groups) for gradient in groups[i]]

    def gradient_pieces(self) -> Iterator[tuple[Piece, torch.Tensor]]:
        """Of each parameter what this rank steps, and the reduced gradient of that, fp32 [numel], to be changed in
        place; valid as `gradients` is."""
        places = {(piece.flat, piece.at): piece for piece in self.held}
        if self.stage == 0:
            lone = [(i, p.grad) for i, p in enumerate(self.flats[: self.trainable]) if p.grad is not None]
            yield from ((places[i, 0], gradient.view(-1)) for i, gradient in lone)
            return
        for i, several in self.optimizer.averaged_gradients.items():
            at = 0
            for gradient in several:
                if (piece := places.get((i, at))) is not None:
                    yield piece, gradient.detach().view(-1)[: piece.numel]
                at += gradient.numel()

    def packs(self, names: Iterable[str]) -> Iterator[list[str]]:
        """The names in their order, cut so that each part has PACK elements or is one parameter."""
        pack: list[str] = []
        size = 0
        for name in names:
            numel = math.prod(self.shapes[name])
            if pack and size + numel > PACK:
                yield pack
                pack, size = [], 0
            pack.append(name)
            size += numel
        if pack:
            yield pack

    def bits(self, name: str, flats: Sequence[torch.Tensor]) -> torch.Tensor:
        """The elements of the parameter `name` that this rank owns, as int32 [numel] (fp32's bits), 0 elsewhere.

        flats: tensors that lie as `flats` does. The sum over ranks is the whole parameter, bit for bit (-0.0 too).
        """
        out = torch.zeros(math.prod(self.shapes[name]), dtype=torch.float32, device=flats[0].device)
        for piece in self.owned:
            if piece.name == name:
                mine = flats[piece.flat].detach().view(-1)[piece.at : piece.at + piece.numel]
                out[piece.start : piece.start + piece.numel] = mine
        return out.view(torch.int32)

    def state(self, flat: torch.Tensor) -> dict[str, Any]:
        """AdamW's state of a flat. It is made in the first step: made here, as AdamW does, if it is not there yet."""
        state: dict[str, Any] = self.adam.state[flat]
        if "exp_avg" not in state:
            on_device = any(group.get("fused") or group.get("capturable") for group in self.adam.param_groups)
            state["step"] = torch.zeros((), device=flat.device if on_device else "cpu")
            state.update({key: torch.zeros_like(flat.data) for key in MOMENTS})
        return state

    def slots(self, averages: dict[str, list[torch.Tensor]]) -> dict[str, list[torch.Tensor]]:
        """Name in a checkpoint -> 1-D tensors in the order of `flats` (masters) or of its trainable part (the rest)."""
        trainable = self.flats[: self.trainable]
        moments = {key: [self.state(flat)[key] for flat in trainable] for key in MOMENTS}
        slots = {"master": self.flats, **moments, **averages}
        return {key: [tensor.detach().view(-1) for tensor in tensors] for key, tensors in slots.items()}

    @torch.no_grad()
    def refresh(self) -> None:
        """Give the forward weights the masters' new values. All ranks call."""
        if self.stage in (1, 2):
            self.optimizer.update_lp_params()
        if self.stage == 3:
            for i in range(self.trainable):
                self.optimizer._reassign_or_swap_out_partitioned_parameters(i)
            persistent = self.optimizer.persistent_parameters
            if persistent:  # small parameters stay gathered: their gathered copies are stale
                persistent[0].partition(persistent)
                persistent[0].all_gather(persistent)
