#!/usr/bin/env bash
# deepspeed 0.19.8: `initialize` raises for a module that has a parameter without dimensions, as a learned temperature or
# a log scale often is: "RuntimeError: self.dim() cannot be 0 to view Float as Byte" (it broadcasts weights as bytes). The
# same module trains with torch alone.
# What to do: make it a parameter of one element, `torch.zeros(1)`.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet torch==2.13.0 &&
  "$folder/env/bin/pip" install --quiet setuptools wheel numpy==2.3.5 &&
  "$folder/env/bin/pip" install --quiet deepspeed==0.19.8 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 1), rank=0, world_size=1)
import deepspeed

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # is compiled for a minute, and not used


class Scaled(torch.nn.Linear):
    def __init__(self, *shape: int) -> None:
        super().__init__(3, 3)
        self.scale = torch.nn.Parameter(torch.zeros(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale.exp()


said = {}
for shape in ((), (1,)):
    network = Scaled(*shape)
    network(torch.ones(1, 3)).sum().backward()  # torch alone
    config = {"train_batch_size": 1, "zero_allow_untested_optimizer": True}
    try:
        optimizer = torch.optim.AdamW(network.parameters())
        deepspeed.initialize(model=network, optimizer=optimizer, config=config)
        said[shape] = "trains"
    except RuntimeError as error:
        said[shape] = str(error)
    print(f"deepspeed {deepspeed.__version__}, a parameter of shape {shape}: {said[shape]}")
if said[(1,)] != "trains" or "dim() cannot be 0" not in said[()]:
    sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29512 GLOO_SOCKET_IFNAME=lo \
  "$folder/env/bin/python" -W ignore "$folder/check.py" "$folder/store" 2> "$folder/log" ||
  { tail -n 3 "$folder/log"; exit 1; }
echo "as described"
