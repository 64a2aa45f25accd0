"""Judges' networks: evidence by place, two towers, their loss where it is known."""

from __future__ import annotations

import math

import torch

from models.judges import Judge, TwoTowers, contrastive


def test_evidence_anywhere_is_evidence_and_a_number_is_a_mean() -> None:
    judge = Judge(3, 16, {"mood": 3, "age": 1}, numbers=["age"]).eval()
    torch.nn.init.zeros_(judge.heads.weight)
    assert judge.heads.bias is not None
    with torch.no_grad():
        judge.heads.bias.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))  # columns lie in order of name
        found = judge(torch.zeros(2, 3, 64, 64))  # brought to 16 pixels
    assert torch.allclose(found["mood"], torch.tensor([[1.0, 2.0, 3.0]] * 2)), "the same everywhere: the mean"
    assert torch.allclose(found["age"], torch.full((2, 1), 0.5))


def test_loss_of_pairs() -> None:
    apart = torch.eye(4).bool()
    assert torch.isclose(contrastive(torch.zeros(4, 4), apart), torch.tensor(math.log(4)))
    assert contrastive(50 * torch.eye(4), apart) < 1e-6 < 10 < contrastive(50 * torch.eye(4).roll(1, 0), apart)
    same = apart.clone()
    same[0, 1] = same[1, 0] = True
    best = contrastive(50 * same.float(), same)  # two of four have two right answers, each a half
    assert torch.isclose(best, torch.tensor(math.log(2) / 2))


def test_a_caption_does_not_depend_on_its_neighbours() -> None:
    towers = TwoTowers(1, 16, tokens=12).eval()
    captions = torch.tensor([[257, 5, 9, 0, 0, 0], [257, 1, 2, 3, 4, 5]])
    with torch.no_grad():
        both, alone = towers.captions(captions), towers.captions(captions[:1, :3])
        images = towers.images(torch.randn(3, 1, 16, 16))
    assert torch.allclose(both[:1], alone, atol=1e-6) and not torch.allclose(both[0], both[1], atol=1e-3)
    assert torch.allclose(images.norm(dim=1), torch.ones(3)) and towers.scores(images, both).shape == (3, 2)
    embedded = TwoTowers(1, 16, tokens=12, embedded=7)
    assert embedded.captions(torch.randn(2, 7)).shape == (2, 128)
