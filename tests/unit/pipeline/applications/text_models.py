"""Untrained models of text that are small: for what is about requests, not about what is written."""

from __future__ import annotations

from typing import Any

import torch

from models.autoencoders.text import Config, Model
from pipeline.data.latents import LatentSpace
from pipeline.data.tokens import Bytes
from pipeline.generate.generator import Generator, generator
from pipeline.networks import build_network

SHAPE = Config(tokens="bytes", vocabulary=257, length=16, latents=8, latent_channels=4, width=16, depth=1, heads=2)
BACKBONE = {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 1}
CAPTION = {"tokens": 24, "encoder": {"kind": "trained", "width": 16, "depth": 1, "heads": 2}}


def model(told: bool, backbone: dict[str, Any] | None = None) -> Generator:
    """Of passages of 16 bytes; told: the text before, of 23 bytes."""
    options: dict[str, Any] = {
        "latent": {"channels": 4, "size": [8]},
        "backbone": {**BACKBONE, **(backbone or {}), **({"tokens": "cross"} if told else {})},
        "condition": {"kind": "none", "drop": 0.1, "caption": CAPTION if told else None},
        "classes": [],
        "path": {"kind": "rectified_flow"},
        "prediction": "velocity",
    }
    torch.manual_seed(0)
    network, decoder = build_network(options).eval(), Model(SHAPE).eval()
    with torch.no_grad():  # what is told matters, and what latents are, which it does not much before training
        for value in (*network.parameters(), *decoder.parameters()):
            value.add_(0.5 * torch.randn_like(value))
    space, defaults = LatentSpace(torch.zeros(4), torch.ones(4)), {"steps": 2, "batch_size": 2}
    device = torch.device("cpu")
    return generator(options, decoder, network, space, device, defaults, {"name": "words"}, tokenizer=Bytes())
