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
    theirs = statistics(reference, extractor)
    ours = of_images(images, extractor)
    if ours.mean.shape != theirs.mean.shape:
        raise UserError(
            f"{reference}: statistics of {len(theirs.mean)} features, and the extractor gives {len(ours.mean)}; give "
            "the weights that they were made with"
        )
    if save is not None:
        with atomic_path(save) as temporary, open(temporary, "wb") as file:
            np.savez(file, mu=ours.mean, sigma=ours.covariance)
    try:
        value = frechet.of_statistics(ours.mean, ours.covariance, theirs.mean, theirs.covariance)
    except np.linalg.LinAlgError as error:
        raise UserError(f"{reference}: no distance can be computed ({error}); fetch it again") from None
    return {
        "distance": value,
        "images": ours.images,
        "reference_images": theirs.images,
        "features": len(ours.mean),
        "extractor": extractor.description,
    }


def statistics(reference: Path, extractor: Any) -> Statistics:
    """Those in a file, or, where it holds none, those of its images."""
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
    if not np.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6) or (np.diagonal(covariance) < 0).any():
        raise UserError(f"{reference}: sigma is no covariance: symmetric, with no negative variances; fetch it again")
    return Statistics(mean, covariance, None)


def of_images(source: Path, extractor: Any) -> Statistics:
    """Mean and covariance (over n - 1) of the features of all images in a folder, or in an .npz as `arr_0`."""
    batches = _of_npz(source) if source.suffix == ".npz" else _of_folder(source)
    features = np.concatenate([extractor(batch) for batch in batches])
    if len(features) < 2:
        raise UserError(f"{source}: {many(len(features), 'image')}, and a covariance needs at least two")
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
