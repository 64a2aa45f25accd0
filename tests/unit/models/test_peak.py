"""Bytes at the highest, against what can be counted by hand."""

from __future__ import annotations

import torch
from torch import nn

from models import peak


def test_a_chain_of_layers_is_counted() -> None:
    """Two layers without bias: the hidden activation and the input are kept for the gradients of the weights."""
    n, width = 32, 64
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False))
    found = peak.of_step(module, lambda: module(torch.empty(n, width)).sum(), "cpu", half=False, passes=1)
    row, weight, scalar = 4 * n * width, 4 * width * width, 4
    assert found.parameters == 2 * width * width
    # backward of the second layer: input, hidden, its gradient [the output's is one number, expanded], one weight's;
    # of the first: input, the hidden's gradient, both weights'
    assert max(3 * row + weight, 2 * row + 2 * weight) <= found.peak <= 3 * row + 2 * weight + 2 * scalar
    twice = peak.of_step(module, lambda: module(torch.empty(n, width)).sum(), "cpu", half=False, passes=2)
    assert found.peak + weight <= twice.peak <= found.peak + 3 * weight


def test_what_is_given_back_is_not_counted() -> None:
    live = peak.Live()
    with live:
        first = torch.empty(1000)
        same = first.view(10, 100)
        assert live.now == 4000
        del first, same
        second = torch.empty(500)
        assert (live.now, live.highest) == (2000, 4000)
        del second
    assert live.now == 0
