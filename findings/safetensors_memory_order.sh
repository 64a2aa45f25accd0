#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.numpy's save and save_file write an array's bytes in the order of memory, not of its
# indices. An array that is transposed, in Fortran's order or a slice with gaps loads with the right shape and dtype and
# other values. Seen: [[0, 1, 2], [3, 4, 5]] in Fortran's order comes back as [[0, 3, 1], [4, 2, 5]]. No error, no
# warning. 0.7.0 writes the right values. What comes out of scipy, of `np.load` of a Fortran file, or of `.T` is such.
# What to do: np.ascontiguousarray(a) before saving. (safetensors issue 825 reports it.)
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet numpy==2.3.5 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

path, expected = sys.argv[1], sys.argv[2]
x = np.arange(6.0).reshape(2, 3)
arrays = {
    "C order": x,
    "Fortran order": np.asfortranarray(x),
    "transposed": np.arange(6.0).reshape(3, 2).T,
    "slice with gaps": np.arange(12.0).reshape(2, 6)[:, ::2],
}
print(f"safetensors {safetensors.__version__}, numpy {np.__version__}")
wrong = []
for name, array in arrays.items():
    save_file({"x": array}, path)
    back = load_file(path)["x"]
    same = np.array_equal(array, back)
    print(f"{name}: saved {array.tolist()}, loaded {back.tolist()}: {'right' if same else 'wrong'}")
    wrong += [] if same else [name]
if ",".join(wrong) != expected:
    sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
run() { # version, the arrays that come back wrong
  "$folder/env/bin/pip" install --quiet "safetensors==$1" || { echo "cannot install"; exit 2; }
  "$folder/env/bin/python" "$folder/check.py" "$folder/x.safetensors" "$2" || exit 1
}
run 0.7.0 ""
run 0.8.0 "Fortran order,transposed,slice with gaps"
echo "as described"
