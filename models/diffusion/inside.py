"""Terms of a loss on the tokens in the middle of a network: they spread, or come near what a teacher says.

Values are one a sample, so that micro-batches and ranks add up to the same. What is drawn, who the teacher is and how
the terms are weighed is in `pipeline/tasks/inside.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUP = 16  # samples that are spread against each other
BETA = 0.05  # of the smooth L1 norm, as in SRA's code


def head(width: int, out: int) -> nn.Sequential:
    """The small network between tokens [n, T, width] and a teacher's [n, T, out], thrown away after training."""
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, out))


def dispersion(h: Tensor) -> Tensor:
    """Wang and He 2025, "Diffuse and Disperse", their L2 variant: log mean exp(-|z_i - z_j|^2 / size), [n].

    h [n, T, D], n a multiple of `GROUP`: pairs are those within each group of neighbours (each with itself too), not
    all of the batch, so that no sample's value depends on how a batch is divided among ranks and micro-batches.
    """
    if len(h) % GROUP:
        raise ValueError(f"expected a multiple of {GROUP} samples, got {len(h)}")
    z = h.float().reshape(-1, GROUP, h[0].numel())  # [groups, GROUP, T D]
    z = z - z.mean(1, keepdim=True)  # changes no difference, and keeps digits of near pairs
    product = z @ z.mT  # [groups, GROUP, GROUP]: the differences themselves would take GROUP times the memory
    norm = product.diagonal(dim1=1, dim2=2)
    apart = ~torch.eye(GROUP, dtype=torch.bool, device=z.device)  # each and itself: exactly 0
    squares = (norm[:, :, None] + norm[:, None] - 2 * product).clamp(min=0) * apart / z.shape[2]
    each = torch.logsumexp(-squares.flatten(1), dim=1) - torch.log(torch.tensor(float(GROUP**2)))  # [groups]
    return each.repeat_interleave(GROUP)


def near(h: Tensor, teacher: Tensor) -> Tensor:
    """Jiang et al. 2025, "No Other Representation Component Is Needed" (SRA): smooth L1 norm of the difference, a mean
    over tokens and channels, [n]; both [n, T, D]."""
    return functional.smooth_l1_loss(h.float(), teacher.float(), beta=BETA, reduction="none").flatten(1).mean(1)


def alike(h: Tensor, teacher: Tensor) -> Tensor:
    """Yu et al. 2024, "Representation Alignment for Generation" (REPA), equation 8: minus the cosine, a mean over
    tokens, [n]; both [n, T, D]."""
    return -functional.cosine_similarity(h.float(), teacher.float(), dim=-1).mean(1)


def on_grid(features: Tensor, rows: int, columns: int) -> Tensor:
    """Features [n, d, h, w] as tokens of another grid: [n, rows columns, d]."""
    if features.shape[2:] != (rows, columns):
        features = functional.interpolate(features, (rows, columns), mode="bilinear", antialias=True)
    return features.flatten(2).transpose(1, 2)
