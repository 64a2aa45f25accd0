#!/usr/bin/env bash
# torch 2.13.0, gloo: all_reduce, reduce and broadcast of a view with gaps in memory (x[:, ::2]) handle as many elements
# as the view has, but those that lie next to each other in memory. Seen, two ranks that hold x and x + 100, the view
# [[0, 2], [4, 6]] of x = [[0, 1, 2, 3], [4, 5, 6, 7]]: after all_reduce rank 0 has [[100, 104], [4, 6]], the right sum
# is [[100, 104], [108, 112]], and 1 and 3, which are not in the view, have become 102 and 106. No error, no warning.
# A transposed x.t() has no gaps, and is right where all ranks hold it alike; all_gather is right.
# What to do: reduce x.contiguous(), then copy back. (pytorch issue 192920 reports broadcast, reduce and scatter.)
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet torch==2.13.0 &&
  "$folder/env/bin/pip" install --quiet numpy==2.3.5 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

VIEWS = {  # name: (the view of x, whether the collectives treat it rightly)
    "x": (lambda x: x, True),
    "x.t()": (lambda x: x.t(), True),
    "x[:, ::2]": (lambda x: x[:, ::2], False),
    "x[:, 0]": (lambda x: x[:, 0], False),
}


def start(rank: int) -> torch.Tensor:
    return torch.arange(8.0).reshape(2, 4) + 100 * rank


def right(operation: str, view) -> torch.Tensor:
    """What the last rank that receives must hold."""
    return view(start(0)) if operation == "broadcast" else view(start(0)) + view(start(1))


def rank_main(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    changed = False
    for operation in ("all_reduce", "reduce", "broadcast"):
        for name, (view, expected) in VIEWS.items():
            x = start(rank)
            part = view(x)
            if operation == "all_reduce":
                dist.all_reduce(part)
            else:
                getattr(dist, operation)(part, 0)
            if rank == (1 if operation == "broadcast" else 0):
                seen = torch.equal(part, right(operation, view))
                print(f"{operation} of {name}: {part.tolist()}, {'right' if seen else 'wrong'}; x is {x.tolist()}")
                changed |= seen != expected
            dist.barrier()
    if changed:
        Path(folder, f"changed-{rank}").touch()
    dist.destroy_process_group()


if __name__ == "__main__":
    print(f"torch {torch.__version__}")
    mp.spawn(rank_main, (sys.argv[1],), 2)
    if list(Path(sys.argv[1]).glob("changed-*")):
        sys.exit("the behaviour has changed: not what the head of this script says")
    print("as described")
PYTHON
# a network interface of this machine: gloo looks the machine's own name up otherwise
GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-lo}" "$folder/env/bin/python" "$folder/check.py" "$folder"
