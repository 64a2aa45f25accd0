"""`ldm sample`: images from a model: a folder, an artifact, a run, or `models:/NAME@ALIAS`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from jobs.cli import main
from jobs.common import PATH, PLACE

SAMPLERS = ["euler", "heun", "ddim", "dpmpp_2m", "ddpm", "euler_ancestral", "dpmpp_sde", "few"]
GRIDS = ["auto", "uniform", "cosine", "karras", "shifted", "few"]


@click.command("sample")
@click.argument("model", type=PLACE)
@click.option("--out", required=True, type=PATH, help="Folder for the images.")
@click.option("--add", is_flag=True, help="Add to the images in --out: numbered on from there, none overwritten.")
@click.option(
    "-n",
    "--count",
    default=None,
    type=click.IntRange(1, 1_000_000),
    help="Number of images; default: 16, or as many as prompts.",
)
@click.option("--classes", default=None, help="Classes by name or number, separated by commas, in turn; default: all.")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help="A caption, or several, in turn; `a hat AND a coat`: both at once, each a guidance term.",
)
@click.option("--prompts", "file", default=None, type=PLACE, help="A file of captions, one a line.")
@click.option("--negative", default=None, help="A caption that guidance leads away from.")
@click.option("--set", "values", multiple=True, help="NAME=VALUE, an attribute, such as age=0.7.")
@click.option(
    "--map", "maps", multiple=True, help="NAME=FILE, a picture over the latents; a folder, or several: in turn."
)
@click.option(
    "--scale", "scales", multiple=True, help="NAME=NUMBER, a guidance scale of one condition, such as caption=4."
)
@click.option("--sampler", default=None, type=click.Choice(SAMPLERS), help="Default: the model's.")
@click.option("--steps", default=None, type=click.IntRange(1), help="Steps of the sampler; default: the model's.")
@click.option("--guidance", default=None, type=click.FloatRange(0), help="Guidance scale; default: the model's.")
@click.option("--grid", default=None, type=click.Choice(GRIDS), help="Where the steps lie; default: the model's.")
@click.option("--shift", default=None, type=float, help="With `--grid shifted`: how many times the noise.")
@click.option(
    "--guidance-kind",
    default=None,
    type=click.Choice(["classifier_free", "autoguidance"]),
    help="Default: the model's.",
)
@click.option("--guidance-weak", default=None, help="With autoguidance: live, or a half-life that was kept.")
@click.option("--guidance-interval", default=None, type=(float, float), help="Noise levels, LOW HIGH, with guidance.")
@click.option("--guidance-rescale", default=None, type=click.FloatRange(0, 1), help="Default: the model's.")
@click.option(
    "--noise-left", default=None, type=click.FloatRange(0), help="Of text: level where the decoder takes over."
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed; the same seed, the same images."
)
@click.option("--batch-size", default=None, type=click.IntRange(1), help="Images at once; default: the model's.")
@click.option("--size", default=None, help="HEIGHTxWIDTH in pixels, of a model with buckets; default: its usual one.")
@click.option(
    "--weights",
    default=None,
    type=PLACE,
    help="Others of the denoiser: a file; of an artifact live, ema-N, length-0.1.",
)
@click.option("--root", default="runs", type=PATH, help="Where runs and MLflow's data base lie.")
def command(
    model: str, out: Path, add: bool, count: int | None, classes: str | None, prompts: tuple[str, ...],
    file: str | None, negative: str | None, values: tuple[str, ...], maps: tuple[str, ...], scales: tuple[str, ...],
    sampler: str | None, steps: int | None, guidance: float | None, seed: int, batch_size: int | None,
    size: str | None, weights: str | None, root: Path, **how: Any,
) -> None:  # fmt: skip
    """Generate images from MODEL (a model's or artifact's folder, a run's name, models:/NAME@ALIAS): PNG files (TIFF
    where its data are no 8-bit pictures), a grid, and a JSON file of what made them; of a model of text .txt files and
    samples.jsonl; of clips animated .webp files, and .mp4 where the extra `video` is; of sound .wav files."""
    from pipeline.data.buckets import parsed
    from pipeline.errors import many
    from pipeline.files import make_folder, sha256_file
    from pipeline.generate import clip_samples, sound_samples, text_samples
    from pipeline.generate.folder import load_pretrained
    from pipeline.generate.samples import earlier, sample_info, write_samples

    before = earlier(out, add)  # all that needs no model before it is loaded
    shape = parsed(size) if size else None
    told = asked(prompts, file, negative, values, maps, scales)
    listed = told["prompts"] or any(len(files) > 1 for files in told["maps"].values())
    count = count if count or listed else 16
    generator = load_pretrained(model, root=root, weights=weights)
    names = [name if name in generator.classes else name.strip() for name in classes.split(",")] if classes else None
    request = generator.request(names, count, seed, steps, sampler, guidance, batch_size, shape=shape, **told, **how)
    make_folder(out)
    if generator.tokenizer is not None:
        text_samples.check(out, before, generator)
        texts = generator.texts(request, before.next)
        text_samples.write_texts(out, texts, sample_info(generator, request), before)
        print(f"{len(texts)} text{'s' * (len(texts) != 1)} in {out}, all of them in {out / text_samples.ALL}")
        return
    if generator.clip is not None:
        clip_samples.check(out, before, generator)
        clips = generator.images(request, before.next)
        clip_samples.write_clips(out, clips, sample_info(generator, request), before, generator.clip["rate"])
        print(f"{len(clips)} clip{'s' * (len(clips) != 1)} in {out}, their frames in {out / 'grid.png'}")
        return
    if generator.sound is not None:
        sound_samples.check(out, before, generator)
        images = generator.images(request, before.next)
        sound_samples.write_sounds(out, images, sample_info(generator, request), before, generator)
        print(f"{many(len(images), 'sound')} in {out}, their spectrograms in {out / 'grid.png'}")
        return
    before.check(out, generator, request.get("shape") or generator.shapes[0])
    images = generator.images(request, before.next)
    files = {name: [{"file": f.name, "sha256": sha256_file(f)} for f in given] for name, given in told["maps"].items()}
    info = {**sample_info(generator, request), **({"maps": files} if files else {})}
    write_samples(out, images, info, before, generator.values)
    more = f" ({before.next:06d}.png and on)" if before.next else ""
    print(f"{many(len(images), 'image')} in {out}{more}, the grid in {out / 'grid.png'}")


def asked(
    prompts: Sequence[str], file: str | None, negative: str | None, values: Sequence[str], maps: Sequence[str],
    scales: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """What samples are told besides classes, as `Generator.request` takes it."""
    return {
        "prompts": [*prompts, *(prompts_of(file) if file else [])] or None,
        "negative": negative,
        "attributes": pairs("--set", values),
        "maps": maps_of(maps),
        "scales": {name: as_number("--scale", name, value) for name, value in pairs("--scale", scales).items()},
    }


def pairs(option: str, given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, each, as a mapping. UserError for what has no `=`, and for a name that comes twice."""
    from pipeline.errors import UserError

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"{option} {text}: expected NAME=VALUE")
        if name.strip() in found:
            raise UserError(f"{option} {text}: {name.strip()} is given twice")
        found[name.strip()] = value
    return found


def maps_of(given: Sequence[str]) -> dict[str, list[Path]]:
    """Of each NAME=FILE, or NAME=FOLDER, the pictures in turn, by name. UserError for what is not there."""
    from pipeline.data.transforms import FORMATS
    from pipeline.errors import UserError

    found: dict[str, list[Path]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        path = Path(value).expanduser()
        if not equals or not name.strip() or not value.strip():
            raise UserError(f"--map {text}: expected NAME=FILE")
        inside = sorted(f for f in path.iterdir() if f.suffix[1:].lower() in FORMATS) if path.is_dir() else [path]
        if not inside or not all(file.is_file() for file in inside):
            raise UserError(f"--map {text}: no picture is there; give a picture's path, or a folder of pictures")
        found.setdefault(name.strip(), []).extend(inside)
    return found


def as_number(option: str, name: str, value: str) -> float:
    """The number of NAME=NUMBER."""
    from pipeline.errors import UserError

    try:
        return float(value)
    except ValueError:
        raise UserError(f"{option} {name}={value}: expected a number") from None


def prompts_of(file: str) -> list[str]:
    """The captions of a file, one a line; empty lines are left out."""
    from pipeline.errors import UserError

    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {file}: cannot be read ({error}); give a text file in UTF-8") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"--prompts {file}: holds no caption; write one a line")
    return found


if __name__ == "__main__":
    main(command)
