"""`ldm features`: what a trained denoiser has inside when it looks at an image, as features for other tasks.

The activation of an image at a noise level, behind a block: the posterior's mean is normalised and noised, the averaged
denoiser is told nothing, and its tokens behind that block are averaged, or kept as a map (Baranchuk et al. 2022,
"Label-Efficient Semantic Segmentation with Diffusion Models"; Xiang et al. 2023, "Denoising Diffusion Autoencoders are
Unified Self-supervised Learners"). The noise of an image is a function of the seed and of its key.

A pool `<root>/features/` holds what was computed, a file for each slice of the data and each noise level, named by what
it is made of, whole or not there: a killed call goes on, a further level costs that level. `OUT.npz`, written last:

    keys, labels [n]            text; labels are "" where there is none
    t0.30/block4 [n, D]         float16, at noise level 0.3 behind the fourth block; maps [n, D, h, w]
    latents [n, C, h, w]        float16, normalised; pixels uint8 [n, H, W, C]: what the model was shown
    column/NAME [n]             text, of the columns that were asked for
    split [n]                   train or val, where the data are those of a config
    about                       JSON: the model, and what was asked

No pickle. What features are good for is measured by `probe.py`.
"""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.diffusion.objectives import scaled
from models.diffusion.process import add_noise, make_path
from models.patches import grid_of
from pipeline.applications import given_data
from pipeline.applications.given_data import Sample
from pipeline.applications.made_images import written
from pipeline.data.array_files import mapped, save
from pipeline.data.arrays import open_npz, read_array
from pipeline.data.latent_pool import entry_path, is_whole
from pipeline.data.order import Draw, draw_batch
from pipeline.data.pictures import Images
from pipeline.errors import UserError
from pipeline.files import atomic_path, canonical_json, digest, write_json
from pipeline.generate.generator import Generator
from pipeline.tasks import inside

if TYPE_CHECKING:
    from pipeline.cluster.cluster import Cluster
    from pipeline.cluster.inline import Inline
    from pipeline.schema.data import Data

Array = np.ndarray[Any, np.dtype[Any]]
FORMAT = 1  # raise it when activations of the same model, images and options change
SLICE = {False: 1024, True: 128}  # images of a slice: of means, of maps
TOLD = "t{level:.2f}/block{block}"  # name of an array


@dataclass(frozen=True)
class Wanted:
    """Which activations. levels: shares of noise in [0, 1), rising. blocks: how many blocks lie before, rising, from 1.
    maps: kept place by place, not averaged. seed: of the noise. beside: latents and pixels as well."""

    levels: tuple[float, ...]
    blocks: tuple[int, ...]
    maps: bool = False
    seed: int = 0
    beside: bool = True

    @property
    def names(self) -> list[str]:
        return [TOLD.format(level=level, block=block) for level in self.levels for block in self.blocks]


# ---- activations -----------------------------------------------------------------------------------------------------


def check(model: Generator, wanted: Wanted) -> None:
    """UserError for a model that does not show its middle or knows no image that nothing is told of, and for levels and
    blocks that it has not."""
    backbone: Any = model.network.backbone
    if not inside.shown(backbone):
        kind = model.options["backbone"]["kind"]
        raise UserError(f"features: this model is a {kind}, which does not show what is behind its blocks; give a dit")
    condition = model.options["condition"]
    told = condition["kind"] == "class" or any(condition.get(key) for key in ("attributes", "caption", "spatial"))
    if told and not condition.get("drop"):
        raise UserError("features: this model knows no image of which nothing is told (`condition.drop` 0)")
    depth = len(backbone.blocks)
    if not wanted.blocks or not all(1 <= block <= depth for block in wanted.blocks):
        raise UserError(f"blocks: {_listed(wanted.blocks)} given, expected some of 1 to {depth}")
    if not wanted.levels or not all(0 <= level < 1 for level in wanted.levels):
        raise UserError(f"levels: {_listed(wanted.levels)} given, expected numbers from 0 to below 1")
    for what, values in (("levels", [f"{level:.2f}" for level in wanted.levels]), ("blocks", list(wanted.blocks))):
        if len(set(values)) < len(values):
            raise UserError(f"{what}: {_listed(getattr(wanted, what))}: two have one name; levels have two decimals")
    path = make_path(**model.options["path"])
    for level in wanted.levels:
        t = time_of(path, level)
        alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
        if abs(sigma / (alpha + sigma) - level) > 1e-3:
            raise UserError(f"levels: {level:g} is more noise than this model's path has")


def time_of(path: Any, level: float) -> torch.Tensor:
    """The time float64 [] at which the share of noise sigma / (alpha + sigma) is `level`: t on the straight path."""
    return path.at(torch.tensor(level / (1 - level), dtype=torch.float64))  # type: ignore[no-any-return]


def activations(model: Generator, images: Images, keys: Sequence[str], wanted: Wanted) -> dict[str, Array]:
    """By name, such as t0.30/block4, float16 [n, D], or maps [n, D, h, w], of images uint8 [n, H, W, C].

    keys: of each image, which its noise hangs on. Raises UserError for what the model has not (`check`).
    """
    check(model, wanted)
    return _behind(model, model.encode(images), keys, wanted)


def _behind(model: Generator, z: torch.Tensor, keys: Sequence[str], wanted: Wanted) -> dict[str, Array]:
    """`activations` of normalised latents [n, C, *sides]."""
    path, network = make_path(**model.options["path"]), model.network
    backbone: Any = network.backbone
    _, null = model.told(model.request(n=1, guidance=1.0), range(1))
    size: int = model.defaults["batch_size"]
    found: dict[str, list[Array]] = {name: [] for name in wanted.names}
    for begin in range(0, len(z), size):
        x0 = z[begin : begin + size].to(model.device)
        numbers = [_number(key) for key in keys[begin : begin + size]]
        spec = [Draw("noise", "normal", tuple(x0.shape[1:]))]
        noise = torch.from_numpy(draw_batch(wanted.seed, "features", numbers, spec)["noise"]).to(x0)
        nothing = {name: value.expand(len(x0), *value.shape[1:]) for name, value in null.items()}
        for level in wanted.levels:
            t = time_of(path, level).float().to(model.device).expand(len(x0))
            x = add_noise(path, x0, noise, t)
            with torch.no_grad():
                _, tokens = network(*scaled(x, t, path), nothing, depths=wanted.blocks, answer=False)
            for block, h in zip(wanted.blocks, tokens, strict=True):  # [n, T, D]
                name, h = TOLD.format(level=level, block=block), h.float()
                if wanted.maps:
                    grid = grid_of(x0.shape[2:], backbone.patch)
                    h = h.transpose(1, 2).reshape(len(x0), h.shape[2], *grid)  # [n, T, D] -> [n, D, *grid]
                else:
                    h = h.mean(1)
                found[name].append(_half(h, f"{name} of {keys[begin]}"))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _number(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big")


def _half(values: torch.Tensor, shown: str) -> Array:
    """Float16. UserError for what leaves its range."""
    half: Array = values.half().cpu().numpy()
    if not np.isfinite(half).all():
        raise UserError(f"{shown}: leaves the range of float16 (65,504); the weights are bad, or leave this block out")
    return half


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values) or "none"


# ---- of a data set, slice by slice -----------------------------------------------------------------------------------


def extract(
    model: Generator,
    data: Data,
    samples: Sequence[Sample],
    out: Path,
    wanted: Wanted,
    *,
    root: Path,
    columns: Sequence[str] = (),
    cluster: Cluster | Inline,
    source: tuple[str, str | None] | None = None,
) -> bool:
    """Write `out` (.npz) of all samples; False if it is there already. root: where the pool lies. source: name and
    `weights` that `load_pretrained` makes this model of on another worker; none: the work is done in this process.

    Raises UserError for what the model has not, a column that is not there, an image that cannot be used, and an `out`
    that holds something else.
    """
    check(model, wanted)
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: expected a name.npz")
    known = {f"column/{name}": _column(samples, name) for name in columns}
    content = {"options": model.options, "mean": model.space.mean.tolist(), "std": model.space.std.tolist()}
    made_of = digest([model.about.get("weights"), content])
    asked = {
        "format": FORMAT,
        "model": model.about,
        "model_content": made_of,
        "levels": list(wanted.levels),
        "blocks": list(wanted.blocks),
        "maps": wanted.maps,
        "seed": wanted.seed,
        "beside": wanted.beside,
        "columns": list(columns),
        "images": digest([[sample.key, sample.digest, sample.label, sample.split] for sample in samples]),
    }
    if written(out, asked, _about):
        return False
    shown = {"background": data.background, "filters": [f.model_dump() for f in data.filters], "shape": model.shapes[0]}
    size = SLICE[wanted.maps]
    slices = [samples[begin : begin + size] for begin in range(0, len(samples), size)]
    jobs = [_job(part, wanted, root, digest([FORMAT, made_of, shown]), wanted.seed) for part in slices]
    missing = [job for job in jobs if not all(is_whole(Path(path)) for path in _files(job))]
    here = {"model": model, "read": given_data.reader(data, model.channels, model.shapes[0])}
    setup = partial(_load, *source, str(root), data.model_dump(mode="json")) if source else lambda: here
    begun, images = time.monotonic(), 0
    for done, count in enumerate(cluster.map(compute, missing, setup=setup, gpus=1) if missing else (), 1):
        images += count
        rate = images / (time.monotonic() - begun)
        print(f"features: slice {done} of {len(missing)}, {rate:.0f} images/s", flush=True)
    text = {"keys": [s.key for s in samples], "labels": [s.label or "" for s in samples], **known}
    if any(sample.split for sample in samples):
        text["split"] = [sample.split for sample in samples]
    arrays = {name: np.array(values, np.str_) for name, values in text.items()}
    _join(out, {**arrays, "about": np.array(canonical_json(asked))}, jobs, wanted)
    return True


def _column(samples: Sequence[Sample], name: str) -> list[str]:
    """A column as text: of numbers and lists as JSON, "" for none."""
    if all(sample.columns.get(name) is None for sample in samples):
        there = ", ".join(dict.fromkeys(key for sample in samples[:100] for key in sample.columns)) or "none"
        raise UserError(f"--columns {name}: no image has it; there are: {there}")
    values = (sample.columns.get(name) for sample in samples)
    return ["" if v is None else v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]


def _job(part: Sequence[Sample], wanted: Wanted, root: Path, made_of: str, seed: int) -> dict[str, Any]:
    """A slice: its images, and its files of the pool, by level and of what goes beside."""
    of_slice = digest([made_of, [[sample.key, sample.digest] for sample in part]])

    def place(*what: Any) -> str:
        return str(root / "features" / f"{digest([of_slice, *what])[:32]}.safetensors")

    return {
        "images": [(sample.key, sample.place) for sample in part],
        "wanted": wanted,
        "levels": [(level, place("level", level, wanted.blocks, wanted.maps, seed)) for level in wanted.levels],
        "beside": place("beside") if wanted.beside else None,
    }


def _files(job: Mapping[str, Any]) -> list[str]:
    return [path for _, path in job["levels"]] + ([job["beside"]] if job["beside"] else [])


def _load(name: str, weights: str | None, root: str, data: dict[str, Any]) -> dict[str, Any]:
    """What an actor keeps: the model, and how images are read."""
    from pipeline.generate.folder import load_pretrained
    from pipeline.schema.data import Data

    torch.set_num_threads(1)
    model = load_pretrained(name, root=root, weights=weights)
    return {"model": model, "read": given_data.reader(Data.model_validate(data), model.channels, model.shapes[0])}


def compute(state: Mapping[str, Any], job: Mapping[str, Any]) -> int:
    """Write what the pool lacks of one slice; returns its number of images."""
    model, wanted = state["model"], job["wanted"]
    keys = [key for key, _ in job["images"]]
    images = np.stack([state["read"](key, place) for key, place in job["images"]])
    z = model.encode(images)
    made_by = model.about.get("lineage", {}).get("diffusion", {}).get("fingerprint", "")
    if job["beside"] and not is_whole(Path(job["beside"])):
        _keep(Path(job["beside"]), {"latents": _half(z, "latents"), "pixels": images}, made_by)
    for level, path in job["levels"]:
        if not is_whole(Path(path)):
            one = Wanted((level,), wanted.blocks, wanted.maps, wanted.seed)
            _keep(Path(path), _behind(model, z, keys, one), made_by)
    return len(keys)


def _keep(path: Path, arrays: Mapping[str, Array], made_by: str) -> None:
    """made_by: the diffusion artifact, by which `ldm gc` knows what is of no model any more."""
    save(path, arrays)
    write_json(entry_path(path), {"bytes": path.stat().st_size, "diffusion": made_by})


def _join(out: Path, arrays: Mapping[str, Array], jobs: Sequence[Mapping[str, Any]], wanted: Wanted) -> None:
    """Write the .npz: `arrays`, then those of the pool, slice behind slice, none of them in memory as a whole."""
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as file:
        for name, array in arrays.items():
            with file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        for number in range(len(_files(jobs[0]))):
            for name in mapped(Path(_files(jobs[0])[number])):
                parts = (mapped(Path(_files(job)[number]))[name] for job in jobs)
                count = sum(len(job["images"]) for job in jobs)
                _stream(file, name, count, parts)


def _stream(file: zipfile.ZipFile, name: str, count: int, parts: Any) -> None:
    """A member NAME.npy [count, ...] of its parts, one after the other."""
    with file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        for number, part in enumerate(parts):
            if number == 0:
                shape = (count, *part.shape[1:])
                header = {"descr": np.lib.format.dtype_to_descr(part.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_2_0(member, header)
            member.write(np.ascontiguousarray(part).data)


def asked_of(path: Path) -> dict[str, Any]:
    """What a file of features was made of, as `recorded.record` takes it: the model, and how. UserError."""
    about = dict(_about(path))
    return {"model": about.pop("model"), "how": about}


def _about(path: Path) -> Any:
    """What a file of features says of itself. UserError for no such file."""
    with open_npz(str(path)) as file:
        if "about" not in file:
            raise UserError(f"{path}: is no file of features; give a new file")
        try:
            return json.loads(str(read_array(file, "about", str(path))))
        except ValueError:
            raise UserError(f"{path}: does not say what it was made of; give a new file") from None
