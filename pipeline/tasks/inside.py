"""What a diffusion training asks of the middle of its network: `dispersive`, `align`, `route` of `diffusion`.

The terms are in `models/diffusion/inside.py`, the routing in `models/routing.py`. Here: at which blocks, on which
draws, and what the teacher of an alignment says.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from models.diffusion.objectives import Times
    from models.diffusion.process import Path as NoisePath
    from pipeline.data.latents import LatentSpace
    from pipeline.schema.diffusion import Align, Diffusion, Route
    from pipeline.schema.training import Training
    from pipeline.training.engine import Batch, Engine
    from pipeline.training.ranks import Ranks

KEYS = ("dispersive", "align", "route")


def wanted(section: Diffusion) -> list[str]:
    """Those of the three keys that a config sets."""
    return [key for key in KEYS if getattr(section, key)]


def shown(backbone: Any) -> bool:
    """Whether a backbone gives the tokens behind its blocks (`depths`)."""
    return {"route", "depths"} <= inspect.signature(backbone.forward).parameters.keys()


def check(section: Diffusion, backbone: Any, channels: int, size: int) -> None:
    """ValueError where the backbone does not show its middle, has too few blocks, or joins tokens over the route;
    UserError for samples that make no whole groups, and for a teacher's file that gives no maps of images [channels,
    size, size]."""
    keys = wanted(section)
    if not keys:
        return
    kind = section.backbone["kind"]
    if not shown(backbone):
        raise ValueError(f"kind: {kind} does not show its tokens, as `{keys[0]}` needs it; give a dit")
    depth = len(backbone.blocks)
    if section.align:
        learns, teaches = align_depths(section.align, depth)
        if learns > depth:
            raise ValueError(f"depth: `align.depth` is {learns}, and there are {depth} blocks")
        if section.align.teacher != "self":
            if len(backbone.sides) != 2:
                raise ValueError(
                    f"align.teacher: its maps lie over latents of two sides, not over {list(backbone.sides)}"
                )
            of_file(section.align, channels, size, "cpu")
        elif not learns < teaches <= depth:
            raise ValueError(
                f"depth: `align` needs the teacher's tokens behind those that learn, got {learns} and {teaches} of "
                f"{depth} blocks"
            )
    if section.route:
        first, end = routed(section.route, depth)
        if not 0 <= first < end <= depth:
            raise ValueError(f"depth: `route.blocks` [{first}, {end}) are no stretch of {depth} blocks")
        if backbone.long_skips:
            raise ValueError("long_skips: they join tokens of all places; give `route` or these")
    if section.dispersive:
        check_groups(section.training, 1)


def check_groups(training: Training, world: int) -> None:
    """UserError where a forward pass of a rank is no whole groups of samples, as `dispersive` needs them."""
    from models.diffusion.inside import GROUP
    from pipeline.training.arithmetic import micro_batches

    if (micro := micro_batches(training, world)[0]) % GROUP:
        raise UserError(
            f"`diffusion.dispersive` needs a multiple of {GROUP} samples a forward pass, and a rank has {micro}; "
            "change `batch_size`, `micro_batch`, or the number of workers"
        )


def align_depths(align: Align, depth: int) -> tuple[int, int]:
    """Blocks before the tokens that learn, and before those that teach."""
    return align.depth or max(1, depth // 3), align.teacher_depth or max(2, 2 * depth // 3)


def routed(route: Route, depth: int) -> tuple[int, int]:
    """The blocks past which tokens go: the first, and the one behind the last."""
    return route.blocks or (depth // 6, max(depth // 6 + 1, 2 * depth // 3))


def teacher_file(align: Align) -> Path:
    """The TorchScript file of `align.teacher`. UserError where there is none."""
    path = Path(align.teacher)
    if not path.is_file():
        raise UserError(f"`diffusion.align.teacher`: {path} does not exist; give a TorchScript file, or self")
    return path


class Inside:
    """One training's: which tokens it wants of the network, and the terms on them."""

    def __init__(
        self,
        section: Diffusion,
        network: Any,
        path: NoisePath,
        times: Times,
        space: LatentSpace,
        decoder: Any,
        ranks: Ranks,
    ) -> None:
        """network: gets the alignment's head. UserError where samples of a forward pass are no whole groups."""
        from models.autoencoders import data_sides
        from models.diffusion import inside

        backbone = network.backbone
        self.section, self.path, self.times, self.space = section, path, times, space
        self.depth, self.patch, width = len(backbone.blocks), backbone.patch, backbone.config.width
        self.features: Callable[[Tensor], Tensor] | None = None
        depths: set[int] = set()
        if section.align:
            network.align_depth, self.teaches = align_depths(section.align, self.depth)
            depths.add(network.align_depth)
            self.learns, out = network.align_depth, width
            if section.align.teacher != "self":
                size = data_sides(decoder, backbone.sides)[0]
                look, out = of_file(section.align, decoder.channels, size, ranks.device)
                self.features = lambda x0: look(decoder.decode(space.restore(x0)))
            network.align_head = inside.head(width, out)
        if section.dispersive:
            check_groups(section.training, ranks.world)
            self.spreads = max(1, self.depth // 4)
            depths.add(self.spreads)
        self.depths = tuple(sorted(depths)) or None

    @property
    def draws(self) -> dict[str, bool]:
        """Names of uniform draws that it needs of the loader, and whether they are one a place."""
        aligned = self.section.align and self.features is None
        return ({"nearer": False} if aligned else {}) | ({"route": True} if self.section.route else {})

    def watched(self, network: nn.Module, batch: Batch) -> tuple[Callable[..., Tensor], dict[int, Tensor]]:
        """The network as `objectives.loss` calls it, and what its tokens go into, by the blocks before them."""
        from models.routing import Route

        seen: dict[int, Tensor] = {}
        how: dict[str, Any] = {}
        if self.section.route:
            each = tuple(slice(None, None, p) for p in self.patch)
            places = batch["route"][:, *each].flatten(1)  # one draw a token
            how["route"] = Route(places, self.section.route.share, *routed(self.section.route, self.depth))

        def answer(x: Tensor, t: Tensor, condition: Any) -> Tensor:
            found = network(x, t, condition, depths=self.depths, **how)
            if self.depths is None:
                return found  # type: ignore[no-any-return]
            seen.update(zip(self.depths, found[1], strict=True))
            return found[0]  # type: ignore[no-any-return]

        return answer, seen

    def terms(self, seen: dict[int, Tensor], batch: Batch) -> Tensor | float:
        """What is added to the loss of each sample, [n]."""
        from models.diffusion import inside

        total: Tensor | float = 0.0
        if self.section.align:
            apart = inside.near if self.features is None else inside.alike
            total = total + self.section.align.weight * apart(seen[self.learns], batch["taught"])
        if self.section.dispersive:
            total = total + self.section.dispersive * inside.dispersion(seen[self.spreads])
        return total

    def teach(self, engine: Engine, batches: list[Batch]) -> list[Batch]:
        """The micro-batches with the teacher's tokens [n, T, D]: the averaged network's, or those of the file."""
        if self.features is not None:
            return [{**batch, "taught": self._of_file(batch)} for batch in batches]
        with engine.weights("ema") as averaged:
            return [{**batch, "taught": self._of_average(averaged, batch)} for batch in batches]

    def _of_file(self, batch: Batch) -> Tensor:
        from models.diffusion import inside
        from models.patches import grid_of

        assert self.features is not None
        x0 = self.space.draw(batch["moments"], batch["posterior"])
        return inside.on_grid(self.features(x0), *grid_of(x0.shape[2:], self.patch))

    def _of_average(self, averaged: nn.Module, batch: Batch) -> Tensor:
        from models.diffusion.objectives import scaled
        from models.diffusion.process import add_noise
        from pipeline.data.loader import told_in

        assert self.section.align is not None
        t = earlier(self.path, self.times(batch["u"], self.path), self.section.align.nearer * batch["nearer"]).float()
        x0 = self.space.draw(batch["moments"], batch["posterior"]).float()
        x = add_noise(self.path, x0, batch["noise"].float(), t)
        _, (tokens,) = averaged(*scaled(x, t, self.path), told_in(batch), depths=(self.teaches,), answer=False)
        return tokens  # type: ignore[no-any-return]


def earlier(path: NoisePath, t: Tensor, less: Tensor) -> Tensor:
    """Times [n] with less noise: the share sigma / (alpha + sigma), which is t on the straight path and means the same
    on all, is smaller by `less`, and not below 0."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    share = (sigma / (alpha + sigma) - less).clamp(min=0.0)
    return path.at(share / (1 - share))


def of_file(align: Align, channels: int, size: int, device: Any) -> tuple[Callable[[Tensor], Tensor], int]:
    """A TorchScript network, which takes images [n, channels, H, W] in [-1, 1] (as uint8 of 3 channels) to features
    [n, d, h, w], and d. UserError where it does not, tried with one of [channels, size, size]."""
    import torch

    from pipeline.evaluation.metrics import features

    path = teacher_file(align)
    features.verified(path, align.digest, "diffusion.align.digest")
    module = features.script(path).to(device)

    def looked_at(images: Tensor) -> Tensor:
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).byte().expand(-1, 3, -1, -1)
        try:
            found = module(pixels)
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise UserError(f"{path}: fails on uint8 images {list(pixels.shape)} ({last}); wrap it for these") from None
        if getattr(found, "ndim", 0) != 4 or len(found) != len(images) or not found.numel():
            raise UserError(f"{path}: gives no features [n, d, h, w] for uint8 images [n, 3, H, W]; wrap it so")
        return found.float()  # type: ignore[no-any-return]

    with torch.no_grad():
        tried = looked_at(torch.zeros(1, channels, size, size, device=device))
    if not tried.isfinite().all():
        raise UserError(f"{path}: gives features that are not finite for a gray image; give another teacher")
    return looked_at, tried.shape[1]
