"""A training step behind one call: precision, ZeRO 0 to 3, accumulation, clipping, finiteness, averages of the weights.

DeepSpeed (`initialise.py`) shards and reduces; the gradient's norm, clipping, the loss scale, the learning
rate and the decision to skip a step are ours, made once, on the reduced gradient, the same at every ZeRO stage: one
packed all-reduce and one transfer to the host a step. Which samples come next is data/order.py's business, what to do
about a bad step guard.py's, and where weights lie partition.py's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from models import ema
from pipeline.errors import UserError
from pipeline.schema.names import average_name, length_name
from pipeline.training.arithmetic import largest_micro_batch, learning_rate, micro_batches, resolve_precision
from pipeline.training.initialise import initialise
from pipeline.training.meter import clock
from pipeline.training.muon import Muon, matrices
from pipeline.training.partition import Partition
from pipeline.training.ranks import Ranks

if TYPE_CHECKING:
    from pipeline.schema.training import Training

Batch = dict[str, Any]
LossFn = Callable[[nn.Module, Batch], dict[str, torch.Tensor]]
Teach = Callable[["Engine", list[Batch]], list[Batch]]

FIRST_LOSS_SCALE, GOOD_STEPS_TO_DOUBLE = 2.0**16, 2000  # of fp16, as torch.amp.GradScaler has them


@dataclass(frozen=True)
class Attempt:
    """A step up to the decision: the reduced gradient is there, nothing has changed yet."""

    gradients: list[torch.Tensor]
    keys: list[str]
    means: list[float]  # of the losses named by `keys`, over the global batch
    norm: float
    flags: tuple[bool, ...]
    all_reduce_seconds: float

    @property
    def bad(self) -> bool:
        """Whether gradient or loss is not finite on any rank."""
        return not (math.isfinite(self.norm) and math.isfinite(self.means[0]))


@dataclass(frozen=True)
class StepStats:
    """What a step did. Floats are means over the global batch and equal on all ranks."""

    loss: float
    parts: dict[str, float]  # what the loss function returned beside "loss"
    grad_norm: float  # global norm before clipping; not finite in a skipped step
    learning_rate: float
    skipped: bool  # the gradient or the loss was not finite: nothing has changed
    loss_scale: float
    flags: tuple[bool, ...]  # the flags given to `step`: whether any rank raised them
    all_reduce_seconds: float = 0.0  # of the step's packed all-reduce, in which ranks wait for the slowest


class _AdamW(torch.optim.AdamW):
    """AdamW that can be told to leave everything as it is, while DeepSpeed does all its bookkeeping around it.

    Groups with `muon` have an update in the place of the gradient (muon.py), and take a plain step along it.
    """

    skip = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if self.skip:
            return None
        groups = self.param_groups
        for group in (group for group in groups if group.get("muon")):
            for p in (p for p in group["params"] if p.grad is not None):
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(p.grad, alpha=-group["lr"])
        self.param_groups = [group for group in groups if not group.get("muon")]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups


class Engine:
    """One network in training on all ranks. Every method is called by all ranks, in the same order.

    model: with fp32 weights, equal on all ranks or not: rank 0's are taken.
    loss: gets the module and a micro-batch (tensors on the device), returns {"loss": mean over it, **parts}, scalars.
    teach: gives micro-batches what they are to have besides, before their losses: what the average says of them, say.
    training: the config's section. averages: name -> fp32 tensors of what this rank owns, by half-life or length.
    averaged: samples in the averages; those of bad steps are none.
    """

    def __init__(
        self, model: nn.Module, loss: LossFn, training: Training, ranks: Ranks, teach: Teach | None = None
    ) -> None:
        self.loss, self.teach, self.training, self.ranks = loss, teach, training, ranks
        self.precision = resolve_precision(training.precision, ranks.device)
        self.micro_batch, self.accumulation = micro_batches(training, ranks.world)
        self.loss_scale = FIRST_LOSS_SCALE if self.precision == "fp16" else 1.0
        self._good_steps = 0
        self._random = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules())
        if self._random and ranks.first:
            warnings.warn("the network has dropout: results depend on the number of ranks", stacklevel=2)
        names = matrices(model) if training.optimizer == "muon" else []
        self._adam = _adamw(model, training, set(names))
        self._deepspeed = initialise(model, self._adam, training, ranks, self.precision, self.micro_batch)
        self.partition = Partition(
            self._deepspeed.module,
            self._deepspeed.optimizer,
            training.zero_stage,
            ranks.rank,
            ranks.world,
            frozen=training.lora is None,
        )
        self._muon = Muon(names, self.partition, ranks, self.precision) if names else None
        masters = self.partition.masters()
        names = [*map(average_name, training.half_lives), *map(length_name, training.average_lengths)]
        self.averages = {name: [m.clone() for m in masters] for name in names}
        self.averaged = 0
        if training.compile is True:
            self._deepspeed.compile()

    @property
    def module(self) -> nn.Module:
        """The network, to call in validation and previews; gathers weights at ZeRO 3, so all ranks call."""
        module: nn.Module = self._deepspeed
        return module

    def step(self, batch: Batch, position: int, flags: Sequence[bool] = ()) -> StepStats:
        """One optimizer step on this rank's share of the global batch at `position` (samples seen).

        batch: tensors of equally many samples (other values are passed on as they are). flags: what this rank wants
        all ranks to know (stop, trouble), carried by the step's all-reduce. A gradient or loss that is not finite on
        any rank leaves weights, moments, averages and AdamW's step as they are, bit for bit.
        """
        attempt = self.attempt(batch, position, flags)
        return self.conclude(attempt, position, attempt.bad)

    def attempt(self, batch: Batch, position: int, flags: Sequence[bool] = ()) -> Attempt:
        """The first half of `step`: forward, backward, the reduced gradient's norm. `conclude` has to follow."""
        if self._random:  # dropout: a pure function of position and rank
            torch.manual_seed(position * self.ranks.world + self.ranks.rank)
        try:
            keys, values = self._accumulate(batch)
        except torch.OutOfMemoryError as error:
            raise UserError(self._out_of_memory(batch)) from error
        gradients = self.partition.gradients()
        total, means, raised, seconds = self._agree(gradients, values, flags)
        norm = math.sqrt(total) / self.loss_scale if total >= 0 else math.nan
        return Attempt(gradients, keys, means, norm, raised, seconds)

    def conclude(self, attempt: Attempt, position: int, bad: bool) -> StepStats:
        """The second half of `step`: the update, or (bad) none of it."""
        rate = learning_rate(self.training, position)
        self._apply(attempt.gradients, attempt.norm, rate, bad)
        self._move_statistics(bad)
        parts = dict(zip(attempt.keys[1:], attempt.means[1:], strict=True))
        told = (attempt.flags, attempt.all_reduce_seconds)
        stats = StepStats(attempt.means[0], parts, attempt.norm, rate, bad, self.loss_scale, *told)
        if self.precision == "fp16":
            self._adapt_loss_scale(bad)
        return stats

    def _accumulate(self, batch: Batch) -> tuple[list[str], torch.Tensor]:
        """Forward and backward of each micro-batch. Gives names and means of the losses over this rank's share."""
        device, micro = self.ranks.device, self.micro_batch
        keys, total = list[str](), torch.zeros(0)
        pieces: Iterable[Batch] = (_part(batch, i * micro, micro, device) for i in range(self.accumulation))
        if self.teach:  # before anything is kept for the backward pass: weights may be exchanged meanwhile
            with torch.no_grad():
                pieces = self.teach(self, list(pieces))
        for i, piece in enumerate(pieces):
            losses = self.loss(self._deepspeed, piece)
            loss = losses["loss"]
            keys = ["loss", *(key for key in losses if key != "loss")]
            values = torch.stack([losses[key].detach().double() for key in keys])
            total = values if i == 0 else total + values
            self._deepspeed.backward(loss * self.loss_scale if self.loss_scale != 1 else loss)
            if i + 1 < self.accumulation:
                self._deepspeed.step()  # only counts the micro-batch
        return keys, total / self.accumulation

    def _agree(
        self, gradients: list[torch.Tensor], values: torch.Tensor, flags: Sequence[bool]
    ) -> tuple[float, list[float], tuple[bool, ...], float]:
        """The step's one all-reduce and one transfer to the host.

        Gives the sum of squares of the whole reduced gradient, the means of `values` over ranks, the flags' `any`, and
        the seconds of the all-reduce.
        """
        world = self.ranks.world
        if gradients and (self.training.zero_stage > 0 or self.ranks.first):  # at ZeRO 0 all ranks hold all of it
            squares = torch.stack(torch._foreach_norm(gradients)).double().square().sum()
        else:
            squares = torch.zeros((), dtype=torch.float64, device=values.device)
        raised = torch.tensor([float(flag) for flag in flags], dtype=torch.float64).to(values.device, non_blocking=True)
        packed = torch.cat([squares.view(1), values, raised])  # [1 + losses + flags]
        with clock(self.ranks.device) as seconds:
            host = self.ranks.all_reduce(packed).tolist()
        count = len(values)
        means = [value / world for value in host[1 : 1 + count]]
        return host[0], means, tuple(value > 0 for value in host[1 + count :]), seconds()

    @torch.no_grad()
    def _apply(self, gradients: list[torch.Tensor], norm: float, rate: float, bad: bool) -> None:
        """Clip and unscale in place, step AdamW, move the averages; or, in a bad step, none of it."""
        if bad:
            torch._foreach_zero_(gradients)  # ZeRO 3 looks at the norm by itself, and would clean up half-way
        else:
            clip = self.training.clip
            factor = min(1.0, clip / (norm + 1e-6)) / self.loss_scale if clip else 1.0 / self.loss_scale
            if factor != 1.0:
                torch._foreach_mul_(gradients, factor)
            if self._muon:
                self._muon()
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.skip = bad
        self._deepspeed.step()
        if bad:
            return
        masters, batch = self.partition.masters(), self.training.batch_size
        self.averaged += batch
        keep = [ema.decay(batch, half_life) for half_life in self.training.half_lives]
        keep += [ema.power_decay(batch, self.averaged, length) for length in self.training.average_lengths]
        for share, average in zip(keep, self.averages.values(), strict=True):
            ema.update(average, masters, share)

    def _move_statistics(self, bad: bool) -> None:
        """Buffers that follow the data (models/autoencoders/vq.py): the same on all ranks, left alone in a bad step."""
        module: Any = self._deepspeed.module
        if hasattr(module, "take_statistics"):
            added, stacked = module.take_statistics()
            if not bad:
                module.apply_statistics(self.ranks.all_reduce(added), self.ranks.stack(stacked))

    def _adapt_loss_scale(self, bad: bool) -> None:
        """Halve it after an overflow, double it after enough good steps."""
        self._good_steps = 0 if bad else self._good_steps + 1
        if bad:
            self.loss_scale = max(1.0, self.loss_scale / 2)
        elif self._good_steps == GOOD_STEPS_TO_DOUBLE:
            self.loss_scale, self._good_steps = self.loss_scale * 2, 0

    @property
    def saved(self) -> Partition:
        """What lies where of all that a checkpoint holds."""
        return self.partition

    def state(self) -> dict[str, Any]:
        """What the engine remembers beside weights, moments and averages; plain numbers."""
        return {"loss_scale": self.loss_scale, "good_steps": self._good_steps, "averaged": self.averaged}

    def load_state(self, state: dict[str, Any]) -> None:
        """Set what `state` gave. A loss scale counts only where both runs are fp16."""
        self.averaged = int(state.get("averaged", 0))
        if self.precision == "fp16" and state["loss_scale"] != 1:
            self.loss_scale, self._good_steps = float(state["loss_scale"]), int(state["good_steps"])

    @contextmanager
    def weights(self, which: str = "ema", half_life: int | None = None) -> Iterator[nn.Module]:
        """The network with the average ("ema": of the first half-life, unless another is named; or a name in
        `averages`) or the "live" weights, in eval mode, for the length of a `with`. No step and no save inside."""
        average = self._average(which, half_life)
        training = self._deepspeed.module.training
        try:
            if average is not None:
                self._exchange(average)
            self._deepspeed.module.eval()
            yield self.module
        finally:
            self._deepspeed.module.train(training)
            if average is not None:
                self._exchange(average)

    def _average(self, which: str, half_life: int | None) -> list[torch.Tensor] | None:
        """What "ema" or a name in `averages` means; None for "live"."""
        if which == "live":
            return None
        return self.averages[average_name(half_life or self.training.half_lives[0]) if which == "ema" else which]

    @torch.no_grad()
    def _exchange(self, average: list[torch.Tensor]) -> None:
        """Swap the contents of masters and average: twice is once, bit for bit, and needs one flat's memory."""
        for master, value in zip(self.partition.masters(), average, strict=True):
            before = master.clone()
            master.copy_(value)
            value.copy_(before)
        self.partition.refresh()

    @torch.no_grad()
    def export(self, which: str = "ema", half_life: int | None = None) -> dict[str, torch.Tensor]:
        """The whole fp32 state dict on the CPU of rank 0, bit-equal to masters or average (named as in `weights`);
        empty on the other ranks. Of an adapter without its frozen base; without what training alone needs.

        Made from the pieces that the ranks own, some parameters at a time: what DeepSpeed gathers for a forward pass at
        ZeRO 3 is in the precision of autocast.
        """
        module, partition = self._deepspeed.module, self.partition
        average = self._average(which, half_life)
        flats = [*(average or partition.masters()), *partition.flats[partition.trainable :]]
        names: dict[int, list[str]] = {}  # a tied parameter has several
        for name, parameter in module.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        own = getattr(module, "TRAINING_ONLY", ())  # beginnings of names
        names = {
            k: found for k, found in names.items() if found[0] in partition.shapes and not found[0].startswith(own)
        }
        out: dict[str, torch.Tensor] = {}
        for pack in partition.packs([first for first, *_ in names.values()]):
            bits = torch.cat([partition.bits(name, flats) for name in pack])
            whole = self.ranks.all_reduce(bits).view(torch.float32)  # each element from one rank, else zero: exact
            pieces = whole.split([math.prod(partition.shapes[name]) for name in pack])
            if self.ranks.first:
                for n, piece in zip(pack, pieces, strict=True):
                    out[n] = piece.view(partition.shapes[n]).to("cpu", copy=True)
        if self.ranks.first:
            for first, *others in names.values():
                out |= {name: out[first].clone() for name in others}
            out |= {name: buffer.detach().cpu().clone() for name, buffer in persistent_buffers(module).items()}
        return out

    def buffers(self) -> list[str]:
        """Names in `export` that are no parameters: nothing averages them."""
        return sorted(persistent_buffers(self._deepspeed.module))

    def close(self) -> None:
        """Take DeepSpeed's hooks off the model and free its buffers."""
        self._deepspeed.destroy()

    def _out_of_memory(self, batch: Batch) -> str:
        share, micro = self.micro_batch * self.accumulation, self.micro_batch
        text = f"training.micro_batch: {micro} samples a forward pass do not fit into the memory of {self.ranks.device}"
        smaller = max((m for m in range(1, micro) if share % m == 0), default=0)
        less = f"{text}; set a smaller one" + (f", for instance {smaller}" if smaller else "")
        if self.ranks.device.type != "cuda" or self.training.zero_stage == 3 or self.teach:
            return less  # a lone forward would hang at ZeRO 3, and has no teacher
        for parameter in self._deepspeed.module.parameters():
            parameter.grad = None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.ranks.device)
        base = torch.cuda.memory_allocated(self.ranks.device)
        one = _part(batch, 0, 1, self.ranks.device)
        try:
            loss = self.loss(self._deepspeed, one)["loss"]
            wanted = [p for p in self._deepspeed.module.parameters() if p.requires_grad]
            torch.autograd.grad(loss, wanted, allow_unused=True)  # runs no reduction hooks
        except torch.OutOfMemoryError:
            return f"{text}, nor does one; use a smaller model, activation_checkpointing or a higher zero_stage"
        except ValueError:
            return less  # a loss that wants several samples
        peak = torch.cuda.max_memory_allocated(self.ranks.device)
        total = torch.cuda.mem_get_info(self.ranks.device)[1]
        fits = largest_micro_batch(share, micro, base, peak, total)
        return f"{text}; the largest that fits by estimate is {fits}: set training.micro_batch={fits}"


def _part(batch: Batch, start: int, count: int, device: torch.device) -> Batch:
    """Some samples of a batch, on the device."""
    some = {key: value[start : start + count] for key, value in batch.items() if isinstance(value, torch.Tensor)}
    return {**batch, **{key: value.to(device, non_blocking=True) for key, value in some.items()}}


def persistent_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that belong to a module's state dict."""
    buffers = dict(module.named_buffers(remove_duplicate=False))
    return {name: buffers[name] for name in module.state_dict() if name in buffers}


def _adamw(model: nn.Module, training: Training, muon: Collection[str] = ()) -> _AdamW:
    """AdamW (https://arxiv.org/abs/1711.05101) with weight decay on matrices only, fused; `muon` names the parameters
    that it only steps."""
    trainable = [p for name, p in model.named_parameters() if p.requires_grad and name not in muon]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if muon:
        turned = [p for name, p in model.named_parameters() if name in muon]
        groups.append({"params": turned, "weight_decay": training.weight_decay, "muon": True})
    return _AdamW(
        [group for group in groups if group["params"]],
        lr=learning_rate(training, 0),
        betas=(training.betas[0], training.betas[1]),
        eps=training.eps,
        fused=True,  # on a CPU too: a third of the time of its plain one
    )
