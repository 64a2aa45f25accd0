#!/usr/bin/env bash
# diffusers 0.42.1: two schedulers walk other noise levels than were asked for, without an error.
# - FlowMatchEulerDiscreteScheduler.set_timesteps(n) spaces its levels between 1 and that of the first training step,
#   which the shift has already moved, and shifts them again. Seen with shift 3 and n = 4: 1, 0.8577, 0.6022, 0.0089, 0;
#   shifted once the levels 1, 0.667, 0.334, 0.001 are 1, 0.8573, 0.6007, 0.0030. And whatever the shift, the last
#   step goes from about 0 to 0: one evaluation of the network in n does nothing.
# - EDMEulerScheduler.set_timesteps(sigmas=...), "custom sigmas to use", takes them for places on its own grid, from 0
#   (the highest level) to 1 (the lowest). Seen for 80, 10, 1, 0.1: -2.6e14, -5.4e7, 0.002, 45.
# What to do: set_timesteps(sigmas=[1 - i / n for i in range(n)]) for FlowMatchEuler, which shifts these once; for
# EDMEuler sigmas=torch.linspace(0, 1, n), or n alone, with sigma_min, sigma_max and rho in its config.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet torch==2.13.0 &&
  "$folder/env/bin/pip" install --quiet diffusers==0.42.1 numpy==2.3.5 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import sys

import diffusers
import numpy as np
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

N, SHIFT = 4, 3.0


def shifted(levels: np.ndarray) -> np.ndarray:
    return SHIFT * levels / (1 + (SHIFT - 1) * levels)


def flow(shift: float = SHIFT, **asked) -> np.ndarray:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(**asked)
    return scheduler.sigmas.double().numpy()


print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
once = shifted(np.linspace(1, 0.001, N))
twice = shifted(np.linspace(1, shifted(np.float64(0.001)), N))
own, given = flow(num_inference_steps=N), flow(sigmas=[1 - i / N for i in range(N)])
plain = flow(1.0, num_inference_steps=N)
print("FlowMatchEuler, shift 3, 4 steps:", own.round(4), "shifted once:", once.round(4))
print("                with sigmas given:", given.round(4))
print("                shift 1, 4 steps:", plain.round(4))
asked = torch.tensor([80.0, 10.0, 1.0, 0.1])
scheduler = EDMEulerScheduler()
scheduler.set_timesteps(sigmas=asked)
print("EDMEuler asked for", asked.tolist(), "walks", scheduler.sigmas.tolist())
as_described = (
    np.allclose(own[:N], twice, rtol=1e-5) and not np.allclose(own[:N], once, rtol=1e-3)
    and np.allclose(given[:N], shifted(np.array([1, 0.75, 0.5, 0.25])), rtol=1e-5)
    and np.isclose(plain[N - 1], 0.001) and scheduler.sigmas[0] < 0 and abs(scheduler.sigmas[2] - 0.002) < 1e-4
)
if not as_described:
    sys.exit("the behaviour has changed: not what the head of this script says")
print("as described")
PYTHON
"$folder/env/bin/python" "$folder/check.py"
