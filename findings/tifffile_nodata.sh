#!/usr/bin/env bash
# tifffile 2026.3.3: `page.nodata` is 0 for a file that states no such value (no GDAL_NODATA tag), as it is for one that
# states 0. Who masks by it takes each dark pixel for a place without data.
# What to do: ask whether the tag is there: `page.tags.valueof(42113)` is None without it.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet numpy==2.3.5 tifffile==2026.3.3 ||
  { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy as np
import tifffile

print(f"tifffile {tifffile.__version__}")
found = {}
for name, tags in (("none stated", []), ("0 stated", [(42113, 2, 0, "0", True)])):
    tifffile.imwrite(sys.argv[1], np.zeros((8, 8), np.uint16), extratags=tags)
    with tifffile.TiffFile(sys.argv[1]) as file:
        found[name] = (file.pages[0].nodata, file.pages[0].tags.valueof(42113))
    print(f"{name}: page.nodata {found[name][0]!r}, the tag {found[name][1]!r}")
if found != {"none stated": (0, None), "0 stated": (0, "0")}:
    sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
"$folder/env/bin/python" "$folder/check.py" "$folder/x.tif" || exit 1
echo "as described"
