"""Fréchet distance of images to statistics in a file, as papers publish them: `ldm fd IMAGES REFERENCE`.

    mu [d], sigma [d, d]     mean and covariance of features: pytorch-fid's .npz, and those of ADM's evaluation
    arr_0 [n, H, W, 3]       uint8 images: the batches of samples that ADM's evaluation takes

Both may be in one file, as in ADM's references. Figures of a data set of our own are in `pipeline/evaluation/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.data.arrays import open_npz, read_array
from pipeline.errors import UserError, many
from pipeline.evaluation.metrics import frechet
from pipeline.files import atomic_path

Array = np.ndarray[Any, np.dtype[Any]]
BATCH = 64  # images whose features are made at once
LARGEST = 2**26  # pixels of an image


class Statistics(NamedTuple):
    """Of features float64. images: how many there were; None where the file does not say."""

    mean: Array  # [d]
    covariance: Array  # [d, d]
    images: int | None


def distance(images: Path, reference: Path, extractor: Any, save: Path | None = None) -> dict[str, Any]:
    """The distance of the images in a folder or .npz to a reference of either kind, or to another folder.

    extractor: of uint8 [n, H, W, 3] -> features [n, d]. save: where the images' own statistics are written. UserError
    for what is not there, is no statistics, or is of another width than the features.
    """
    if save is not None and (save.exists() or save.suffix != ".npz"):
        raise UserError(f"--save {save}: " + ("exists; give a new file" if save.exists() else "expected a name.npz"))
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)  # what cannot be is told before the hours of features
    theirs = statistics(reference, extractor)
    width = len(theirs.mean) if theirs.images else extractor(np.zeros((1, 32, 32, 3), np.uint8)).shape[1]
    if len(theirs.mean) != width:
        raise UserError(
            f"{reference}: statistics of {len(theirs.mean)} features, and the extractor gives {width}; give the "
            "weights that they were made with"
        )
    ours = of_images(images, extractor)
    if save is not None:
        with atomic_path(save) as temporary, open(temporary, "wb") as file:
            np.savez(file, mu=ours.mean, sigma=ours.covariance)
    with np.errstate(over="ignore"):
        value = frechet.of_statistics(ours.mean, ours.covariance, theirs.mean, theirs.covariance)
    if not np.isfinite(value):
        raise UserError(f"{reference}: no distance can be computed, its numbers are too large; fetch it again")
    return {
        "distance": value,
        "images": ours.images,
        "reference_images": theirs.images,
        "features": len(ours.mean),
        "extractor": extractor.description,
    }


def statistics(reference: Path, extractor: Any) -> Statistics:
    """Those in a file, or, where it holds none, those of its images."""
    _there(reference)
    if reference.suffix != ".npz":
        return of_images(reference, extractor)
    with open_npz(str(reference)) as file:
        if not {"mu", "sigma"} <= set(file):
            return of_images(reference, extractor)
        mean, covariance = (np.asarray(read_array(file, name, str(reference))) for name in ("mu", "sigma"))
    if (
        mean.ndim != 1
        or covariance.shape != (len(mean), len(mean))
        or {mean.dtype.kind, covariance.dtype.kind} != {"f"}
    ):
        raise UserError(
            f"{reference}: mu is {mean.dtype}{mean.shape}, sigma {covariance.dtype}{covariance.shape}; expected real "
            "numbers [d] and [d, d]"
        )
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{reference}: mu or sigma is not finite; fetch it again")
    symmetric = np.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6)
    variances = np.linalg.eigvalsh(covariance) if symmetric and len(mean) else np.zeros(1)  # rising
    if not symmetric or variances[0] < -1e-3 * max(variances[-1], 0):  # in float32 a little below 0
        raise UserError(f"{reference}: sigma is no covariance: symmetric, with no negative variances; fetch it again")
    return Statistics(mean, covariance, None)


def _there(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: does not exist; give a folder of images or an .npz")


def of_images(source: Path, extractor: Any) -> Statistics:
    """Mean and covariance (over n - 1) of the features of all images in a folder, or in an .npz as `arr_0`."""
    _there(source)
    batches = _of_npz(source) if source.suffix == ".npz" else _of_folder(source)
    features = np.concatenate([extractor(batch) for batch in batches])
    if len(features) < 2:
        raise UserError(f"{source}: {many(len(features), 'image')}, and a covariance needs at least two")
    if not np.isfinite(features).all():
        raise UserError(f"{source}: features are not finite; fetch the extractor's weights again")
    return Statistics(features.mean(0), np.cov(features, rowvar=False), len(features))


def _of_npz(path: Path) -> Iterator[Array]:
    with open_npz(str(path)) as file:
        if {"mu", "sigma"} <= set(file) and "arr_0" not in file:
            raise UserError(f"{path}: holds statistics, and images are wanted; give IMAGES first, then REFERENCE")
        if "arr_0" not in file:
            raise UserError(f"{path}: holds {', '.join(file) or 'nothing'}; expected mu and sigma, or images as arr_0")
        images = read_array(file, "arr_0", str(path))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise UserError(f"{path}: arr_0 is {images.dtype}{images.shape}; expected uint8 images [n, H, W, 3]")
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]


def _of_folder(folder: Path) -> Iterator[Array]:
    """Images of one size together, in order of name."""
    from pipeline.applications.score import listing
    from pipeline.data.transforms import BadImage, decode, to_array

    batch: list[Array] = []
    for name in listing(folder, [])[0]:
        try:
            image = to_array(decode((folder / name).read_bytes(), 3, (255, 255, 255), LARGEST)).transpose(1, 2, 0)
        except (OSError, BadImage) as error:
            raise UserError(f"{folder / name}: cannot be used ({error}); mend or remove it") from None
        if batch and (len(batch) == BATCH or batch[0].shape != image.shape):
            yield np.stack(batch)
            batch = []
        batch.append(image)
    yield np.stack(batch)
