"""Edits whose right answer is known: one attribute of a drawn face changed by a sentence, beside the face drawn so.

    python tests/benchmarks/drawn_edits.py FOLDER [--guidance 2] [--strength 0.6,0.8] [--count 400]

FOLDER: as `drawn_faces.py` has written it, with the model trained on it. An edit is told what was true and what shall
be, each in a sentence. Judges, as of `ldm agreement`, say whether the attribute that was asked for is right, and the
three others as they were; PSNR is to the face drawn with the other value, beside that of the face left as it was (after
the autoencoder), which has most of the picture in common with it. 10 minutes a strength of one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.applications.agreement import read
from pipeline.applications.edit import edit
from pipeline.evaluation import agreement, judges
from pipeline.evaluation.metrics.pixel import psnr
from pipeline.generate.folder import load_pretrained

COLUMNS = ("colour", "eyes", "mouth", "top")
SHOWN = 8  # edits in the picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--strength", default="0.6,0.8")
    parser.add_argument("--method", default="inversion")
    parser.add_argument("--count", type=int, default=400)
    given = parser.parse_args()
    rows = [json.loads(line) for line in (given.folder / "edits.jsonl").read_text().splitlines()][: given.count]
    model = load_pretrained("drawn-faces", root=given.folder / "runs")
    taught, said, _ = read(given.folder / "seen.jsonl", {}, (*model.shapes[0], model.channels), given.folder / "runs")
    columns = agreement.columns_of(COLUMNS, said, {}, "seen.jsonl")
    pool = given.folder / "runs" / "extractors"
    judge = judges.of_columns(taught, agreement.rows_of(columns, said), columns, pool, 1500, 0, False)
    true = agreement.rows_of(columns, rows)

    def pixels(name: str) -> Any:
        return np.stack([np.asarray(Image.open(given.folder / row[name]).convert("RGB")) for row in rows])

    before, target = pixels("image"), pixels("target")
    plain = model.decode(model.encode(before))
    asked = {name: np.array([row["changed"] == name for row in rows]) for name in COLUMNS}

    def line(name: str, images: Any) -> None:
        far = "" if images is target else f"{psnr(target, images):.2f}"
        answers = judges.answers(judge, images)
        right = {column: answers[column].argmax(1) == true[column] for column in COLUMNS}
        changed = np.concatenate([right[column][asked[column]] for column in COLUMNS]).mean()
        kept = np.concatenate([right[column][~asked[column]] for column in COLUMNS]).mean()
        each = ", ".join(f"{column} {right[column][asked[column]].mean():.1%}" for column in COLUMNS)
        print(f"| {name} | {changed:.1%} | {kept:.1%} | {far} | {each} |", flush=True)

    print("| | asked right | others kept | PSNR to the answer, dB | by attribute |\n| --- | ---: | ---: | ---: | --- |")
    line("the right answer", target)
    line("the same, after the autoencoder", model.decode(model.encode(target)))
    line("left unedited, after the autoencoder", plain)
    shown = [before[:SHOWN], plain[:SHOWN]]
    for strength in map(float, given.strength.split(",")):
        made = []
        for begin in range(0, len(rows), 50):
            some = rows[begin : begin + 50]
            to, was = ([row[name] for row in some] for name in ("target_said", "image_said"))
            how = {"method": given.method, "first": begin, "guidance": given.guidance}
            made.append(edit(model, before[begin : begin + 50], {"caption": to}, {"caption": was}, strength, **how))
        images = np.concatenate(made)
        line(f"strength {strength:g}, guidance {given.guidance:g}", images)
        shown.append(images[:SHOWN])
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in (*shown, target[:SHOWN])])
    Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), 0).save(given.folder / "edits.png")
    print(f"rows: as it was, after the autoencoder, by strength, the right answer: {given.folder / 'edits.png'}")


if __name__ == "__main__":
    main()
