"""Does a model do what rows of a table say, such as combinations that its training never had: `ldm agreement`.

Judges are trained on another table of real images (`evaluation/judges.py`), the figures are those of the stage evaluate
(`evaluation/agreement.py`), at each guidance scale from the same noise.

    asked.json       first: what was asked (`made_images.py`)
    grid.png         the first rows, their real images and samples
    agreement.json   last: all figures; where it is there, nothing is made again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.applications import given_data, made_images
from pipeline.errors import UserError, many
from pipeline.evaluation import agreement
from pipeline.files import atomic_path, digest, read_json, write_json

if TYPE_CHECKING:
    from pipeline.data.pictures import Images
    from pipeline.generate.generator import Generator

FIGURES = "agreement.json"
SHOWN = 8  # rows in the picture
LEAST = 20  # images of either table
CELL, MARGIN, LINES = 120, 80, 4  # of the picture: pixels of an image at least, of the names before, lines of text


def measure(
    generator: Generator,
    data: Path,
    train: Path,
    out: Path,
    *,
    root: Path,
    columns: Sequence[str] = (),
    captions: bool = False,
    named: Mapping[str, str | None],
    count: int = 400,
    scales: Sequence[float] = (1.0,),
    judge_steps: int = 1500,
    flip: bool = False,
    seed: int = 0,
    **how: Any,
) -> dict[str, Any]:
    """Sample `count` rows of the table `data` at each guidance scale, judge them, write agreement.json and grid.png to
    `out`; returns what the JSON file holds. A call that was killed goes on with the judges that are trained.

    train: the table of real images that the judges are trained on. named: the columns `image`, `caption` and `label`
    of both tables, by these names; a caption is read where the model is told one, or is judged by it. how: as of
    `Generator.sample`. Raises UserError.
    """
    if not columns and not captions:
        raise UserError("agreement: nothing is judged; give --columns, or --captions")
    generator.pictures_only("`ldm agreement`")
    options = generator.options["condition"]
    label = named.get("label") or "class"
    shape = size_of(generator)
    told = {**named, "caption": named["caption"] if captions or options.get("caption") else None}
    real, metas, content = read(data, told, shape, root)
    rows = np.random.Generator(np.random.Philox(seed)).permutation(agreement.tellable(generator.classes, metas, label))
    if len(rows) < LEAST:
        raise UserError(
            f"{data}: {many(len(rows), 'row')} can be told to the model, {LEAST} at least; --label names its class"
        )
    chosen = [metas[i] for i in rows[:count]]
    taught, said, learnt = read(train, {**named, "caption": named["caption"] if captions else None}, shape, root)
    judged = agreement.columns_of(columns, said, options.get("attributes", {}), f"--columns, {train}")
    agreement.rows_of(judged, chosen, strict=f"--columns, {data}")  # before anything is trained
    requests = {
        f"{scale:g}": agreement.request_of(generator, chosen, label, seed, guidance=scale, **how) for scale in scales
    }
    for name, own in options.get("attributes", {}).items():
        if all(meta.get(own.get("column", name)) is None for meta in chosen):
            print(f"agreement: {data} has no {own.get('column', name)!r}: the model is not told it", flush=True)
    given = {key: value for key, value in how.items() if value is not None}
    asked = {
        "data": content,
        "train": learnt,
        "columns": list(columns),
        "captions": captions,
        "label": label,
        "count": count,
        "seed": seed,
        "guidance": list(scales),
        "judge_steps": judge_steps,
        "flip": flip,
        **given,
    }
    made_images.begin(out, generator, [], asked)
    if (out / FIGURES).is_file():
        return dict(read_json(out / FIGURES))
    reader = agreement.reader_of(generator)
    judges = agreement.train(
        taught, said, judged, captions, root / "extractors", judge_steps, seed, flip, f"--captions, {train}", reader
    )
    real = real[rows[:count]]
    decoded = generator.decode(generator.encode(real))
    found, shown = {}, {"real": real[:SHOWN], "real decoded": decoded[:SHOWN]}
    for scale, request in requests.items():
        samples = generator.images(request)
        found[scale] = agreement.measure(judges, samples, real, decoded, chosen)
        shown[f"guidance {scale}"] = samples[:SHOWN]
    values = {
        "model": generator.about,
        "data": str(data.absolute()),
        "train": str(train.absolute()),
        "columns": judged,
        "rows": len(chosen),
        "seed": seed,
        "sampling": given,
        "guidance": found,
    }
    with atomic_path(out / made_images.GRID) as temporary:
        picture(shown, [words(meta, judged) for meta in chosen[:SHOWN]]).save(temporary, format="PNG")
    write_json(out / FIGURES, values)
    return values


def size_of(generator: Generator) -> tuple[int, int, int]:
    """Height, width and channels of the model's images. UserError for one that makes no squares."""
    height, width = generator.shapes[0]
    if height != width:
        raise UserError(f"agreement: this model makes images of {height}x{width} pixels; only squares are judged")
    return height, width, generator.channels


def read(
    table: Path, named: Mapping[str, str | None], shape: tuple[int, int, int], root: Path
) -> tuple[Images, list[dict[str, Any]], str]:
    """Images uint8 [n, H, W, C] of a table, brought to the model's size as those of a data set are, the columns of
    each, and a digest of both; rows whose image is not there, or that a model made, are left out, and it is said.
    UserError for too few."""
    from pipeline.data.generated import marked
    from pipeline.data.sources import digests_folder_of
    from pipeline.schema.data import Data

    told = {name: column for name, column in named.items() if column is not None}
    data = Data.model_validate({"source": {"kind": "table", "path": str(table), **told}})
    found = given_data.listed(data, digests_folder_of(root), None, split=False)
    load, rows = given_data.reader(data, shape[2], shape[:2]), [row for row in found if not marked(row.columns)]
    if len(rows) < len(found):
        print(f"agreement: {table}: {many(len(found) - len(rows), 'image')} marked as generated: left out", flush=True)
    if len(rows) < LEAST:
        raise UserError(f"{table}: {many(len(rows), 'image')}, {LEAST} at least")
    images = np.stack([load(f"{table}: {row.key}", row.place) for row in rows])
    metas = []
    for row in rows:
        known = {"caption": row.caption, named.get("label") or "class": row.label}
        metas.append({**row.columns, **{k: v for k, v in known.items() if v is not None}, "__key__": row.key})
    return images, metas, digest([[row.digest, str(meta)] for row, meta in zip(rows, metas, strict=True)])


def figures(values: Mapping[str, Any]) -> dict[str, float]:
    """The figures by names as a tracker takes them, of each guidance scale."""
    return {
        f"guidance_{scale}/{name.removeprefix('agreement/')}": value
        for scale, found in values["guidance"].items()
        for name, value in agreement.key_figures(found).items()
    }


def words(meta: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    """What a row says, for under its images: its caption, else the columns that are judged."""
    return agreement.caption_of(meta) or ", ".join(
        f"{name}: {meta.get(own['column'])}" for name, own in columns.items()
    )


def picture(rows: Mapping[str, Images], texts: Sequence[str]) -> Any:
    """Images of a row beside each other, its name before them, under each column what was said: a Pillow image, RGB.

    rows: uint8 [n, H, W, C] each. Small images are enlarged by a whole factor.
    """
    import textwrap

    from PIL import Image, ImageDraw, ImageFont

    first = next(iter(rows.values()))
    factor = max(1, -(-CELL // first.shape[2]))
    height, width = first.shape[1] * factor, first.shape[2] * factor
    wrapped = ["\n".join(textwrap.wrap(text, width // 7, max_lines=LINES, placeholder=" ...")) for text in texts]
    sheet = Image.new("RGB", (MARGIN + (width + 4) * len(first), (height + 4) * len(rows) + 16 * LINES), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for y, (name, images) in enumerate(rows.items()):
        pen.multiline_text((4, y * (height + 4) + 4), name.replace(" ", "\n"), fill="black", font=font)
        for x, image in enumerate(images):
            cell = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).resize((width, height), 0)
            sheet.paste(cell, (MARGIN + x * (width + 4), y * (height + 4)))
    for x, text in enumerate(wrapped):
        pen.multiline_text(
            (MARGIN + x * (width + 4), (height + 4) * len(rows)), text, fill="black", font=font, spacing=2
        )
    return sheet


def table(values: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the figures: a row a guidance scale, two of real images, one of the best scale's samples
    against other rows. Best: most with all columns right, else of the first column, else of recall."""
    found: Mapping[str, Any] = values["guidance"]
    best = max(found, key=lambda scale: _ranked(found[scale]))
    first = found[best]
    columns, recalls = list(first.get("columns", {})), [k for k in first.get("captions", {}).get("samples", {})]
    header = ["", *columns, *(k.replace("_", " ") for k in recalls)]
    named = {f"guidance {scale}": (one, "samples") for scale, one in found.items()}
    named |= {"real images": (first, "real"), "through the autoencoder": (first, "decoded")}
    named |= {f"guidance {best}, other rows": (first, "shuffled")}
    if recalls:
        named["chance"] = (first, "chance")
    rows = []
    for name, (one, of) in named.items():
        cells = [_cell(one["columns"][column].get(of, {})) for column in columns]
        cells += [_plain(k, one["captions"][of].get(k)) for k in recalls]
        rows.append([name, *cells])
    return header, rows


def _ranked(one: Mapping[str, Any]) -> float:
    columns = one.get("columns", {})
    chosen = columns.get("all") or next((own for own in columns.values() if "right" in own["samples"]), None)
    if chosen:
        return float(chosen["samples"]["right"])
    recalls = one.get("captions", {}).get("samples", {})
    return float(recalls.get("recall_10", recalls.get("recall_1", 0.0)))


def _cell(figure: Mapping[str, Any]) -> str:
    if "right" in figure:
        return f"{figure['right']:.1%}"
    return f"{figure['error']:.3g} off" if "error" in figure else "-"


def _plain(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if name.startswith("recall") else f"{value:g}"
