"""SSIM against torchmetrics', and the gradient's energy against its definition."""

from __future__ import annotations

import pytest
import torch

from models import similarity


@pytest.mark.parametrize("shape", [(3, 3, 24, 31), (2, 1, 11, 11)])
def test_ssim_is_that_of_torchmetrics(shape: tuple[int, ...]) -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure  # two seconds of an import

    generator = torch.Generator().manual_seed(0)
    images = torch.rand(shape, generator=generator) * 2 - 1
    others = (images + 0.3 * torch.randn(shape, generator=generator)).requires_grad_()
    ours = similarity.ssim(images, others)
    _, maps = structural_similarity_index_measure(
        others, images, data_range=2.0, reduction="none", return_full_image=True
    )  # with a mirrored border of 5 pixels, which the definition does not have
    torch.testing.assert_close(ours, maps[..., 5:-5, 5:-5].mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    assert similarity.ssim(images, images).tolist() == pytest.approx([1.0] * shape[0])
    (gradient,) = torch.autograd.grad(ours.sum(), others)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_images_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 11"):
        similarity.ssim(torch.zeros(1, 1, 10, 20), torch.zeros(1, 1, 10, 20))


def test_gradient_energy_of_a_ramp_and_of_a_blur() -> None:
    ramp = torch.arange(8.0).expand(2, 3, 5, 8)  # 1 a column, 0 a row
    assert similarity.gradient_energy(ramp).tolist() == [1.0, 1.0]
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    assert (similarity.gradient_energy(blurred) < 0.3 * similarity.gradient_energy(images)).all()
