"""Held-out images that are spoilt and restored by a trained model, beside filters and bicubic interpolation.

    python tests/benchmarks/restoration.py CONFIG --alexnet alex_shift_tolerant.pth [-n 16] [--first 0]
        [--only noise-50,jpeg-10] [--picture FILE.png] [KEY=VALUE]...

CONFIG: of a run that is trained. Each filter has the parameter that is best for the figure in its column, of the same
images, so that a row of it may hold three; Wiener's deconvolution likewise. Distance: LPIPS in its shift tolerant form
(Ghildyal and Liu 2022; PyPI stlpips-pytorch 0.0.2, weights/vST0.0), of an AlexNet of ImageNet. "autoencoder": the clean
images, encoded and decoded. Prints a table a degradation. The picture has a row a degradation: clean, spoilt, the
filter of the best distance, restored.
"""

from __future__ import annotations

import argparse
import functools
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402
from scipy import ndimage  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from models.perceptual import IMAGENET_SCALE, IMAGENET_SHIFT, FeatureDistance  # noqa: E402
from pipeline import config as configs  # noqa: E402
from pipeline.applications.restore import restore  # noqa: E402
from pipeline.artifacts import Store  # noqa: E402
from pipeline.cluster.inline import Inline  # noqa: E402
from pipeline.data import denoise, filters  # noqa: E402
from pipeline.data.pictures import Images, grid  # noqa: E402
from pipeline.data.split import load_split  # noqa: E402
from pipeline.evaluation.metrics import pixel  # noqa: E402
from pipeline.generate import load_pretrained  # noqa: E402
from pipeline.generate.generator import Generator  # noqa: E402
from pipeline.stages import graph, precision  # noqa: E402

Array = np.ndarray[Any, Any]
FILTERS = {
    "Gaussian": [f"gaussian:sigma={sigma}" for sigma in (0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5, 1.8, 2.2)],
    "median": [f"median:size={size}" for size in (3, 5, 7)],
    "wavelet": [
        "wavelet:threshold=universal",
        *(f"wavelet:wavelet={kind}" for kind in ("haar", "db2", "sym4")),
        *(f"wavelet:sigma={sigma}" for sigma in (3, 7, 15, 25, 40, 60)),
    ],
}
DEGRADATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "noise-25": ("denoise", {"noise": 25}),
    "noise-50": ("denoise", {"noise": 50}),
    "blur-1.5": ("deblur", {"blur": 1.5}),
    "blur-1.5-noise-5": ("deblur", {"blur": 1.5, "noise": 5}),
    "superres-2": ("superres", {"factor": 2}),
    "superres-4": ("superres", {"factor": 4}),
    "jpeg-10": ("jpeg", {"quality": 10}),
    "gray": ("colorize", {}),
}


def each(images: Images, change: Callable[[Image.Image], Any]) -> Images:
    """Each image through Pillow."""
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in images])


def spoilt(images: Images, task: str, given: dict[str, Any]) -> Images:
    """What is measured of images, 8 bits a channel."""
    height, width = images.shape[1:3]
    if task == "superres":
        size = (width // given["factor"], height // given["factor"])
        return each(images, lambda image: image.resize(size, Image.Resampling.BICUBIC))
    if task == "colorize":
        return each(images, lambda image: image.convert("L"))[..., None]
    if task == "jpeg":
        return each(images, lambda image: through_jpeg(image, given["quality"]))
    values = images.astype(np.float64)
    if task == "deblur":
        values = ndimage.gaussian_filter(values, (0, given["blur"], given["blur"], 0), mode="nearest")
    noise = np.random.Generator(np.random.Philox(0)).standard_normal(images.shape)
    noisy: Images = np.rint(values + given.get("noise", 0) * noise).clip(0, 255).astype(np.uint8)
    return noisy


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """An image as a JPEG file has it."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def baselines(y: Images, task: str, given: dict[str, Any]) -> Iterator[tuple[str, Images]]:
    """(method, images) for each parameter of each."""
    if task == "superres":
        size = (y.shape[2] * given["factor"], y.shape[1] * given["factor"])
        y = each(y, lambda image: image.resize(size, Image.Resampling.BICUBIC))
        yield "bicubic", y
    elif task == "colorize":
        yield "gray", y.repeat(3, axis=3)
        return
    else:
        yield "as given", y
    for name, texts in FILTERS.items():
        for text in texts:
            yield name, each(y, functools.partial(filters.apply, filters=(denoise.parse(text),)))
    if task == "deblur":
        for share in np.logspace(-5, -1, 9):
            yield "Wiener", wiener(y, given["blur"], share)


def wiener(y: Images, sigma: float, share: float) -> Images:
    """K / (K^2 + share) in cosine frequencies, K a Gaussian's: at its best where borders are mirrored."""
    from scipy.fft import dctn, idctn

    k = [np.exp(-0.5 * (sigma * np.pi * np.arange(side) / side) ** 2) for side in y.shape[1:3]]
    kernel = (k[0][:, None] * k[1])[None, :, :, None]
    found = idctn(dctn(y.astype(np.float64), axes=(1, 2)) * kernel / (kernel**2 + share), axes=(1, 2))
    restored: Images = np.rint(found).clip(0, 255).astype(np.uint8)
    return restored


def opened(config: Path, overrides: Sequence[str] = (), limit: int | None = None) -> tuple[Generator, Images, Array]:
    """The model of a run that is trained, the first held-out images, and the numbers of their classes."""
    values = precision.resolve(graph.absolute(configs.load(config, overrides)), Inline())  # type: ignore[arg-type]
    made = {s.stage: s.artifact for s in graph.plan(values, Store(values.run.root)) if s.artifact}
    images, labels = load_split(made["ingest"].path, "val", values, 0, limit)
    return load_pretrained(made["diffusion"].path), images, labels


def perceptual(path: Path) -> Callable[[Images, Images], Array]:
    """Distances [n] of two sets of images, image by image."""
    state = torch.load(path, map_location="cpu", weights_only=True)

    class Convolution(nn.Module):
        def __init__(self, name: str, padding: int) -> None:
            super().__init__()
            self.weight, self.bias, self.padding = state[f"net.{name}.weight"], state[f"net.{name}.bias"], padding

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, self.bias, padding=self.padding)

    class Halved(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.filters = state[f"net.{name}.filt"]

        def forward(self, x: Tensor) -> Tensor:
            x = F.pad(x, (2, 2, 2, 2), mode="reflect")
            return F.conv2d(x, self.filters, stride=2, groups=len(self.filters))

    stages = [
        nn.Sequential(Convolution("slice1.0", 2), Halved("slice1.1"), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(3, 1), Halved("slice2.4"), Convolution("slice2.5", 2), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(3, 1), Halved("slice3.8"), Convolution("slice3.9", 1), nn.ReLU()),
        nn.Sequential(Convolution("slice4.11", 1), nn.ReLU()),
        nn.Sequential(Convolution("slice5.13", 1), nn.ReLU()),
    ]
    heads = [state[f"lin{i}.model.1.weight"].flatten() for i in range(5)]
    network = FeatureDistance(stages, heads, IMAGENET_SHIFT, IMAGENET_SCALE)

    @torch.no_grad()
    def distance(images: Images, others: Images) -> Array:
        x, y = (torch.from_numpy(each.transpose(0, 3, 1, 2) / np.float32(127.5) - 1) for each in (images, others))
        return network(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)).numpy()  # type: ignore[no-any-return]

    return distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--alexnet", type=Path, required=True)
    parser.add_argument("-n", "--count", type=int, default=16)
    parser.add_argument("--first", type=int, default=0, help="Number of the first held-out image.")
    parser.add_argument("--only", default=",".join(DEGRADATIONS))
    parser.add_argument("--picture", type=Path)
    given, overrides = parser.parse_known_args()
    model, clean, _ = opened(given.config, overrides, given.first + given.count)
    clean = clean[given.first :]
    distance, shown = perceptual(given.alexnet), []

    def figures(images: Images) -> tuple[float, float, float]:
        return pixel.psnr(clean, images), pixel.ssim(clean, images), float(distance(clean, images).mean())

    ceiling = figures(model.decode(model.encode(clean)))
    for name in given.only.split(","):
        task, options = DEGRADATIONS[name]
        if task == "colorize" and (clean == clean[..., :1]).all(axis=(1, 2, 3)).any():
            print(f"\n{name}: left out, since some of these images are gray themselves")
            continue
        y = spoilt(clean, task, options)
        rows: dict[str, list[tuple[float, float, float]]] = {}
        best: tuple[float, Any] = (float("inf"), None)
        for method, images in baselines(y, task, options):
            rows.setdefault(method, []).append(figures(images))
            best = min(best, (rows[method][-1][2], images), key=lambda pair: pair[0])
        found = restore(model, y, task, **options)
        rows |= {"restored": [figures(found)], "autoencoder": [ceiling]}
        print(f"\n| {name}, {len(clean)} images | PSNR, dB | SSIM | distance |\n| --- | ---: | ---: | ---: |")
        for method, all_of_them in rows.items():
            psnr, ssim, far = zip(*all_of_them, strict=True)
            print(f"| {method} | {max(psnr):.2f} | {max(ssim):.3f} | {min(far):.3f} |", flush=True)
        seen = np.full_like(clean, 255)
        seen[:, : y.shape[1], : y.shape[2]] = y
        shown += [one for column in zip(clean[:4], seen, best[1], found, strict=False) for one in column]
    if given.picture:
        Image.fromarray(grid(np.stack(shown), columns=16)).save(given.picture)


if __name__ == "__main__":
    main()
