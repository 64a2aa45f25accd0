"""Draws faces from attributes, with sentences: a data set of text to image whose right answer is known.

    python -m venv /tmp/drawing && /tmp/drawing/bin/pip install dicebear-core==10.7.0 dicebear-styles==10.6.0 \
        resvg-py==0.5.0 pillow
    /tmp/drawing/bin/python tests/benchmarks/drawn_faces.py FOLDER [--count 8000] [--size 64]
    OMP_NUM_THREADS=1 ldm run FOLDER/faces.yaml
    ldm agreement drawn-faces FOLDER/unseen.jsonl --train FOLDER/seen.jsonl --columns mouth,eyes,top,colour \
        --guidance 1,2 --root FOLDER/runs --out FOLDER/agreement

The config needs `minilm` (docs/guide/conditions.md), and an hour of two cores with bf16 (docs/guide/efficiency.md),
by 500 images/s.

Four attributes of "Avataaars" by Pablo Stanley (free for personal and commercial use), six values each; skin, eyebrows
and the kind of clothes vary beside them and are not said. Every fourth pair of a mouth and a top occurs in
`unseen.jsonl` only, which has nothing but these; `new.jsonl` has further faces of the kind of `seen.jsonl`. All three:
image, captions, and a column an attribute. The first caption, and two more, say all four attributes; two say one, two
or three of them, so that an attribute is learned by itself. A column `composed` says all four as two prompts, which
samples are told with `--caption composed`. A face is a function of its number.

`edits.jsonl` has pairs of faces that differ in one attribute: what `drawn_edits.py` measures edits with.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import random
from functools import lru_cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

VALUES: dict[str, dict[str, str]] = {  # attribute -> the style's name of a value -> ours
    "mouth": {"smile": "smiling", "sad": "sad", "screamOpen": "screaming", "serious": "serious",
              "tongue": "showing the tongue", "vomit": "sick"},
    "eyes": {"closed": "closed eyes", "hearts": "heart eyes", "surprised": "wide eyes", "xDizzy": "crossed eyes",
             "squint": "squinting eyes", "wink": "a wink"},
    "top": {"hat": "a hat", "turban": "a turban", "bigHair": "big hair", "shortFlat": "short hair",
            "hijab": "a hijab", "fro": "an afro"},
    "colour": {"#ff5c5c": "red", "#5199e4": "blue", "#262e33": "black", "#ffffff": "white", "#ffffb1": "yellow",
               "#a7ffc4": "green"},
}  # fmt: skip
SENTENCES = (
    "a {mouth} person with {eyes} and {top} in {colour} clothes",
    "someone {mouth} in {colour} with {top} and {eyes}",
    "{eyes}, {top}, {colour} clothes, {mouth}",
)
UNSEEN = {
    (mouth, top) for i, mouth in enumerate(VALUES["mouth"]) for j, top in enumerate(VALUES["top"]) if (i + j) % 4 == 0
}
EDITS = 400
FREE = {"skinColor": ["#614335", "#d08b5b", "#ae5d29", "#edb98a", "#ffdbb4"],
        "eyebrowsVariant": ["default", "defaultNatural", "flatNatural", "raisedExcited"],
        "clothesVariant": ["hoodie", "shirtCrewNeck", "shirtVNeck", "collarAndSweater"],
        "hairColor": ["#a55728", "#2c1b18", "#b58143", "#d6b370"]}  # fmt: skip

CONFIG = """\
run: {{name: drawn-faces, root: {folder}/runs}}
data:
  source: {{kind: table, path: {folder}/seen.jsonl, caption: caption}}
  size: {size}
  channels: 3
  shard_size: 512
  max_quarantine: 0.05   # of a few thousand faces some are the same
  split: {{by: key, val_fraction: 0.05}}
autoencoder:
  model: {{kind: kl, width: 16, multipliers: [1, 2, 4], blocks: 1, latent_channels: 4, groups: 8, attention: false}}
  loss: {{reconstruction: l1, kl_weight: 1e-4}}
  training: {{batch_size: 32, steps: 2200, learning_rate: 2e-3, warmup: 50, schedule: wsd, half_lives: [5000],
             save_every: 200, validate_every: 1100, preview_every: 1100}}
latents: {{views: [as_is]}}
diffusion:
  backbone: {{kind: dit, width: 128, depth: 6, heads: 4, patch: 2, tokens: cross}}
  condition: {{kind: none, drop: 0.1, caption: {{tokens: 32, drop: 0.0, encoder: {{kind: minilm}}}}}}
  training: {{batch_size: 128, steps: 9000, learning_rate: 1e-3, warmup: 100, schedule: wsd, half_lives: [25000],
             save_every: 250, validate_every: 750, preview_every: 750}}
evaluate: {{samples: 400, steps: 10, guidance: 2}}
cluster: {{workers: 2, threads: 1}}
"""


@lru_cache(maxsize=1)
def style() -> Any:
    from dicebear import Style

    return Style(json.loads(files("dicebear_styles").joinpath("avataaars.json").read_text()))


def chosen(number: int, unseen: bool) -> dict[str, str]:
    """Of each attribute the style's name of a value: of a face that is seen in training, or of one that is not."""
    draw = random.Random(f"{number}/{unseen}")
    while True:
        values = {name: draw.choice(list(names)) for name, names in VALUES.items()}
        if ((values["mouth"], values["top"]) in UNSEEN) == unseen:
            return values


def face(number: int, size: int, name: str, folder: Path) -> dict[str, Any]:
    """Draw one face; its row of the table `name`."""
    unseen = name == "unseen"
    values, draw = chosen(number, unseen), random.Random(f"{number}/{unseen}/free")
    path = f"{name}/{number:05d}.png"
    paint(number, values, draw, size, folder / path)
    words = {attribute: VALUES[attribute][value] for attribute, value in values.items()}
    composed = "{eyes}, {colour} clothes, {mouth} AND {top}".format(**words)
    return {"image": path, "caption": sentences(words, draw), "composed": composed, **words}


def edited(number: int, size: int, folder: Path) -> dict[str, Any]:
    """Draw a face, and the same one with another value of one attribute, both of kinds that are seen in training; their
    row of the table `edits`."""
    values, draw = chosen(number, False), random.Random(f"{number}/edit")
    attribute = draw.choice(list(VALUES))
    others = [{**values, attribute: value} for value in VALUES[attribute] if value != values[attribute]]
    after = draw.choice([other for other in others if (other["mouth"], other["top"]) not in UNSEEN])
    row: dict[str, Any] = {"changed": attribute}
    for name, own in (("image", values), ("target", after)):
        path = f"edits/{number:05d}-{name}.png"
        paint(number, own, random.Random(f"{number}/False/free"), size, folder / path)
        words = {attribute: VALUES[attribute][value] for attribute, value in own.items()}
        row |= {name: path, f"{name}_said": SENTENCES[0].format(**words)}
    return {**row, **words}


def paint(number: int, values: dict[str, str], draw: random.Random, size: int, path: Path) -> None:
    """Write a face of these values, and of others that are drawn."""
    import resvg_py
    from dicebear import Avatar
    from PIL import Image

    free = {name: [draw.choice(options)] for name, options in FREE.items()}
    own = {"mouthVariant": [values["mouth"]], "eyesVariant": [values["eyes"]], "topVariant": [values["top"]]}
    off = {"accessoriesProbability": 0, "facialHairProbability": 0, "hatColor": ["#929598"]}
    avatar = Avatar(style(), {"seed": str(number), "clothesColor": [values["colour"]], **own, **free, **off})
    png = resvg_py.svg_to_bytes(svg_string=str(avatar), width=4 * size, height=4 * size)
    drawn = Image.open(io.BytesIO(bytes(png)))
    paper = Image.new("RGBA", drawn.size, (205, 215, 225, 255))
    paper.alpha_composite(drawn.convert("RGBA"))
    paper.convert("RGB").resize((size, size), Image.Resampling.BOX).save(path)


def sentences(words: dict[str, str], draw: random.Random) -> list[str]:
    """What can be said of a face: all of it in three ways, parts of it in two."""
    whole = [sentence.format(**words) for sentence in draw.sample(SENTENCES, len(SENTENCES))]
    said = {**words, "colour": f"{words['colour']} clothes"}
    return whole + [
        ", ".join(said[name] for name in draw.sample(list(said), count)) for count in draw.sample((1, 2, 3), 2)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--size", type=int, default=64)
    given = parser.parse_args()
    seen, others = given.count, given.count // 8
    for name, numbers in {"seen": range(seen), "new": range(seen, seen + others), "unseen": range(others)}.items():
        (given.folder / name).mkdir(parents=True, exist_ok=True)
        with multiprocessing.Pool() as pool:
            draw = partial(face, size=given.size, name=name, folder=given.folder)
            rows = pool.map(draw, numbers, chunksize=32)
        (given.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (given.folder / "edits").mkdir(exist_ok=True)
    with multiprocessing.Pool() as pool:
        rows = pool.map(partial(edited, size=given.size, folder=given.folder), range(seen, seen + EDITS))
    (given.folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (given.folder / "faces.yaml").write_text(CONFIG.format(folder=given.folder.absolute(), size=given.size))


if __name__ == "__main__":
    main()
