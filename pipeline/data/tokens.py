"""Text to tokens and back: bytes, or a byte-level BPE that is trained on the training split.

A token is a whole number from 1 on; 0 ends a passage and fills the rest of its row. Of any text there are tokens, and
of these the text again: a byte-level BPE knows all bytes (Radford et al. 2019, section 2.2; merges: Sennrich et al.
2016). Its file, tokenizer.json, is the `tokenizers` library's own, and part of the autoencoder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.errors import UserError
from pipeline.files import atomic_path, digest

if TYPE_CHECKING:
    from pipeline.artifacts import Artifact

Array = np.ndarray[Any, np.dtype[Any]]
FILE = "tokenizer.json"
END = 0
BYTES = 256
VERSION = 1  # raise it when another tokenizer would come out of the same text


class Row(NamedTuple):
    """Tokens int64 [n, L] of n passages, and how many tokens of each did not fit, int64 [n]."""

    tokens: Array
    cut: Array


class Bytes:
    """A token a byte."""

    size = BYTES + 1

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, without an end."""
        return [[byte + 1 for byte in text.encode()] for text in texts]

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens; U+FFFD where bytes are no character."""
        return bytes(i - 1 for i in ids if 0 < i <= BYTES).decode("utf-8", "replace")


class BPE:
    """Tokens of a trained file."""

    def __init__(self, path: Path) -> None:
        """UserError where the file is missing or damaged."""
        if not path.is_file():
            raise UserError(f"{path}: missing; a model of text needs its tokenizer: fetch the model again")
        try:
            self._known = library().Tokenizer.from_file(str(path))
        except Exception as error:  # what the library raises is a plain Exception
            if type(error) is not Exception:
                raise
            raise UserError(f"{path}: is no tokenizer ({error}); fetch the model again") from None
        self.size = self._known.get_vocab_size() + 1

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """As `Bytes.ids`."""
        return [[i + 1 for i in found.ids] for found in self._known.encode_batch(list(texts))]

    def text(self, ids: Sequence[int]) -> str:
        """As `Bytes.text`; tokens that the file does not know are left out."""
        return str(self._known.decode([i - 1 for i in ids if 0 < i < self.size], skip_special_tokens=False))


Tokenizer = Bytes | BPE


def rows(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Row:
    """The first `length` tokens of each text, and END behind those that are shorter."""
    tokens, cut = np.full((len(texts), length), END, np.int64), np.zeros(len(texts), np.int64)
    for i, ids in enumerate(tokenizer.ids(texts)):
        tokens[i, : len(ids)] = ids[:length]
        cut[i] = max(0, len(ids) - length)
    return Row(tokens, cut)


def texts(tokenizer: Tokenizer, tokens: Array) -> list[str]:
    """The text of each row of tokens [n, L], up to its END."""
    return [tokenizer.text(row[: length_of(row)].tolist()) for row in tokens]


def length_of(row: Array) -> int:
    """Tokens of a row before its END."""
    ends = np.flatnonzero(row == END)
    return int(ends[0]) if len(ends) else len(row)


def train(passages: Iterable[str], size: int, path: Path) -> None:
    """Train a BPE of at most `size` tokens (END among them) and write its file, whole or not at all.

    The same passages give the same file: pairs of equal count are merged in the order of their numbers. UserError
    where the library is not installed.
    """
    found = library()
    tokenizer = found.Tokenizer(found.models.BPE())
    tokenizer.pre_tokenizer = found.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = found.decoders.ByteLevel()
    trainer = found.trainers.BpeTrainer(
        vocab_size=size - 1, initial_alphabet=found.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(passages, trainer)
    with atomic_path(path) as temporary:
        tokenizer.save(str(temporary))


def library() -> Any:
    """The `tokenizers` library; UserError where it is not installed."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not go with forks, and it says so
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "`autoencoder.model.tokens`: bpe needs tokenizers; pip install 'ldm-pipeline[text]', or set tokens: bytes"
        ) from None
    return tokenizers


# ---- where a tokenizer lies ------------------------------------------------------------------------------------------


def trained(model: dict[str, Any], ingest: Artifact, root: str | Path) -> Path | None:
    """The tokenizer's file of an ingested text under `root`, trained if it is not there yet: one for all runs of this
    text and size. model: resolved options of a text autoencoder. None where tokens are bytes."""
    if model["tokens"] == "bytes":
        return None
    path = place(model, ingest, root)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        train(_training_passages(ingest), model["vocabulary"], path)
    return path


def place(model: dict[str, Any], ingest: Artifact, root: str | Path) -> Path:
    """Where `trained` keeps the file."""
    name = digest(["bpe", VERSION, ingest.content, model["vocabulary"]])[:32]
    return Path(root) / "tokenizers" / f"{name}.json"


def keep(file: Path | None, folder: Path) -> None:
    """Put a tokenizer's file into the folder of an autoencoder."""
    if file is not None:
        with atomic_path(folder / FILE) as temporary:
            shutil.copyfile(file, temporary)


def of_model(model: Any, folder: Path) -> Tokenizer | None:
    """The tokenizer of an autoencoder (models/autoencoders/) that lies in `folder`; None where it is not of text."""
    if not getattr(model, "of_text", False):
        return None
    return load(model.config.tokens, model.config.vocabulary, folder / FILE)


def load(kind: str, vocabulary: int, file: Path | None) -> Tokenizer:
    """The tokenizer of a text autoencoder with these options. UserError where the file does not go with it."""
    if kind == "bytes" or file is None:
        return Bytes()
    found = BPE(file)
    if found.size > vocabulary:
        raise UserError(f"{file}: {found.size - 1} tokens, and the model knows {vocabulary - 1}: of another model")
    return found


def _training_passages(ingest: Artifact) -> Iterator[str]:
    from pipeline.data.index import Index
    from pipeline.data.passages import read_passage

    index = Index.open(ingest.path, "train")
    return (read_passage(index, i) for i in range(len(index)))
