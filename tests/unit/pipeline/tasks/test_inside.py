"""What a training asks of the middle of its network: where, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from models import registry
from models.diffusion.process import make_path
from pipeline.errors import UserError
from pipeline.schema.diffusion import Align, Diffusion, Route
from pipeline.tasks import inside

TRAINING = {"steps": 1, "batch_size": 4}


def outlined(**options: Any) -> Any:
    return registry.outline("backbones", {"kind": "dit", "width": 16, "heads": 2, **options}, channels=2, size=8)


def section(**options: Any) -> Diffusion:
    return Diffusion.model_validate({"training": TRAINING, **options})


@pytest.mark.parametrize(
    ("depth", "learns", "route"),
    [(28, (9, 18), (4, 18)), (12, (4, 8), (2, 8)), (6, (2, 4), (1, 4)), (2, (1, 2), (0, 1))],
)
def test_places_by_depth(depth: int, learns: tuple[int, int], route: tuple[int, int]) -> None:
    assert inside.align_depths(Align(), depth) == learns and inside.routed(Route(), depth) == route
    whole = section(align={}, route={}, dispersive=0.5, training={"steps": 1, "batch_size": 32})
    inside.check(whole, outlined(depth=depth), 3, 8)


@pytest.mark.parametrize(
    ("given", "backbone", "message"),
    [
        ({"align": {}}, {"depth": 1}, "`align` needs the teacher's tokens behind"),
        ({"align": {"depth": 3, "teacher_depth": 3}}, {"depth": 6}, "behind those that learn, got 3 and 3 of 6"),
        ({"align": {"depth": 7}}, {"depth": 6}, "`align.depth` is 7, and there are 6 blocks"),
        ({"route": {"blocks": [4, 9]}}, {"depth": 6}, r"`route.blocks` \[4, 9\) are no stretch of 6 blocks"),
        ({"route": {}}, {"depth": 6, "long_skips": True}, "long_skips"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], backbone: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inside.check(section(**given), outlined(**backbone), 3, 8)


def test_a_backbone_that_does_not_show_its_tokens_is_refused() -> None:
    made = registry.outline(
        "backbones", {"kind": "unet", "width": 8, "groups": 4, "head_width": 8}, channels=2, size=16
    )
    with pytest.raises(ValueError, match="unet does not show its tokens, as `dispersive` needs it; give a dit"):
        inside.check(section(dispersive=0.5, backbone={"kind": "unet"}), made, 3, 16)


def test_samples_that_are_no_whole_groups_are_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match="needs a multiple of 16 samples a forward pass, and a rank has 8"):
        inside.check(section(dispersive=0.5, training={"steps": 1, "batch_size": 8}), outlined(depth=2), 3, 8)


@pytest.mark.parametrize("kind", ["edm", "rectified_flow", "variance_preserving"])
def test_the_teacher_s_noise_is_a_smaller_share_on_every_path(kind: str) -> None:
    path = make_path(kind)
    t = path.at(torch.logspace(-1, 1, 50, dtype=torch.float64))

    def share(t: torch.Tensor) -> torch.Tensor:
        return path.sigma(t) / (path.alpha(t) + path.sigma(t))

    before, after = share(t), share(inside.earlier(path, t, torch.full_like(t, 0.2)))
    torch.testing.assert_close(after, (before - 0.2).clamp(min=0), rtol=1e-3, atol=1e-3)
    assert (after == 0).double().mean() < 0.3


def test_only_whole_trainings_look_inside() -> None:
    with pytest.raises(ValidationError, match="`align` is for a denoiser of which all is trained"):
        section(align={}, training={**TRAINING, "lora": {}, "init_from": "x"})


class Wide(torch.nn.Module):
    """Features [n, 3, H / 2, W / 2]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()[:, :, ::2, ::2]


class Flat(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean((2, 3))


def test_a_teacher_of_a_file_sees_bytes_of_three_channels(tmp_path: Path) -> None:
    torch.jit.script(Wide()).save(str(tmp_path / "wide.pt"))
    look, width = inside.of_file(Align(teacher=str(tmp_path / "wide.pt")), 1, 4, "cpu")
    found = look(torch.tensor([-1.0, 1.0, 7.0, 0.0]).view(1, 1, 2, 2).expand(2, -1, -1, -1))
    assert width == 3 and found.shape == (2, 3, 1, 1) and found.unique().tolist() == [0.0]
    torch.jit.script(Flat()).save(str(tmp_path / "flat.pt"))
    with pytest.raises(UserError, match=r"flat.pt: gives no features \[n, d, h, w\]"):
        inside.of_file(Align(teacher=str(tmp_path / "flat.pt")), 3, 4, "cpu")
    with pytest.raises(UserError, match=r"has the SHA-256 .* or its digest as `diffusion.align.digest`"):
        inside.of_file(Align(teacher=str(tmp_path / "wide.pt"), digest="0" * 8), 3, 4, "cpu")
    with pytest.raises(UserError, match=r"`diffusion.align.teacher`: .*nothing.pt does not exist"):
        inside.check(section(align={"teacher": str(tmp_path / "nothing.pt")}), outlined(depth=2), 3, 8)
    with pytest.raises(ValidationError, match="`teacher_depth` and `nearer` go with `teacher: self`"):
        Align(teacher="t.pt", nearer=0.1)
