"""What a training asks of the middle of its network: where, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from models import registry
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
    inside.check(section(align={}, route={}, dispersive=0.5), outlined(depth=depth))


@pytest.mark.parametrize(
    ("given", "backbone", "message"),
    [
        ({"align": {}}, {"depth": 1}, "`align` needs the teacher's tokens behind"),
        ({"align": {"depth": 3, "teacher_depth": 3}}, {"depth": 6}, "behind those that learn, got 3 and 3 of 6"),
        ({"align": {"teacher": "t.pt", "depth": 7}}, {"depth": 6}, "`align.depth` is 7, and there are 6 blocks"),
        ({"route": {"blocks": [4, 9]}}, {"depth": 6}, r"`route.blocks` \[4, 9\) are no stretch of 6 blocks"),
        ({"route": {}}, {"depth": 6, "long_skips": True}, "long_skips"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], backbone: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inside.check(section(**given), outlined(**backbone))


def test_a_backbone_that_does_not_show_its_tokens_is_refused() -> None:
    made = registry.outline(
        "backbones", {"kind": "unet", "width": 8, "groups": 4, "head_width": 8}, channels=2, size=16
    )
    with pytest.raises(ValueError, match="unet does not show its tokens, as `dispersive` needs it; give a dit"):
        inside.check(section(dispersive=0.5, backbone={"kind": "unet"}), made)


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
    look = inside.of_file(tmp_path / "wide.pt", None, "cpu")
    found = look(torch.tensor([-1.0, 1.0, 7.0, 0.0]).view(1, 1, 2, 2).expand(2, -1, -1, -1))
    assert found.shape == (2, 3, 1, 1) and found.unique().tolist() == [0.0]
    torch.jit.script(Flat()).save(str(tmp_path / "flat.pt"))
    with pytest.raises(UserError, match=r"flat.pt: gives no features \[n, d, h, w\]"):
        inside.of_file(tmp_path / "flat.pt", None, "cpu")(torch.zeros(2, 3, 4, 4))
    with pytest.raises(UserError, match=r"`diffusion.align`: .* has the SHA-256"):
        inside.of_file(tmp_path / "wide.pt", "0" * 8, "cpu")
    with pytest.raises(UserError, match=r"`diffusion.align.teacher`: .*nothing.pt does not exist"):
        inside.teacher_file(section(align={"teacher": str(tmp_path / "nothing.pt")}))
