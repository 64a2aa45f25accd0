"""The place of a mistake, the words of the config, the nearest key by meaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.common import read
from pipeline import config
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.planning.explain import explain
from pipeline.schema.mistakes import _names
from pipeline.schema.synonyms import BY_WORD, SYNONYMS, meant

FILE = """\
run: {name: small}
data:
  source: {kind: digits}
autoencoder:
  model: {kind: kl}
  training: {steps: 10, half_lives: [10]}
diffusion:
  training: {steps: 20}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(FILE)
    return file


def said(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read(path, overrides, warn=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "start"),
    [
        ("kind: kl", "kind: vae", "5: `autoencoder.model`: kind: no autoencoders kind 'vae'; did you mean 'kl'?"),
        ("kind: kl", "kind: kl, width: x", "5: `autoencoder.model`: width: expected int"),
        ("kind: digits", "kind: digits\n  size: 33", "4: `data.size`: 33 is not a multiple of"),
        ("steps: 20", "steps: 20, skip: [[1, 2]]", "8: `diffusion.training`: `skip` [1, 2)"),
        ("steps: 20", "steps: 20, lr: 1e-3", "8: unknown key `diffusion.training.lr`; did you mean `learning_rate`?"),
        ("data:", "lr: 3\ndata:", "2: unknown key `lr`; did you mean `autoencoder.training.learning_rate` or"),
        ("diffusion:\n  training: {steps: 20}", "diffusion: {}", "7: `diffusion.training` is missing"),
        ("  training: {steps: 20}", "", "7: `diffusion` is empty; expected a section with keys such as"),
    ],
)  # fmt: skip
def test_in_the_file_with_its_line(path: Path, old: str, new: str, start: str) -> None:
    path.write_text(FILE.replace(old, new).replace("{kind: digits\n  size: 33}", "{kind: digits}\n  size: 33"))
    assert said(path).startswith(f"{path}:{start}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latents.views=[as_is,crop]", "`latents.views` has crop, but images"),
        ("data.split.by=shards", "`data`: `split.by: shards` needs"),
        ("evaluate.guidance_weak=700", "`evaluate.guidance_weak` 700: expected live"),
        ("cluster.workers=x", "`cluster.workers`: expected whole number, at least 1 or auto (given: 'x')"),
        ("diffusion.training=5", "`diffusion.training`: expected a section with keys such as batch_size"),
        ("diffusion.training.betas=[1]", "`diffusion.training.betas`: expected list of 2: number, number"),
        ("diffusion.training.steps=1.5", "`diffusion.training.steps`: expected whole number, at least 1 (given: 1.5)"),
        ("diffusion.backbone=unet", "`diffusion.backbone`: expected mapping such as {kind: unet}"),
        ("data.source=null", "`data.source` is empty; expected a section with `kind`, one of digits, folder"),
        ("data.source={kind: folder, pth: x}", "unknown key `data.source.pth`; did you mean `path`?"),
        ("data.source.path=x", "unknown key `data.source.path`; kind digits takes kind"),
        ("data.filters=[{kind: median, size: 4}]", "`data.filters.0`: `size` 4 is even"),
        ("data.filters=[{kind: median, sigma: 4}]", "unknown key `data.filters.0.sigma`; kind median takes kind, size"),
        ("data.balance.weights.cat=-1", "`data.balance.weights.cat`: Input should be greater than or equal to 0"),
        ("diffusion.training.learnin_rate=1", "did you mean `learning_rate`?"),
    ],
)  # fmt: skip
def test_in_overrides_in_the_words_of_the_config(path: Path, text: str, expected: str) -> None:
    message = said(path, text)
    assert message.startswith(f"override `{text}`: ") and expected in message
    assert not any(word in message for word in ("constrained", "dictionary", "the config", "Input should be a valid"))


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("lr", "autoencoder.training.learning_rate` or `diffusion.training.learning_rate"),
        ("diffusion.epochs", "diffusion.training.steps"),
        ("autoencoder.bs", "autoencoder.training.batch_size"),
        ("dataset", "data.source"),
        ("data.resolution", "size"),
        ("resolution", "data.size"),
        ("vae", "autoencoder"),
        ("num_workers", "data.loader_workers"),
        ("batch_size", "autoencoder.training.batch_size"),
    ],
)
def test_the_nearest_key_by_meaning(path: Path, key: str, near: str) -> None:
    assert f"unknown key `{key}`; did you mean `{near}" in said(path, f"{key}=3")


def test_each_synonym_leads_to_a_key_and_is_none_itself() -> None:
    names = list(_names(Config))
    assert len(BY_WORD) == sum(len(words.split()) for words in SYNONYMS.values())
    for key in SYNONYMS:
        assert any(name == key or name.endswith(f".{key}") for name in names), key
    assert meant("diffusion.lr", names) == ["diffusion.training.learning_rate"]
    assert meant("nonsense", names) == []


def test_explain_knows_other_names_too() -> None:
    assert "diffusion.training.learning_rate" in explain("lr") and "data.size" in explain("resolution")


def test_a_place_is_found_for_what_is_seen_later(path: Path) -> None:
    assert config.place(path, [], "`autoencoder.model`: width: too wide") == f"{path}:5"
    assert config.place(path, ["data.size=8"], "`data.size`: 8 is") == "override `data.size=8`"
    assert config.place(path, [], "`evaluate.samples`: x") == f"{path}:1"
    assert config.place(path, [], "no key is named") == ""
