"""The trained network (backbone and conditioner), and the denoiser (x, t, condition) -> x0 that samplers and guidance
use.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models import conditioning, registry
from models.conditioning import GUESS, PLACES, Conditions
from models.diffusion.objectives import check, predict, solve
from models.diffusion.process import Path
from models.patches import Size, sides_of
from models.routing import Route

# x [n, ...], t [n], condition -> the expectation of x0 given x at t, in the shape of x
Denoiser = Callable[[Tensor, Tensor, Conditions], Tensor]


class Network(nn.Module):
    """What is trained: a backbone and the conditioner that feeds it."""

    TRAINING_ONLY = ("align_head.",)  # how names begin of parameters that are in no stored weights

    def __init__(self, backbone: nn.Module, conditioner: conditioning.Conditioner, guesses: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.conditioner = conditioner
        self.align_head: nn.Module | None = None  # what training alone needs
        self.align_depth = 0  # blocks before the tokens that go through it
        self.guesses = guesses  # whether it is told its own guess of x0 (`GUESS`)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Conditions,
        route: Route | None = None,
        depths: tuple[int, ...] | None = None,
        answer: bool = True,
        looks: list[Tensor] | None = None,
    ) -> Any:
        """x_t [n, C, *sides], t [n] in [0, 1] -> raw prediction [n, C, *sides].

        route, depths, answer: as backbones take them that know what these are; with `depths` also a tuple of tokens, in
        training those behind `align_depth` blocks through the `align_head`, where there is one. looks: gets the
        attention to a caption's tokens appended, as such a backbone has it.
        """
        embedded = self.conditioner(condition, x)
        if PLACES in condition:
            if not getattr(self.backbone, "takes_places", False):
                raise ValueError("kind: this backbone takes no latents of unequal length; give a dit")
            embedded = embedded._replace(places=condition[PLACES])
        if self.guesses:
            guess = condition[GUESS] if GUESS in condition else torch.zeros_like(x)
            maps = [] if embedded.channels is None else [embedded.channels]
            embedded = embedded._replace(channels=torch.cat([*maps, guess.to(x.dtype)], 1))
        if looks is not None:
            return self.backbone(x, t, embedded, looks=looks)
        if route is None and depths is None:
            return self.backbone(x, t, embedded)
        found = self.backbone(x, t, embedded, route, depths, answer)
        if not (self.training and self.align_head is not None and depths and self.align_depth in depths):
            return found
        p, tokens = found
        return p, tuple(
            self.align_head(h) if depth == self.align_depth else h for depth, h in zip(depths, tokens, strict=True)
        )

    def null(self, n: int, device: torch.device | str = "cpu") -> Conditions:
        """The null condition for n samples."""
        return self.conditioner.null(n, device)


def build_network(
    backbone: Mapping[str, Any],
    condition: str,
    channels: int,
    size: Size,
    classes: int = 0,
    activation_checkpointing: bool = False,
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    caption: Mapping[str, Any] | None = None,
    spatial: Mapping[str, Mapping[str, Any]] | None = None,
    self_conditioning: bool = False,
) -> Network:
    """Backbone options (`kind`, ...) and conditions (as `conditioning.build` has them) -> network for latents
    [channels, *sides]; size: their sides, or that of a square.

    A backbone's `Model(config, channels, size)` says by `condition_width` how wide a vector it wants, and by `attends`
    whether it takes a caption's tokens. ValueError for a caption that it cannot attend to, and for none if it must; for
    spatial conditions where it takes no channels beside the latents, and of latents that are no maps.
    """
    more = beside(backbone, spatial, size, channels if self_conditioning else 0)
    model: Any = registry.build("backbones", backbone, channels=channels, size=size, **more)
    if activation_checkpointing:
        registry.checkpoint_activations(model, backbone["kind"])
    check_attends(model, backbone, caption)
    conditioner = conditioning.build(condition, model.condition_width, classes, attributes, caption, spatial)
    return Network(model, conditioner, self_conditioning)


def beside(
    backbone: Mapping[str, Any], spatial: Mapping[str, Mapping[str, Any]] | None, size: Size, guess: int = 0
) -> dict[str, int]:
    """What a backbone's `Model` is given besides channels and size: nothing where there are no spatial conditions, so
    that a kind need not know them. ValueError for one that does not, where there are some, and for latents of one or
    three sides, over which no picture lies. guess: channels of its own guess, where it is told that.
    """
    if not spatial and not guess:
        return {}
    if spatial and len(sides_of(size)) != 2:
        raise ValueError(f"condition.spatial: maps lie over latents of two sides, not over {list(sides_of(size))}")
    model = registry.module("backbones", backbone["kind"]).Model
    if "beside" not in inspect.signature(model).parameters:
        raise ValueError(f"kind: {backbone['kind']} takes no channels beside the latents; give a dit or a unet")
    return {"beside": conditioning.beside(spatial) + guess}


def check_attends(model: Any, backbone: Mapping[str, Any], caption: Mapping[str, Any] | None) -> None:
    """ValueError for a caption and a backbone that does not attend to its tokens, or one that does and no caption."""
    attends = getattr(model, "attends", False)
    if caption and not attends:
        raise ValueError(
            f"tokens: {backbone['kind']} does not attend to a caption's tokens; give a dit `tokens: cross` or `joint`, "
            "a unet `tokens: cross`"
        )
    if attends and not caption:
        raise ValueError(
            "tokens: there is no caption to attend to; give `diffusion.condition.caption`, or tokens: none"
        )


def denoiser(network: nn.Module, path: Path, prediction: str) -> Denoiser:
    """A network's prediction as a denoiser. Computes in float32 whatever the network does; stops no gradient. x0 is 0
    where nothing is (`PLACES`)."""
    check(prediction)

    def denoise(x: Tensor, t: Tensor, condition: Conditions) -> Tensor:
        x0 = solve(prediction, predict(network, x, t, condition, path), x, t, path)[0]
        return x0.masked_fill(~condition[PLACES][:, None], 0.0) if PLACES in condition else x0

    return denoise


def start_time(path: Path, prediction: str) -> float:
    """The time at which sampling starts: 1, unless eps is predicted on a path whose alpha vanishes.

    There eps = x at t = 1 whatever x0 is (Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are
    Flawed"), so the walk starts where alpha = 0.005, about the alpha with which DDPM's linear schedule ends. x there is
    sigma(start) times noise: 0.5% less than plain noise on the straight path, the same to 1e-4 on the others.
    """
    check(prediction)
    floor = 0.005
    if prediction != "eps" or _alpha(path, 1.0) >= floor:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):  # bisection: alpha falls with t
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _alpha(path, middle) > floor else (low, middle)
    return low


def _alpha(path: Path, t: float) -> float:
    return float(path.alpha(torch.tensor(t, dtype=torch.float64)))
