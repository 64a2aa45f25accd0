#!/usr/bin/env bash
# torch 2.13.0, an AMD processor with AVX512-BF16: F.scaled_dot_product_attention in bfloat16 is slower than in float32
# where gradients are wanted, though products of matrices in bfloat16 are four times as fast there. Its backward pass
# does not use the kernels that torch.matmul does. A DiT under torch.autocast(bfloat16) spends more than half of a step in
# it, and gains nothing over float32. Seen, 64 samples x 4 heads x 64 tokens x 32 channels, one thread, ms forward and
# backward:
# "products of 1024 x 1024: bfloat16 4.4 times as fast as float32"
# "attention: float32 9.0 ms, bfloat16 29.5 ms, bfloat16 by two products and a softmax 5.2 ms"
# What to do: on a CPU write attention in bfloat16 out as two products and a softmax; a DiT's step then takes 0.4 of that
# of float32.
# Ends with 2 on another kind of processor: Intel's has other kernels.
set -u
grep -q AuthenticAMD /proc/cpuinfo && grep -q avx512_bf16 /proc/cpuinfo ||
  { echo "no AMD processor with AVX512-BF16"; exit 2; }
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5 ||
  { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import statistics
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
base = [torch.randn(64, 64, 4, 32).transpose(1, 2) for _ in range(3)]
square = torch.randn(1024, 1024)


def written_out(q, k, v):
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).float().softmax(-1).to(v.dtype) @ v


def attention(function, dtype):
    given = [x.to(dtype).detach().requires_grad_() for x in base]
    upstream = torch.ones(64, 4, 64, 32, dtype=dtype)
    return lambda: function(*given).backward(upstream)


def product(dtype):
    factor = square.to(dtype)
    return lambda: factor @ factor


calls = {
    "product float32": product(torch.float32),
    "product bfloat16": product(torch.bfloat16),
    "float32": attention(F.scaled_dot_product_attention, torch.float32),
    "bfloat16": attention(F.scaled_dot_product_attention, torch.bfloat16),
    "written out": attention(written_out, torch.bfloat16),
}
seconds = {name: [] for name in calls}
for _ in range(20):
    for name, call in calls.items():
        begun = time.perf_counter()
        call()
        seconds[name].append(time.perf_counter() - begun)
ms = {name: 1000 * statistics.median(values[3:]) for name, values in seconds.items()}
faster = ms["product float32"] / ms["product bfloat16"]
print(f"products of 1024 x 1024: bfloat16 {faster:.1f} times as fast as float32")
print(
    f"attention: float32 {ms['float32']:.1f} ms, bfloat16 {ms['bfloat16']:.1f} ms, "
    f"bfloat16 by two products and a softmax {ms['written out']:.1f} ms"
)
same = torch.allclose(
    written_out(*(x.bfloat16() for x in base)).float(), F.scaled_dot_product_attention(*base), atol=0.05
)
raise SystemExit(0 if same and faster > 2 and ms["bfloat16"] > 1.5 * ms["float32"] > ms["written out"] else 1)
PYTHON

"$folder/env/bin/python" "$folder/check.py" || { echo "CHANGED"; exit 1; }
echo "as described"
