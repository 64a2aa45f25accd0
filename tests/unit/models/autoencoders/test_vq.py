"""The codebook's moving average against its formula; dead codes; the interface that stage 2 relies on."""

from __future__ import annotations

import pytest
import torch

from models import posterior, registry
from models.autoencoders.vq import Codebook, Config

SMALL = {"kind": "vq", "width": 8, "multipliers": (1, 2), "blocks": 1, "latent_channels": 2, "groups": 4,
         "attention": False, "codes": 6, "restarts": 2, "half_life": 10}  # fmt: skip


def codebook(**more: object) -> Codebook:
    torch.manual_seed(0)
    return Codebook(Config(**{"latent_channels": 2, "codes": 6, "restarts": 2, "half_life": 10} | more))


def vectors(n: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def step(book: Codebook, *parts: torch.Tensor, priorities: list[torch.Tensor] | None = None) -> None:
    """One step on the micro-batches given."""
    for i, z in enumerate(parts):
        priority = priorities[i] if priorities else torch.zeros(len(z), 3, 3)
        book.gather(z, book.indices(z), priority)
    book.move(*book.take())


def test_indices_are_the_nearest_codes() -> None:
    book, z = codebook(codes=40), vectors(5)
    flat = z.movedim(1, -1).reshape(-1, 2)
    wanted = torch.cdist(flat.double(), book.codes.double()).argmin(1).view(5, 3, 3)
    assert torch.equal(book.indices(z), wanted)
    assert torch.equal(book.lookup(wanted)[1, :, 2, 0], book.codes[wanted[1, 2, 0]])


def test_a_step_is_the_moving_average_of_counts_and_sums() -> None:
    """Van den Oord et al. 2017, appendix A.1, by hand; no code is dead."""
    book = codebook(dead_below=0.0)
    book.counts.fill_(5.0)
    book.sums.copy_(5 * book.codes)
    z = vectors(4, scale=0.3)
    indices, keep = book.indices(z), 2 ** (-4 / 10)
    flat, flat_indices = z.movedim(1, -1).reshape(-1, 2), indices.flatten()
    n = torch.bincount(flat_indices, minlength=6).float()
    m = torch.stack([flat[flat_indices == k].sum(0) for k in range(6)])
    counts = keep * book.counts + (1 - keep) * n
    sums = keep * book.sums + (1 - keep) * m
    step(book, z)
    torch.testing.assert_close(book.counts, counts)
    torch.testing.assert_close(book.sums, sums)
    torch.testing.assert_close(book.codes, sums / counts[:, None])


def test_how_a_batch_is_cut_changes_nothing() -> None:
    whole, cut = codebook(), codebook()
    for seed in range(5):
        z = vectors(8, seed)
        priority = torch.randn(8, 3, 3, generator=torch.Generator().manual_seed(100 + seed))
        step(whole, z, priorities=[priority])
        one, other = codebook(), codebook()  # two ranks: statistics are added, candidates stacked
        for rank, part in zip((one, other), (slice(0, 4), slice(4, 8)), strict=True):
            rank.load_state_dict(cut.state_dict())
            for i in (0, 2):
                piece = z[part][i : i + 2]
                rank.gather(piece, rank.indices(piece), priority[part][i : i + 2])
        taken = [rank.take() for rank in (one, other)]
        cut.move(taken[0][0] + taken[1][0], torch.cat([taken[0][1], taken[1][1]]))
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(cut.state_dict()[name], value, rtol=1e-6, atol=1e-6)


def test_dead_codes_are_put_on_the_candidates_of_the_highest_priority() -> None:
    book = codebook()
    book.codes[:3] = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    book.codes[3:] = 100.0  # never used
    book.counts.copy_(torch.tensor([9.0, 9, 9, 0.1, 0.1, 0.1]))
    book.sums.copy_(book.counts[:, None] * book.codes)
    z, priority = vectors(2, scale=0.5), torch.zeros(2, 3, 3)
    priority[1, 0, 2], priority[0, 1, 1] = 3.0, 2.0
    step(book, z, priorities=[priority])
    assert torch.equal(book.codes[3], z[1, :, 0, 2]) and torch.equal(book.codes[4], z[0, :, 1, 1])
    torch.testing.assert_close(book.codes[5], torch.full((2,), 100.0))  # two a step
    assert book.counts[3] == book.counts[4] == 18 / 6  # as much as a code gets on average: not dead at once


def test_a_codebook_fills_up_from_nothing() -> None:
    book = codebook(codes=32, restarts=8)
    generator = torch.Generator().manual_seed(5)
    for seed in range(30):
        step(book, vectors(16, seed), priorities=[torch.randn(16, 3, 3, generator=generator)])
    counts = torch.bincount(book.indices(vectors(64, 99)).flatten(), minlength=32).float()
    perplexity, used = book.usage(counts)
    assert used > 0.9 and perplexity > 16
    assert book.state_of_use()["codes_alive"] > 0.9


def test_usage_is_the_exponential_of_the_entropy() -> None:
    perplexity, used = Codebook.usage(torch.tensor([3.0, 3.0, 0.0, 3.0]))
    assert perplexity.item() == pytest.approx(3.0) and used.item() == 0.75


def test_it_is_an_autoencoder_like_the_others() -> None:
    torch.manual_seed(0)
    model = registry.build("autoencoders", SMALL, channels=3)
    x, noise = torch.rand(2, 3, 8, 8) * 2 - 1, torch.randn(2, 2, 4, 4)
    moments = model.encode(x)
    assert moments.shape == (2, 4, 4, 4) and moments.dtype == torch.float32
    assert moments.half().isfinite().all()  # as cached
    mean, _ = posterior.split(moments)
    torch.testing.assert_close(posterior.sample(moments, noise), mean, rtol=1e-5, atol=1e-5)  # no variance to speak of
    reconstruction, again = model.eval()(x, noise)
    torch.testing.assert_close(reconstruction, model.decode(mean))
    assert torch.equal(again, moments)
    with pytest.raises(ValueError, match="multiples of 2"):
        model.encode(torch.zeros(1, 3, 7, 8))


def test_the_gradient_goes_straight_through_and_only_training_gathers() -> None:
    torch.manual_seed(0)
    model = registry.build("autoencoders", SMALL, channels=3)
    x, noise = torch.rand(2, 3, 8, 8), torch.randn(2, 2, 4, 4)
    model.eval()(x, noise)
    assert model.take_statistics()[0].sum() == 0
    reconstruction, moments = model.train()(x, noise)
    added, _ = model.take_statistics()
    assert added[-1] == 2 and added[:-1].view(6, 3)[:, -1].sum() == 2 * 4 * 4
    (reconstruction.square().mean() + model.commitment(moments).mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("key", "value"), [("codes", 0), ("half_life", 0), ("dead_below", 1.0)])
def test_options_have_ranges(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        registry.make_config("autoencoders", SMALL | {key: value})
