#!/usr/bin/env bash
# pandas 3.1.1 with pyarrow 25.0.1, Linux: `import pandas` imports pyarrow where that is installed, whose allocator starts
# a thread of its own at once. A process that imports libraries first and forks workers afterwards is no single-threaded
# one any more: Python counts its own threads only (`threading.active_count()` is 1), Python 3.12 and newer warn at each
# fork, and a check that a fork is safe has to look at /proc/self/task.
# Seen: 1 thread before the import, 2 after it: python, jemalloc_bg_thd.
# What to do: set JE_ARROW_MALLOC_CONF=background_thread:false before the first import; 1 thread after it.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet numpy==2.4.6 pandas==3.1.1 \
  pyarrow==25.0.1 || { echo "cannot install"; exit 2; }
[ -d /proc/self/task ] || { echo "Linux only"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import threading
from pathlib import Path


def names():
    return sorted((task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir())


before = names()
import numpy  # noqa: E402

numbers = names()
import pandas  # noqa: E402

after = names()
print(f"numpy {numpy.__version__}, pandas {pandas.__version__}")
print(f"before: {before}\nafter numpy: {numbers}\nafter pandas: {after}, of Python's: {threading.active_count()}")
raise SystemExit(len(after) - len(numbers))
PYTHON
export OPENBLAS_NUM_THREADS=1 # numpy starts as many as there are cores
"$folder/env/bin/python" "$folder/check.py"
[ $? = 1 ] || { echo "the behaviour has changed: not what the head of this script says"; exit 1; }
JE_ARROW_MALLOC_CONF=background_thread:false "$folder/env/bin/python" "$folder/check.py" > "$folder/out" ||
  { echo "the behaviour has changed: the variable does not help"; exit 1; }
tail -1 "$folder/out"
echo "as described"
