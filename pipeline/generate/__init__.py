"""What does a model make? The model's folder, the generator, sampling, averages after training, exchange with
diffusers.

From Python: `from pipeline.generate import load_pretrained`. What is measured on samples is in `evaluation/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.generate.folder import load_pretrained

__all__ = ["load_pretrained"]


def __getattr__(name: str) -> Any:
    """The public name, imported when it is asked for: it brings torch."""
    if name == "load_pretrained":
        from pipeline.generate import folder

        return folder.load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
