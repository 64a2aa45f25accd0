"""Which perceptual distance a config gives: files, digests, what is said about it, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.artifacts import Store
from pipeline.cluster.inline import Inline
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluation.metrics import features
from pipeline.planning import fits
from pipeline.schema.stages import Perceptual
from pipeline.stages import ingest
from pipeline.tasks import autoencoder_loss, perceptual

ALEX = {0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3)}


def alexnet() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {}
    for number, (before, after, kernel) in ALEX.items():
        layer = torch.nn.Conv2d(before, after, kernel)
        state |= {f"features.{number}.{name}": value.detach() for name, value in layer.named_parameters()}
    return state


def values(**loss: Any) -> Config:
    training = {"training": {"steps": 10}}
    return Config.model_validate(
        {"run": {"name": "x"}, "data": {"source": {"kind": "digits"}}, "autoencoder": training | {"loss": loss},
         "diffusion": training}
    )  # fmt: skip


@pytest.mark.parametrize("name", ["alex.pth", "alex.safetensors"])
def test_lpips_from_a_file_with_the_published_heads(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save(alexnet(), path) if name.endswith("pth") else save_file(alexnet(), path)
    options = Perceptual(kind="lpips", network="alex", path=str(path))
    distance, told = perceptual.load(options, 40, 3)
    x, y = torch.rand(2, 3, 40, 40), torch.rand(2, 3, 40, 40)
    assert (distance(x, y) > 0).all() and distance(x, x).tolist() == [0, 0]
    assert told["kind"] == "lpips" and told["description"].startswith("LPIPS 0.1, alex, weights ")
    assert told["digest"][:12] in told["description"]


def test_a_file_counts_by_content(tmp_path: Path) -> None:
    one, copy, other = (tmp_path / f"{name}.pth" for name in ("one", "copy", "other"))
    for path, change in ((one, 0.0), (copy, 0.0), (other, 1.0)):
        torch.save({"a": torch.full((2,), change)}, path)
    copy.write_bytes(one.read_bytes())
    recipes = [perceptual.recipe(Perceptual(kind="lpips", path=str(path))) for path in (one, copy, other)]
    assert recipes[0] == recipes[1] != recipes[2]


def test_a_pickle_that_holds_more_than_tensors_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"features.0.weight": Path("x")}, path)
    with pytest.raises(UserError, match=r"evil.pth: not a file of weights"):
        perceptual.load(Perceptual(kind="lpips", path=str(path)), 40, 3)
    with pytest.raises(UserError, match=r"`autoencoder.loss.perceptual.path`: .*missing.pth does not exist"):
        perceptual.load(Perceptual(kind="lpips", path=str(tmp_path / "missing.pth")), 40, 3)


@pytest.mark.parametrize("size", (16, 96))
def test_a_classifier_of_the_data(tmp_path: Path, size: int) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (40, size, size, 3), np.uint8)
    labels = np.arange(40) % 2
    extractor = features.train_classifier(images, labels, images, labels, classes=2, steps=1, seed=0)
    path = tmp_path / "classifier.safetensors"
    extractor.save(path)
    distance, told = perceptual.load(Perceptual(kind="classifier", path=str(path)), size, 3)
    x = torch.from_numpy(images[:4]).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert "not LPIPS" in told["description"] and (distance(x, x.flip(0)) > 0).all()
    y = x.clone().requires_grad_()
    distance(x.flip(0), y).sum().backward()
    assert y.grad is not None and y.grad.abs().sum() > 0
    with pytest.raises(UserError, match=r"is of other images than 1 x"):
        perceptual.load(Perceptual(kind="classifier", path=str(path)), size, 1)


def test_the_first_classifier_of_a_data_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer run that goes on from a checkpoint goes on with the same loss, whoever trains the classifier."""
    given = values(perceptual={"kind": "classifier", "steps": 1}).model_dump(mode="json", by_alias=True)
    given["run"]["root"], given["data"] = str(tmp_path), given["data"] | {"size": 8, "channels": 1}
    made = Config.model_validate(given)
    with Store(tmp_path).write("ingest", "ingest0", {}, {}) as writer:
        data = writer.finish(ingest.run(made, {}, writer, Inline(), None))
    job = {"config": given, "data": str(data.path), "threads": 1}
    said = perceptual.train_classifier(job | {"path": str(tmp_path / "one.safetensors")})
    original, seeds = features.train_classifier, iter((1, 2))

    def elsewhere(*arguments: Any, **options: Any) -> features.Extractor:  # other bits, as on another machine
        return original(*arguments, **{**options, "seed": next(seeds)})

    monkeypatch.setattr(features, "train_classifier", elsewhere)
    assert perceptual.train_classifier(job | {"path": str(tmp_path / "two.safetensors")}) == said
    one, two, other = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "other"))
    assert one.read_bytes() == two.read_bytes() and next(seeds) == 1  # not asked for
    more = values(perceptual={"kind": "classifier", "steps": 2}).autoencoder.model_dump(mode="json", by_alias=True)
    perceptual.train_classifier(job | {"path": str(other), "config": given | {"autoencoder": more}})
    assert other.read_bytes() != one.read_bytes()


def test_random_features_are_called_weak() -> None:
    _, told = perceptual.load(Perceptual(kind="random"), 32, 1)
    assert told["kind"] == "random" and "weak" in told["description"]


def test_kinds_and_paths_go_together() -> None:
    with pytest.raises(ValueError, match="needs `path`"):
        Perceptual(kind="lpips")
    with pytest.raises(ValueError, match="goes with kind"):
        Perceptual(kind="random", path="x")


def test_terms_that_are_off_leave_no_trace_in_the_recipe() -> None:
    assert autoencoder_loss.recipe(values()) == {"reconstruction": "l1", "kl_weight": 1e-6}
    on = autoencoder_loss.recipe(values(ssim=0.1, adversarial={"weight": 1}, perceptual={"kind": "random"}))
    assert set(on) == {"reconstruction", "kl_weight", "ssim", "perceptual", "adversarial"}


@pytest.mark.parametrize(
    ("loss", "size", "what"),
    [({"ssim": 1.0}, 8, "ssim`, which needs 11"),
     ({"adversarial": {"weight": 1}}, 16, "adversarial.layers`, which needs 24"),
     ({"perceptual": {"kind": "lpips", "path": "x"}}, 8, "perceptual`, which needs 16")],
)  # fmt: skip
def test_images_too_small_for_a_term_are_refused(loss: dict[str, Any], size: int, what: str) -> None:
    given = values(**loss)
    small = given.model_copy(update={"data": given.data.model_copy(update={"size": size})})
    with pytest.raises(UserError, match=what):
        fits.check_models(small)
