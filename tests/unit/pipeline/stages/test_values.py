"""Images that are not 8 bits of gray or RGB, through all stages: shards, latents, samples, figures, privacy."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from models import registry
from pipeline import networks
from pipeline.applications import made_images
from pipeline.artifacts import Store
from pipeline.cluster.inline import Inline
from pipeline.config import Config
from pipeline.data import loader, percentiles, sources, write_shards
from pipeline.data.index import Index, read_image
from pipeline.data.order import Order, lanes
from pipeline.data.value_map import ValueMap
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.generate.folder import from_artifacts, load_pretrained, save_pretrained
from pipeline.generate.samples import earlier, sample_info, write_samples
from pipeline.schema.data import Data
from pipeline.schema.section import result_fields
from pipeline.stages import encode, evaluate, ingest
from pipeline.tracking.tracker import Spool
from tests.unit.pipeline.data.rasters import data, dicom, noise


def run(tmp_path: Path, one: Data, name: str = "out", spool: Spool | None = None) -> tuple[dict, Path]:
    config = SimpleNamespace(run=SimpleNamespace(root=str(tmp_path / "root")), data=one)
    writer = SimpleNamespace(path=tmp_path / name, work=tmp_path / name / "work")
    return ingest.run(config, {}, writer, Inline(), spool), writer.path  # type: ignore[arg-type]


def stored(folder: Path, one: Data) -> dict[str, np.ndarray]:
    """All images of an ingest's shards by key, [C, h, w]."""
    return {
        index.key(i): read_image(index, i, one)
        for index in (Index.open(folder, split) for split in ("train", "val"))
        for i in range(len(index))
    }


@pytest.mark.parametrize(("dtype", "bands"), [("uint8", 6), ("uint16", 1), ("int16", 3), ("float32", 2)])
def test_values_come_back_from_shards_bit_for_bit(tmp_path, dtype, bands):
    values = noise(12, bands, 16, 16, dtype=dtype)
    np.save(tmp_path / "a.npy", values)
    one = data(tmp_path / "a.npy", dtype=dtype, channels=bands, shard_size=5, split={"val_fraction": 0.3})
    summary, folder = run(tmp_path, one)
    found = stored(folder, one)
    assert np.stack([found[f"a/{i:05d}"] for i in range(12)]).tobytes() == values.tobytes()
    kept = [
        int(key[2:])
        for key in found
        if key in {Index.open(folder, "train").key(i) for i in range(summary["images"]["train"])}
    ]
    np.testing.assert_allclose(summary["channel_mean"], values[kept].mean((0, 2, 3), dtype=np.float64), rtol=1e-9)
    assert Image.open(folder / "contact_sheet.png").mode == ("RGB" if bands >= 3 else "L")


def test_of_another_size_values_are_resized_in_their_own_depth(tmp_path):
    ramp = np.tile(np.arange(32, dtype=np.uint16) * 1000 + 500, (32, 1))
    np.save(tmp_path / "a.npy", np.stack([np.roll(ramp, i, 1) for i in range(8)]))
    one = data(tmp_path / "a.npy", size=16, split={"val_fraction": 0.3})
    first = stored(run(tmp_path, one)[1], one)["a/00000"]
    assert first.dtype == np.uint16 and first.shape == (1, 16, 16)
    np.testing.assert_allclose(first[0, 5, 2:-2], np.arange(16)[2:-2] * 2000 + 1000, atol=1)


def test_percentiles_are_those_of_the_training_split_of_each_band(tmp_path):
    values = noise(30, 2, 16, 16, dtype="int16")
    values[:, 1] //= 64
    np.save(tmp_path / "a.npy", values)
    how = {"channels": 2, "shard_size": 7, "split": {"val_fraction": 0.3}, "values": {"percentiles": [1, 98]}}
    one = data(tmp_path / "a.npy", dtype="int16", **how)
    folder = run(tmp_path, one)[1]
    index = Index.open(folder, "train")
    training = np.stack([read_image(index, i, one) for i in range(len(index))])
    expected = np.percentile(training, [1, 98], axis=(0, 2, 3), method="inverted_cdf")
    assert (index.values.low, index.values.high) == tuple(map(tuple, expected))
    np.save(tmp_path / "b.npy", noise(30, 2, 16, 16, dtype="float32") * 1e4)
    one = data(tmp_path / "b.npy", dtype="float32", **how)
    index = Index.open(run(tmp_path, one, "floats")[1], "train")
    training = np.stack([read_image(index, i, one) for i in range(len(index))])
    expected = np.percentile(training, [1, 98], axis=(0, 2, 3), method="inverted_cdf")
    np.testing.assert_allclose([index.values.low, index.values.high], expected, rtol=1 / 128)
    flat = np.full((16, 1, 16, 16), 7, np.int16)
    flat[:, 0, 0, 0] = np.arange(16) + 100
    np.save(tmp_path / "c.npy", flat)
    with pytest.raises(UserError, match="band 0 is 7 at both"):
        run(
            tmp_path,
            data(tmp_path / "c.npy", dtype="int16", **how | {"channels": 1, "values": {"percentiles": [0, 90]}}),
            "constant",
        )


def test_percentiles_count_no_image_of_a_shard_that_repeats_others_alone(tmp_path):
    values = noise(2, 1, 16, 16, dtype="int16") // 64
    for name, order in (("a", "<i2"), ("b", ">i2")):  # the same pixels, other bytes
        for i in range(2):
            np.save(tmp_path / f"{name}{i}.npy", values[i].astype(order))
    one = data(tmp_path, dtype="int16", values={"percentiles": [0, 100]})
    plans = [
        write_shards.Plan("train-00000", 0, [row for row in sources.open_listing(one).rows if row.key < "b"], (0, 1)),
        write_shards.Plan("train-00001", 0, [row for row in sources.open_listing(one).rows if row.key > "b"], (2, 3)),
    ]
    for plan in plans:
        write_shards.write_shard(plan, one, [], tmp_path, tmp_path)
    (tmp_path / "train-00001.rows.npy").unlink()
    write_shards.write_shard(replace(plans[1], repeats={0: "a0", 1: "a1"}), one, [], tmp_path, tmp_path)
    assert not percentiles.path_of("train-00001", tmp_path).exists()


def test_an_empty_split_is_told_before_percentiles_of_nothing(tmp_path):
    np.save(tmp_path / "a.npy", np.full((1, 16, 16), 5, np.int16))
    with pytest.raises(UserError, match="no val images among 1"):
        run(tmp_path, data(tmp_path / "a.npy", dtype="int16", values={"percentiles": [1, 99]}))


def test_hounsfield_units_are_within_one_unit_through_window_and_back():
    values = data("x", dtype="int16", values={"window": [40, 400]}).values
    mapped = ValueMap.of(values, 1, values.pairs)
    units = np.arange(-1024, 3072, dtype=np.int16).reshape(1, 1, -1)
    x = mapped.floats(units)
    assert x.dtype == np.float32 and (x.min(), x.max()) == (-1, 1)
    np.testing.assert_array_equal(mapped.values(x), units.clip(-160, 240))
    full = ValueMap("uint16", (0.0,), (65535.0,), (0,), (0.0,), (65535.0,))
    every = np.arange(65536, dtype=np.uint16).reshape(1, 1, -1)
    np.testing.assert_array_equal(full.values(full.floats(every)), every)


def test_pictures_are_of_the_chosen_bands_and_values():
    values = data("x", channels=4, values={"range": [0, 100], "show": {"bands": [3, 0, 1], "range": [0, 50]}}).values
    mapped = ValueMap.of(values, 4, values.pairs)
    pixel = np.array([10, 20, 30, 80], np.uint16).reshape(1, 1, 4)
    np.testing.assert_array_equal(mapped.shown(pixel), [[[255, 51, 102]]])
    assert ValueMap.from_json(json.loads(json.dumps(mapped.json()))) == mapped


def test_bad_images_go_to_quarantine_and_tiles_without_data_are_left_out(tmp_path):
    (tmp_path / "d").mkdir()
    for i in range(20):
        np.save(tmp_path / "d" / f"{i:02d}.npy", noise(2, 16, 16))
    np.save(tmp_path / "d" / "bands.npy", noise(3, 16, 16))
    np.save(tmp_path / "d" / "nan.npy", np.full((2, 16, 16), np.nan))
    (tmp_path / "d" / "x.tif").write_bytes(b"II*\0")
    scene = noise(2, 32, 16)
    scene[:, :16] = 9
    tags = [(42113, 2, 0, "9", True)]
    tifffile.imwrite(tmp_path / "d" / "y.tif", scene, photometric="minisblack", planarconfig="separate", extratags=tags)
    how = {"channels": 2, "tile": 16, "split": {"val_fraction": 0.3}}
    with pytest.raises(UserError, match=r"3 of 2[34] images are unusable"):
        run(tmp_path, data(tmp_path / "d", **how), "refused")
    summary, folder = run(tmp_path, data(tmp_path / "d", max_quarantine=0.2, **how))
    assert summary["quarantine_reasons"] == {"other bands": 1, "not finite": 1, "undecodable": 1}
    assert summary["left_out"] == {"tiles with places without data": [1, "y/00000"]}
    assert {json.loads(line)["key"] for line in (folder / "quarantine.jsonl").open()} == {"bands", "nan", "x"}


def test_no_identifying_attribute_is_in_any_byte_that_ingest_wrote(tmp_path, capfd, caplog):
    pytest.importorskip("pydicom", reason="needs the extra `medical`")
    caplog.set_level(logging.DEBUG)
    told = {
        "PatientID": "PLANTED-ID", "PatientName": "Planted^Name", "PatientBirthDate": "19010203",
        "InstitutionName": "Planted Hospital", "AccessionNumber": "PLANTED-ACC", "StudyDescription": "planted study",
        "StudyInstanceUID": "1.2.3.99999.1", "ReferringPhysicianName": "Planted^Doctor",
        "StudyDate": "notadate19010204",
    }  # fmt: skip

    def pixels(seed):  # names, and so the split, follow from digests
        return np.random.default_rng(seed).integers(-9000, 9000, (16, 16)).astype(np.int16)

    source = tmp_path / "source" / "Planted_Name"
    source.mkdir(parents=True)
    for i in range(12):
        dicom(source / f"planted{i}.dcm", pixels(i), **told | {"PatientID": f"PLANTED-ID{i // 2}"})
    unsound = {"PatientID": "", "PatientName": "", "StudyInstanceUID": "planted-uid"}  # pydicom warns with the value
    dicom(source / "planted-uid.dcm", pixels(99), **told | unsound)
    dicom(source / "planted-report.dcm", None, **told)
    (source / "planted-again.dcm").write_bytes((source / "planted0.dcm").read_bytes())
    (source / ".planted.dcm").write_bytes(b"")
    (source / "planted.link").symlink_to("planted-nowhere.dcm")
    content = bytearray((source / "planted1.dcm").read_bytes())
    (source / "planted-broken.dcm").write_bytes(bytes(content[:-40]))
    one = data(
        tmp_path / "source",
        dtype="int16",
        max_quarantine=0.5,
        split={"by": "column", "column": "subject", "val_fraction": 0.2},
    )
    spool = Spool(tmp_path / "spool", "ingest/x", 1)
    caplog.clear()  # pydicom told of what it wrote
    summary, folder = run(tmp_path, one, spool=spool)
    assert sum(summary["images"].values()) == 13 and summary["quarantined"] == 2
    straddling = [
        {read_json_of(folder, split, i)["subject"] for i in range(summary["images"][split])}
        for split in ("train", "val")
    ]
    assert straddling[0] and straddling[1] and not straddling[0] & straddling[1]
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and source not in path.parents}
    assert any(path.suffix == ".tar" for path in written) and any("spool" in str(path) for path in written)
    seen = capfd.readouterr()
    written |= {"stdout": seen.out.encode(), "stderr": seen.err.encode(), "log": caplog.text.encode()}
    secret = re.compile(rb"planted|1\.2\.3\.99999|1901020", re.IGNORECASE)
    assert [place for place, content in written.items() if secret.search(content)] == []


def read_json_of(folder: Path, split: str, i: int) -> dict:
    return Index.open(folder, split).meta(i)


def test_recipes_of_old_configs_hold_nothing_new():
    assert "values" not in result_fields(Data(source={"kind": "digits"}))
    config = SimpleNamespace(data=Data(source={"kind": "digits"}))
    assert sorted(ingest.recipe(config, "runs")) == sorted(  # type: ignore[arg-type]
        ["source", "size", "channels", "background", "split", "shard_size", "max_pixels", "max_quarantine", "crop"]
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"values": {}}, "expected one of `range`, `window` and `percentiles`, got none"),
        ({"values": {"range": [0, 1], "window": [0, 1]}}, "got range and window"),
        ({"values": {"range": [1, 0]}}, "expected the lowest value, then the highest"),
        ({"values": {"range": [0, float("inf")]}}, "finite"),
        ({"values": {"range": [[0, 1], [0, 2]]}, "channels": 3}, "has 2 pairs for 3 `channels`"),
        ({"values": {"percentiles": [1, 101]}}, "numbers from 0 to 100"),
        ({"values": {"window": [40, 0]}}, "a width above 0"),
        ({"values": {"window": [5e10, 1e-9]}}, "`window` [50000000000.0, 50000000000.0]"),
        ({"values": {"range": [-1.7e308, 1.7e308]}}, "a finite way above it"),
        ({"values": {"range": [0, 1], "show": {"bands": [0, 1]}}, "channels": 3}, "expected one (gray) or three"),
        ({"values": {"range": [0, 1], "show": {"bands": [3]}}, "channels": 3}, "there are 3 bands, from 0"),
        ({"filters": [{"kind": "median"}]}, "`filters` are for 8-bit images"),
        ({"buckets": {}}, "`buckets` are for 8-bit images"),
        ({"channels": 65}, "less than or equal to 64"),
    ],
)
def test_mistakes_are_named(change, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        data("x", **change)


def test_values_and_rasters_go_together():
    with pytest.raises(ValueError, match="go together"):
        Data.model_validate({"source": {"kind": "rasters", "path": "x"}})
    with pytest.raises(ValueError, match="`channels` 6: 1 is gray, 3 RGB"):
        Data.model_validate({"source": {"kind": "digits"}, "channels": 6})


# ---- a model ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The artifacts of a pipeline of four bands of int16 whose networks are untrained, up to the diffusion model."""
    from pipeline.tasks import diffusion

    place = tmp_path_factory.mktemp("values")
    np.save(place / "a.npy", noise(60, 4, 16, 16, dtype="int16") // 8)
    config = Config.model_validate(
        {
            "run": {"name": "bands", "root": str(place / "runs")},
            "data": {
                "source": {"kind": "rasters", "path": str(place / "a.npy")},
                "size": 16,
                "channels": 4,
                "values": {"dtype": "int16", "percentiles": [0, 100], "unit": "HU", "show": {"bands": [0]}},
                "split": {"val_fraction": 0.4},
            },
            "autoencoder": {"model": {"kind": "kl", "preset": "tiny-f2"}, "training": {"steps": 1}},
            "diffusion": {
                "backbone": {"kind": "dit", "width": 24, "depth": 1, "heads": 2, "patch": 1},
                "condition": {"kind": "none"},
                "training": {"steps": 1},
            },
            "evaluate": {"samples": 12, "steps": 2, "bootstrap": 5, "batch_size": 8},
        }
    )
    store, made = Store(place / "runs"), {}
    torch.manual_seed(0)
    autoencoder = registry.build("autoencoders", config.autoencoder.model, channels=4)
    for name in ("ingest", "autoencoder", "encode", "diffusion"):
        with store.write(name, f"{name}0", {}, dict(made)) as writer:
            summary = {}
            if name == "ingest":
                summary = ingest.run(config, {}, writer, Inline(), None)
            elif name == "autoencoder":
                networks.save_weights(writer.path / "ema.safetensors", autoencoder.state_dict())
                write_json(writer.path / "model.json", {"model": config.autoencoder.model, "channels": 4})
            elif name == "encode":
                spool = SimpleNamespace(metrics=lambda *_: None)
                summary = encode.run(config, made, writer, Inline(), spool)  # type: ignore[arg-type]
            else:
                options = diffusion.options(config, made)
                network = networks.build_network(options)
                networks.save_weights(writer.path / "ema.safetensors", network.state_dict())
                write_json(writer.path / "model.json", options)
            made[name] = writer.finish(summary)
    return config, store, made


def test_batches_hold_what_models_see(made):
    config, _, artifacts = made
    index = Index.open(artifacts["ingest"].path, "train")
    order = Order(index.counts, 8, lanes(8), 0)
    batch = next(loader.image_batches(index, order, config.data, 0, 0, 1, 0, (4, 8, 8)))
    assert batch["images"].dtype == torch.float32 and batch["images"].abs().max() <= 1
    first = read_image(index, int(batch["index"][0]), config.data)
    np.testing.assert_array_equal(batch["images"][0].numpy(), index.values.floats(first))


def test_latents_are_of_what_models_see_and_know_the_range(made):
    config, _, artifacts = made
    model = networks.load_model(artifacts["autoencoder"].path).eval()
    index = Index.open(artifacts["ingest"].path, "val")
    generator = from_artifacts(
        artifacts["autoencoder"], artifacts["encode"], artifacts["diffusion"], torch.device("cpu")
    )
    images = np.stack([read_image(index, i, config.data) for i in range(3)])
    with torch.no_grad():
        mean = model.encode(torch.from_numpy(index.values.floats(images))).chunk(2, 1)[0]
    found = generator.encode(images.transpose(0, 2, 3, 1))
    torch.testing.assert_close(generator.space.restore(found), mean, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="images of type uint8, but this model's are int16"):
        generator.encode(np.zeros((1, 16, 16, 4), np.uint8))


def test_samples_have_the_depth_and_unit_of_the_data(made, tmp_path):
    _, _, artifacts = made
    of = from_artifacts(artifacts["autoencoder"], artifacts["encode"], artifacts["diffusion"], torch.device("cpu"))
    save_pretrained(
        tmp_path / "model",
        name="bands",
        image={"size": 16, "channels": 4},
        options=of.options,
        autoencoder=read_json(artifacts["autoencoder"].path / "model.json")["model"],
        autoencoder_weights=of.autoencoder.state_dict(),
        denoiser_weights=of.network.state_dict(),
        space=of.space,
    )
    model = load_pretrained(tmp_path / "model", device="cpu")
    request = model.request(n=3, steps=2)
    images = model.images(request)
    assert images.dtype == np.int16 and images.shape == (3, 16, 16, 4) and model.channels == 4
    assert images.min() >= min(model.values.low) and images.max() <= max(model.values.high)
    out = tmp_path / "s"
    write_samples(out, images, sample_info(model, request), values=model.values)
    with tifffile.TiffFile(out / "000002.tif") as file:
        np.testing.assert_array_equal(file.asarray(), images[2].transpose(2, 0, 1))
        assert json.loads(file.pages.first.description) == {"unit": "HU"} and file.pages.first.dtype == np.int16
    assert Image.open(out / "grid.png").size == (32, 32)
    before = earlier(out, add=True)
    before.check(out, model, (16, 16))
    write_samples(out, images, sample_info(model, request), before, model.values)
    listed = [entry["file"] for entry in read_json(out / "samples.json")["images"]]
    assert listed == [f"{i:06d}.tif" for i in range(6)]
    with pytest.raises(UserError, match="makes images of 4 x int16, and this command knows 8-bit pictures only"):
        made_images.begin(tmp_path / "edited", model, [], {})


def test_the_evaluation_stands_on_the_data_s_own_range(made):
    config, store, artifacts = made
    with store.write("evaluate", "evaluate0", {}, artifacts) as writer:
        report = evaluate.measure(
            {
                "config": config.model_dump(mode="json", by_alias=True),
                "inputs": {name: str(artifact.path) for name, artifact in artifacts.items()},
                "path": str(writer.path),
                "threads": 1,
            }
        )
        psnr, ssim = report["reconstruction"]["psnr"], report["reconstruction"]["ssim"]
        generator = from_artifacts(*(artifacts[n] for n in ("autoencoder", "encode", "diffusion")), torch.device("cpu"))
        index = Index.open(artifacts["ingest"].path, "val")
        rows = np.random.Generator(np.random.Philox(config.evaluate.seed)).permutation(len(index))[:12]
        images = np.stack([read_image(index, int(i), config.data) for i in rows]).transpose(0, 2, 3, 1)
        back = generator.decode(generator.encode(images, 8), 8)
        low, high = np.array(index.values.low), np.array(index.values.high)
        error = ((images.astype(float) - back) / (high - low)) ** 2
        assert abs(psnr - (-10 * np.log10(error.mean((1, 2, 3)))).mean()) < 1e-3 and -1 <= ssim <= 1
        assert Image.open(writer.path / "samples.png").mode == "RGB"
        assert set(report["band_covariance"]) == {"samples", "held_out", "reconstructions"}
