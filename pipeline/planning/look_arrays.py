"""Arrays before there is a config: which of an .npz file are images and labels, and what their values mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.data import arrays
from pipeline.data.array_names import find_parts
from pipeline.errors import UserError


def keys_of(path: Path) -> dict[str, Any]:
    """What `data.source` must say of an .npz file: `images_key` and `labels_key` where names do not tell, `range` of
    images that are no bytes. Raises UserError where no array can be images."""
    with arrays.open_npz(str(path)) as file:
        names = list(file)
        keys: dict[str, Any] = {}
        try:
            parts = find_parts(str(path), names, None, None)
        except UserError:
            keys = _by_shape(file, names)
            if not keys:
                raise
            parts = find_parts(str(path), names, keys["images_key"], keys.get("labels_key"))
        images = [arrays.read_array(file, name, str(path)) for _, name in parts.images]
    if any(array.dtype.kind not in "b" and str(array.dtype) not in ("uint8", "uint16") and array.size
           for array in images) and all(array.dtype.kind in "iuf" for array in images):  # fmt: skip
        ends = min(float(array.min()) for array in images), max(float(array.max()) for array in images)
        keys["range"] = arrays.guess_range(*ends)
    return keys


def _by_shape(file: Any, names: list[str]) -> dict[str, Any]:
    """The one array with three or four dimensions, and the one of labels that is as long."""
    shapes = {name: file[name].shape for name in names}
    images = [name for name, shape in shapes.items() if len(shape) in (3, 4)]
    if len(images) != 1:
        return {}
    count = shapes[images[0]][0]
    labels = [
        name for name, shape in shapes.items() if shape in ((count,), (count, 1)) and file[name].dtype.kind in "iu"
    ]
    return {"images_key": images[0], **({"labels_key": labels[0]} if len(labels) == 1 else {})}


def _idx_labels(path: Path) -> dict[str, str]:
    """The IDX file of labels beside one of images: train-images-idx3-ubyte -> train-labels-idx1-ubyte."""
    other = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    return {"labels": str(other)} if other != path and other.is_file() else {}


def source_of(path: Path) -> dict[str, Any]:
    """`data.source` of an .npz or IDX file."""
    more = keys_of(path) if path.suffix == ".npz" else _idx_labels(path)
    return {"kind": "arrays", "path": str(path), **more}
