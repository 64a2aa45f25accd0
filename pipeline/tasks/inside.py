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
    from pipeline.training.engine import Batch, Engine
    from pipeline.training.ranks import Ranks

KEYS = ("dispersive", "align", "route")


def wanted(section: Diffusion) -> list[str]:
    """Those of the three keys that a config sets."""
    return [key for key in KEYS if getattr(section, key)]


def check(section: Diffusion, backbone: Any) -> None:
    """ValueError where the backbone does not show its middle, has too few blocks, or joins tokens over the route."""
    keys = wanted(section)
    if not keys:
        return
    kind, parameters = section.backbone["kind"], inspect.signature(backbone.forward).parameters
    if not {"route", "depths"} <= parameters.keys():
        raise ValueError(f"kind: {kind} does not show its tokens, as `{keys[0]}` needs it; give a dit")
    depth = len(backbone.blocks)
    if section.align:
        learns, teaches = align_depths(section.align, depth)
        if not learns < teaches <= depth and section.align.teacher == "self":
            raise ValueError(
                f"depth: `align` needs the teacher's tokens behind those that learn, got {learns} and {teaches} of "
                f"{depth} blocks"
            )
        if learns > depth:
            raise ValueError(f"depth: `align.depth` is {learns}, and there are {depth} blocks")
    if section.route:
        first, end = routed(section.route, depth)
        if not 0 <= first < end <= depth:
            raise ValueError(f"depth: `route.blocks` [{first}, {end}) are no stretch of {depth} blocks")
        if backbone.long_skips:
            raise ValueError("long_skips: they join tokens of all places; give `route` or these")


def align_depths(align: Align, depth: int) -> tuple[int, int]:
    """Blocks before the tokens that learn, and before those that teach."""
    return align.depth or max(1, depth // 3), align.teacher_depth or max(2, 2 * depth // 3)


def routed(route: Route, depth: int) -> tuple[int, int]:
    """The blocks past which tokens go: the first, and the one behind the last."""
    return route.blocks or (depth // 6, max(depth // 6 + 1, 2 * depth // 3))


def teacher_file(section: Diffusion) -> Path:
    """The TorchScript file of `align.teacher`. UserError where there is none."""
    path = Path(section.align.teacher) if section.align else Path()
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
        import torch

        from models.diffusion import inside
        from pipeline.training.arithmetic import micro_batches

        backbone = network.backbone
        self.section, self.path, self.times, self.space = section, path, times, space
        self.depth, self.patch, width = len(backbone.blocks), backbone.patch, backbone.config.width
        self.features: Callable[[Tensor], Tensor] | None = None
        depths: list[int] = []
        if section.align:
            learns, self.teaches = align_depths(section.align, self.depth)
            depths, out = [learns], width
            if section.align.teacher != "self":
                look = of_file(teacher_file(section), section.align.digest, ranks.device)
                self.features = lambda x0: look(decoder.decode(space.restore(x0)))
                size = (backbone.channels, *(backbone.grid * self.patch,) * 2)
                out = self.features(torch.zeros(1, *size, device=ranks.device)).shape[1]
            network.align_head = inside.head(width, out)
        if section.dispersive:
            micro = micro_batches(section.training, ranks.world)[0]
            if micro % inside.GROUP:
                raise UserError(
                    f"`diffusion.dispersive` needs a multiple of {inside.GROUP} samples a forward pass, and a rank has "
                    f"{micro}; change `batch_size`, `micro_batch`, or the number of workers"
                )
            depths.append(max(1, self.depth // 4))
        self.depths = tuple(depths) or None

    @property
    def draws(self) -> dict[str, bool]:
        """Names of uniform draws that it needs of the loader, and whether they are one a place."""
        aligned = self.section.align and self.features is None
        return ({"nearer": False} if aligned else {}) | ({"route": True} if self.section.route else {})

    def watched(self, network: nn.Module, batch: Batch) -> tuple[Callable[..., Tensor], list[Tensor]]:
        """The network as `objectives.loss` calls it, and a list that its tokens go into."""
        from models.routing import Route

        seen: list[Tensor] = []
        how: dict[str, Any] = {}
        if self.section.route:
            places = batch["route"][:, :: self.patch, :: self.patch].flatten(1)  # one draw a token
            how["route"] = Route(places, self.section.route.share, *routed(self.section.route, self.depth))

        def answer(x: Tensor, t: Tensor, condition: Any) -> Tensor:
            found = network(x, t, condition, depths=self.depths, **how)
            if self.depths is None:
                return found  # type: ignore[no-any-return]
            seen.extend(found[1])
            return found[0]  # type: ignore[no-any-return]

        return answer, seen

    def terms(self, seen: list[Tensor], batch: Batch) -> Tensor | float:
        """What is added to the loss of each sample, [n]."""
        from models.diffusion import inside

        total: Tensor | float = 0.0
        if self.section.align:
            apart = inside.near if self.features is None else inside.alike
            total = total + self.section.align.weight * apart(seen[0], batch["taught"])
        if self.section.dispersive:
            total = total + self.section.dispersive * inside.dispersion(seen[-1])
        return total

    def teach(self, engine: Engine, batch: Batch) -> dict[str, Tensor]:
        """The teacher's tokens of a micro-batch [n, T, D]: the averaged network's, or those of the file."""
        from models.diffusion import inside
        from models.diffusion.process import add_noise, like
        from pipeline.data.loader import told_in

        x0 = self.space.draw(batch["moments"], batch["posterior"]).float()
        if self.features is not None:
            rows, columns = (side // self.patch for side in x0.shape[2:])
            return {"taught": inside.on_grid(self.features(x0), rows, columns)}
        assert self.section.align is not None
        t = (self.times(batch["u"], self.path) - self.section.align.nearer * batch["nearer"]).clamp(min=0.0).float()
        x = add_noise(self.path, x0, batch["noise"].float(), t)
        with engine.weights("ema") as averaged:
            scaled = like(self.path.scale(t), x) * x
            _, (tokens,) = averaged(scaled, self.path.clock(t), told_in(batch), depths=(self.teaches,))
        return {"taught": tokens}


def of_file(path: Path, wanted: str | None, device: Any) -> Callable[[Tensor], Tensor]:
    """A TorchScript network: images [n, C, H, W] in [-1, 1], which it gets as uint8 of 3 channels, -> features
    [n, d, h, w]. UserError where it gives something else."""
    from pipeline.evaluation.metrics import features

    features.verified(path, wanted, "diffusion.align")
    module = features.script(path).to(device)

    def looked_at(images: Tensor) -> Tensor:
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).byte().expand(-1, 3, -1, -1)
        try:
            found = module(pixels)
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise UserError(f"{path}: fails on uint8 images {list(pixels.shape)} ({last}); wrap it for these") from None
        if getattr(found, "ndim", 0) != 4 or len(found) != len(images):
            raise UserError(f"{path}: gives no features [n, d, h, w] for uint8 images [n, 3, H, W]; wrap it so")
        return found.float()  # type: ignore[no-any-return]

    return looked_at
