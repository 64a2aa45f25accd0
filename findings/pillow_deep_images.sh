#!/usr/bin/env bash
# Pillow 13.0.0: of images of 16 bits a value the pixels that come out are not those of the file, without error or
# warning. Seen: (1) 16-bit RGB, PNG or TIFF, opens as 8-bit RGB, the lower byte cut off; (2) of a 16-bit RGB TIFF whose
# planes lie one behind the other (planar configuration 2) 0.3% of the bytes are right: each plane is read as if it had 8
# bits a value; (3) a TIFF where white is zero is turned around at 8 bits and left as it is at 16.
# What to do: tifffile for TIFF (which leaves white-is-zero to the caller at any depth), imagecodecs for PNG.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet numpy==2.3.5 pillow==13.0.0 tifffile==2026.3.3 ||
  { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy as np
import PIL
import tifffile
from PIL import Image

path = sys.argv[1]
print(f"Pillow {PIL.__version__}, tifffile {tifffile.__version__}")
deep = np.random.default_rng(0).integers(0, 65536, (20, 24, 3), dtype=np.uint16)


def opened(values, **how):
    tifffile.imwrite(path, values, **how)
    with Image.open(path) as image:
        return np.asarray(image)


cut = opened(deep, photometric="rgb")
print(f"16-bit RGB: {cut.dtype}, equal to the upper bytes: {(cut == deep >> 8).all()}")
planar = opened(np.ascontiguousarray(deep.transpose(2, 0, 1)), photometric="rgb", planarconfig="separate")
right = (planar == deep >> 8).mean()
print(f"16-bit RGB, planes apart: {planar.dtype}, {right:.1%} of the upper bytes are right")
turned = {}
for kind in (np.uint8, np.uint16):
    values = (deep[..., 0] >> (8 if kind == np.uint8 else 0)).astype(kind)
    found = opened(values, photometric="miniswhite")
    turned[kind.__name__] = "turned around" if (found == np.iinfo(kind).max - values).all() else "as stored"
print(f"white is zero: {turned}")
expected = cut.dtype == np.uint8 and (cut == deep >> 8).all() and right < 0.1
if not expected or turned != {"uint8": "turned around", "uint16": "as stored"}:
    sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
"$folder/env/bin/python" "$folder/check.py" "$folder/x.tif" || exit 1
echo "as described"
