"""Two networks that fight, an autoencoder and its discriminator: two engines with one step and one checkpoint.

Both gradients are there before either network moves, so that a gradient that is not finite in one leaves both as they
are, bit for bit. The losses are in models/adversarial.py. How an adversarial loss gets into the autoencoder's own is
`Fight.against`; what stands there is a function of (state, position): the weight that balances the two losses is
measured on the gradients of the whole global batch in one step and used in the next, so that it depends neither on how
a batch is cut nor on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.grad import conv2d_weight

from models import adversarial
from pipeline.data.value_map import floats
from pipeline.training.engine import Batch, Engine, LossFn, StepStats
from pipeline.training.partition import Partition, Piece
from pipeline.training.ranks import Ranks

if TYPE_CHECKING:
    from pipeline.schema.stages import Adversarial
    from pipeline.schema.training import Training

LARGEST_STAGE = 2  # ZeRO 3 would cut a small network, and cannot differentiate R1 twice


class Fight:
    """What the autoencoder's loss and the discriminator's training have in common.

    network: images -> logits. options: the config's `autoencoder.loss.adversarial`. begins: position (samples seen)
    from which there is a fight. weight: of the adversarial loss in the next step, float64 scalar.
    """

    def __init__(self, network: nn.Module, options: Adversarial, training: Training, device: torch.device) -> None:
        self.network, self.options = network, options
        self.begins = options.start * training.batch_size
        first = 0.0 if options.adaptive else options.weight
        self.weight = torch.full((), first, dtype=torch.float64, device=device)
        self._last: nn.Conv2d
        self._entered = torch.empty(0)  # into the decoder's last layer, in the forward pass under way
        self._fakes: list[torch.Tensor] = []
        self._gradients: list[torch.Tensor] = []  # [2, ...] a micro-batch: of both losses, in the last layer's weights

    def settings(self, training: Training) -> Training:
        """How the discriminator is trained beside an autoencoder that is trained so."""
        return training.model_copy(
            update={
                "learning_rate": self.options.learning_rate or training.learning_rate,
                "betas": self.options.betas,
                "weight_decay": 0.0,
                "half_lives": (),
                "average_lengths": (),
                "snapshot_every": None,
                "zero_stage": min(training.zero_stage, LARGEST_STAGE),
                "compile": False,
            }
        )

    def on(self, position: int) -> bool:
        """Whether the step at this position is part of the fight."""
        return position >= self.begins

    def against(
        self, distance: torch.Tensor, reconstruction: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The autoencoder's loss with the discriminator's opinion added, and parts to log. Called a micro-batch.

        distance: scalar, a function of `reconstruction` [n, c, H, W], a view of the network's output (on the output
        itself DeepSpeed has hooks). Value and gradient are those of distance + weight * E[-D(reconstruction)]; each
        loss is differentiated once, down to the reconstruction, and one backward pass goes on from there.
        """
        self.network.requires_grad_(False)  # no gradient and no ZeRO hook of the discriminator's from here
        opinion = adversarial.generator_loss(self.network(reconstruction))
        self.network.requires_grad_(True)
        (towards,) = torch.autograd.grad(distance, reconstruction)
        (away,) = torch.autograd.grad(opinion, reconstruction)
        if self.options.adaptive:
            self._gradients.append(torch.stack([self._in_weights(gradient) for gradient in (towards, away)]))
        self._fakes.append(reconstruction.detach())
        weight = self.weight.to(reconstruction.dtype)
        carrier = (reconstruction * (towards + weight * away)).sum()
        value = distance.detach() + weight * opinion.detach()
        parts = {"adversarial": opinion.detach(), "adversarial_weight": self.weight}
        return value + (carrier - carrier.detach()), parts

    def watch(self, last_layer: nn.Conv2d) -> None:
        """Keep what goes into the decoder's last layer: with it, its weights' gradient needs no backward pass (and no
        hook of DeepSpeed's, whichever way it shards)."""

        def keep(layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            if layer.training:
                self._entered = inputs[0].detach()

        self._last = last_layer
        if self.options.adaptive:
            last_layer.register_forward_pre_hook(keep)

    def _in_weights(self, gradient: torch.Tensor) -> torch.Tensor:
        """A loss's gradient in the last layer's weights [out, in, k, k], from that in the reconstruction; float32."""
        layer, entered = self._last, self._entered
        shape = (layer.out_channels, layer.in_channels, *layer.kernel_size)
        return conv2d_weight(  # type: ignore[no-any-return]
            entered.to(gradient.dtype), shape, gradient, layer.stride, layer.padding, layer.dilation, layer.groups
        )

    def batch(self, batch: Batch) -> Batch:
        """What the discriminator learns from: the step's images and their reconstructions; starts anew."""
        fakes, self._fakes, self._entered = torch.cat(self._fakes), [], torch.empty(0)
        return {"images": batch["images"], "fakes": fakes}

    def loss(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The discriminator's loss, for its engine."""
        real, fake = floats(batch["images"]), batch["fakes"]  # uint8 -> [-1, 1]
        on_real, on_fake = network(torch.cat([real, fake])).chunk(2)
        loss = adversarial.hinge(on_real, on_fake)
        parts = {"logit_real": on_real.mean().detach(), "logit_fake": on_fake.mean().detach()}
        if self.options.r1:  # past DeepSpeed, whose hooks know one backward pass only
            real.requires_grad_()
            penalty = adversarial.r1(self.network(real), real)
            loss, parts["r1"] = loss + self.options.r1 / 2 * penalty, penalty.detach()
        return {"loss": loss, **parts}

    def settle(self, ranks: Ranks, bad: bool) -> None:
        """After a step: the weight for the next one, of the gradients over all micro-batches and ranks."""
        gradients, self._gradients = self._gradients, []
        if gradients and not bad:
            mean = torch.stack(gradients).mean(0) / ranks.world
            both = ranks.all_reduce(mean)  # [2, ...]
            self.weight = self.options.weight * adversarial.adaptive_weight(both[0], both[1])


class Duel(Engine):
    """The engine of an autoencoder, with that of its discriminator inside; all that loop and checkpoint know is one.

    Averages, exports, validation and the learning rate shown are the autoencoder's.
    """

    def __init__(self, model: nn.Module, loss: LossFn, training: Training, ranks: Ranks, fight: Fight) -> None:
        super().__init__(model, loss, training, ranks)
        self.fight = fight
        self.rival = Engine(fight.network, fight.loss, fight.settings(training), ranks)
        self._both = _Both(self.partition, self.rival.partition)

    def step(self, batch: Batch, position: int, flags: Sequence[bool] = ()) -> StepStats:
        """One step of both, or of the autoencoder alone before the fight begins. A gradient or loss that is not finite
        in either, on any rank, leaves both as they are."""
        if not self.fight.on(position):
            return super().step(batch, position, flags)
        own = self.attempt(batch, position, flags)
        other = self.rival.attempt(self.fight.batch(batch), position)
        bad = own.bad or other.bad
        stats = self.conclude(own, position, bad)
        beaten = self.rival.conclude(other, position, bad)
        self.fight.settle(self.ranks, bad)
        told = {"discriminator_loss": beaten.loss, "discriminator_grad_norm": beaten.grad_norm, **beaten.parts}
        # a skipped step has a norm that is not finite, whichever network was to blame
        norm = math.nan if bad and math.isfinite(stats.grad_norm) else stats.grad_norm
        return replace(stats, parts=stats.parts | told, grad_norm=norm)

    @property
    def saved(self) -> Partition:
        """Both networks, named `autoencoder.` and `discriminator.`"""
        return self._both

    def state(self) -> dict[str, Any]:
        """Of both engines, and the weight that balances them."""
        return super().state() | {"rival": self.rival.state(), "weight": float(self.fight.weight)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Set what `state` gave."""
        super().load_state(state)
        self.rival.load_state(state["rival"])
        self.fight.weight.fill_(state["weight"])

    def close(self) -> None:
        """Close both."""
        super().close()
        self.rival.close()


class _Both(Partition):
    """Two partitions as one, for checkpoints: trainable flats of both, the autoencoder's first, then frozen ones.

    The autoencoder's averages lie beside a leading part of the flats, as partition.py wants it.
    """

    def __init__(self, one: Partition, other: Partition) -> None:
        self.parts = (one, other)
        names = ("autoencoder", "discriminator")
        self.module = nn.ModuleDict({name: part.module for name, part in zip(names, self.parts, strict=True)})
        self.trainable = one.trainable + other.trainable
        self.flats = [
            *one.flats[: one.trainable], *other.flats[: other.trainable],
            *one.flats[one.trainable :], *other.flats[other.trainable :],
        ]  # fmt: skip
        at = {id(flat): i for i, flat in enumerate(self.flats)}
        self.shapes, self.held, self.owned = {}, [], []
        for name, part in zip(names, self.parts, strict=True):
            self.shapes |= {f"{name}.{key}": shape for key, shape in part.shapes.items()}

            def place(piece: Piece, name: str = name, part: Partition = part) -> Piece:
                return piece._replace(name=f"{name}.{piece.name}", flat=at[id(part.flats[piece.flat])])

            self.held += [place(piece) for piece in part.held]
            self.owned += [place(piece) for piece in part.owned]
        self.held.sort(key=lambda piece: piece.flat)  # stable; trainable ones of both before frozen ones
        self.owned.sort(key=lambda piece: piece.flat)
        self._home = {id(flat): part for part in self.parts for flat in part.flats}

    def state(self, flat: torch.Tensor) -> dict[str, Any]:
        return self._home[id(flat)].state(flat)

    def refresh(self) -> None:
        for part in self.parts:
            part.refresh()
