"""A user's own images, and masks over them, for a trained model: read and checked one by one, at the model's size.

What is done with them is the business of `edit.py` and its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.applications.made_images import GRID
from pipeline.data.look_through import SHORT, animated
from pipeline.data.pictures import Images
from pipeline.data.transforms import FORMATS, Array, BadImage, cover, decode, to_array
from pipeline.errors import UserError
from pipeline.schema.data import Shape

MOST = 50_000_000  # pixels of a file, as `data.max_pixels` has it
WHITE = (255, 255, 255)  # what transparent images are put on, as `data.background` has it
BLACK = (0, 0, 0)  # what transparent masks are put on: only what is painted counts


def files_of(given: Sequence[Path]) -> list[Path]:
    """Files as given, and the images of folders, in order of name, but for a grid.png, which verbs write there.
    UserError where there is none, and for files whose results would be one file."""
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            if not path.is_file():
                raise UserError(f"{path}: is not there; give an image, or a folder of images")
            found.append(path)
            continue
        inside = sorted(file for file in path.iterdir() if file.suffix[1:].lower() in FORMATS and file.name != GRID)
        if not inside:
            raise UserError(f"{path}: holds no images ({', '.join(sorted(FORMATS))})")
        found += inside
    names: dict[str, Path] = {Path(GRID).stem: Path(GRID)}
    for file in found:
        if (other := names.setdefault(file.stem.casefold(), file)) is not file:
            raise UserError(f"{file}: would be written to the same file as {other}; rename one of them")
    return found


def read(file: Path, channels: int, shape: Shape | None) -> Array:
    """An image as `decoded` has it, of an animation the first frame, which is said. UserError for what is no sound
    image."""
    content = _content(file)
    if animated(content):
        print(f"{file}: {SHORT}", flush=True)
    return decoded(str(file), content, channels, shape)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def decoded(
    name: str, content: bytes, channels: int, shape: Shape | None, background: tuple[int, int, int] = WHITE
) -> Array:
    """An image as the model takes it, uint8 [H, W, C], of what its file `name` holds: of another size it is resized so
    that it covers `shape` (height, width), and cut in the middle; with None it keeps its size. UserError for what is no
    sound image."""
    try:
        image = decode(content, channels, background, MOST, Path(name).suffix[1:].lower(), key=False)
    except BadImage as error:
        raise UserError(f"{name}: is no image that can be used ({error}); mend it, or leave it out") from None
    image = image if shape is None else cover(image, shape, whole=False)
    return np.ascontiguousarray(to_array(image).transpose(1, 2, 0))


def read_mask(file: Path, shape: Shape, exact: bool = False) -> Array:
    """A mask float32 [H, W] of 0 and 1, at the model's size: white is 1, transparent 0. UserError for one that is all
    black, and for one of another size that must be `exact`."""
    return as_mask(str(file), _content(file), shape, exact)


def as_mask(name: str, content: bytes, shape: Shape, exact: bool = False) -> Array:
    """The mask of what its file `name` holds, as `read_mask` has it."""
    pixels = decoded(name, content, 1, None if exact else shape, BLACK)
    if pixels.shape[:2] != tuple(shape):
        raise UserError(
            f"{name}: of {pixels.shape[0]} x {pixels.shape[1]} pixels (height x width), and the image of "
            f"{shape[0]} x {shape[1]}; give a mask of its size"
        )
    mask = (pixels[:, :, 0] >= 128).astype(np.float32)
    if not mask.any():
        raise UserError(f"{name}: is black everywhere, so nothing would change; paint white what may")
    return mask


def stacked(files: Sequence[Path], channels: int, shape: Shape) -> Images:
    """Images [n, H, W, C] of these files."""
    return np.stack([read(file, channels, shape) for file in files])
