#!/usr/bin/env bash
# deepspeed 0.19.8: an engine of ZeRO 3 puts a function of its own in place of `torch.nn.functional.linear`, for the
# whole process and for good. Networks that it never saw go through it too, and after the engine is gone: forward-mode
# derivatives (`torch.func.jvp`, as consistency models and MeanFlow take) raise for every network with a linear layer,
# and what counts a network's tensors or operations counts others than before. Seen, torch 2.13.0, for a Linear of its
# own beside the engine:
# "before: built-in, jvp of shape (2, 4); with the engine: replaced, NotImplementedError; without it again: replaced,
#  NotImplementedError"
# What to do: give `"zero_optimization": {"stage": 3, "memory_efficient_linear": false}` (then nothing is replaced, as
# the last line shows), or take such derivatives in another process, or by finite differences.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet torch==2.13.0 &&
  "$folder/env/bin/pip" install --quiet setuptools wheel numpy==2.3.5 &&
  "$folder/env/bin/pip" install --quiet deepspeed==0.19.8 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import gc
import sys

import torch
import torch.distributed as dist

dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 1), rank=0, world_size=1)
import deepspeed

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # is compiled for a minute, and not used
built_in, other, x = torch.nn.functional.linear, torch.nn.Linear(4, 4), torch.randn(2, 4)


def state():
    """Whether torch's linear is its own, and what a forward-mode derivative of `other` gives."""
    where = "built-in" if torch.nn.functional.linear is built_in else "replaced"
    try:
        return where, tuple(torch.func.jvp(other, (x,), (x,))[1].shape)
    except NotImplementedError as error:
        return where, type(error).__name__


def engine(**more):
    network = torch.nn.Sequential(torch.nn.Linear(4, 4))
    config = {"train_batch_size": 2, "zero_optimization": {"stage": 3, **more}, "zero_allow_untested_optimizer": True}
    return deepspeed.initialize(model=network, optimizer=torch.optim.AdamW(network.parameters()), config=config)[0]


print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__}")
if sys.argv[2] == "off":
    kept = engine(memory_efficient_linear=False)
    seen, expected = [state()], [("built-in", (2, 4))]
else:
    seen = [state()]
    kept = engine()
    seen.append(state())
    del kept
    gc.collect()
    seen.append(state())
    expected = [("built-in", (2, 4)), ("replaced", "NotImplementedError"), ("replaced", "NotImplementedError")]
print(sys.argv[2], seen)
if seen != expected:
    sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
for way in default off; do
  DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29513 GLOO_SOCKET_IFNAME=lo \
    "$folder/env/bin/python" -W ignore "$folder/check.py" "$folder/store-$way" $way 2> "$folder/log" ||
    { tail -n 3 "$folder/log"; exit 1; }
done
echo "as described"
