"""Arrays in a safetensors file of a pool: written whole, read by slices of a memory map. What they mean is others'."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.index import map_file
from pipeline.errors import UserError
from pipeline.files import save_tensors

Array = np.ndarray[Any, np.dtype[Any]]
DTYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64, "F16": np.float16, "F32": np.float32}


def save(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write the file, whole or not at all; dtypes are those of `DTYPES`."""
    import torch

    save_tensors(path, {name: torch.from_numpy(np.require(a, requirements=["C", "W"])) for name, a in arrays.items()})


def mapped(path: Path) -> dict[str, Array]:
    """The arrays of a safetensors file as views of a memory map; nothing is read but the header. UserError for a file
    that is none."""
    content: mmap.mmap = map_file(path)
    try:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        arrays = {}
        for name, tensor in header.items():
            if name != "__metadata__":
                dtype, (begin, end) = np.dtype(DTYPES[tensor["dtype"]]), tensor["data_offsets"]
                flat = np.frombuffer(content, dtype, (end - begin) // dtype.itemsize, 8 + size + begin)
                arrays[name] = flat.reshape(tensor["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it, and run again with --rebuild conditions") from None
    return arrays
