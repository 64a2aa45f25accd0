#!/usr/bin/env bash
# tifffile 2026.3.3 without imagecodecs: a TIFF compressed with LZMA is read, one with LZW raises ValueError, which names
# the package that is missing; one with zstd raises ModuleNotFoundError for `compression`, a package that is in Python
# from 3.14 on and cannot be installed. Who catches ValueError alone stops at such a file, and who reads the message
# looks for a package of that name.
# What to do: catch both, and name imagecodecs, with which all three are read.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
for name in with without; do
  "${PYTHON:-python3}" -m venv "$folder/$name" && "$folder/$name/bin/pip" install --quiet numpy==2.3.5 tifffile==2026.3.3 ||
    { echo "cannot install"; exit 2; }
done
"$folder/with/bin/pip" install --quiet imagecodecs==2026.3.6 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import tifffile

folder, write = Path(sys.argv[1]), sys.argv[2] == "write"
pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
if not write:
    print(f"tifffile {tifffile.__version__}, Python {sys.version.split()[0]}")
    if sys.version_info >= (3, 14):
        print("cannot be tried: this Python has zstd itself")
        sys.exit(2)
found = {}
for codec in ("lzma", "lzw", "zstd"):
    if write:
        tifffile.imwrite(folder / f"{codec}.tif", pixels, compression=codec)
        assert np.array_equal(tifffile.imread(folder / f"{codec}.tif"), pixels)
        continue
    try:
        found[codec] = "read" if np.array_equal(tifffile.imread(folder / f"{codec}.tif"), pixels) else "other values"
    except Exception as error:
        found[codec] = type(error).__name__
        print(f"{codec}: {type(error).__name__}: {error}")
    else:
        print(f"{codec}: {found[codec]}")
if not write and found != {"lzma": "read", "lzw": "ValueError", "zstd": "ModuleNotFoundError"}:
    sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
"$folder/with/bin/python" "$folder/check.py" "$folder" write || exit 2
"$folder/without/bin/python" "$folder/check.py" "$folder" read || exit $?
echo "as described"
