"""What `training.precision: auto` is where the ranks run: put into the config, so that it is in the fingerprint.

On a GPU what its kind can do. On a CPU bf16 where it multiplies that faster than fp32 (AMX, AVX512-BF16), else fp32:
measured once and kept in the root, so that what a root holds does not hang on which machine a later run is given.
What is done in a precision is decided in `pipeline/training/`.
"""

from __future__ import annotations

import errno
import os
import secrets
import statistics
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.files import read_json, write_json

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster

FILE = "precision.json"  # in the root: what `auto` is on a CPU, and why
FASTER = 1.5  # bf16 over fp32 from which on casts, norms and the optimizer, which stay in fp32, do not eat the gain
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # of file systems without hard links
SIDE, ROUNDS = 512, 5  # of the products that are measured


def resolve(config: Config, cluster: Cluster, keep: bool = False) -> Config:
    """The config with a precision in place of `auto`, as it is where the ranks will be: the machine that a cluster is
    driven from may have no GPU. keep: what is measured is kept in the root, which exists."""
    values = config.model_dump(by_alias=True)
    sections = {name: values[name]["training"] for name in ("autoencoder", "diffusion")}
    if all(section["precision"] != "auto" for section in sections.values()):
        return config
    root = Path(config.run.root)
    found = next(iter(cluster.map(best_precision, [str(root)], gpus=1)))
    if keep and "said" in found:
        found = _kept(root, found)
    kind = found["cpu"] if "cpu" in found else found["gpu"]
    for name, section in sections.items():
        if section["precision"] == "auto":  # an autoencoder's fp16 overflows: never
            section["precision"] = "fp32" if (name, kind) == ("autoencoder", "fp16") else kind
    return Config.model_validate(values)


def on_gpu(config: Config, cluster: Cluster) -> bool:
    """Whether the ranks will have GPUs."""
    return bool(next(iter(cluster.map(_has_gpu, [config.run.root], gpus=1))))


def _has_gpu(root: str) -> bool:
    import torch

    return torch.cuda.is_available()


def check_precision(config: Config, cluster: Cluster, to_do: Collection[str]) -> None:
    """Refuse fp16 without a GPU, which ranks would refuse: before the autoencoder is trained, not after. to_do: stages
    that are not finished."""
    if "diffusion" not in to_do or config.diffusion.training.precision != "fp16":
        return
    if not on_gpu(config, cluster):
        raise UserError("`diffusion.training.precision`: fp16 needs a GPU, and the ranks have none; set auto or fp32")


def best_precision(root: str) -> dict[str, str]:
    """What `auto` is on this machine: {"gpu": precision}, or {"cpu": precision}, with "said" where the root does not
    say yet. A root of before there was a choice goes on in fp32."""
    import torch

    from pipeline.training.arithmetic import resolve_precision

    if torch.cuda.is_available():
        return {"gpu": resolve_precision("auto", torch.device("cuda"))}
    file = Path(root, FILE)
    if file.exists():
        return _read(file)
    if any(any(Path(root, "artifacts", stage).glob("*")) for stage in ("autoencoder", "diffusion")):
        return {"cpu": "fp32", "said": "stages were trained here before there was a choice"}
    rates = cpu_rates()
    faster = "bf16" if rates["bf16"] >= FASTER * rates["fp32"] else "fp32"
    said = f"large products reach {rates['bf16']:.0f} GFLOP/s in bf16 and {rates['fp32']:.0f} in fp32 on this CPU"
    return {"cpu": faster, "said": said}


def _read(file: Path) -> dict[str, str]:
    """What a root says. UserError for what this file never wrote: another precision would be another training."""
    try:
        kept = read_json(file)
    except ValueError:
        kept = None
    if not isinstance(kept, dict) or kept.get("cpu") not in ("fp32", "bf16"):
        raise UserError(
            f'{file}: damaged; write {{"cpu": "fp32"}} or {{"cpu": "bf16"}} there, as the models of this root were '
            "trained (`ldm ls`), or set `training.precision` in the config"
        )
    return {"cpu": kept["cpu"]}


def cpu_rates() -> dict[str, float]:
    """GFLOP/s of large products in fp32 and bf16, by this process' threads: medians of rounds in turn."""
    import torch

    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    factors = {"fp32": torch.ones(SIDE, SIDE), "bf16": torch.ones(SIDE, SIDE, dtype=torch.bfloat16)}
    for _ in range(ROUNDS + 1):
        for precision, factor in factors.items():
            begun = time.perf_counter()
            factor @ factor
            seconds[precision].append(time.perf_counter() - begun)
    # the first of each makes its kernel
    return {name: round(2e-9 * SIDE**3 / statistics.median(every[1:]), 1) for name, every in seconds.items()}


def _kept(root: Path, found: dict[str, str]) -> dict[str, str]:
    """Keep what was found; what another process, on another machine, has kept before is what counts."""
    file = root / FILE
    mine = file.with_name(f"{FILE}.{secrets.token_hex(8)}.tmp")
    write_json(mine, found)
    try:
        os.link(mine, file)  # one of two processes makes it
    except FileExistsError:
        return _read(file)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            with open(file, "x") as made:
                made.write(mine.read_text())
        except FileExistsError:
            return _read(file)
    finally:
        mine.unlink(missing_ok=True)
    print(f"precision: {found['cpu']}: {found['said']}; kept in {file}", flush=True)
    return found
