"""An adapter and its base: found by content, summed up to whole weights. Neither needs peft.

    adapter_config.json  adapter_model.safetensors    in a model's folder, in adapter/ of an artifact: as peft has them

An adapter's options hold `adapter`: base (SHA-256 of the file of weights that was adapted), scale (alpha / rank) and,
where they are known, places: where that file was. The sum is in `models/lora.py`, training in `training/lora.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Artifact
from pipeline.errors import UserError
from pipeline.files import read_json, sha256_file, write_json
from pipeline.networks import load_weights, read_weights, save_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

FOLDER, CONFIG, FILE = "adapter", "adapter_config.json", "adapter_model.safetensors"
INSIDE = ("ema.safetensors", "denoiser.safetensors")  # whole weights of an artifact, of a model's folder
SHOWN = 12  # hex digits of a digest


def weights_file(
    source: str, root: str | Path, uri: str | None = None, inside: tuple[str, ...] = INSIDE
) -> Path | None:
    """The file of weights that is meant: a .safetensors file, or in a folder or a registered model (models:/NAME@ALIAS)
    the first of `inside`; None where there is none."""
    path = Path(source).absolute()
    if source.startswith("models:"):
        from pipeline.tracking.tracker import fetch_model

        path = fetch_model(source, root, uri)
    return next((file for file in (path, *(path / name for name in inside)) if file.is_file()), None)


def options_of(diffusion: Artifact) -> dict[str, Any]:
    """The options of a diffusion stage's network; of an adapter with the places where its base was."""
    options: dict[str, Any] = read_json(diffusion.path / "model.json")
    if "adapter" in options:
        options["adapter"]["places"] = diffusion.summary["base"]
    return options


def without_base(diffusion: Artifact) -> list[str]:
    """What is wrong with the base of an artifact that is an adapter: a line, or none."""
    adapter = options_of(diffusion).get("adapter")
    try:
        if adapter:
            find_base(adapter, diffusion.path.parents[2])
    except UserError as error:
        return [str(error)]
    return []


def find_base(adapter: Mapping[str, Any], root: str | Path, given: str | None = None) -> Path:
    """The file that was adapted: where it was, or wherever it lies under `root`; or `given` by a person, then no other.

    UserError, in which it is named by content, if it is gone, or other weights lie there.
    """
    wanted, places = adapter["base"], adapter.get("places", [])
    found, others = find(wanted, [given] if given else places, root, search=not given)
    if found:
        return found
    was = f"which was {' or '.join(places)}" if places else "whose place is not known"
    base = f"the base of this adapter, weights of content {wanted[:SHOWN]}, {was}"
    if others:
        raise UserError(f"{others[0]}: not {base}; bring that back, or give it to `ldm merge --base`")
    where = f"no such file: {given}" if given else f"no artifact under {root} holds it"
    raise UserError(f"{base}: gone, and {where}; bring it back, or give it to `ldm merge --base`")


def find(wanted: str, places: Sequence[str], root: str | Path, search: bool = True) -> tuple[Path | None, list[Path]]:
    """(the file of weights whose SHA-256 is `wanted`, what lies in its place): in `places`, or (search) in artifacts
    under `root`; in a registry (models:/NAME@ALIAS) last, since that may be far."""
    local = [place for place in places if not place.startswith("models:")]
    there = [place for place in places if place.startswith("models:")]
    others: list[Path] = []
    for place in itertools.chain(local, _holding(wanted, Path(root)) if search else (), there):
        try:
            file = weights_file(place, root)
        except UserError:  # a registry that is not to be had here
            continue
        if file and sha256_file(file) == wanted:
            return file, others
        others += [file] if file else []
    return None, others


def _holding(wanted: str, root: Path) -> Iterator[str]:
    """Files of that content, by the manifests of all artifacts under `root`."""
    for pattern in ("artifacts", "set-aside"):
        for path in sorted(root.glob(f"{pattern}/*/*/manifest.json")):
            for name, entry in read_json(path).get("files", {}).items():
                if entry["sha256"] == wanted:
                    yield str(path.parent / name)


def whole(network: nn.Module, file: Path, options: Mapping[str, Any], base: Path | None) -> dict[str, Tensor]:
    """The whole weights of a network whose own are in `file`: of an adapter (`adapter` in options), with its `base`."""
    from models.lora import merged

    own = read_weights(file)
    if base is None:
        return own
    try:
        return merged(read_weights(base), own, options["adapter"]["scale"], set(network.state_dict()))
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{file}: no adapter of {base} ({error})") from None


def load(network: nn.Module, file: Path, options: Mapping[str, Any], base: Path | None) -> None:
    """Put the weights of a model, or of an adapter and its base, into its network. UserError if they do not fit."""
    load_weights(network, file, whole(network, file, options, base))


def save(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write an adapter as peft reads it. weights: by names in training, or as peft has them."""
    from models.lora import in_files_of_peft

    save_weights(folder / FILE, {in_files_of_peft(name): value for name, value in weights.items()})
    write_json(folder / CONFIG, dict(config))
