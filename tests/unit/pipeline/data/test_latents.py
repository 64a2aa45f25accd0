"""The latent space: a round trip, and statistics that are those of the latents drawn."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models import posterior
from pipeline.data import latents
from pipeline.data.latents import LatentSpace
from pipeline.errors import UserError
from pipeline.stages import encode

SHAPE = (400, 2, 6, 4, 4)  # [n, v, 2C, h, w]


def moments(seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mean = generator.normal(3.0, 5.0, (*SHAPE[:2], 3, *SHAPE[3:])) * np.array([1.0, 2.0, 3.0])[:, None, None]
    logvar = generator.normal(-1.0, 0.5, mean.shape)
    return np.concatenate([mean, logvar], axis=2).astype(np.float16)


def test_drawn_latents_have_mean_0_and_variance_1() -> None:
    data = moments()
    space = latents.merge([latents.sums(part) for part in np.array_split(data, 7)])
    flat = torch.from_numpy(data.reshape(-1, *SHAPE[2:])).float()
    drawn = space.draw(flat, torch.randn(len(flat), 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(drawn.mean((0, 2, 3)), torch.zeros(3), atol=0.02)
    assert torch.allclose(drawn.std((0, 2, 3)), torch.ones(3), atol=0.02)


def test_merging_in_order_gives_the_same_bits() -> None:
    parts = [latents.sums(part) for part in np.array_split(moments(), 5)]
    one, again = latents.merge(parts), latents.merge(list(parts))
    assert torch.equal(one.mean, again.mean) and torch.equal(one.std, again.std)


def test_round_trip(tmp_path: Path) -> None:
    space = LatentSpace(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 30.0]))
    z = torch.randn(3, 2, 4, 4)
    assert torch.allclose(space.restore(space.normalise(z)), z, atol=1e-5)
    space.save(tmp_path / "latents.json")
    read = LatentSpace.load(tmp_path / "latents.json")
    assert torch.equal(read.mean, space.mean) and torch.equal(read.std, space.std)


def test_draw_is_normalise_after_sample() -> None:
    space = LatentSpace(torch.tensor([1.0]), torch.tensor([2.0]))
    m, noise = torch.randn(2, 2, 3, 3), torch.randn(2, 1, 3, 3)
    assert torch.equal(space.draw(m, noise), (posterior.sample(m, noise) - 1) / 2)


def test_a_constant_channel_is_not_scaled_and_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    data = moments()
    data[:, :, 1], data[:, :, 4] = 0.7, -np.inf  # the second mean, and no spread around it
    space = latents.merge([latents.sums(part) for part in np.array_split(data, 7)])
    assert space.std[1] == 0 and (space.std[[0, 2]] > 0).all()
    artifact = SimpleNamespace(path="autoencoder")
    scaled = encode._scalable(space, artifact)  # type: ignore[arg-type]
    assert scaled.std[1] == 1 and torch.equal(scaled.std[[0, 2]], space.std[[0, 2]])
    assert "encode: 1 of 3 latent channels are constant (1): not scaled" in capsys.readouterr().out
    with pytest.raises(UserError, match="all training images are alike"):
        encode._scalable(LatentSpace(space.mean, space.std * 0), artifact)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not finite"):
        encode._scalable(LatentSpace(space.mean, space.std * np.nan), artifact)  # type: ignore[arg-type]


@pytest.mark.parametrize("sides", [(16,), (4, 4), (2, 4, 2)], ids=str)
def test_statistics_and_normalising_are_by_channel_for_any_sides(sides: tuple[int, ...]) -> None:
    """The same numbers in another arrangement: the same statistics, up to the order of a sum, and the same latents."""
    data = moments()
    shaped = data.reshape(*SHAPE[:3], *sides)
    space, plain = latents.merge([latents.sums(shaped)]), latents.merge([latents.sums(data)])
    torch.testing.assert_close(space.mean, plain.mean)
    torch.testing.assert_close(space.std, plain.std)
    first, noise = torch.from_numpy(data[:, 0]).float(), torch.randn(len(data), 3, 4, 4)
    drawn = plain.draw(first.view(len(data), 6, *sides), noise.view(len(data), 3, *sides))
    assert torch.equal(drawn.view_as(noise), plain.draw(first, noise))
    torch.testing.assert_close(plain.restore(drawn), plain.restore(drawn.view_as(noise)).view_as(drawn))


def test_what_is_not_there_is_in_no_statistic() -> None:
    data = moments().reshape(*SHAPE[:3], 16)
    lengths = np.random.default_rng(0).integers(1, 17, len(data))
    there = np.arange(16) < lengths[:, None]
    padded = np.where(there[:, None, None], data, np.float16(300))
    padded[:, :, 3:] = np.where(there[:, None, None], data[:, :, 3:], np.float16(9))
    found = latents.merge(
        [
            latents.sums(part, mask)
            for part, mask in zip(np.array_split(padded, 3), np.array_split(there, 3), strict=True)
        ]
    )
    rows = data.transpose(0, 3, 1, 2)[there][None]  # [1, places, v, 2C]: a sequence of all that is there
    wanted = latents.merge([latents.sums(rows.transpose(0, 2, 3, 1))])
    torch.testing.assert_close(found.mean, wanted.mean)
    torch.testing.assert_close(found.std, wanted.std)
