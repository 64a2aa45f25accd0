"""Filters do what their formulas say, take noise away, and are part of what ingest made; `ldm denoise` shows them."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from jobs.denoise import command
from pipeline.cluster.inline import Inline
from pipeline.config import load
from pipeline.data import denoise, filters, synthetic
from pipeline.data.index import Index
from pipeline.errors import UserError
from pipeline.schema.data import Data
from pipeline.schema.filters import GaussianFilter, MedianFilter, WaveletFilter
from pipeline.stages import ingest

WAVELET = WaveletFilter(kind="wavelet")


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def shape(number=0, side=48):
    made = Data(source={"kind": "shapes", "sizes": [[side, side]]}).source
    return Image.fromarray(synthetic.reader(made)(number))


def test_gaussian_and_median_are_their_definitions():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 11), np.uint8))
    pixels = np.pad(np.asarray(image).astype(float), 5, mode="symmetric")
    median = np.asarray(filters.apply(image, [MedianFilter(kind="median", size=3)]))
    at = np.exp(-(np.arange(-4, 5) ** 2) / 2)  # sigma 1, cut at 4 deviations
    kernel = np.outer(at, at) / at.sum() ** 2
    gaussian = np.asarray(filters.apply(image, [GaussianFilter(kind="gaussian")]))
    for y in range(9):
        for x in range(11):
            assert median[y, x] == np.median(pixels[y + 4 : y + 7, x + 4 : x + 7])
            assert gaussian[y, x] == np.rint((pixels[y + 1 : y + 10, x + 1 : x + 10] * kernel).sum())


def test_channels_are_filtered_apart_and_chains_in_order():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 13, 3), np.uint8))
    chain = [MedianFilter(kind="median"), GaussianFilter(kind="gaussian", sigma=2)]
    whole = np.asarray(filters.apply(image, chain))
    for c, plane in enumerate(image.split()):
        np.testing.assert_array_equal(whole[:, :, c], np.asarray(filters.apply(plane, chain)))
    assert not np.array_equal(whole, np.asarray(filters.apply(image, chain[::-1])))
    assert filters.apply(image, []) is image


@pytest.mark.parametrize("size", [(64, 64), (33, 50), (3, 2)])
def test_wavelets_give_back_what_is_above_all_noise(size):
    plane = 100 + 40 * noise(size)
    for threshold in ("bayes", "universal"):
        options = WAVELET.model_copy(update={"sigma": 1e-9, "threshold": threshold, "shifts": 3})
        np.testing.assert_allclose(filters.wavelet(plane, options), plane, atol=1e-6)


def test_the_noise_is_estimated_and_pure_noise_goes():
    plane = 128 + 15 * noise((128, 128))
    assert filters.noise_level(plane) == pytest.approx(15, rel=0.05)
    flat = filters.wavelet(plane, WAVELET.model_copy(update={"threshold": "universal"}))
    assert (flat - 128).std() < 15 / 8  # the coarsest of four scales is left: 15/16 of a grey level, more at the edges
    constant = np.full((16, 16), 7.0)
    np.testing.assert_allclose(filters.wavelet(constant, WAVELET), constant)


def test_bayes_shrink_is_its_formula():
    band = noise((64, 64)) * 5
    assert filters._bayes(band, 3) == pytest.approx(9 / np.sqrt((band**2).mean() - 9))
    assert filters._bayes(band, 6) == float("inf")


def test_every_filter_brings_a_noisy_shape_nearer_and_shifts_help():
    given = {str(i): shape(i) for i in range(4)}
    noisy = {key: denoise.add_noise(image, 25, 0, i) for i, (key, image) in enumerate(given.items())}
    one = WAVELET.model_copy(update={"shifts": 1})
    compared = denoise.compare(noisy, given, [(denoise.parse(text),) for text in denoise.DEFAULT] + [(one,)])
    assert compared.psnr is not None and compared.noise == pytest.approx(25, rel=0.2)
    before, *after = compared.psnr
    assert before == pytest.approx(20 * np.log10(255 / 25), abs=0.5) and min(after) > before + 1
    assert after[4] > after[5] + 0.3  # shifts
    assert compared.best is not None and compared.psnr[compared.best] == max(compared.psnr)


def test_ingest_stores_filtered_images_and_says_so(tmp_path):
    source = {"kind": "shapes", "count": 60, "sizes": [[24, 24]]}
    root = SimpleNamespace(root=str(tmp_path / "root"))
    plain, filtered = (Data(source=source, size=8, filters=f) for f in ((), ({"kind": "median", "size": 5},)))
    recipes = [ingest.recipe(SimpleNamespace(run=root, data=data), tmp_path) for data in (plain, filtered)]
    assert "filters" not in recipes[0]  # artifacts from before there were filters are still found
    assert recipes[1] == {**recipes[0], "filters": [{"kind": "median", "size": 5}]}
    writer = SimpleNamespace(path=tmp_path / "out", work=tmp_path / "out" / "work")
    ingest.run(SimpleNamespace(run=root, data=filtered), {}, writer, Inline(), None)
    index, read = Index.open(writer.path, "train"), synthetic.reader(filtered.source)
    for i in range(len(index)):
        first = Image.fromarray(read(int(index.key(i))))
        expected = filters.apply(first, filtered.filters).resize((8, 8), Image.Resampling.BICUBIC, (0, 0, 24, 24))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(index.read(i)))), np.asarray(expected))


def test_tars_that_stay_where_they_are_are_not_filtered():
    with pytest.raises(ValidationError, match="tars are read where they lie"):
        Data(source={"kind": "webdataset", "path": "a.tar"}, filters=[{"kind": "median"}])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[{kind: blur}]", "`data.filters.0.kind` is 'blur'; expected one of gaussian, median, wavelet"),
        ("[{kind: median, siz: 3}]", "unknown key `data.filters.0.siz`; did you mean `size`"),
        ("[{kind: median, size: 4}]", "`size` 4 is even"),
    ],
)
def test_mistakes_in_a_config(tmp_path, line, message):
    (tmp_path / "a.yaml").write_text(
        f"run: {{name: a}}\ndata: {{source: {{kind: digits}}, filters: {line}}}\n"
        "autoencoder: {training: {steps: 1}}\ndiffusion: {training: {steps: 1}}\n"
    )
    with pytest.raises(UserError, match=message):
        load(tmp_path / "a.yaml")


# ---- the verb --------------------------------------------------------------------------------------------------------


def run(*arguments):
    command.main([*map(str, arguments)], standalone_mode=False)


def test_denoise_prints_psnr_and_draws_a_picture(tmp_path, capsys):
    for i in range(3):
        (tmp_path / "clean").mkdir(exist_ok=True)
        shape(i, 20 + 4 * i).save(tmp_path / "clean" / f"{i}.png")
    run(tmp_path / "clean", "--noise", 20, "--out", tmp_path / "a.png", "--filter", "median+gaussian:sigma=0.5")
    said = capsys.readouterr().out
    assert "median (size 3) + gaussian (sigma 0.5)" in said and " best" in said and "3 images" in said
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width > 3 * LEAST and sheet.height > 3 * LEAST
    (tmp_path / "noisy").mkdir()
    for i in range(3):
        clean = Image.open(tmp_path / "clean" / f"{i}.png")
        denoise.add_noise(clean, 20, 0, i).save(tmp_path / "noisy" / f"{i}.png")
    run(tmp_path / "noisy", "--clean", tmp_path / "clean", "--out", tmp_path / "b.png", "--filter", "median")
    assert "as given" in capsys.readouterr().out
    run(tmp_path / "noisy" / "1.png", "--out", tmp_path / "c.png")
    assert "PSNR" not in capsys.readouterr().out and (tmp_path / "c.png").exists()


LEAST = denoise.LEAST


def test_denoise_refuses_in_one_line(tmp_path):
    shape().save(tmp_path / "a.png")
    shape(1, 20).save(tmp_path / "b.png")
    (tmp_path / "bad.png").write_text("no image")
    out = ("--out", tmp_path / "out.png")
    for arguments, message in (
        ((tmp_path / "no.png",), "does not exist"),
        ((tmp_path / "bad.png",), "undecodable"),
        ((tmp_path / "a.png", "--clean", tmp_path / "b.png"), "not \\(48, 48\\) pixels"),
        ((tmp_path / "a.png", "--clean", tmp_path / "b.png", "--noise", 3), "give one"),
        ((tmp_path / "a.png", "--filter", "blur"), "filter 'blur'"),
        ((tmp_path / "a.png", "--filter", "gaussian:sigma=-1"), "greater than 0"),
    ):
        with pytest.raises(UserError, match=message):
            run(*arguments, *out)
    assert not (tmp_path / "out.png").exists()
