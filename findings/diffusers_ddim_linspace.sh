#!/usr/bin/env bash
# diffusers 0.42.1: DDIMScheduler with timestep_spacing="linspace" steps by 1000 // n, which is not the distance of its
# own timesteps. Seen with n = 4: timesteps 999, 666, 333, 0; the first step leaves the sample at the noise of timestep
# 749, and the network is asked about it as of 666; the last of these steps ends at 83 and is asked about as of 0. With
# 10 steps the last is 11 off, with 50 one. Images come out noisier than the model makes them; no error, no warning.
# "leading" (the default) and "trailing" are right.
# Shown without a network: where the noise is predicted as zero, a sample of x0 = 1 is sqrt(alphas_cumprod) of the
# timestep whose noise it has.
# What to do: timestep_spacing="trailing" or "leading" with DDIM. (diffusers issue 12633 reports it.)
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet torch==2.13.0 &&
  "$folder/env/bin/pip" install --quiet diffusers==0.42.1 numpy==2.3.5 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import sys

import diffusers
import torch
from diffusers import DDIMScheduler

EXPECTED = {("leading", 4): 0, ("trailing", 4): 0, ("linspace", 4): 83, ("linspace", 10): 11, ("linspace", 50): 1}


def walk(spacing: str, n: int) -> tuple[list[int], list[int]]:
    """(timesteps that the network is asked about, those whose noise the sample has then)."""
    scheduler = DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(n)
    level = scheduler.alphas_cumprod.double()
    asked, at = scheduler.timesteps.tolist(), [scheduler.timesteps[0].item()]
    for t in asked[:-1]:
        sample = level[t].sqrt().reshape(1)
        left = scheduler.step(torch.zeros(1, dtype=torch.float64), t, sample, eta=0.0).prev_sample
        at.append(int((level - left**2).abs().argmin()))
    return asked, at


print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
seen = {}
for spacing, n in EXPECTED:
    asked, at = walk(spacing, n)
    seen[spacing, n] = max(abs(a - b) for a, b in zip(asked, at, strict=True))
    shown = f"asked as of {asked}, has the noise of {at}" if n < 10 else f"worst {seen[spacing, n]} timesteps off"
    print(f"{spacing}, {n} steps: {shown}")
if seen != EXPECTED:
    sys.exit("the behaviour has changed: not what the head of this script says")
print("as described")
PYTHON
"$folder/env/bin/python" "$folder/check.py"
