"""Probes of features whose use is known: which level is chosen, that nothing is learned of test images, boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from jobs.probe import command
from pipeline.applications import probe
from pipeline.errors import UserError
from pipeline.files import read_json

N = 400


def written(path: Path, **other: Any) -> Path:
    """Features of which t0.10/block1 tells the class well, latents a little, all else nothing; boxes in maps."""
    draw = np.random.Generator(np.random.Philox(0))
    labels, noise = draw.integers(0, 3, N), draw.standard_normal
    centres = 3 * np.eye(3, 6)[labels]
    low = draw.uniform(0, 0.5, (N, 2))
    corners = np.concatenate([low, low + draw.uniform(0.2, 0.5, (N, 2))], axis=1)
    latents = noise((N, 2, 4, 4))
    latents[:, 0, 0, 0] += labels
    arrays: dict[str, Any] = {
        "keys": np.array([f"k{i}" for i in range(N)]),
        "labels": np.array(["a", "b", "c"])[labels],
        "t0.10/block1": (centres + noise((N, 6))).astype(np.float16),
        "t0.10/block2": noise((N, 6)).astype(np.float16),
        "latents": latents.astype(np.float16),
        "pixels": draw.integers(0, 256, (N, 8, 8, 3), np.uint8),
        "column/who": np.array([f"w{i // 4}" for i in range(N)]),
        **{f"column/{name}": corners[:, i].astype(np.str_) for i, name in enumerate(("l", "t", "r", "b"))},
        "about": np.array('{"model": {"name": "m"}}'),
        **other,
    }
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("probe") / "f.npz")


def test_the_best_level_and_block_are_found_and_told_from_the_rest(file: Path) -> None:
    values = probe.classes(probe.load(file), seeds=2, counts=(10,))
    assert values["chosen"] == "t0.10/block1" and values["classes"] == ["a", "b", "c"]
    figures = values["figures"]
    assert set(figures) == {"t0.10/block1", "latents", "pixels", "patch PCA"}
    best = figures["t0.10/block1"]
    for kind in ("linear", "neighbours"):
        assert best[kind]["all"]["mean"] > 0.9 and best[kind]["10"]["mean"] > 0.7
        assert figures["pixels"][kind]["all"]["mean"] < 0.5
        assert best[kind]["all"]["low"] < best[kind]["all"]["mean"] < best[kind]["all"]["high"]
    assert 0.4 < figures["latents"]["linear"]["all"]["mean"] < 0.85
    assert values["over"] == "latents"
    assert values["gain"] == pytest.approx(best["linear"]["all"]["mean"] - figures["latents"]["linear"]["all"]["mean"])


def test_groups_stay_together_and_parts_do_not_meet(file: Path) -> None:
    table, seen = probe.load(file), []
    who = table.known["column/who"]
    for seed in range(3):
        own = probe.parts(table, seed, "who", np.arange(N))
        three = [set(who[places]) for places in (own.fit, own.tune, own.test)]
        assert not (three[0] & three[1] or three[0] & three[2] or three[1] & three[2])
        assert len(own.fit) + len(own.tune) + len(own.test) == N and not own.shared
        seen.append(own.test.tolist())
    assert len({tuple(one) for one in seen}) == 3
    chosen = probe.few(np.arange(N) % 3, own.fit, 10, seed=0)
    assert np.bincount(chosen % 3).tolist() == [10, 10, 10] and set(chosen) <= set(own.fit)


def test_a_split_of_the_config_is_kept_for_all_seeds(tmp_path: Path) -> None:
    split = np.array(["train", "val"])[(np.arange(N) >= 300).astype(int)]
    table = probe.load(written(tmp_path / "f.npz", split=split))
    tests = [probe.parts(table, seed, None, np.arange(N)) for seed in range(2)]
    assert all(own.shared and own.test.tolist() == list(range(300, N)) for own in tests)
    assert tests[0].tune.tolist() != tests[1].tune.tolist()
    # of a share of 100 test images the error is known even from one seed
    known = probe.interval([0.5], 100)
    assert known["high"] - 0.5 == pytest.approx(1.984 * 0.05, rel=1e-3)
    seeds = probe.interval([0.4, 0.6], None)
    assert seeds["high"] - 0.5 == pytest.approx(12.706 * 0.1, rel=1e-3)


def test_nothing_is_learned_of_test_images(tmp_path: Path) -> None:
    """Labels of test images that are all wrong change no answer: what is told of the others is told of them."""
    split = np.array(["train", "val"])[(np.arange(N) >= 300).astype(int)]
    right = probe.load(written(tmp_path / "f.npz", split=split))
    turned = right.known["labels"].copy()
    turned[300:] = np.array(["b", "c", "a"])[np.searchsorted(["a", "b", "c"], turned[300:])]
    wrong = probe.load(written(tmp_path / "g.npz", split=split, labels=turned))
    before, after = (probe.classes(table, seeds=1, counts=()) for table in (right, wrong))
    assert before["tuning"] == after["tuning"]
    figures = [one["figures"]["t0.10/block1"]["linear"]["all"]["mean"] for one in (before, after)]
    assert figures[0] > 0.9 and figures[1] < 0.1


def test_boxes(tmp_path: Path) -> None:
    assert probe.overlap(np.array([[0, 0, 0.5, 1]]), np.array([[0, 0, 1, 1]])) == 0.5
    assert probe.overlap(np.array([[1.5, 1, -1, 0]]), np.array([[0, 0, 1, 1]])) == 1.0
    assert probe.overlap(np.array([[0, 0, 0.4, 0.4]]), np.array([[0.5, 0.5, 1, 1]])) == 0.0
    file = written(tmp_path / "f.npz")
    table = probe.load(file)
    corners = np.stack([table.known[f"column/{name}"].astype(float) for name in "ltrb"], 1)
    maps = np.zeros((N, 4, 2, 2), np.float16)
    maps[:, :, 1, 0] = corners
    table = probe.load(written(file, **{"t0.10/block2": maps}))
    values = probe.boxes(table, list("ltrb"), "who", seeds=2)
    assert values["chosen"] == "t0.10/block2" and values["figures"]["t0.10/block2"]["mean"] > 0.95
    assert values["figures"]["same box"]["mean"] < 0.6 and values["figures"]["latents"]["mean"] < 0.6


def test_the_pca_has_as_many_numbers_as_the_latents_and_sees_no_test_images(file: Path) -> None:
    table = probe.load(file)
    codes = probe._patch_pca(table, np.arange(0, 100))
    assert codes.shape == (N, 16, 2)  # 4 x 4 patches of 2 pixels a side
    assert (codes == probe._patch_pca(table, np.arange(0, 100))).all()
    assert not np.allclose(codes, probe._patch_pca(table, np.arange(100, 200)))


def test_large_images_are_averaged() -> None:
    pixels = np.zeros((1, 130, 65, 1), np.uint8)
    pixels[:, :3, :3] = 9
    small = probe._smaller(pixels)
    assert small.shape == (1, 43, 21, 1) and small[0, 0, 0, 0] == 9 and small.sum() == 9
    assert probe._smaller(pixels[:, :64, :64]).dtype == np.uint8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "none"], "--target none: .* has no such column"),
        (["--target", "l"], "l holds no classes"),
        (["--group", "none"], "--group none: .* has no such column"),
        (["--box", "l,t"], "expected four columns"),
        (["--box", "l,t,r,none"], "--box none"),
        (["--box", "r,b,l,t"], "left < right"),
        (["--box", "l,t,r,who"], "expected numbers"),
        (["--box", "l,t,r,b", "--target", "who"], "a box has no class"),
        (["--few", "1"], "--few 1: expected whole numbers above 1"),
        (["--few", "ten"], "--few ten"),
    ],
)
def test_what_cannot_be_is_one_line(file: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(command, [str(file), *words], catch_exceptions=False)


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros(3))
    (tmp_path / "b.npz").write_bytes(b"PK")
    (tmp_path / "pickle.npz").write_bytes(b"\x80\x04N.")
    np.savez(tmp_path / "nan.npz", keys=np.array(["a"]), labels=np.array(["a"]), about=np.array('{"x": NaN}'))
    np.savez(tmp_path / "c.npz", keys=np.array(["a"]), labels=np.array([{}], object), about=np.array("{}"))
    small = written(tmp_path / "d.npz", **{"column/who": np.array(["w"] * N)})
    for name, said in (
        ("a", "no file of features"),
        ("b", "not a readable"),
        ("c", "not a readable"),
        ("pickle", "it is no zip archive"),
        ("nan", "does not say what it was made of"),
        ("none", "is no .npz file"),
    ):
        with pytest.raises(UserError, match=said):
            probe.load(tmp_path / f"{name}.npz")
    with pytest.raises(UserError, match="images to"):
        probe.classes(probe.load(small), group="who")
    for array, said in ((np.full((N, 2), np.nan), "is not finite"), (np.zeros((3, 2)), "is float64"),
                        (np.zeros((N, 2), np.str_), "is <U1")):  # fmt: skip
        other = probe.load(written(tmp_path / "e.npz", **{"t0.10/block1": array}))
        with pytest.raises(UserError, match=said):
            probe.classes(other, seeds=1, counts=())


def test_the_verb_prints_and_writes_the_figures(file: Path, tmp_path: Path) -> None:
    asked = [str(file), "--few", "10", "--seeds", "1", "--group", "who", "--out", str(tmp_path / "p.json")]
    said = CliRunner().invoke(command, asked, catch_exceptions=False).output
    assert "t0.10/block1" in said and "points over latents" in said and "held out: by who" in said
    values = read_json(tmp_path / "p.json")
    assert values["few"] == ["10"] and values["images"]["test"] > 40 and values["seeds"] == 1
    again = CliRunner().invoke(command, asked, catch_exceptions=False).output
    assert "probe: seed" in said and "probe: seed" not in again and again in said  # nothing is fitted anew
    with pytest.raises(UserError, match="holds something else than this call makes"):
        CliRunner().invoke(command, [*asked, "--seeds", "2"], catch_exceptions=False)
    for content in ("{", "[]"):
        (tmp_path / "p.json").write_text(content)
        with pytest.raises(UserError, match="holds something else than this call makes"):
            CliRunner().invoke(command, asked, catch_exceptions=False)
