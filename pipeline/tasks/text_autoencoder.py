"""What an autoencoder of text learns: its network, loss, validation and previews, on a rank.

The network is in `models/autoencoders/text.py`, tokens are `data/tokens.py`'s, the loop is `training/loop.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact
from pipeline.config import Config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.training.engine import Engine
    from pipeline.training.loop import Task
    from pipeline.training.ranks import Ranks

PREVIEWED = 8  # held-out passages in a preview, each above its reconstruction


def build(config: Config, inputs: dict[str, Artifact], ranks: Ranks) -> tuple[nn.Module, Task]:
    """The network with its first weights, and what the loop needs to know about this stage."""
    import torch

    from models import posterior, registry
    from models.autoencoders.text import counted, cross_entropy, right
    from pipeline.data import text_batches, tokens
    from pipeline.data.balance import training_order
    from pipeline.data.index import Index
    from pipeline.data.order import seeded
    from pipeline.data.passages import read_passage
    from pipeline.data.text_pictures import picture
    from pipeline.tasks.trained import to_device
    from pipeline.training.loop import Task

    training, data, seed = config.autoencoder.training, config.data, config.run.seed
    options = registry.resolve("autoencoders", config.autoencoder.model)
    torch.manual_seed(seeded(seed, "autoencoder/weights"))
    model: Any = registry.build("autoencoders", config.autoencoder.model)
    if training.activation_checkpointing:
        registry.checkpoint_activations(model, options["kind"])
    file = tokens.trained(options, inputs["ingest"], config.run.root)
    tokenizer = tokens.load(options["tokens"], options["vocabulary"], file)
    latent = (model.latent_channels, *model.latent_sides(()))
    train, val = (Index.open(inputs["ingest"].path, split, data.cache) for split in ("train", "val"))
    order = training_order(train, data, train.classes, training.batch_size, seed)
    weight = config.autoencoder.loss.kl_weight

    def parts(network: nn.Module, batch: dict[str, Any], spread: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and of each passage the cross entropy and the KL divergence, both in nats a token: [n]."""
        x = batch["tokens"]
        logits, moments = network(x, batch["noise"], spread)
        logits = logits.view_as(logits)  # a gradient down to here meets no hook of DeepSpeed's
        return logits.float(), cross_entropy(logits.float(), x), posterior.kl(moments.float()) / model.length

    def loss(network: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        # E_q[-log p(x|z)] + beta KL(q(z|x) || N(0, 1)): Kingma & Welling 2013, eq. 7
        _, *two = parts(network, batch, model.spread(batch["level"]))
        entropy, kl = (part.mean() for part in two)
        return {"loss": entropy + weight * kl, "cross_entropy": entropy.detach(), "kl": kl.detach()}

    def batches(position: int) -> Iterator[dict[str, Any]]:
        return text_batches.text_batches(
            train, order, data, tokenizer, model.length, seed, ranks.rank, ranks.world, position, latent
        )

    @torch.no_grad()
    def validate(engine: Engine) -> dict[str, float]:
        """Over the held-out passages: means of the loss and its parts, `tokens`, the share of all tokens (ends
        included) that are exact, and `passages`, that of whole passages; the posterior is drawn, no more noise."""
        names = ("loss", "cross_entropy", "kl", "passages", "count", "right", "tokens")
        total = torch.zeros(len(names), dtype=torch.float64)
        with engine.weights("ema"):
            for batch in text_batches.text_validation(
                val, training.batch_size, tokenizer, model.length, seed, ranks.rank, ranks.world, latent
            ):
                batch = to_device(batch, ranks.device)
                logits, entropy, kl = parts(engine.module, batch)
                if model.config.causal:  # as it writes, not told what is right
                    logits, _ = engine.module(batch["tokens"], batch["noise"], told=False)
                there, exact = counted(batch["tokens"]).sum(1), right(logits, batch["tokens"]).sum(1)
                one = torch.ones_like(entropy)
                values = [
                    entropy + weight * kl,
                    entropy,
                    kl,
                    (there == exact).float(),
                    one,
                    exact.float(),
                    there.float(),
                ]
                total += (torch.stack(values) * batch["weight"]).sum(1).double().cpu()
        sums = dict(zip(names, ranks.sum_floats(total.tolist()), strict=True))
        count, whole, exact_ones = sums.pop("count"), sums.pop("tokens"), sums.pop("right")
        return {**{f"val_{name}": value / count for name, value in sums.items()}, "val_tokens": exact_ones / whole}

    shown = [read_passage(val, i) for i in range(min(PREVIEWED, len(val)))]

    @torch.no_grad()
    def preview(engine: Engine) -> dict[str, Any]:
        given = torch.from_numpy(tokens.rows(tokenizer, shown, model.length).tokens).to(ranks.device)
        with engine.weights("ema"):  # of the posterior's mean
            logits, _ = engine.module(given, torch.zeros(len(shown), *latent, device=ranks.device), told=False)
        back = tokens.texts(tokenizer, logits.argmax(-1).cpu().numpy())
        return {
            "reconstructions/val": picture([part for pair in zip(shown, back, strict=True) for part in (*pair, "")])
        }

    return model, Task("autoencoder", loss, batches, validate, preview)
