"""Muon: the update of a matrix is its momentum made orthogonal, so that all its directions move alike.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon); scaled as of Liu et al. 2025, "Muon is Scalable for LLM
Training", so that AdamW's learning rate and weight decay hold for it too. Here gradients are turned into updates, at
any ZeRO stage; the step along them, and AdamW for all other parameters, is `engine.py`'s optimizer. torch.optim.Muon
takes whole matrices only and orthogonalises in bf16, whatever the processor does best.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.training.partition import Partition, Piece
from pipeline.training.ranks import Ranks

MOMENTUM = 0.95
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # Jordan et al. 2024: fast to values about 1, not exact
RMS = 0.2  # of an AdamW update in practice (Liu et al. 2025, section 2.2)


def matrices(module: nn.Module) -> list[str]:
    """Names of the parameters that Muon steps: the matrices of the backbone's blocks, or of the layers of an
    autoencoder of text. UserError where there are none."""
    whole = [name for name, p in module.named_parameters() if p.ndim == 2]
    found = [name for name in whole if re.search(r"\bblocks\.", name)]
    found = found or [name for name in whole if re.search(r"\blayers\.", name)]
    if not found:
        raise UserError("training.optimizer: muon is for the matrices of blocks, and this network has none; use adamw")
    return found


def orthogonalised(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """About U V^T of matrix = U S V^T [n, m]: five times X <- a X + (b A + c A^2) X, A = X X^T (Newton-Schulz)."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=1e-7)  # no singular value above 1
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def scale(shape: Iterable[int]) -> float:
    """Factor that gives an orthogonal matrix of this shape the root mean square of an AdamW update."""
    return RMS * math.sqrt(max(shape))  # that of U V^T is 1 / sqrt(max(n, m))


class Muon:
    """Turns the reduced gradients of some matrices into updates, in place; their momentum is AdamW's first moment.

    In bf16 where that is fast: on a GPU that has it, on a CPU whose training is in bf16 (precision).
    """

    def __init__(self, names: Iterable[str], partition: Partition, ranks: Ranks, precision: str) -> None:
        self.names, self.partition, self.ranks = list(names), partition, ranks
        gpu = ranks.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self.dtype = torch.bfloat16 if gpu or precision == "bf16" else torch.float32

    @torch.no_grad()
    def __call__(self) -> None:
        """All ranks call. What a rank steps of a matrix follows from the whole of it, which is gathered."""
        mine: dict[str, list[tuple[Piece, Tensor]]] = {name: [] for name in self.names}
        for piece, gradient in self.partition.gradient_pieces():
            if piece.name in mine:
                state = self.partition.state(self.partition.flats[piece.flat])["exp_avg"].view(-1)
                momentum = state[piece.at : piece.at + piece.numel]
                momentum.lerp_(gradient, 1 - MOMENTUM)
                gradient.lerp_(momentum, MOMENTUM)  # Nesterov's
                mine[piece.name].append((piece, gradient))
        for pack in self.partition.packs(self.names):
            for name, whole in self._gathered(pack, mine):
                if not mine[name]:
                    continue
                shape = self.partition.shapes[name]
                update = orthogonalised(whole.view(shape), self.dtype).float().reshape(-1).mul_(scale(shape))
                for piece, gradient in mine[name]:
                    gradient.copy_(update[piece.start : piece.start + piece.numel])

    def _gathered(self, names: list[str], mine: dict[str, list[tuple[Piece, Tensor]]]) -> list[tuple[str, Tensor]]:
        """Each of these matrices whole, flattened: on one rank, and at ZeRO 0, it is whole already."""
        if self.partition.stage == 0:
            return [(name, gradient) for name in names for _, gradient in mine[name]]
        sizes = [math.prod(self.partition.shapes[name]) for name in names]
        packed = torch.zeros(sum(sizes), device=self.ranks.device)
        parts = packed.split(sizes)
        for name, part in zip(names, parts, strict=True):
            for piece, gradient in mine[name]:
                part[piece.start : piece.start + piece.numel] = gradient
        self.ranks.all_reduce(packed)  # each element from one rank, else zero: exact
        return list(zip(names, parts, strict=True))
