#!/usr/bin/env bash
# deepspeed 0.19.8: `import deepspeed` imports mlflow where it is installed, for its autotuner, also where nobody tunes or
# logs. Every rank of every training pays for that. Seen: mlflow 3.17.2 is in sys.modules after the import, which took
# 3.6 s and 146 MB; with sys.modules["mlflow"] = None before it, 1.0 s and 23 MB, and deepspeed goes on without.
# What to do: the latter, in processes that train and do not log.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet torch==2.13.0 &&
  "$folder/env/bin/pip" install --quiet setuptools wheel numpy==2.3.5 &&
  "$folder/env/bin/pip" install --quiet mlflow==3.17.2 deepspeed==0.19.8 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import sys
import time
from importlib.metadata import version

blocked = sys.argv[1] == "blocked"
if blocked:
    sys.modules["mlflow"] = None
import psutil
import torch

begun, before = time.monotonic(), psutil.Process().memory_info().rss
import deepspeed

taken, memory = time.monotonic() - begun, psutil.Process().memory_info().rss - before
there = sys.modules.get("mlflow") is not None
print(
    f"deepspeed {deepspeed.__version__}, mlflow {version('mlflow')} {sys.argv[1]}: imported mlflow: {there}, "
    f"{taken:.1f} s, {memory / 1e6:.0f} MB"
)
if there == blocked or not callable(deepspeed.initialize):
    sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
for kind in installed blocked; do
  DS_ACCELERATOR=cpu "$folder/env/bin/python" -W ignore "$folder/check.py" "$kind" || exit 1
done
echo "as described"
