#!/usr/bin/env bash
# nibabel 5.4.2: the header of a loaded NIfTI says scl_slope and scl_inter NaN, whatever the file states: they are moved
# into the array proxy as it is opened. Who reads them from the header, as the format's description names them, and takes
# NaN for "no scaling" gets stored numbers for physical values. Seen: a file of slope 2, intercept -1024.
# What to do: take `img.get_fdata()`, or `img.dataobj.slope` and `img.dataobj.inter`.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet numpy==2.3.5 nibabel==5.4.2 ||
  { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import math
import struct
import sys

import nibabel
import numpy as np

stored = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
image = nibabel.Nifti1Image(stored, np.eye(4))
image.header.set_slope_inter(2, -1024)
nibabel.save(image, sys.argv[1])
with open(sys.argv[1], "rb") as file:
    in_file = struct.unpack("<ff", file.read(120)[112:120])  # bytes 112 to 119 of the format
loaded = nibabel.load(sys.argv[1])
in_header = (float(loaded.header["scl_slope"]), float(loaded.header["scl_inter"]))
in_proxy = (loaded.dataobj.slope, loaded.dataobj.inter)
print(f"nibabel {nibabel.__version__}: in the file {in_file}, in the header {in_header}, in the proxy {in_proxy}")
if in_file != (2, -1024) or in_proxy != in_file or not all(map(math.isnan, in_header)):
    sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
"$folder/env/bin/python" "$folder/check.py" "$folder/x.nii" || exit 1
echo "as described"
