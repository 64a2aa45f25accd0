"""Operators as matrices, masks of latents, and the solver of their systems."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from models.diffusion import operators
from models.diffusion.operators import averaged, blurred, dot, latent_mask, masked, solve, through

MASK = (torch.arange(24).reshape(1, 1, 4, 6) % 3 > 0).double()
KERNEL = torch.tensor([[0.0, 0.1, 0.2], [0.05, 0.3, -0.1], [0.1, 0.05, 0.1]], dtype=torch.float64)  # not symmetric
OPERATORS = {"masked": masked(MASK, 0.1), "averaged": averaged(2, 0.1), "blurred": blurred(KERNEL, 0.1)}


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_and_norm(name):
    a = OPERATORS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 4, 6, generator=generator, dtype=torch.float64)
    seen = a.forward(x)
    y = torch.randn(seen.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(dot(seen, y), dot(x, a.adjoint(y)))
    one = torch.eye(24, dtype=torch.float64).reshape(24, 1, 4, 6)
    largest = float(torch.linalg.matrix_norm(a.forward(one).flatten(1), 2))
    assert largest <= a.norm + 1e-12
    if name != "blurred":  # there it is a bound
        assert largest == pytest.approx(a.norm)


def test_what_they_measure():
    x = torch.arange(8.0).reshape(1, 1, 2, 4)
    assert masked(torch.tensor([1.0, 0.0, 0.0, 1.0]), 0.0).forward(x).flatten().tolist() == [0, 0, 0, 3, 4, 0, 0, 7]
    assert averaged(2, 0.0).forward(x).flatten().tolist() == [2.5, 4.5]
    shift = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert blurred(shift, 0.0).forward(x).flatten().tolist() == [1, 2, 3, 0, 5, 6, 7, 0]
    a = through(lambda z: z.repeat_interleave(2, -1).square(), averaged(2, 0.3))
    assert a.deviation == 0.3
    assert a.forward(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).flatten().tolist() == [5.0, 10.0]


def test_operators_of_photographs_have_adjoints_and_bounds():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 16, 32, generator=generator, dtype=torch.float64)
    steps = torch.randint(5, 60, (2, 8, 8), generator=generator).double()
    reduced = operators.separable(operators.bicubic(16, 2), operators.bicubic(32, 2), 0.1)
    softened = operators.separable(operators.gaussian(16, 1.3), operators.gaussian(32, 1.3), 0.1)
    compressed = operators.jpeg(steps[0], steps[1], (3, 16, 32), 0.3, 0.1)
    for a, shape in ((reduced, (3, 8, 16)), (softened, (3, 16, 32)), (operators.gray(0.1), (1, 16, 32)),
                     (compressed, (768,))):  # fmt: skip
        seen = a.forward(x)
        assert seen.shape == (2, *shape)
        y = torch.randn(seen.shape, generator=generator, dtype=torch.float64)
        assert float((seen * y).sum()) == pytest.approx(float((x * a.adjoint(y)).sum()), rel=1e-5)
        v = x
        for _ in range(20):  # power iteration towards the largest singular value
            v = a.adjoint(a.forward(v / v.norm()))
        assert float(v.norm()) ** 0.5 <= a.norm * (1 + 1e-5)


def test_they_measure_as_libraries_do():
    pixels = np.random.Generator(np.random.Philox(0)).integers(80, 170, (32, 48, 3)).astype(np.uint8)
    x = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))[None]
    image = Image.fromarray(pixels)
    small = np.asarray(image.resize((24, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    a = operators.separable(operators.bicubic(32, 2), operators.bicubic(48, 2), 0.0)
    assert float((a.forward(x)[0].clamp(0, 255) - torch.from_numpy(small.astype(np.float32))).abs().max()) < 1.1
    soft = ndimage.gaussian_filter(pixels.astype(float), (1.5, 1.5, 0), mode="nearest").transpose(2, 0, 1)
    a = operators.separable(operators.gaussian(32, 1.5), operators.gaussian(48, 1.5), 0.0)
    torch.testing.assert_close(a.forward(x)[0].double(), torch.from_numpy(soft), rtol=0, atol=1e-3)
    luma = np.asarray(image.convert("L")).astype(np.float32)
    assert float((operators.gray(0.0).forward(x)[0, 0] - torch.from_numpy(luma)).abs().max()) < 1.0


def test_what_a_jpeg_file_says_holds_for_what_it_was_made_of():
    at = np.linspace(0, 3, 32)
    pixels = np.rint(120 + 60 * np.sin(at[:, None] * 5 + at) + 5 * np.cos(40 * at)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=30)
    opened = Image.open(file)
    steps = torch.tensor(opened.quantization[0]).float().reshape(8, 8)
    a = operators.jpeg(steps, steps, (1, 32, 32), 1.0, 0.0)
    before, after = (a.forward(torch.from_numpy(np.array(p, np.float32))[None, None]) for p in (pixels, opened))
    apart = (before - after).abs()  # in steps
    assert 0.3 < float(apart.max()) < 0.5 + 2 / float(steps.min())  # pixels of the file are rounded as well


def test_a_curved_operator_is_followed_by_its_derivative():
    a = through(lambda z: z.square() + z, averaged(2, 0.3))
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 3, 2, 4, 4, generator=generator).unbind(0)
    seen, slope = operators.linearised(a, x)
    assert slope.deviation == 0.3 and seen.equal(a.forward(x))
    expected = averaged(2, 0.0).forward((2 * x + 1) * v)
    torch.testing.assert_close(slope.forward(v), expected, rtol=0, atol=0.02)
    torch.testing.assert_close(slope.adjoint(expected), (2 * x + 1) * averaged(2, 0.0).adjoint(expected))
    assert slope.forward(torch.zeros_like(v)).abs().max() == 0


def test_a_latent_is_known_if_all_its_pixels_are():
    mask = torch.ones(2, 1, 8, 12)
    mask[0, 0, 3, 6] = 0.0  # in the patch of row 0, column 1 at a factor of 4
    assert latent_mask(mask, 4)[0, 0].tolist() == [[1, 0, 1], [1, 1, 1]]
    assert latent_mask(mask, 2)[0, 0, 1].tolist() == [1, 1, 1, 0, 1, 1]
    assert latent_mask(mask, 2).sum() == 2 * 24 - 1
    assert latent_mask(mask > 0, 1).equal(mask)
    with pytest.raises(ValueError, match="8 x 12"):
        latent_mask(mask, 5)


def test_solves_each_samples_system():
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    systems = factor @ factor.mT + 0.1 * torch.eye(5)
    b = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    b[1] = 0.0  # solved before it begins
    found = solve(lambda x: (systems @ x[..., None])[..., 0], b, 7)  # two steps more than it takes
    torch.testing.assert_close(found, torch.linalg.solve(systems, b))


def test_what_is_left_never_grows_whatever_the_matrix():
    """Neither symmetric nor positive, as of a trained network."""
    generator = torch.Generator().manual_seed(0)
    systems = torch.randn(20, 8, 8, generator=generator, dtype=torch.float64) + torch.eye(8)
    b = torch.randn(20, 8, generator=generator, dtype=torch.float64)

    def matrix(x):
        return (systems @ x[..., None])[..., 0]

    left = [(b - matrix(solve(matrix, b, steps))).norm(dim=1) for steps in range(9)]
    assert all((after <= 1.001 * before).all() for before, after in itertools.pairwise(left))
    assert (left[-1] < 0.5 * left[0]).all()
