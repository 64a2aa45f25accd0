#!/usr/bin/env bash
# ray 2.60.0: a TorchTrainer with one worker and no data sets starts six more Python processes beside that worker: its
# controller, the barrier of the ranks, one for data sets, the coordinator of an autoscaler, a watcher for preemption, and
# one that cleans up after a lost controller. With `include_dashboard=False` the dashboard's server runs all the same.
# Each of the six imports pandas first.
# Seen: the names below, and CPU time: controller 5.0 s, the others 1.8 to 2.4 s each, together 15.3 s beside the worker's
# own 4.3 s, at each `fit`.
# What to do: count them in where cores are few or runs are short; RAY_TRAIN_ENABLE_PREEMPTION_WATCHER=0 leaves out one.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet torch==2.13.0 &&
  "$folder/env/bin/pip" install --quiet numpy==2.3.5 'ray[train]==2.60.0' psutil || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import os
import sys
import time
from pathlib import Path

import psutil
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

folder = Path(sys.argv[1])


def work(config):
    time.sleep(10)  # as long as a short step of real work; what starts beside it is there by then
    lines = []
    for process in psutil.process_iter(["name", "cmdline", "cpu_times"]):
        words = " ".join(process.info["cmdline"] or [])
        if str(config["raylet"]) in [str(p.pid) for p in process.parents()] or "dashboard/dashboard.py" in words:
            times = process.info["cpu_times"]
            name = words.split("::")[1].split(".")[0].strip() if words.startswith("ray::") else "dashboard.py"
            lines.append(f"{name}: {times.user + times.system:.1f} s")
    Path(config["out"]).write_text("\n".join(sorted(lines)))


ray.init(include_dashboard=False, num_cpus=2, logging_level="ERROR", log_to_driver=False, _temp_dir=str(folder / "r"))
raylet = next(p.pid for p in psutil.Process().children() if p.name() == "raylet")
TorchTrainer(
    work, train_loop_config={"out": str(folder / "out"), "raylet": raylet},
    scaling_config=ScalingConfig(num_workers=1), run_config=RunConfig(storage_path=str(folder / "s")),
).fit()
found = (folder / "out").read_text()
print(f"ray {ray.__version__}, one worker:\n{found}")
helpers = {"TrainController", "SynchronizationActor", "DatasetManager", "PlacementGroupCleaner", "PreemptionWatcher"}
names = {line.split(":")[0] for line in found.splitlines()}
if not names >= helpers | {"_AutoscalingCoordinatorActor", "dashboard.py"}:
    sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
TMPDIR=/tmp "$folder/env/bin/python" -W ignore "$folder/check.py" "$folder" 2> "$folder/err" || { tail -1 "$folder/err"; exit 1; }
echo "as described"
