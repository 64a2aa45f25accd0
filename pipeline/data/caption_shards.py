"""Captions embedded by a frozen text encoder: a file a shard in the pool of conditions, read by slices of a memory map.

Arrays of a file: `tokens` float16 [tokens of all its texts, D], `ends` int64 [u + 1] where each text's end, `pooled`
float16 [u, D], `text` uint8 and `text.ends` int64 [u + 1] the u texts themselves, each once, sorted; `of` int32 [m] the
text of each caption, `first` int64 [n + 1]: sample i has the captions first[i] to first[i + 1]. The file's name is that
of the texts and of the encoder. How a text is embedded is in `text_encoders.py`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.array_files import Array, mapped, save
from pipeline.data.latent_pool import entry_path, is_whole
from pipeline.data.text_encoders import Embedding
from pipeline.files import digest, read_json, sha256_file, write_json

FORMAT = 1  # of the files; raise it when their meaning changes
Embed = Callable[[Sequence[str]], tuple[list[Embedding], int]]


def write(
    pool: Path, encoder: Mapping[str, Any], limit: int, texts: Sequence[Sequence[str]], embed: Embed
) -> dict[str, Any]:
    """Put the embeddings of one shard's captions into the pool, unless they are there; returns its record.

    texts: of each sample its captions. embed: called only for what is not there. Record: {file, bytes, sha256, count,
    captions, cut: texts that were too long, longest: tokens of the longest, payload: bytes of the embeddings}.
    """
    path = pool / f"{digest(['captions', FORMAT, encoder['digest'], limit, texts])[:32]}.safetensors"
    if is_whole(path):
        return dict(read_json(entry_path(path)))
    unique = sorted({text for several in texts for text in several})
    places = {text: i for i, text in enumerate(unique)}
    found, cut = embed(unique)
    width = encoder["width"]
    lengths = [len(e.tokens) for e in found]
    pooled = np.stack([e.pooled for e in found]) if found else np.empty((0, width), np.float16)
    tokens, filled = np.empty((sum(lengths), width), np.float16), 0
    while found:  # a large encoder's are gigabytes: none lies there twice
        part = found.pop().tokens
        tokens[len(tokens) - filled - len(part) : len(tokens) - filled] = part
        filled += len(part)
    encoded = [text.encode("utf-8", "replace") for text in unique]
    arrays = {
        "tokens": tokens,
        "ends": np.cumsum([0, *lengths], dtype=np.int64),
        "pooled": pooled,
        "text": np.frombuffer(b"".join(encoded), np.uint8),
        "text.ends": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        "of": np.array([places[text] for several in texts for text in several], np.int32),
        "first": np.cumsum([0, *map(len, texts)], dtype=np.int64),
    }
    save(path, arrays)
    record = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "count": len(texts),
        "captions": sum(map(len, texts)),
        "cut": cut,
        "longest": max(lengths, default=0),
        "payload": tokens.nbytes + pooled.nbytes,
    }
    write_json(entry_path(path), record)
    return record


def read(arrays: Mapping[str, Array], sample: int, which: float) -> Embedding | None:
    """The embedding of one of a sample's captions, chosen by `which` in [0, 1); None where it has none."""
    first, last = (int(n) for n in arrays["first"][sample : sample + 2])
    if last == first:
        return None
    text = int(arrays["of"][first + min(int(which * (last - first)), last - first - 1)])
    return _of(arrays, text)


def known(paths: Iterable[Path], texts: Iterable[str]) -> dict[str, Embedding]:
    """The embeddings of those of the texts that the files hold."""
    wanted, found = set(texts), dict[str, Embedding]()
    for path in paths:
        if len(found) == len(wanted):
            break
        arrays = mapped(path)
        content, ends = arrays["text"].tobytes(), arrays["text.ends"].tolist()
        for i, (begin, end) in enumerate(pairwise(ends)):
            text = content[begin:end].decode()
            if text in wanted:
                found[text] = _of(arrays, i)
    return found


def _of(arrays: Mapping[str, Array], text: int) -> Embedding:
    begin, end = (int(n) for n in arrays["ends"][text : text + 2])
    return Embedding(arrays["tokens"][begin:end], arrays["pooled"][text])


# ---- as rows of tensors ----------------------------------------------------------------------------------------------


def rows(options: Mapping[str, Any], embedding: Embedding | None) -> dict[str, Any]:
    """A caption as a batch has it: "caption" float16 [T, D], filled up with zeros, "caption/pooled" float16 [D],
    "caption/length" int64. None is the empty caption. options: of a model's caption (tokens, encoder, empty)."""
    given = unpacked(options) if embedding is None else embedding
    length = min(len(given.tokens), options["tokens"])
    tokens = np.zeros((options["tokens"], given.tokens.shape[1]), np.float16)
    tokens[:length] = given.tokens[:length]
    return {"caption": tokens, "caption/pooled": given.pooled, "caption/length": np.int64(length)}


def packed(empty: Embedding) -> dict[str, str]:
    """The empty caption's embedding as JSON has it, so that a model is whole without its encoder."""
    return {name: base64.b64encode(np.ascontiguousarray(value).tobytes()).decode() for name, value in
            empty._asdict().items()}  # fmt: skip


def unpacked(options: Mapping[str, Any]) -> Embedding:
    """What `packed` packed."""
    held = {name: np.frombuffer(base64.b64decode(text), np.float16) for name, text in options["empty"].items()}
    return Embedding(held["tokens"].reshape(-1, options["encoder"]["width"]), held["pooled"])
