"""Compressed bytes held against what a file's header says they are, before anything is unpacked whole.

A decompression bomb is some kilobytes of deflated zeros that become gigabytes. Each format's reader holds the sides in
headers against `data.max_pixels`, and asks here whether bytes become more.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from pathlib import Path

CHUNK = 1 << 20  # bytes that are unpacked at once, and forgotten
HARMLESS = 1 << 24  # bytes that are unpacked whatever a header says
DEFLATED = 1032  # bytes that a byte of deflated data can hold, at most (zlib.net/zlib_tech.html)


def inflates_over(content: bytes, most: int, wbits: int = zlib.MAX_WBITS) -> bool:
    """Whether deflated bytes hold more than `most`; no more than CHUNK of them is in memory. zlib.error for others."""
    unpack, total = zlib.decompressobj(wbits), 0
    while content and not unpack.eof:
        total += len(unpack.decompress(content, CHUNK))
        content = unpack.unconsumed_tail
        if total > most:
            return True
    return False


def unpacks_over(content: bytes, most: int) -> bool:
    """`inflates_over` of LZMA. lzma.LZMAError for others."""
    unpack, total = lzma.LZMADecompressor(), 0
    while not unpack.eof and (content or not unpack.needs_input):
        total += len(unpack.decompress(content, CHUNK))
        content = b""
        if total > most:
            return True
    return False


def gunzips(path: Path, most: int) -> bool:
    """Whether a .gz file is whole, has its checksums, and holds no more than `most` bytes."""
    total = 0
    try:
        with gzip.open(path, "rb") as file:
            while total <= most and (count := len(file.read(CHUNK))):
                total += count
    except (OSError, EOFError, zlib.error):
        return False
    return total <= most
