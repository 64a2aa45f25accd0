"""Sounds that tests write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from pipeline.schema.data import Data


def tone(hertz: float = 440.0, rate: int = 8000, seconds: float = 0.512, level: float = 0.5) -> np.ndarray:
    """float64 [n], a decaying sine."""
    t = np.arange(round(rate * seconds)) / rate
    return level * np.exp(-3 * t) * np.sin(2 * np.pi * hertz * t)


def write(path: Path, wave: np.ndarray | None = None, rate: int = 8000, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(rate=rate) if wave is None else wave, rate, **how)
    return path


def data_of(path: Path, sound: dict[str, Any] | None = None, **more: Any) -> Data:
    """0.512 s of 8 kHz: spectrograms of 16 x 32."""
    source = {"kind": "sound", "path": str(path), **more.pop("source", {})}
    chosen = {"rate": 8000, "seconds": 0.512, "mels": 16, "hop": 128, "window": 512, **(sound or {})}
    return Data.model_validate({"source": source, "sound": chosen, "channels": 1, **more})
