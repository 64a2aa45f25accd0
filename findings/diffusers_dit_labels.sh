#!/usr/bin/env bash
# diffusers 0.42.1: the names of classes that DiTPipeline is given are not saved. DiTPipeline(..., id2label={...}) knows
# them, by `labels` and `get_label_ids`; after save_pretrained and from_pretrained `labels` is empty and get_label_ids
# raises ValueError for every name. Nothing is said. The published DiT folders have names because `id2label` was written
# into their model_index.json by hand: put it there, and from_pretrained takes it (and logs that it expected other types).
# Seen: "made: {'cat': 0, 'dog': 1}; saved and loaded: {}; id2label put into model_index.json: {'cat': 0, 'dog': 1}".
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet torch==2.13.0 &&
  "$folder/env/bin/pip" install --quiet diffusers==0.42.1 numpy==2.3.5 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

NAMES = {0: "cat", 1: "dog"}
transformer = DiTTransformer2DModel(
    num_attention_heads=2, attention_head_dim=8, num_layers=1, in_channels=4, out_channels=4, sample_size=8,
    num_embeds_ada_norm=2,
)
vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, latent_channels=4)
made = DiTPipeline(transformer, vae, DDIMScheduler(), id2label=NAMES)
folder = Path(sys.argv[1])
made.save_pretrained(folder)
loaded = DiTPipeline.from_pretrained(folder)
index = json.loads((folder / "model_index.json").read_text())
(folder / "model_index.json").write_text(json.dumps({**index, "id2label": {str(k): v for k, v in NAMES.items()}}))
by_hand = DiTPipeline.from_pretrained(folder)
print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
print(f"made: {made.labels}; saved and loaded: {loaded.labels}; id2label put into model_index.json: {by_hand.labels}")
seen = made.labels == {"cat": 0, "dog": 1} and loaded.labels == {} and by_hand.labels == {"cat": 0, "dog": 1}
sys.exit(0 if seen and "id2label" not in index else 1)
PYTHON

"$folder/env/bin/python" "$folder/check.py" "$folder/pipeline" 2>&1 | grep -v Warning
[ "${PIPESTATUS[0]}" = 0 ] || { echo "CHANGED"; exit 1; }
echo "as described"
