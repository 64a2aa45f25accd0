"""What a model made has to be finite."""

from __future__ import annotations

from torch import Tensor

from pipeline.errors import UserError


class NotFinite(UserError):
    """Images of NaN or infinity, which as bytes would be black or white."""


def mind(sound: Tensor, start: int, why: str, what: str = "images") -> None:
    """NotFinite where `sound` (bool [n], of the images from number `start` on) is not all true."""
    if bad := int((~sound).sum()):
        which = f"{bad} of {len(sound)} {what} from number {start} on"
        raise NotFinite(f"{which} are not finite (they hold NaN or infinity); {why}")
