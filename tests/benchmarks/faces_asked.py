"""Faces asked for by expression and age, and what judges that nobody here trained make of them.

    python tests/benchmarks/faces_asked.py prepare FOLDER --faces FACES       # writes labels.csv, faces.yaml
    OMP_NUM_THREADS=1 ldm run FOLDER/faces.yaml
    python tests/benchmarks/faces_asked.py judge FOLDER --guidance 1,2,3      # prints the tables
    python tests/benchmarks/faces_asked.py edit FOLDER --guidance 1,2 --strength 0.5,0.6,0.7
    ldm features faces FOLDER/faces.yaml -n 1500 -o f.npz --levels 0.1 --root FOLDER/runs
    ldm probe f.npz --between neutral,happiness --out FOLDER/smile.safetensors --root FOLDER/runs
    python tests/benchmarks/faces_asked.py slide FOLDER --by 1,1.5,2

FACES: a folder with labels.csv of the columns image, expression, person (faces of 64 pixels). `prepare` adds a column
`age` by face-api's network, which thus teaches the age and is no judge of it; the split holds persons out. `judge`
draws 200 samples each of happiness and neutral, and of two ages, and shows beside them real held-out faces and these
after the autoencoder. `edit` says what inversion and sampling leave of latents, then makes happy held-out faces
neutral, and neutral ones happy, surprised and angry, and says how far that is from who they were; `slide` does the
first two along a direction in the latents. The judges are those of `face_judges.py`. Half an hour of two cores with
bf16.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import face_judges as judges
import numpy as np
import torch
import yaml
from PIL import Image
from restoration import opened as trained

from models.diffusion import denoiser, inversion, samplers
from models.diffusion.process import make_path
from pipeline.applications import directions
from pipeline.applications.edit import edit
from pipeline.generate import sampling
from pipeline.generate.generator import Generator

ASKED, AGES, COUNT = ("happiness", "neutral"), (30, 60), 200
BOTH, RARE = (ASKED, ASKED[::-1]), ("surprise", "anger")  # 368 and 252 faces of 7,125
CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "faces64_cpu.yaml"  # to which the age is added


def prepare(folder: Path, faces: Path) -> None:
    """Write the table with ages, and the config."""
    judges.fetch(folder / "judges")
    weights = judges.load(folder / "judges", "age_gender_model")
    rows = list(csv.DictReader((faces / "labels.csv").open()))
    for begin in range(0, len(rows), 64):
        some = rows[begin : begin + 64]
        pixels = np.stack([np.asarray(Image.open(faces / row["image"]).convert("RGB")) for row in some])
        for row, years in zip(some, judges.age(pixels, weights).tolist(), strict=True):
            row["image"], row["age"] = str((faces / row["image"]).absolute()), f"{years:.1f}"
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["image", "expression", "person", "age"])
        table.writeheader()
        table.writerows(rows)
    config = yaml.safe_load(CONFIG.read_text())
    config["run"] = {"name": "faces", "root": str(folder.absolute() / "runs")}
    config["data"]["source"]["path"] = str(folder.absolute() / "labels.csv")
    config["diffusion"]["condition"]["attributes"] = {"age": {"kind": "continuous", "range": [0, 100]}}
    (folder / "faces.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def opened(folder: Path) -> tuple[Generator, Any, Any, Callable[[Any, str], str]]:
    """The model, held-out faces with their classes, and what the judges say of some: shares that are what is wanted."""
    model, pixels, labels = trained(folder / "faces.yaml")
    weights = judges.load(folder / "judges", "face_expression_model")

    def says(faces: Any, wanted: str) -> str:
        a = [name == wanted for name in judges.expression_a(faces, weights)]
        b = [name == wanted for name in judges.expression_b(faces, folder / "judges")]
        return f"{np.mean(a):.1%} | {np.mean(b):.1%} | {np.mean([x and y for x, y in zip(a, b, strict=True)]):.1%}"

    return model, pixels, labels, says


def judge(folder: Path, scales: list[float]) -> None:
    """Print what the judges say of samples, of real held-out faces, and of these after the autoencoder."""
    model, pixels, labels, says = opened(folder)
    years_of = judges.load(folder / "judges", "age_gender_model")
    print("| faces | asked, or labelled | judge A | judge B | both |\n| --- | --- | ---: | ---: | ---: |")
    for name in ASKED:
        real = pixels[[i for i, label in enumerate(labels) if model.classes[label] == name][:COUNT]]
        print(f"| {len(real)} real, held out | {name} | {says(real, name)} |")
        print(f"| the same after the autoencoder | {name} | {says(model.decode(model.encode(real)), name)} |")
    for scale in scales:
        for name in ASKED:
            drawn = model.sample(classes=[name], n=COUNT, guidance=scale)
            print(f"| {COUNT} samples, guidance {scale:g} | {name} | {says(drawn, name)} |", flush=True)
    for years in AGES if "age" in (model.options["condition"].get("attributes") or {}) else ():
        drawn = model.sample(n=COUNT, attributes={"age": years}, guidance=scales[-1])
        found = judges.age(drawn, years_of)
        print(f"asked age {years}, guidance {scales[-1]:g}: by the teacher's own eye {found.mean():.1f} in the mean")


def change(
    folder: Path,
    ways: Callable[[Generator, Any, str, str], Iterator[tuple[str, Any]]],
    pairs: Sequence[tuple[str, str]],
) -> None:
    """Print what the judges say of held-out faces that were edited to another expression, beside real ones of that, and
    how far edits are from what they were by the network of identity. ways: what was done, and the edits, of (model,
    faces, was, to); pairs: of (was, to)."""
    model, pixels, labels, says = opened(folder)
    person = judges.load(folder / "judges", "face_recognition_model")
    for was, to in pairs:
        goal = pixels[[i for i, label in enumerate(labels) if model.classes[label] == to][:COUNT]]
        real = pixels[[i for i, label in enumerate(labels) if model.classes[label] == was][:COUNT]]
        print(f"\n| {len(real)} held-out faces, {was} | judge A: {to} | judge B | both | identity |\n"
              "| --- | ---: | ---: | ---: | ---: |")  # fmt: skip
        print(f"| {len(goal)} real, {to} | {says(goal, to)} | |\n| as they are | {says(real, to)} | 0 |")
        plain = model.decode(model.encode(real))
        print(f"| after the autoencoder | {says(plain, to)} | {judges.apart(real, plain, person).mean():.2f} |")
        for name, made in ways(model, real, was, to):
            print(f"| {name} | {says(made, to)} | {judges.apart(real, made, person).mean():.2f} |", flush=True)


def asked(scales: list[float], strengths: list[float]) -> Callable[..., Iterator[tuple[str, Any]]]:
    """Edits by what the model is told."""

    def ways(model: Generator, real: Any, was: str, to: str) -> Iterator[tuple[str, Any]]:
        for scale, strength in itertools.product(scales, strengths):
            made = edit(model, real, {"class": to}, {"class": was}, strength, steps=30, guidance=scale)
            yield f"guidance {scale:g}, strength {strength:g}", made

    return ways


def round_trip(folder: Path, steps: int = 50, count: int = 48) -> None:
    """Print what inversion and DDIM leave of held-out faces' latents, told their class: the error as a share of their
    deviation."""
    model, pixels, labels, _ = opened(folder)
    path = make_path(**model.options["path"])
    request = model.request([model.classes[label] for label in labels[:count]], count, steps=steps, guidance=1.0)
    told, z = model.told(request, range(count))[0][0], model.encode(pixels[:count])
    times = sampling.times_of(model.options, request, path, z.shape[2:])
    plain = denoiser.denoiser(model.network, path, model.options["prediction"])
    with torch.no_grad():
        for name, x in (
            ("exact", inversion.exact_inverse(plain, path, z, times, told)),
            ("plain", inversion.inverse(samplers.ddim, plain, path, z, times, told)),
        ):
            back = samplers.ddim(plain, path, x, times, told)
            print(f"{steps} steps there and back, {name}: {float((back - z).std() / z.std()):.3%} of the deviation")


def along(file: Path, amounts: list[float]) -> Callable[..., Iterator[tuple[str, Any]]]:
    """Edits along a direction from ASKED[1] to ASKED[0], and back."""

    def ways(model: Generator, real: Any, was: str, to: str) -> Iterator[tuple[str, Any]]:
        direction = directions.read(file, model)
        for far in amounts if to == ASKED[0] else [-far for far in amounts]:
            yield f"by {far:g}", edit(model, real, {}, along=np.float32(far) * direction, steps=30)

    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "judge", "edit", "slide"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faces", type=Path)
    parser.add_argument("--guidance", default="1,2,3")
    parser.add_argument("--strength", default="0.5,0.6,0.7")
    parser.add_argument("--by", default="1,1.5,2")
    given = parser.parse_args()
    numbers = (given.guidance, given.strength, given.by)
    scales, strengths, amounts = ([float(one) for one in text.split(",")] for text in numbers)
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.what == "prepare":
        prepare(given.folder, given.faces)
    elif given.what == "judge":
        judge(given.folder, scales)
    elif given.what == "edit":
        round_trip(given.folder)
        change(given.folder, asked(scales, strengths), [*BOTH, *((ASKED[1], to) for to in RARE)])
    else:
        change(given.folder, along(given.folder / "smile.safetensors", amounts), BOTH)


if __name__ == "__main__":
    main()
