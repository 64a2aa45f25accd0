"""Vector-quantising autoencoder: the KL autoencoder's networks around a codebook that follows the encoder's outputs.

Van den Oord et al. 2017, "Neural Discrete Representation Learning", with the codebook as a moving average (appendix
A.1). As in latent diffusion (Rombach et al. 2022), a latent is what comes before quantising, and decoding quantises:
`encode` gives moments whose variance is as good as zero, so caching, normalising and stage 2 are those of the KL
autoencoder.

The codebook is no parameter. A forward pass in training gathers statistics (`take_statistics`), the engine adds them
over micro-batches and ranks and hands the sum back (`apply_statistics`) after a good step: the codebook is equal on all
ranks, whatever their number, and lies in buffers that checkpoints carry.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import posterior
from models.autoencoders import kl

PRESETS = kl.PRESETS
CHUNK = 1 << 14  # latent vectors whose distances to all codes are in memory at once


@dataclass(frozen=True)
class Config(kl.Config):
    """Shape of the networks, as in kl.py, and of the codebook."""

    codes: int = 512  # entries of the codebook
    half_life: int = 500  # of the codebook's moving average, in samples; a slow one loses an encoder that moves
    dead_below: float = 0.2  # a code is dead when it is used less than this, over the mean use of a code
    restarts: int = 64  # dead codes that a step puts on outputs of the encoder, at most

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("codes", "half_life", "restarts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.dead_below < 1:
            raise ValueError(f"dead_below: expected 0 <= dead_below < 1, got {self.dead_below}")


class Codebook(nn.Module):
    """Codes [K, C] that follow what is given to them, with the statistics of how."""

    codes: Tensor  # [K, C]
    counts: Tensor  # [K], moving average of the vectors a step that each code got
    sums: Tensor  # [K, C], moving average of their sums
    pending: Tensor  # [K, C + 1] float64, sums and counts since the last `take`
    candidates: Tensor  # [restarts, C + 1], priority and vector of the best candidates since the last `take`
    samples: Tensor  # [] float64, images since the last `take`

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        size, channels = config.codes, config.latent_channels
        self.register_buffer("codes", torch.randn(size, channels) / size)
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, channels))
        self.register_buffer("pending", torch.zeros(size, channels + 1, dtype=torch.float64), persistent=False)
        self.register_buffer("candidates", torch.zeros(config.restarts, channels + 1), persistent=False)
        self.register_buffer("samples", torch.zeros((), dtype=torch.float64), persistent=False)
        self.candidates[:, 0] = -torch.inf

    def indices(self, z: Tensor) -> Tensor:
        """The nearest code of each vector: z [n, C, h, w] -> int64 [n, h, w]. In fp32, whatever autocast says."""
        device = "cpu" if z.is_meta else z.device.type  # autocast knows no meta device, on which costs are counted
        with torch.no_grad(), torch.autocast(device, enabled=False):
            vectors = z.float().movedim(1, -1).reshape(-1, z.shape[1])  # [n h w, C]
            squares = self.codes.square().sum(1)
            found = [  # |z - e|^2 = |z|^2 - 2 z e + |e|^2, the first of which is the same for all codes
                torch.addmm(squares, part, self.codes.T, alpha=-2).argmin(1) for part in vectors.split(CHUNK)
            ]
            return torch.cat(found).view(len(z), *z.shape[2:])

    def lookup(self, indices: Tensor) -> Tensor:
        """int64 [n, h, w] -> codes [n, C, h, w]."""
        return self.codes[indices].movedim(-1, 1)

    @torch.no_grad()
    def gather(self, z: Tensor, indices: Tensor, priority: Tensor) -> None:
        """Add a micro-batch to the statistics. priority [n, h, w]: random, of the sample, whoever draws it: which
        vectors dead codes are put on must not depend on how a batch is cut."""
        vectors = z.detach().float().movedim(1, -1).reshape(-1, z.shape[1])  # [n h w, C]
        rows = torch.cat([vectors, torch.ones_like(vectors[:, :1])], 1).double()  # [n h w, C + 1]
        self.pending.index_add_(0, indices.flatten(), rows)
        self.samples += len(z)
        keyed = torch.cat([priority.reshape(-1, 1).float(), vectors], 1)  # [n h w, 1 + C]
        self.candidates.copy_(_best(torch.cat([self.candidates, keyed]), len(self.candidates)))

    def take(self) -> tuple[Tensor, Tensor]:
        """(float64 statistics, to be added over ranks; candidates, to be stacked over ranks); starts anew."""
        statistics = torch.cat([self.pending.flatten(), self.samples.view(1)])
        candidates = self.candidates.clone()
        self.pending.zero_()
        self.samples.zero_()
        self.candidates.zero_()
        self.candidates[:, 0] = -torch.inf
        return statistics, candidates

    @torch.no_grad()
    def move(self, statistics: Tensor, candidates: Tensor) -> None:
        """Move the codebook by a step's statistics; candidates [any, C + 1] of all ranks."""
        new, samples = statistics[:-1].view_as(self.pending), statistics[-1]
        decay = torch.exp2(-samples / self.config.half_life)
        # N <- g N + (1 - g) n,  m <- g m + (1 - g) sum z,  e = m / N: van den Oord et al. 2017, equations 6 to 8
        counts = decay * self.counts.double() + (1 - decay) * new[:, -1]
        sums = decay * self.sums.double() + (1 - decay) * new[:, :-1]
        mean = new[:, -1].sum() / self.config.codes  # vectors a code, if all were used alike
        dead = counts <= self.config.dead_below * counts.sum() / self.config.codes
        best = _best(candidates, self.config.restarts).double()
        turn = dead.cumsum(0) - 1  # the j-th dead code gets the j-th candidate
        there = best[:, 0] > -torch.inf
        chosen = dead & (turn < len(best))
        turn = turn.clamp(0, len(best) - 1)
        chosen &= there[turn]
        counts = torch.where(chosen, mean, counts)
        sums = torch.where(chosen[:, None], mean * best[turn, 1:], sums)
        used = counts > 0
        self.codes.copy_(torch.where(used[:, None], sums / counts.clamp(min=1e-30)[:, None], self.codes.double()))
        self.counts.copy_(counts)
        self.sums.copy_(sums)

    def histogram(self, moments: Tensor, weight: Tensor) -> Tensor:
        """How often each code is used, float32 [K]; moments [n, 2C, h, w]; samples of weight [n] 0 do not count."""
        indices = self.indices(posterior.split(moments)[0])
        each = weight.float().view(-1, 1, 1).expand(indices.shape)
        return torch.zeros_like(self.counts).index_add_(0, indices.flatten(), each.flatten())

    @staticmethod
    def usage(counts: Tensor) -> tuple[Tensor, Tensor]:
        """(perplexity exp H in [1, K], share of the codes that were used at all), of how often each code was, [K]."""
        share = counts.double() / counts.double().sum().clamp(min=1e-30)
        return torch.exp(-torch.special.xlogy(share, share).sum()), (counts > 0).double().mean()

    def state_of_use(self) -> dict[str, Tensor]:
        """For the log: the perplexity of the moving averages, and the share of the codes that are alive; scalars."""
        alive = self.counts > self.config.dead_below * self.counts.sum() / len(self.counts)
        return {"perplexity": self.usage(self.counts)[0], "codes_alive": alive.double().mean()}


def _best(candidates: Tensor, count: int) -> Tensor:
    """The `count` rows of the highest priority (first column), best first."""
    return candidates[candidates[:, 0].topk(min(count, len(candidates)), sorted=True).indices]


class Model(kl.Model):
    """Images in [-1, 1] <-> raw latents (before quantising, never scaled here)."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__(config, channels, outputs=config.latent_channels)
        self.codebook = Codebook(config)

    def encode(self, x: Tensor) -> Tensor:
        """x [n, channels, H, W] in [-1, 1] -> moments float32 [n, 2C, h, w]: the encoder's output, no variance."""
        return posterior.certain(self.encoded(x))

    def decode(self, z: Tensor) -> Tensor:
        """z [n, C, h, w] -> images float32 [n, channels, H, W] of the nearest codes, about [-1, 1], not clipped."""
        return super().decode(self.codebook.lookup(self.codebook.indices(z)))

    def forward(self, x: Tensor, noise: Tensor, turned: None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """x [n, channels, H, W], noise [n, C, h, w] -> reconstruction, and moments. turned: codes have no in-between.

        The noise only decides, in training, which vectors dead codes are put on.
        """
        moments = self.encode(x)
        z, _ = posterior.split(moments)
        indices = self.codebook.indices(z)
        if self.training:
            self.codebook.gather(z, indices, noise[:, 0])
        # the gradient goes straight through: z + sg(e - z)
        return super().decode(z + (self.codebook.lookup(indices) - z).detach()), moments

    def commitment(self, moments: Tensor) -> Tensor:
        """|z - sg(e)|^2, a mean over the latent, by image [n]: keeps the encoder near its codes (equation 3's last)."""
        z, _ = posterior.split(moments)
        return (z - self.codebook.lookup(self.codebook.indices(z))).square().mean((1, 2, 3))

    def take_statistics(self) -> tuple[Tensor, Tensor]:
        """What forward passes in training have gathered: (to be added over ranks, to be stacked over ranks)."""
        return self.codebook.take()

    def apply_statistics(self, added: Tensor, stacked: Tensor) -> None:
        """Move the codebook by the statistics of a whole step, of all ranks."""
        self.codebook.move(added, stacked)
