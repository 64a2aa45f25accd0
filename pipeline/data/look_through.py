"""Whether the bytes of an image file hold more than one picture that follow each other: animated WebP, GIF and PNG."""

from __future__ import annotations

import io

WORDS = "animations, of which the first frame is taken and the others not"
SHORT = "is animated, and this takes its first frame"


def animated(content: bytes) -> bool:
    """By the header of a WebP or PNG file; a GIF is looked through as far as its second frame. Decodes nothing."""
    if content[:4] == b"RIFF" and content[8:16] == b"WEBPVP8X":
        return bool(content[20] & 2) if len(content) > 20 else False  # the bit A (WebP container specification)
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        return b"acTL" in content[: max(0, content.find(b"IDAT"))]  # before the first picture (PNG specification, 11.3)
    if content[:4] == b"GIF8":
        from PIL import Image

        try:
            with Image.open(io.BytesIO(content)) as image:
                return bool(getattr(image, "is_animated", False))
        except Exception:  # a damaged file raises whatever Pillow meets first: IndexError, struct.error, ...
            return False  # whoever decodes it says so; behind the first frame nobody does
    return False
