"""Operators as matrices, masks of latents, and the solver of their systems."""

from __future__ import annotations

import itertools

import pytest
import torch

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


def test_a_latent_is_known_if_all_its_pixels_are():
    mask = torch.ones(2, 1, 8, 12)
    mask[0, 0, 3, 6] = 0.0  # in the patch of row 0, column 1 at a factor of 4
    assert latent_mask(mask, 4)[0, 0].tolist() == [[1, 0, 1], [1, 1, 1]]
    assert latent_mask(mask, 2)[0, 0, 1].tolist() == [1, 1, 1, 0, 1, 1]
    assert latent_mask(mask, 2).sum() == 2 * 24 - 1
    assert latent_mask(mask, 2, 1)[0, 0].tolist() == [[1, 1, 0, 0, 0, 1]] * 3 + [[1] * 6]
    assert latent_mask(mask, 2, 1)[1].min() == 1  # beyond the border nothing is unknown
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
