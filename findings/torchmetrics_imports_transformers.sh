#!/usr/bin/env bash
# torchmetrics 1.9.0 imports transformers wherever that is installed, whichever metric is asked for:
# `from torchmetrics.functional.image import peak_signal_noise_ratio` brings some fifty modules of transformers 5.24.0 for
# metrics of text. Every rank and worker that wants a PSNR pays for it. Seen (torch was imported before):
# "a PSNR of 20.0: 48 modules of transformers, 0.96 CPU seconds to import torchmetrics"
# "transformers hidden: a PSNR of 20.0, 0 modules, 0.15 CPU seconds"
# What to do: put a module that has every name in the place of transformers while torchmetrics is imported, and take it
# away after; metrics of images do not notice.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet torch==2.13.0 &&
  "$folder/env/bin/pip" install --quiet torchmetrics==1.9.0 transformers==5.24.0 numpy==2.3.5 ||
  { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import sys
import time
import types

import torch


class Anything(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


if sys.argv[1] == "hidden":
    sys.modules["transformers"] = Anything("transformers")
begun = time.process_time()
from torchmetrics.functional.image import peak_signal_noise_ratio

seconds = time.process_time() - begun
if sys.argv[1] == "hidden":
    del sys.modules["transformers"]
value = float(peak_signal_noise_ratio(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.1), data_range=1.0))
print(sum(name.split(".")[0] == "transformers" for name in sys.modules), round(value, 3), round(seconds, 2))
PYTHON

read -r modules value seconds < <("$folder/env/bin/python" "$folder/check.py" shown)
read -r none same fewer < <("$folder/env/bin/python" "$folder/check.py" hidden)
echo "a PSNR of $value: $modules modules of transformers, $seconds CPU seconds to import torchmetrics"
echo "transformers hidden: a PSNR of $same, $none modules, $fewer CPU seconds"
[ "$modules" -gt 10 ] && [ "$none" = 0 ] && [ "$value" = "$same" ] || { echo "CHANGED"; exit 1; }
echo "as described"
