"""Distances of texts' embeddings: MAUVE against values by hand, what the figures stand on, which vectors are taken."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from models.baselines import autoregressive as gpt
from pipeline.data.text_encoders import Embedding
from pipeline.data.tokens import Bytes
from pipeline.evaluation import text_embeddings
from pipeline.evaluation.metrics import mauve as measure

SMALL = gpt.Config(vocabulary=257, length=12, width=16, depth=1, heads=2)


@pytest.fixture
def judge():
    torch.manual_seed(0)
    return gpt.Model(SMALL).eval()


def test_area_of_equal_and_of_unlike_distributions():
    p = np.array([0.5, 0.3, 0.2])
    for alike in (p, np.array([0.5, 0.5]), np.array([0.25, 0.25, 0.5])):  # divergences that are exactly 0, too
        assert measure.area(alike, alike) == pytest.approx(1)
    apart = measure.area(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    # R = (w, 1 - w): KL(Q | R) = -log(1 - w), so that the curve is x^(1/5) + y^(1/5) = 1, under which 1 / 252 lies
    assert apart == pytest.approx(1 / 252, rel=0.05)
    near, far = (measure.area(p, np.array(q)) for q in ([0.45, 0.35, 0.2], [0.1, 0.1, 0.8]))
    assert apart < far < near < 1 and far == pytest.approx(measure.area(np.array([0.1, 0.1, 0.8]), p), rel=1e-6)


def test_mauve_of_embeddings():
    rng = np.random.default_rng(0)
    one, same, other = (rng.normal(size=(60, 8)) + shift for shift in (0, 0, np.array([6.0] + [0] * 7)))
    alike, apart = measure.mauve(one, same), measure.mauve(one, other)
    assert alike > 0.8 > 0.1 > apart and measure.mauve(one, same) == alike
    with pytest.raises(ValueError, match="too few"):
        measure.mauve(one[:9], same)


def test_a_passage_as_the_mean_of_states_knows_its_tokens_alone(judge):
    rows = torch.tensor([[5, 6, 0, 0], [5, 6, 0, 9], [5, 7, 0, 0]])
    rows = torch.nn.functional.pad(rows, (0, 8))
    one, behind_its_end, other = gpt.states(judge, rows)
    torch.testing.assert_close(one, behind_its_end)
    assert (one - other).abs().max() > 1e-4
    by_hand = judge.states(torch.tensor([[0, 5, 6]]))[0].mean(0)
    torch.testing.assert_close(one, by_hand)


def test_which_vectors_are_taken(judge, monkeypatch):
    monkeypatch.setattr(text_embeddings, "installed", lambda: False)
    assert text_embeddings.embedder(None, Bytes(), torch.device("cpu")) is None
    found = text_embeddings.embedder(judge, Bytes(), torch.device("cpu"))
    vectors = found.of(["a text", "another", ""])
    assert found.name.startswith("states of the judge ") and vectors.shape == (3, 16)
    other = copy.deepcopy(judge)
    next(other.parameters()).data += 1
    assert text_embeddings.embedder(other, Bytes(), torch.device("cpu")).name != found.name  # no figures beside these
    assert text_embeddings.embedder(judge, Bytes(), torch.device("cpu")).name == found.name
    np.testing.assert_allclose(np.square(vectors).mean(1), 1)

    class Frozen:
        def __init__(self, encoder, limit, device):
            assert encoder["digest"] == "0" * 64 and limit == text_embeddings.TOKENS

        def __call__(self, texts):
            return [Embedding(np.zeros((1, 2), np.float16), np.array([3, 4], np.float16)) for _ in texts], 0

    monkeypatch.setattr(text_embeddings, "installed", lambda: True)
    monkeypatch.setattr(text_embeddings.text_encoders, "identified", lambda *_: {"digest": "0" * 64})
    monkeypatch.setattr(text_embeddings.text_encoders, "Frozen", Frozen)
    found = text_embeddings.embedder(None, Bytes(), torch.device("cpu"))
    assert found.name == "minilm 000000000000"
    np.testing.assert_allclose(found.of(["a", "b"]), np.array([[3, 4]] * 2) / 12.5**0.5)


def test_each_distance_stands_beside_that_of_real_halves():
    rng = np.random.default_rng(0)
    sets = {name: rng.normal(size=(60, 4)) for name in ("train", "held_out", "samples", "yardstick")}
    sets["samples"] += 3
    how = {"extractor": "x", "real": "y", "resamples": 3, "seed": 0}
    found, missing = text_embeddings.distances(sets, 60, **how)
    assert not missing and all(set(figures) == {"real", "samples", "yardstick"} for figures in found.values())
    for kind in ("frechet", "kernel"):
        values = {name: one["value"] for name, one in found[kind].items()}
        assert values["samples"] > 10 * max(values["real"], values["yardstick"], 0.1)
    assert found["mauve"]["samples"] < found["mauve"]["real"]
    found, missing = text_embeddings.distances(sets, 10, **how)
    assert set(missing) == {"frechet", "mauve"} and not found["mauve"] and set(found["kernel"]) == set(sets) - {
        "train", "held_out"} | {"real"}  # fmt: skip
