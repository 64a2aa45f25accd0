"""The evaluation on generators of known quality: real images, copies, failures; and the whole stage on artifacts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipeline.data import split
from pipeline.evaluation import extractors, scores
from pipeline.evaluation.report import headline, key_figures, lines
from pipeline.schema.stages import Evaluate
from pipeline.stages import evaluate as stage

SIZE = 16


def stripes(n: int, seed: int, labels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images of two classes: a bright row, a bright column."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n) if labels is None else labels
    images = random.integers(0, 60, (n, SIZE, SIZE, 1))
    for image, label in zip(images, labels, strict=True):
        at = random.integers(SIZE)
        image[at : at + 1] += 150 * (1 - label)
        image[:, at : at + 1] += 150 * label
    return images.astype(np.uint8), labels


class Known:
    """A generator of known samples; its autoencoder adds noise of a known size."""

    def __init__(self, make, classes=("rows", "columns")) -> None:
        self.make, self.classes, self.about = make, list(classes), {"name": "known"}
        self.values = self.sound = None

    def request(self, classes, n, seed, **how) -> dict:
        return {"classes": classes, "n": n, "seed": seed}

    def sample(self, classes, n, seed) -> np.ndarray:
        return self.make(n, None if classes is None else np.array(classes))

    def encode(self, images, batch_size) -> torch.Tensor:
        return torch.from_numpy(images)

    def decode(self, latents, batch_size) -> np.ndarray:
        return latents.numpy() + 2


def run(make, train=None, train_labels=None, samples=100, labelled=True, classes=("rows", "columns"), **rest):
    if train is None:
        train, train_labels = stripes(400, 0)
    held_out, held_out_labels = stripes(120, 1)
    if not labelled:
        train_labels, held_out_labels = train_labels * 0 - 1, held_out_labels * 0 - 1
    config = Evaluate(samples=samples, bootstrap=10, extractor={"kind": "classifier", "steps": 60})
    n = min(samples, len(held_out), len(train) // 2)
    extractor = extractors.make_extractor(config, train[n:], train_labels[n:], held_out, held_out_labels, len(classes))
    sets = (train, train_labels, held_out, held_out_labels)
    return scores.evaluate(Known(make, classes), *sets, config, extractor, **rest)


@pytest.fixture(scope="module")
def perfect() -> scores.Report:
    return run(lambda n, labels: stripes(n, 5, labels)[0])


def test_a_perfect_generator_is_as_near_as_real_images(perfect: scores.Report) -> None:
    figures = perfect.values["frechet"]
    assert figures["samples"]["value"] < 2 * figures["real"]["value"]
    assert perfect.values["classes"]["right"] >= 0.95
    assert perfect.values["classes"]["asked"] == 100
    assert set(perfect.values["classes"]["by_class"]) == {"0", "1"}
    for space in ("pixels", "features"):
        assert perfect.values["neighbours"][space]["share_below"] < 0.1
    assert perfect.missing == {}


def test_every_distance_has_what_makes_it_comparable(perfect: scores.Report) -> None:
    figures = perfect.values["frechet"]
    assert set(figures) == {"real", "samples", "reconstructions"}
    for key in ("images", "extractor", "real"):
        assert len({str(figure[key]) for figure in figures.values()}) == 1
    assert figures["real"]["images"] == perfect.values["images"]["compared"] == 100
    assert figures["real"]["extractor"] == perfect.values["extractor"]["digest"]
    assert all(figure["interval"][0] <= figure["value"] <= figure["interval"][1] for figure in figures.values())


def test_the_classifier_has_not_seen_the_baselines_half(perfect: scores.Report) -> None:
    assert perfect.values["extractor"]["facts"]["train_images"] == 400 - 100


def test_reconstructions_are_measured(perfect: scores.Report) -> None:
    assert perfect.values["reconstruction"]["psnr"] == pytest.approx(20 * np.log10(255 / 2), abs=1e-5)
    assert 0.9 < perfect.values["reconstruction"]["ssim"] < 1


def test_of_images_that_are_all_alike_what_is_not_defined_is_left_out() -> None:
    flat = np.full((120, SIZE, SIZE, 1), 90, np.uint8)
    labels = np.full(120, -1)
    config = Evaluate(samples=60, bootstrap=5, extractor={"kind": "classifier", "steps": 10})
    extractor = extractors.make_extractor(config, flat, labels, flat, labels, 0)
    report = scores.evaluate(
        Known(lambda n, _: flat[:n] + 3, classes=()), flat, labels, flat, labels, config, extractor
    )
    values = {**report.values, "missing": report.missing}
    json.dumps(values, allow_nan=False)
    figures = key_figures(values)
    assert "nearest_pixels_ratio" not in figures and "nearest_features_ratio" not in figures
    assert figures["nearest_pixels_share"] == 0 and figures["fd_real"] == 0
    said = "\n".join(lines(values))
    assert "nearest_pixels_ratio is not given: most held-out images are like a training image by their pixels" in said
    assert headline({**values, "key_figures": figures})


def test_the_report_is_json_and_its_lines_and_headline_name_the_baseline(perfect: scores.Report) -> None:
    values = json.loads(json.dumps({**perfect.values, "missing": perfect.missing}, allow_nan=False))
    text = "\n".join(lines(values))
    # two Fréchet distances, two kernel distances, and four shares beside those of real images
    assert text.count("real data") == 2 + 2 + 4
    assert "in the class asked for" in text
    assert "nearest training image by pixels" in text
    figures = key_figures(values)
    assert {"psnr", "ssim", "fd", "fd_real", "fd_reconstructions", "class_accuracy"} <= set(figures)
    assert "real data" in headline({"key_figures": figures, "images": values["images"], "missing": {}})


def test_grids(perfect: scores.Report) -> None:
    assert perfect.images["samples"].shape == (8 * SIZE, 8 * SIZE, 3)
    for space in ("pixels", "features"):
        assert perfect.images[f"neighbours_{space}"].shape == (8 * SIZE, 8 * SIZE, 3)


def test_a_bad_generator_is_far_and_wrong() -> None:
    report = run(lambda n, labels: stripes(n, 5, 1 - labels)[0] // 2)  # the other class, dark
    assert report.values["frechet"]["samples"]["value"] > 3 * report.values["frechet"]["real"]["value"]
    assert report.values["classes"]["right"] < 0.2


def test_copies_are_found_and_shown_beside_their_originals() -> None:
    train, labels = stripes(400, 0)
    report = run(lambda n, _: train[200 : 200 + n], train, labels)
    near = report.values["neighbours"]["pixels"]
    assert (near["share_below"], near["sample_median"]) == (1.0, 0.0)
    sheet = report.images["neighbours_pixels"]
    assert np.array_equal(sheet[:SIZE, :SIZE], sheet[:SIZE, SIZE : 2 * SIZE])


def test_mirrored_copies_are_found_where_training_mirrored() -> None:
    train, labels = stripes(400, 0)

    def make(n: int, _: object) -> np.ndarray:
        return np.ascontiguousarray(train[200 : 200 + n, :, ::-1])

    assert run(make, train, labels).values["neighbours"]["pixels"]["share_below"] < 0.1
    report = run(make, train, labels, mirrored=True)
    assert report.values["neighbours"]["pixels"]["share_below"] == 1.0
    sheet = report.images["neighbours_pixels"]
    assert np.array_equal(sheet[:SIZE, :SIZE], sheet[:SIZE, SIZE : 2 * SIZE])


def test_images_without_classes_fall_back_and_say_so() -> None:
    report = run(lambda n, _: stripes(n, 5)[0], labelled=False, classes=())
    assert report.values["extractor"]["kind"] == "random"
    assert report.values["verdict"].startswith("no verdict")
    assert "untrained" in report.values["extractor"]["description"]
    assert "no class condition" in report.missing["class_accuracy"]
    assert "classes" not in report.values
    assert report.values["frechet"]["samples"]["value"] < 3 * report.values["frechet"]["real"]["value"]


def test_some_images_without_a_class_are_not_asked_for() -> None:
    train, labels = stripes(400, 0)
    labels[::3] = -1
    report = run(lambda n, asked: stripes(n, 5, asked)[0], train, labels)
    assert set(report.values["classes"]["by_class"]) == {"0", "1"} and report.values["classes"]["asked"] == 100
    assert scores.asked_classes(np.array([-1, -1]), 3, 2).tolist() == [0, 1, 0]


def test_too_few_images_give_no_distance_but_the_reason() -> None:
    report = run(lambda n, labels: stripes(n, 5, labels)[0], samples=20)
    assert report.values["frechet"] == {}
    assert "too few" in report.missing["frechet"]
    values = {**report.values, "missing": report.missing}
    assert "fd" not in key_figures(values)
    assert "Fréchet distance of" not in "\n".join(lines(values))


# ---- the whole stage, on artifacts of untrained models


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory):
    """(config, store, artifacts) of the stages before: digits, and networks with their first weights."""
    from models import registry
    from pipeline import networks
    from pipeline.artifacts import Store
    from pipeline.cluster.inline import Inline
    from pipeline.config import Config
    from pipeline.data.latents import LatentSpace
    from pipeline.files import write_json
    from pipeline.networks import build_network
    from pipeline.stages import ingest

    root = tmp_path_factory.mktemp("runs")
    config = Config.model_validate(
        {
            "run": {"name": "digits", "root": str(root)},
            "data": {"source": {"kind": "digits"}, "size": 16, "channels": 1},
            "autoencoder": {"model": {"kind": "kl", "preset": "tiny-f2"}, "training": {"steps": 1}},
            "diffusion": {
                "backbone": {"kind": "dit", "width": 24, "depth": 1, "heads": 2, "patch": 1},
                "training": {"steps": 1},
            },
            "evaluate": {"samples": 60, "steps": 2, "bootstrap": 5, "extractor": {"kind": "classifier", "steps": 80}},
        }
    )
    store, made = Store(root), {}
    options = {
        "latent": {"channels": 4, "size": 8},
        "backbone": config.diffusion.backbone,
        "condition": config.diffusion.condition.model_dump(mode="json"),
        "classes": [str(i) for i in range(10)],
        "path": config.diffusion.path.model_dump(mode="json"),
        "prediction": "velocity",
    }
    autoencoder = registry.build("autoencoders", config.autoencoder.model, channels=1)
    for name in ("ingest", "autoencoder", "encode", "diffusion"):
        inputs = {"diffusion": made, "encode": made}.get(name, {})
        with store.write(name, f"{name}0", {}, dict(inputs)) as writer:
            if name == "ingest":
                summary = ingest.run(config, {}, writer, Inline(), None)
            elif name == "autoencoder":
                networks.save_weights(writer.path / "ema.safetensors", autoencoder.state_dict())
                write_json(writer.path / "model.json", {"model": config.autoencoder.model, "channels": 1})
            elif name == "encode":
                LatentSpace(torch.zeros(4), torch.ones(4)).save(writer.path / "latents.json")
            else:
                networks.save_weights(writer.path / "ema.safetensors", build_network(options).state_dict())
                write_json(writer.path / "model.json", options)
            made[name] = writer.finish(summary if name == "ingest" else {})
    return config, store, made


def test_the_stage_writes_its_report_and_tells_the_tracker(artifacts) -> None:
    from pipeline.cluster.inline import Inline
    from pipeline.evaluation.metrics import features
    from pipeline.files import read_json
    from pipeline.tracking.tracker import Spool

    config, store, made = artifacts
    with store.write("evaluate", "evaluate0", stage.recipe(config), made) as writer:
        spool = Spool(writer.work / "spool", "evaluate/evaluate0", writer.token)
        summary = stage.run(config, made, writer, Inline(), spool)
        artifact = writer.finish(summary)
    report = read_json(artifact.path / "report.json")
    assert report["images"]["compared"] == 60
    assert report["extractor"]["facts"]["held_out_accuracy"] > 0.8
    assert report["classes"]["right"] < 0.5  # the network is untrained
    assert report["model"]["lineage"]["diffusion"]["content"] == made["diffusion"].content
    files = {path.name for path in artifact.path.iterdir()}
    grids = {"samples.png", "neighbours_pixels.png", "neighbours_features.png"}
    assert files - {"work"} == {"manifest.json", "report.json", "extractor.safetensors", "classes.csv", *grids}
    from safetensors.torch import load_file

    assert features.digest(load_file(artifact.path / "extractor.safetensors")) == report["extractor"]["digest"]
    spooled = "".join(path.read_text() for path in (artifact.path / "work" / "spool").glob("*.jsonl"))
    for key in ("eval/psnr", "eval/fd", "eval/fd_real", "eval/class_accuracy", "samples_final/ema", "report.json"):
        assert key in spooled
    assert "real data" in headline(artifact.summary)


def test_images_are_read_shard_by_shard_and_come_in_random_order(artifacts, monkeypatch) -> None:
    from pipeline.data import index

    config, _, made = artifacts
    read: list[int] = []
    original = index.read_image
    monkeypatch.setattr(index, "read_image", lambda opened, i, data: read.append(i) or original(opened, i, data))
    images, labels = split.load_split(made["ingest"].path, "val", config, 3)
    opened = index.Index.open(made["ingest"].path, "val")
    rows = np.random.Generator(np.random.Philox(3)).permutation(len(opened))
    assert read == sorted(rows) and images.shape == (len(rows), 16, 16, 1)
    for place in (0, 7, -1):
        assert np.array_equal(images[place, :, :, 0], original(opened, int(rows[place]), config.data)[0])
        assert labels[place] == opened.label(int(rows[place]))


def test_a_diffusion_artifact_samples_by_its_folder(artifacts) -> None:
    from pipeline.errors import UserError
    from pipeline.generate.folder import load_pretrained

    _, _, made = artifacts
    generator = load_pretrained(made["diffusion"].path, device="cpu")
    assert generator.sample(classes=[3], n=2, steps=1).shape == (2, 16, 16, 1)
    with pytest.raises(UserError, match="an artifact of ingest"):
        load_pretrained(made["ingest"].path)


def test_an_extractor_that_is_missing_is_found_before_anything_runs(artifacts) -> None:
    from pipeline.errors import UserError

    config, _, _ = artifacts
    extractor = config.evaluate.extractor.model_copy(update={"kind": "torchscript", "path": "/nowhere.pt"})
    changed = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"extractor": extractor})})
    with pytest.raises(UserError, match=r"/nowhere\.pt does not exist"):
        stage.recipe(changed)
