"""A first config for text: whether a source is text, what its classes and documents are, sizes for the machine."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import parquet, rasters
from pipeline.data.folders import files_under, walk
from pipeline.data.held_out import held_out
from pipeline.data.listing import Listing
from pipeline.data.parquet_files import opened
from pipeline.data.text_files import list_text
from pipeline.data.text_tables import SUFFIXES, TextTable
from pipeline.errors import UserError, by_reason, many
from pipeline.planning import look_tables
from pipeline.planning.starter_data import yaml_text
from pipeline.schema.text import TextSource

if TYPE_CHECKING:
    from pipeline.planning.starter import Machine

TEXTS = (
    "text",
    "sentence",
    "content",
    "body",
    "paragraph",
    "article",
    "reply",
    "response",
)  # names of columns, the likeliest first
CLASSES = ("label", "class", "genre", "category", "topic", "language")
DOCUMENTS = ("document", "doc", "book", "title", "conversation", "source", "url", "file")
BEFORE = ("context", "before", "history", "turns", "prompt")  # what a text replies to
ROWS = 2000  # of a table, that are looked at
FEWEST = 100  # passages that are worth a config
HELD_OUT = 0.1
LENGTH = 64  # tokens of a passage


@dataclass(frozen=True)
class Text:
    """source: the config's `data.source`; listing: its passages."""

    source: dict[str, Any]
    listing: Listing


def look(given: str) -> Text | None:
    """The text at a path; None where it is none, or where images are there. UserError where it cannot be read."""
    path = Path(given).absolute()
    source = _of_folder(path) if path.is_dir() else _of_file(path)
    if source is None:
        return None
    return Text(source, list_text(TextSource(**source)))


def told(text: Text) -> list[str]:
    """What there is and what is left out, a line each."""
    listing = text.listing
    documents = len({row.together for row in listing.rows})
    lines = [
        f"{many(len(listing.rows), 'passage')} of text in {many(documents, 'document')}, "
        f"{many(len(listing.classes), 'class', 'classes')}"
    ]
    lines += [f"Not taken from the source: {listing.left_out}."] if listing.left_out else []
    if listing.bad:
        refused = len(listing.bad) > _bound(listing) * (len(listing.rows) + len(listing.bad))
        end = "ingest will refuse them: mend them, or raise `data.max_quarantine`" if refused else "quarantine"
        lines.append(f"{_unusable(listing)}: {end}.")
    return lines + listing.notes


def _bound(listing: Listing) -> float:
    """`data.max_quarantine`: above the share of empty texts, with which nothing is lost; where hardly any are, its
    default."""
    empty = sum(entry["reason"] == "empty" for entry in listing.bad) / max(1, len(listing.rows) + len(listing.bad))
    return 0.01 if empty <= 0.005 else min(0.99, math.ceil(150 * empty + 1) / 100)


def _unusable(listing: Listing) -> str:
    reasons = Counter(entry["reason"] for entry in listing.bad)
    return f"{many(len(listing.bad), 'text')} cannot be used ({by_reason(reasons)})"


def _of_folder(path: Path) -> dict[str, Any] | None:
    files, _ = files_under(path, lambda file: file.suffix.lower() == ".txt")
    if not files or walk(path).files or any(path.glob("*.tar")):  # captions lie beside images, too
        return None
    if files_under(path, lambda file: rasters.kind_of(file) is not None)[0]:  # and notes beside scans
        return None
    folders = Counter(file.parent for file in files)
    several = len(folders) > 1 and Path() not in folders and min(folders.values()) > 1
    return {"kind": "text", "path": str(path), **({"class_from": "folder"} if several else {})}


def _of_file(path: Path) -> dict[str, Any] | None:
    if path.suffix.lower() == ".txt" and path.is_file():
        return {"kind": "text", "path": str(path)}
    if not path.is_file() or path.suffix.lower() not in (*SUFFIXES, *parquet.SUFFIXES):
        return None
    if path.suffix.lower() in SUFFIXES:
        if look_tables.image_column(path):
            return None
        rows = [record for _, record in islice(TextTable(path).rows(), ROWS)]
    else:
        with opened(path) as table:
            rows = next(table.iter_batches(batch_size=ROWS)).to_pylist() if table.metadata.num_rows else []
    column = _named(rows, TEXTS)
    if column is None or _named(rows, ("image", "img")):
        return None
    if any(not isinstance(row.get(column), str | None) for row in rows):
        return None
    label, document = _named(rows, CLASSES), _named(rows, DOCUMENTS)
    if label:  # of all rows: they are often sorted by it
        every = (record for _, record in TextTable(path).rows()) if path.suffix.lower() in SUFFIXES else rows
        values = [record.get(label) for record in every]
        several = any(isinstance(value, list | dict) for value in values)  # a text has one class
        label = label if not several and 2 <= len(set(values)) <= max(2, len(values) // 10) else None
    if document and len({str(row.get(document)) for row in rows}) < 2 < len(rows) < ROWS:
        document = None
    before = _named(rows, BEFORE)
    if before and not all(isinstance(row.get(before), str | list | None) for row in rows):
        before = None
    found = {"column": column if column != "text" else None, "before": before, "label": label, "document": document}
    return {"kind": "text", "path": str(path), **{key: value for key, value in found.items() if value}}


def _named(rows: list[dict[str, Any]], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if rows and name in rows[0]), None)


def write_config(text: Text, machine: Machine, name: str, quick: bool) -> str:
    """YAML with reasons. UserError where there is too little text."""
    rows, gpu = text.listing.rows, machine.gpus > 0
    if len(rows) < FEWEST:
        least = f"at least {FEWEST} are needed, and a model worth having needs thousands"
        bad = f" (and {_unusable(text.listing)})" if text.listing.bad else ""
        raise UserError(f"{many(len(rows), 'passage')} of text{bad}: {least}")
    documents = {row.together or row.key for row in rows}
    val = sum(held_out(document, HELD_OUT) for document in documents)
    if not 0 < val < len(documents):
        raise UserError(
            f"{many(len(documents), 'document')} cannot be split into training and held-out ones; give more"
        )
    whole = sum(len(str(row.location).encode()) for row in rows)
    bpe = importlib.util.find_spec("tokenizers") is not None
    vocabulary = (4096 if whole > 1_000_000 else 1024) if bpe else 257
    tokens = f"tokens: {'bpe' if bpe else 'bytes'}, vocabulary: {vocabulary}"
    why = f"trained on the training passages, {whole / 1e6:.3g} MB" if bpe else "tokenizers is not installed"
    shape = f"length: {LENGTH}, latents: {LENGTH // 2}, latent_channels: 32"
    width, depth, steps = (512, 6, (12_000, 60_000)) if gpu else (192, 2, (4000, 8000))
    steps = ((500, 500) if "before" in text.source else (1000, 1000)) if quick else steps  # what attends costs more
    batch = min(256 if gpu else 64, 1 << (max(2, len(rows) // 2).bit_length() - 1))
    source = ", ".join(f"{key}: {yaml_text(value)}" for key, value in text.source.items())
    passage = 224 if bpe else LENGTH
    classes, before = len(text.listing.classes), "before" in text.source
    room = TextSource(**text.source).before_bytes + 1
    told = f", caption: {{tokens: {room}}}" if before else ""  # the text before: its bytes, and one
    attends = ", tokens: cross" if before else ""
    network = "width: 768, depth: 12, heads: 12" if gpu else "width: 256, depth: 6, heads: 4"
    limit = "\n  limit: 8000                     # --quick" if quick and len(rows) > 8000 else ""
    bound = _bound(text.listing)
    empty = f"\n  max_quarantine: {bound:g}           # empty texts" if bound > 0.01 else ""
    return f"""\
# {len(rows):,} passages of {len(documents):,} documents, {classes or "no"} classes. What a key means: ldm explain KEY
run:
  name: {yaml_text(name)}
data:
  source: {{{source}, passage: {passage}}}   # bytes at most
  split: {{val_fraction: {HELD_OUT}}}     # of the documents: {val:,}{limit}{empty}
autoencoder:
  model: {{kind: text, {tokens},   # {why}
          {shape}, width: {width}, depth: {depth}, heads: 4,
          noise_from: 0, noise: 2, causal: {depth + depth // 2}}}   # a decoder of clear latents and of vague ones
  loss: {{kl_weight: 1e-3}}
  training: {{batch_size: {batch}, steps: {steps[0]}, optimizer: muon, learning_rate: 1e-3, warmup: {steps[0] // 40},
             schedule: wsd, half_lives: [{steps[0] * batch // 80}]}}   # of the average of the weights, in passages
diffusion:
  backbone: {{kind: dit, {network}, patch: 1{attends}}}
  condition: {{kind: {"class" if classes > 1 else "none"}{told}}}
  training: {{batch_size: {batch}, steps: {steps[1]}, learning_rate: 5e-4, warmup: {steps[1] // 30},
             schedule: wsd, half_lives: [{steps[1] * batch // 12}]}}
evaluate:
  samples: {100 if quick else 500}
  steps: 50
cluster:
  workers: {max(1, machine.gpus) if gpu else min(2, machine.cpus)}
"""
