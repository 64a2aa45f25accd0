"""Two towers over vectors of texts: which reply goes with which text before it. No transformer is in it: the vectors
are a frozen encoder's. What is made of the scores is `pipeline/evaluation/text_replies.py`'s."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.judges import TEMPERATURE, contrastive

TIE = 1e-4  # equal replies differ by rounding, by less than this


class Pairs(nn.Module):
    """Vectors [n, d] of texts before and [m, d] of replies -> scores [n, m]: trained by `train`, the log of how much
    likelier a reply is behind this text than anywhere (van den Oord et al. 2018, eq. 5), but for a sum."""

    def __init__(self, width: int, hidden: int = 256, dropout: float = 0.2) -> None:
        super().__init__()
        self.before, self.reply = (
            nn.Sequential(nn.Dropout(dropout), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
            for _ in range(2)
        )
        self.log_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))

    def forward(self, before: Tensor, reply: Tensor) -> Tensor:
        """float32 [n, d] and [m, d] -> [n, m]."""
        one, other = F.normalize(self.before(before), dim=1), F.normalize(self.reply(reply), dim=1)
        return self.log_scale.clamp(max=math.log(100)).exp() * one @ other.T


def train(
    before: Tensor, reply: Tensor, which: Tensor, steps: int, seed: int, batch: int = 256, rate: float = 1e-3
) -> Pairs:
    """Towers of pairs float32 [n, d] each, in evaluation mode; which int64 [n]: equal numbers are equal replies. The
    last tenth is kept back, and the weights are taken that are best on it. All that is drawn follows from `seed`."""
    kept = max(1, len(before) // 10)
    first, chooser = len(before) - kept, torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Pairs(before.shape[1])
        optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.1)
        best, weights = math.inf, model.state_dict()
        for step in range(1, steps + 1):
            rows = torch.randint(first, (min(batch, first),), generator=chooser)
            loss = _loss(model.train(), before[rows], reply[rows], which[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step % max(1, steps // 20) == 0 or step == steps:
                with torch.no_grad():
                    parts = [slice(at, at + batch) for at in range(first, len(before), batch)]
                    found = [float(_loss(model.eval(), before[p], reply[p], which[p])) for p in parts]
                if (mean := sum(found) / len(found)) < best:
                    best, weights = mean, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    return model.eval()


def _loss(model: Pairs, before: Tensor, reply: Tensor, which: Tensor) -> Tensor:
    return contrastive(model(before, reply), which[:, None] == which)


@torch.no_grad()
def above(model: Pairs, before: Tensor, reply: Tensor, real: Tensor) -> float:
    """Share of the pairs i and j, i not j, in which reply i is ranked above real reply j behind text i; a tie is half.
    AUC of telling `reply` from random real ones: 0.5 by chance. All [n, d], n at least 2."""
    ahead = model(before, reply).diagonal()[:, None] - model(before, real)  # [n, n]
    won = 0.5 + 0.5 * ahead.sign().double() * (ahead.abs() > TIE)
    won.fill_diagonal_(0)
    return float(won.sum() / (len(won) * (len(won) - 1)))
