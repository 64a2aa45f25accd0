"""An audit of a model that was overfitted on 300 images of CIFAR-10 on purpose, and of a sound one.

    OMP_NUM_THREADS=1 python tests/benchmarks/audit.py FOLDER --data CIFAR10 --root ROOT MODEL

CIFAR10: a folder of train-*.tar and val-*.tar. MODEL: a model of CIFAR-10 whose run lies under ROOT, such as that of
jobs/configs/cifar10_cpu.yaml; its autoencoder is taken for both. Prints what the gate says of the overfitted model, the
audits of both, and whether the sound one would pass the same gate. 8 minutes of two cores; typed again it goes on.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

from pipeline.applications.audit import audit
from pipeline.artifacts import Store
from pipeline.errors import UserError
from pipeline.evaluation import audit_report
from pipeline.files import atomic_path, atomic_write, read_json
from pipeline.generate import load_pretrained
from pipeline.past import lineage

SEED = 0
GATE = {"membership_auc": 0.6, "copies": 0.01}
CONFIG = """\
run: {{name: overfitted, root: {folder}/runs}}
data:
  source: {{kind: webdataset, path: {folder}/few-*.tar, val: {data}/val-*.tar, classes: {data}/classes.json}}
  size: 32
  channels: 3
  split: {{by: shards}}
autoencoder: {{from: {autoencoder}}}
diffusion:
  backbone: {{kind: dit, width: 192, depth: 6, heads: 4, patch: 2}}
  training: {{batch_size: 60, steps: {steps}, learning_rate: 1e-3, warmup: 50, schedule: wsd, half_lives: [3000],
             save_every: 250, validate_every: 500, preview_every: 500}}
evaluate: {{samples: {images}, steps: 20}}
register: {{gate: {{membership_auc: {auc}, copies: {copies}}}}}
cluster: {{workers: 2, threads: 1}}
"""


def few(data: Path, to: Path, count: int) -> None:
    """A tar of training samples that were drawn from all, unless it is there."""
    if to.exists():
        return
    samples: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {}
    for path in sorted(data.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file
                samples.setdefault(member.name.partition(".")[0], []).append((member, file.read()))
    keys = sorted(samples)
    chosen = np.random.Generator(np.random.Philox(SEED)).permutation(len(keys))[:count]
    with atomic_path(to) as temporary, tarfile.open(temporary, "w") as tar:
        for place in sorted(chosen):
            for member, content in samples[keys[place]]:
                tar.addfile(member, io.BytesIO(content))


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("folder", type=Path)
    given.add_argument("--data", type=Path, required=True)
    given.add_argument("--root", type=Path, required=True)
    given.add_argument("--images", type=int, default=300, help="That are trained on.")
    given.add_argument("--steps", type=int, default=2000, help="Of 60 images each.")
    given.add_argument("model")
    asked = given.parse_args()
    folder = asked.folder.absolute()
    few(asked.data, folder / "few-00000.tar", asked.images)
    model = load_pretrained(asked.model, root=asked.root)
    content = model.about["lineage"]["autoencoder"]["content"]
    autoencoder = next(a for a in lineage.everything(Store(asked.root)) if a.content == content)
    paths = {"folder": folder, "data": asked.data.absolute(), "autoencoder": autoencoder.path}
    gate = {"auc": GATE["membership_auc"], "copies": GATE["copies"]}
    atomic_write(folder / "overfitted.yaml", CONFIG.format(steps=asked.steps, images=asked.images, **paths, **gate))
    ran = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "run", str(folder / "overfitted.yaml")], stderr=subprocess.PIPE, text=True
    )
    print(f"overfitted on {asked.images} images: exit code {ran.returncode}, {ran.stderr.strip().splitlines()[-1:]}")
    for report in sorted(folder.glob("runs/artifacts/register/*/work/audit/report.json")):
        print("\n".join(audit_report.lines(read_json(report))))
    print(f"sound: {asked.model}")
    sound = audit(model, folder / "sound", asked.root, count=1000)
    print("\n".join(audit_report.lines(sound)))
    try:
        audit_report.refuse(sound, GATE, folder / "sound" / "report.md")
        print(f"it passes the gate {GATE}")
    except UserError as error:
        print(error)


if __name__ == "__main__":
    main()
