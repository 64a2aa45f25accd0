#!/usr/bin/env bash
# ray 2.60.0: its random IDs (NodeID, WorkerID, ObjectRef, ... `.from_random()`) come from one source a process, which
# the first ID that is drawn seeds. A fork goes on with its parent's: all forks of a process that has drawn one draw the
# same. To decorate a class by @ray.remote draws one, and `import ray.train` decorates eleven; `import ray` draws none. So
# the processes of a pool of forks (multiprocessing's default on Linux before Python 3.14) whose parent has an actor class
# draw the same "random" IDs, that of the node which `ray.init()` starts among them.
# Seen: after `import ray` two forks draw two IDs; after one decorated class the two draw one and the same.
# What to do: start processes by spawn, or import what has actor classes after the fork.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet ray==2.60.0 ||
  { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import multiprocessing

import ray


def draw(_):
    return ray.NodeID.from_random().hex(), ray.ObjectRef.from_random().hex()


def of_two_forks():
    fork = multiprocessing.get_context("fork")
    drawn = []
    for _ in range(2):
        with fork.Pool(1) as pool:
            drawn += pool.map(draw, [0])
    return drawn


print("ray", ray.__version__)
before = of_two_forks()
ray.remote(type("Counter", (), {}))
after = of_two_forks()
for name, (one, other) in (("import ray", before), ("an actor class", after)):
    print(f"{name}: {one[0][:12]} {one[1][:12]} and {other[0][:12]} {other[1][:12]}")
raise SystemExit(not (before[0] != before[1] and after[0] == after[1]))
PYTHON
"$folder/env/bin/python" "$folder/check.py" ||
  { echo "the behaviour has changed: not what the head of this script says"; exit 1; }
echo "as described"
