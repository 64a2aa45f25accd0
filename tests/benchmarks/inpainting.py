"""Held-out images with a hole that a trained model fills, beside biharmonic inpainting and the mean colour.

    python tests/benchmarks/inpainting.py CONFIG --alexnet alex_shift_tolerant.pth [--judges FOLDER] [-n 24] [--first 0]
        [--steps 12] [--temperature 0.7] [--picture FILE.png] [KEY=VALUE]...

CONFIG: of a run that is trained. Two holes an image, seeded: a box of a quarter of its area somewhere, and strokes of a
brush that cover as much. The model draws four samples, told nothing of the image. Biharmonic: `inpaint_biharmonic` of
scikit-image (0.26; `pip install scikit-image`), which nothing else here needs. "mean colour": that of the known pixels.
"autoencoder": what it makes of the whole image, put into the hole. Distances are of the whole image to what it was: the
perceptual one of `restoration.py`, and with --judges that of identity (`face_judges.py`, which fetches them there; 64
pixel faces). PSNR is of the hole. Prints a table a hole: means over images, of four samples first, and 95% intervals of
the means; "less than biharmonic": of the differences. The picture has six images a hole: with the hole, biharmonic, two
samples, as it was.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from restoration import Array, opened, perceptual

from pipeline.applications.inpaint import inpaint
from pipeline.data.pictures import Images, grid
from pipeline.sweeps.report import interval

SAMPLES, SHOWN, AREA = 4, 6, 0.25


def box(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """A mask float32 [H, W] of 1 in a box of half the sides."""
    mask = np.zeros(shape, np.float32)
    top, left = (int(rng.integers(side - side // 2 + 1)) for side in shape)
    mask[top : top + shape[0] // 2, left : left + shape[1] // 2] = 1
    return mask


def strokes(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """A mask float32 [H, W] of 1 under strokes of a brush, each of some straight pieces, until they cover AREA."""
    picture, (height, width) = Image.new("L", shape[::-1]), shape
    while np.mean(np.asarray(picture) > 0) < AREA:
        at, angle = rng.uniform((0, 0), (width, height)), rng.uniform(0, 2 * np.pi)
        thick = rng.uniform(0.04, 0.1) * width
        for _ in range(int(rng.integers(2, 6))):
            angle += rng.uniform(-1.2, 1.2)
            to = at + rng.uniform(0.1, 0.3) * width * np.array([np.cos(angle), np.sin(angle)])
            ImageDraw.Draw(picture).line([*at, *to], fill=255, width=max(2, round(thick)))
            at = to
    return (np.asarray(picture) > 0).astype(np.float32)


HOLES: dict[str, Callable[[tuple[int, int], np.random.Generator], Array]] = {"box": box, "strokes": strokes}


def biharmonic(image: Images, mask: Array) -> Images:
    """scikit-image's answer, uint8 [H, W, C]."""
    from skimage.restoration import inpaint_biharmonic

    found = inpaint_biharmonic(image / 255.0, mask > 0, channel_axis=-1)
    answer: Images = np.rint(found.clip(0, 1) * 255).astype(np.uint8)
    return answer


def mean_colour(image: Images, mask: Array) -> Images:
    """The mean of the known pixels in the hole."""
    colour = np.rint(image[mask == 0].mean(0)).astype(np.uint8)
    return np.where(mask[:, :, None] == 1, colour, image)


def psnr_in(mask: Array, image: Images, found: Images) -> float:
    """PSNR in dB of the pixels that the mask marks."""
    error = (found.astype(np.float64) - image)[..., mask == 1, :]
    return float(10 * np.log10(255**2 / max(np.square(error).mean(), 1e-9)))


def said(values: Array, digits: int = 3) -> str:
    """The mean of values [n] and its interval."""
    low, high = interval(values.tolist())
    return f"{values.mean():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(
    name: str,
    clean: Images,
    masks: Array,
    sets: dict[str, list[Images]],
    columns: dict[str, Callable[[Images, Images], Array]],
) -> None:
    """Print a row for each way, whose images are some sets [n, H, W, C]."""

    def psnr(images: Images, others: Images) -> Array:
        return np.array([psnr_in(*each) for each in zip(masks, images, others, strict=True)])

    every = {**columns, "PSNR in the hole, dB": psnr}
    print(f"\n| {name}, {len(clean)} images | {' | '.join(every)} |\n| --- |" + " ---: |" * len(every))
    rows = {
        way: [np.mean([far(clean, one) for one in ones], 0) for far in every.values()] for way, ones in sets.items()
    }
    less = [a - b for a, b in zip(rows["biharmonic"], rows["the model"], strict=True)]
    for way, found in {**rows, "the model, less than biharmonic by": less}.items():
        cells = [said(one, 3 if key in columns else 2) for key, one in zip(every, found, strict=True)]
        print(f"| {way} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--alexnet", type=Path, required=True)
    parser.add_argument("--judges", type=Path)
    parser.add_argument("-n", "--count", type=int, default=24)
    parser.add_argument("--first", type=int, default=0, help="Number of the first held-out image.")
    parser.add_argument("--holes", default=",".join(HOLES))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--picture", type=Path)
    given, overrides = parser.parse_known_args()
    model, clean, _ = opened(given.config, overrides, given.first + given.count)
    clean, perceived, shown = clean[given.first :], perceptual(given.alexnet), []
    columns: dict[str, Callable[[Images, Images], Array]] = {"distance": perceived}
    if given.judges:
        import face_judges

        face_judges.fetch(given.judges)
        person = face_judges.load(given.judges, "face_recognition_model")
        columns["identity"] = lambda images, others: face_judges.apart(images, others, person)
    through = model.decode(model.encode(clean))
    for name in given.holes.split(","):
        masks = np.stack([
            HOLES[name](clean.shape[1:3], np.random.Generator(np.random.Philox([i, name == "box"])))
            for i in range(given.first, given.first + len(clean))
        ])  # fmt: skip
        pairs = list(zip(clean, masks, strict=True))
        begun = time.monotonic()
        drawn = np.stack([
            inpaint(model, image, mask, SAMPLES, seed=i, steps=given.steps, temperature=given.temperature)
            for i, (image, mask) in enumerate(pairs, given.first)
        ]).swapaxes(0, 1)  # [SAMPLES, n, H, W, C]  # fmt: skip
        seconds = (time.monotonic() - begun) / len(clean)
        sets = {
            "mean colour": [np.stack([mean_colour(*pair) for pair in pairs])],
            "biharmonic": [np.stack([biharmonic(*pair) for pair in pairs])],
            "the model": list(drawn),
            "autoencoder": [np.where(masks[..., None] == 1, through, clean)],
        }
        table(f"{name}, {masks.mean():.0%} of the area", clean, masks, sets, columns)
        where = np.broadcast_to(masks[..., None] == 1, clean.shape)
        same = all((one[~where] == clean[~where]).all() for one in drawn)
        apart = [np.abs(a[where].astype(int) - b[where]).mean() for a, b in itertools.combinations(drawn, 2)]
        least = min(len({one.tobytes() for one in drawn[:, i]}) for i in range(len(clean)))
        print(f"\nKnown pixels are {'equal' if same else 'NOT EQUAL'}. Samples of an image that differ: {least}, "
              f"by {np.mean(apart):.1f} gray levels in the hole. {seconds:.1f} s an image.", flush=True)  # fmt: skip
        holed = np.where(where, np.uint8(255), clean)
        rows = zip(holed, sets["biharmonic"][0], *drawn[:2], clean, strict=True)
        shown += [one for row in itertools.islice(rows, SHOWN) for one in row]
    if given.picture:
        Image.fromarray(grid(np.stack(shown), columns=15)).save(given.picture)


if __name__ == "__main__":
    main()
