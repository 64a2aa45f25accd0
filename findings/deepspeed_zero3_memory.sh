#!/usr/bin/env bash
# deepspeed 0.19.8, ZeRO 3 with its defaults: a network of less than 1e9 parameters takes more memory in a step than at
# ZeRO 2. Each rank keeps a share of the weights, but those that a forward pass has gathered are not given back:
# `stage3_max_live_parameters` and `stage3_max_reuse_distance` are 1e9 elements, so all of them stay through the step,
# beside the shares. Seen, 34 million parameters (134 MB in fp32), AdamW, two ranks, at the highest on rank 0:
# "ZeRO 2: 541 MB, ZeRO 3: 713 MB, ZeRO 3 with both at 1e5: 646 MB"
# What to do: take ZeRO 2 for a network of some hundred million parameters; where only ZeRO 3 fits, set both.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet torch==2.13.0 &&
  "$folder/env/bin/pip" install --quiet setuptools wheel numpy==2.3.5 &&
  "$folder/env/bin/pip" install --quiet deepspeed==0.19.8 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import gc
import itertools
import os
import sys

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

rank = int(os.environ["RANK"])
torch.set_num_threads(1)
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 2), rank=rank, world_size=2)
import deepspeed

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # is compiled for a minute, and not used


def peak(stage, **more):
    """MB of tensors at the highest in the second step, counted by the profiler from before the network is made."""
    gc.collect()
    zero = {"stage": stage, "reduce_bucket_size": 2**20, **more}
    config = {"train_batch_size": 2, "zero_optimization": zero, "zero_allow_untested_optimizer": True}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        network = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(32)))
        optimizer = torch.optim.AdamW(network.parameters())
        engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=config)
        for step in range(2):
            with record_function(f"step {step}"):
                engine.backward(engine(torch.ones(1, 1024)).square().mean())
                engine.step()
    events = sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    begin = next(i for i, event in enumerate(events) if event.name() == "step 1")
    held = itertools.accumulate(event.nbytes() if event.name() == "[memory]" else 0 for event in events)
    return round(max(list(held)[begin:]) / 1e6)


two, three = peak(2), peak(3)
lower = peak(3, stage3_max_live_parameters=100_000, stage3_max_reuse_distance=100_000)
if rank == 0:
    print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__}: "
          f"ZeRO 2: {two} MB, ZeRO 3: {three} MB, ZeRO 3 with both at 1e5: {lower} MB")
    if not (three > 1.05 * two and lower < 0.95 * three):
        sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
run() { DS_ACCELERATOR=cpu RANK=$1 LOCAL_RANK=$1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29512 \
  GLOO_SOCKET_IFNAME=lo "$folder/env/bin/python" -W ignore "$folder/check.py" "$folder/store" 2> "$folder/$1.log"; }
run 1 & other=$!
run 0 || { tail -n 3 "$folder/0.log"; exit 1; }
wait "$other"
echo "as described"
