"""Conditioners and their null."""

from __future__ import annotations

import pytest
import torch

from models import conditioning


def test_class_condition_has_a_row_more_for_null():
    conditioner = conditioning.build("class", 6, classes=10)
    null = conditioner.null(2)
    assert null["class"].tolist() == [10, 10] and null["class"].dtype == torch.int64
    embedded = conditioner({"class": torch.tensor([0, 10])}, torch.zeros(2, 1))
    assert embedded.vector.shape == (2, 6) and embedded.tokens is None
    assert not torch.equal(embedded.vector[0], embedded.vector[1])
    with pytest.raises(IndexError):
        conditioner({"class": torch.tensor([11])}, torch.zeros(1, 1))


def test_no_condition_is_zero():
    conditioner = conditioning.build("none", 6)
    assert conditioner.null(3) == {}
    assert torch.equal(conditioner({}, torch.ones(3, 4)).vector, torch.zeros(3, 6))
    assert not list(conditioner.parameters())


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"condition\.kind"):
        conditioning.build("text", 6)
    with pytest.raises(ValueError, match="classes"):
        conditioning.build("class", 6)
