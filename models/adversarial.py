"""What fights an autoencoder: a discriminator of patches, its hinge loss, R1, and the weight that balances the fight.

Isola et al. 2017 (patches), Esser et al. 2021, "Taming Transformers" (balance by gradients), as latent diffusion uses
them. Which network steps when is pipeline/training/duel.py's business.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON, LARGEST_WEIGHT = 1e-4, 1e4  # Esser et al. 2021, equation 7 (delta), and the bound of its code
GROUPS = 8  # of the group norms; a batch norm would make the loss depend on how a batch is cut


class Discriminator(nn.Module):
    """Images -> a map of logits, one for each patch: above 0 is "real".

    channels: of the images. width: channels after the first layer, a multiple of 8; they double with each further one,
    up to eight times. layers: halvings; a logit sees 9 * 2^layers - 2 pixels a side (70 at 3, as in pix2pix).
    """

    def __init__(self, channels: int, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        body: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            body += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(GROUPS, widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.body = nn.Sequential(*body)
        self.head = nn.Conv2d(widths[-1], 1, 4, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)  # as in pix2pix
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """images [n, channels, H, W], about [-1, 1] -> logits float32 [n, 1, h, w]."""
        return self.head(self.body(images)).float()  # type: ignore[no-any-return]


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: 1/2 E[max(0, 1 - D(x))] + 1/2 E[max(0, 1 + D(x^))] (Lim and Ye 2017), a scalar."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """What the autoencoder adds to its loss: -E[D(x^)], a scalar."""
    return -fake.mean()


def r1(logits: Tensor, images: Tensor) -> Tensor:
    """E |grad_x sum D(x)|^2 on real images (Mescheder et al. 2018, equation 9, without gamma / 2); scalar.

    images: [n, c, H, W] that `logits` were computed from, with requires_grad.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """|grad L_rec| / (|grad L_adv| + 1e-4), at most 1e4 (Esser et al. 2021, equation 7); float64, no gradient.

    The arguments are the gradients of the two losses in the weights of the decoder's last layer, of the same shape.
    """
    ratio: Tensor = reconstruction.double().norm() / (adversarial.double().norm() + EPSILON)
    return ratio.clamp(0, LARGEST_WEIGHT).detach()
