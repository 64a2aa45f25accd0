"""The diagonal Gaussian that an encoder gives: `moments` [n, 2C, *sides] are its means, then its log-variances, by
channel.

Normalising latents is not done here (pipeline/data/latents.py), nor is any noise drawn (the loader's business).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_VARIANCE = (-30.0, 20.0)  # bounds: exp stays in float32's range, and the moments in float16's


def split(moments: Tensor) -> tuple[Tensor, Tensor]:
    """moments [n, 2C, *sides] -> mean and log-variance, [n, C, *sides] each."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean, log_variance


def clamp(moments: Tensor) -> Tensor:
    """Moments with the log-variance held within `LOG_VARIANCE`, in float32."""
    mean, log_variance = split(moments.float())
    return torch.cat([mean, log_variance.clamp(*LOG_VARIANCE)], dim=1)


def certain(z: Tensor) -> Tensor:
    """Moments [n, 2C, *sides] of latents [n, C, *sides] that are not drawn: no variance."""
    z = z.float()
    return torch.cat([z, torch.full_like(z, LOG_VARIANCE[0])], dim=1)


def sample(moments: Tensor, noise: Tensor) -> Tensor:
    """A draw from the posterior [n, C, *sides]: mean + exp(logvar / 2) noise (Kingma and Welling 2014, section 2.4)."""
    mean, log_variance = split(moments)
    return mean + torch.exp(0.5 * log_variance) * noise


def kl(moments: Tensor) -> Tensor:
    """KL(posterior || N(0, I)) in nats a sample, [n] (Kingma and Welling 2014, appendix B)."""
    mean, log_variance = split(moments.float())
    # 1/2 sum(mean^2 + var - 1 - log var)
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance).flatten(1).sum(dim=1)


def turned(x: Tensor, side: int, quarters: int) -> Tensor:
    """Maps or images [n, c, h, w] made smaller, to side x side, and turned by quarters: [n, c, side, side].

    An autoencoder whose latents do as its images do has smoother ones: Kouzelis et al. 2025, "EQ-VAE: Equivariance
    Regularized Latent Space for Improved Generative Image Modeling".
    """
    small = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True) if side != x.shape[-1] else x
    return torch.rot90(small, quarters, (2, 3))
