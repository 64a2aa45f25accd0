"""LPIPS on networks in torchvision's naming, against a plain second implementation; what stands in for it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import perceptual

VGG = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # torchvision's numbers of VGG16's convolutions
VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
ALEX = {0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3)}
HEADS = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}


def weights(network: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = ALEX
    if network == "vgg":
        befores = (3, *VGG_WIDTHS[:-1])
        shapes = {n: (a, b, 3) for n, a, b in zip(VGG, befores, VGG_WIDTHS, strict=True)}
    state = {}
    for number, (before, after, kernel) in shapes.items():
        scale = (2 / (before * kernel**2)) ** 0.5
        state[f"features.{number}.weight"] = scale * torch.randn(after, before, kernel, kernel, generator=generator)
        state[f"features.{number}.bias"] = 0.1 * torch.randn(after, generator=generator)
    state["classifier.0.weight"] = torch.zeros(1)  # there in torchvision's files, not needed
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator)
             for i, c in enumerate(HEADS[network])}  # fmt: skip
    return state, heads


def reference(network: str, state: dict[str, Tensor], heads: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """LPIPS written down once more, from torchvision's layer tables."""

    def features(image: Tensor) -> list[Tensor]:
        image = (image - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor(
            [0.458, 0.448, 0.450]
        ).view(3, 1, 1)
        out = []
        if network == "vgg":
            for number in VGG:
                if number in (5, 10, 17, 24):
                    image = F.max_pool2d(image, 2, 2)
                image = F.relu(F.conv2d(image, state[f"features.{number}.weight"], state[f"features.{number}.bias"],
                                        padding=1))  # fmt: skip
                if number in (2, 7, 14, 21, 28):
                    out.append(image)
        else:
            for number, (stride, padding) in {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}.items():
                if number in (3, 6):
                    image = F.max_pool2d(image, 3, 2)
                image = F.relu(F.conv2d(image, state[f"features.{number}.weight"], state[f"features.{number}.bias"],
                                        stride, padding))  # fmt: skip
                out.append(image)
        return out

    total = torch.zeros(len(x))
    for i, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        a, b = (f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (a, b))
        total += F.conv2d((a - b) ** 2, heads[f"lin{i}.model.1.weight"]).mean((1, 2, 3))
    return total


@pytest.mark.parametrize("network", ("vgg", "alex"))
def test_lpips_is_its_definition(network: str) -> None:
    state, heads = weights(network)
    distance = perceptual.lpips(network, state, heads)
    x, y = (torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in (1, 2))
    torch.testing.assert_close(distance(x, y), reference(network, state, heads, x, y))
    assert distance(x, x).tolist() == [0, 0]
    gray = x[:, :1]
    torch.testing.assert_close(distance(gray, y[:, :1]), distance(gray.repeat(1, 3, 1, 1), y[:, :1].repeat(1, 3, 1, 1)))


def test_wrong_weights_are_named() -> None:
    state, heads = weights("alex")
    with pytest.raises(ValueError, match=r"vgg .* features\.\d+\.\w+ is not there"):
        perceptual.lpips("vgg", state, heads)
    with pytest.raises(ValueError, match=r"features\.3\.weight: expected \(192, 64, 5, 5\)"):
        perceptual.lpips("alex", state | {"features.3.weight": torch.zeros(1)}, heads)
    with pytest.raises(ValueError, match=r"lin1\.model\.1\.weight with 192"):
        perceptual.lpips("alex", state, heads | {"lin1.model.1.weight": torch.zeros(1, 3, 1, 1)})


def test_the_network_is_fixed_and_the_gradient_goes_to_the_second() -> None:
    distance = perceptual.random_features(3, 32).train()
    assert not distance.training and not any(p.requires_grad for p in distance.parameters())
    x, y = torch.randn(2, 3, 32, 32, requires_grad=True), torch.randn(2, 3, 32, 32, requires_grad=True)
    distance(x, y).sum().backward()
    assert x.grad is None and y.grad is not None and y.grad.abs().sum() > 0


def test_random_features_see_a_lost_texture_where_pixels_do_not() -> None:
    """A fine texture taken away, and a slight shade over all, of the same squared error."""
    distance = perceptual.random_features(1, 32)
    generator = torch.Generator().manual_seed(0)
    texture = 0.2 * torch.randn(8, 1, 32, 32, generator=generator).sign()
    images = torch.zeros(8, 1, 32, 32) + 0.3 + texture
    without, shaded = images - texture, images + 0.2
    assert (distance(images, without) > 2 * distance(images, shaded)).all()


def test_a_seed_makes_the_network() -> None:
    first, again, other = (perceptual.random_features(3, 16, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stages.0.0.weight"], other["stages.0.0.weight"])


def test_the_gradient_is_finite_where_an_image_has_no_features() -> None:
    convolution = torch.nn.Conv2d(3, 4, 3, bias=False)
    distance = perceptual.FeatureDistance([torch.nn.Sequential(convolution, torch.nn.ReLU())])
    x = torch.zeros(1, 3, 8, 8, requires_grad=True)  # every feature is exactly 0
    distance(torch.rand(1, 3, 8, 8), x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
