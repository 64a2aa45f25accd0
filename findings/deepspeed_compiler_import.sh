#!/usr/bin/env bash
# deepspeed 0.19.8: `initialize` at ZeRO 1 to 3 imports its Muon optimizer, whatever optimizer is used, and that module
# decorates functions with torch.compile as it is imported, which brings in all of torch's compiler, inductor included.
# Each rank pays for it at each start, also where nothing is ever compiled.
# Seen: torch._inductor.compile_fx in sys.modules after the import of the module; 2.7 s of CPU time, against less than 0.1 s with
# deepspeed.runtime.compiler.compile replaced by a decorator that does nothing while it is imported.
# What to do: the latter, where Muon is not used.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet torch==2.13.0 &&
  "$folder/env/bin/pip" install --quiet setuptools wheel numpy==2.3.5 &&
  "$folder/env/bin/pip" install --quiet deepspeed==0.19.8 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import sys
import time

import torch
import deepspeed
from deepspeed.runtime import compiler

plain = sys.argv[1] == "plain"
if not plain:
    compiler.compile = lambda: lambda function: function
begun = time.process_time()
import deepspeed.runtime.zero.muon.muon_optimizer

taken, there = time.process_time() - begun, "torch._inductor.compile_fx" in sys.modules
print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__}, {sys.argv[1]}: inductor imported: {there}, {taken:.1f} s")
if there != plain:
    sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
for kind in plain replaced; do
  DS_ACCELERATOR=cpu "$folder/env/bin/python" -W ignore "$folder/check.py" "$kind" || exit 1
done
echo "as described"
