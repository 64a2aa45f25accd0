"""Bad input of text, sound, clips and images of measured values, kind by kind: one line and exit code 2, or a place in
the quarantine with its reason, while what is sound beside it is taken. Bad images are in test_bad_input.py."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.artifacts import Artifact
from pipeline.data import video_files
from tests.integration import test_clips, test_rasters, test_sound, test_text
from tests.integration.test_bad_input import refused
from tests.unit.pipeline.data import clips, rasters, sounds

FLOATS = test_rasters.CONFIG.replace("{{dtype: uint16, percentiles: [1, 99]}}", "{{dtype: float32, range: [0, 1]}}")
CONFIGS = {
    "text": test_text.CONFIG, "sound": test_sound.CONFIG, "clips": test_clips.CONFIG,
    "rasters": FLOATS.replace("channels: 6", "channels: 2"), "slices": FLOATS.replace("channels: 6", "channels: 1"),
}  # fmt: skip
GOOD = 12


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def text(folder: Path) -> dict[str, str]:
    for i in range(GOOD):
        (folder / f"{i}.txt").write_text(f"The {i}th old river ran past a quiet town.")
    bad = {
        "long": b"word " * 2_000_000,  # 10 MB in one line
        "blank": b" \n\t\r\n \n" * 100,
        "nothing": b"",
        "controls": bytes(1000),
        "latin": "Grüße aus Köln.".encode("latin-1"),
    }
    for name, content in bad.items():
        (folder / f"{name}.txt").write_bytes(content)
    unit = ":paragraph 1"
    return {
        f"long{unit}": "too long", "blank": "empty", "nothing": "empty", f"controls{unit}": "not UTF-8",
        f"latin{unit}": "not UTF-8",
    }  # fmt: skip


def sound(folder: Path) -> dict[str, str]:
    wave, broken = sounds.tone(seconds=0.2), sounds.tone(seconds=0.3)
    for i in range(GOOD):
        sounds.write(folder / f"{i}.wav", np.stack([wave, 0.03 * i * wave], 1))
    sounds.write(folder / "mono.wav", wave)  # among stereo: taken
    for name, share in (("cut.wav", 0.5), ("head.wav", 0.005)):
        cut(sounds.write(folder / name), share)
    sounds.write(folder / "silent.wav", np.zeros(4000))
    sounds.write(folder / "none.wav", np.zeros(0))
    broken[7] = np.nan
    sounds.write(folder / "nan.wav", broken, subtype="FLOAT")
    sounds.write(folder / "huge.wav", 1e30 * wave, subtype="FLOAT")  # each is finite, its power is not
    (folder / "text.wav").write_text("no sound " * 100)
    sounds.write(folder / "nine.wav", np.ones((100, 9)))
    return {
        "cut": "truncated", "head": "empty", "silent": "silent", "none": "empty", "nan": "not finite",
        "huge": "not finite", "text": "undecodable", "nine": "channels",
    }  # fmt: skip


def sizes(path: Path, random: np.random.Generator) -> None:
    """A GIF whose frames are of other sizes each; Pillow reads them on the screen of the first."""
    frames = [Image.fromarray(random.integers(0, 255, (16 + i, 16 + i, 3), np.uint8)) for i in range(10)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def heard(path: Path) -> None:
    """An MP4 file with sound and no picture."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray((3e4 * sounds.tone()).astype("int16")[None], format="s16", layout="mono")
        frame.rate = 8000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


def moving(folder: Path) -> dict[str, str]:
    random = np.random.default_rng(0)
    for i in range(GOOD):
        clips.animation(folder / f"{i}.gif", random.integers(0, 255, (10, 12, 12, 3), np.uint8))
    sizes(folder / "sizes.gif", random)  # taken
    Image.fromarray(random.integers(0, 255, (12, 12, 3), np.uint8)).save(folder / "still.gif")
    clips.animation(folder / "short.gif", random.integers(0, 255, (2, 12, 12, 3), np.uint8))
    clips.animation(folder / "cut.webp", random.integers(0, 255, (10, 12, 12, 3), np.uint8))
    cut(folder / "cut.webp", 0.6)
    (folder / "text.gif").write_text("no clip " * 100)
    (folder / "head.gif").write_bytes(b"GIF89a")
    found = {
        "still": "one frame", "short": "too short", "cut": "truncated", "text": "undecodable", "head": "undecodable"
    }  # fmt: skip
    if video_files.there():
        heard(folder / "heard.mp4")
        found["heard"] = "undecodable"
    return found


def planes(folder: Path) -> dict[str, str]:
    def tiff(name: str, values: np.ndarray) -> Path:
        tifffile.imwrite(folder / name, values, photometric="minisblack", planarconfig="separate")
        return folder / name

    for i in range(GOOD):
        tiff(f"{i}.tif", rasters.noise(2, 8, 8, dtype="float32"))
    tiff("three.tif", rasters.noise(3, 8, 8, dtype="float32"))
    for name, value in (("nan", np.nan), ("infinite", -np.inf)):
        values = rasters.noise(2, 8, 8, dtype="float32")
        values[1, 3, 3] = value
        tiff(f"{name}.tif", values)
    cut(tiff("cut.tif", rasters.noise(2, 8, 8, dtype="float32")), 0.7)
    (folder / "text.tif").write_text("no image " * 100)
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    return {
        "three": "other bands", "nan": "not finite", "infinite": "not finite", "cut": "undecodable",
        "text": "undecodable", "objects": "undecodable",
    }  # fmt: skip


def slices(folder: Path) -> dict[str, str]:
    """Files of patients: their names are not told."""
    pytest.importorskip("pydicom", reason="needs the extra `medical`")
    pytest.importorskip("nibabel", reason="needs the extra `medical`")
    for i in range(GOOD):  # a series of mixed sizes is taken
        rasters.dicom(folder / f"{i}.dcm", rasters.noise(8 + i % 2, 8, dtype="int16"), PatientID=str(i))
    rasters.dicom(folder / "report.dcm", None)
    rasters.dicom(folder / "cut.dcm", rasters.noise(8, 8, dtype="int16"))
    cut(folder / "cut.dcm", 0.9)
    (folder / "text.dcm").write_text("no scan " * 100)
    rasters.nifti(folder / "cut.nii", rasters.noise(8, 8, 4, dtype="int16"))
    cut(folder / "cut.nii", 0.7)
    rasters.nifti(folder / "nan.nii", rasters.noise(8, 8, 4, dtype="int16"), slope=1, inter=np.nan)
    rasters.nifti(folder / "zero.nii", rasters.noise(8, 8, 4, dtype="int16"), slope=0)  # no scaling: taken
    rasters.nifti(folder / "five.nii", rasters.noise(8, 8, 4, 2, 2, dtype="int16"))
    bad = ("cut.dcm", "text", "nan", "five", *(f"cut.nii/{i}" for i in range(4)))  # a volume's slices one by one
    return {"report": "no pixels"} | dict.fromkeys(bad, "undecodable")


MAKE = {"text": text, "sound": sound, "clips": moving, "rasters": planes, "slices": slices}


@pytest.mark.parametrize("kind", MAKE)
def test_what_is_bad_goes_to_quarantine_and_what_is_not_is_taken(small, kind):
    folder = small.folder / kind
    folder.mkdir()
    expected = MAKE[kind](folder)
    small.config.write_text(CONFIGS[kind].format(root=small.root, folder=folder))
    noun = {"text": "passages", "sound": "sounds", "clips": "clips"}.get(kind, "images")
    given = () if kind != "text" else ("data.source.class_from=null",)
    refused(small, small.run("ingest", *given), rf"{len(expected)} of \d+ {noun} are unusable \(.*quarantine\.jsonl")
    said = small.run("ingest", *given, "data.max_quarantine=0.9")
    assert said.code == 0 and "Traceback" not in said.err, said.err
    place = small.manifests("ingest")[0].parent
    found = {row["key"]: row["reason"] for row in map(json.loads, (place / "quarantine.jsonl").open())}
    if kind == "slices":  # whose keys are pseudonyms
        assert sorted(found.values()) == sorted(expected.values())
    else:
        assert found == expected
    taken = {"text": 0, "sound": 1, "clips": 1, "rasters": 0, "slices": 4}[kind]
    assert sum(Artifact.load(place).summary["images"].values()) == GOOD + taken


ROWS = "".join(json.dumps({"text": f"The {i}th old river ran past."}) + "\n" for i in range(8))


def parquet(columns: dict[str, list]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


TABLES = {
    "broken line": ("text", "t.jsonl", (ROWS + '{"text": "cut off\n' + ROWS).encode(), r"t\.jsonl:9: not JSON"),
    "no object": ("text", "t.jsonl", (ROWS + '["a"]\n').encode(), r"t\.jsonl:9: expected an object, got list"),
    "a number as text": ("text", "t.jsonl", (ROWS + '{"text": 3}\n').encode(), r"t\.jsonl:9: column 'text' holds int"),
    "no such column": ("text", "t.csv", b"id,body\n1,Text.\n", r"t\.csv:2: no column 'text'; there are id, body"),
    "numbers": ("text", "t.parquet", parquet({"text": [1, 2]}), r"t\.parquet:0: column 'text' holds int"),
    "no parquet": ("text", "t.parquet", b"PAR1 and nothing behind", r"t\.parquet"),
    "a table of no sounds": (
        "sound",
        "t.csv",
        b"file,class\na.wav,a\n",
        r"t\.csv:2: no column 'sound'; there",
    ),
    "sounds that are missing": ("sound", "t.csv", b"sound\na.wav\nb.wav\n", r"missing|no train sounds"),
    "a table of no clips": ("clips", "t.csv", b"file,class\na.gif,a\n", r"t\.csv:2: no column 'clip'; there are file"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_bad_table_is_one_line(small, kind):
    source, name, content, expected = TABLES[kind]
    (small.folder / name).write_bytes(content)
    config = CONFIGS[source].replace(", class_from: folder", "")
    small.config.write_text(config.format(root=small.root, folder=small.folder / name))
    refused(small, small.run("ingest"), expected)
    said = small.ldm("init", "--source", str(small.folder / name), "-o", str(small.folder / "new.yaml"))
    assert said.code == 2 and said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    assert not (small.folder / "new.yaml").exists()


@pytest.mark.parametrize("kind", ["text", "sound", "clips", "rasters"])
def test_an_empty_folder_is_one_line(small, kind):
    (small.folder / "empty").mkdir()
    small.config.write_text(CONFIGS[kind].format(root=small.root, folder=small.folder / "empty"))
    refused(small, small.run("ingest"), "empty|no train")
    said = small.ldm("init", "--source", str(small.folder / "empty"), "-o", str(small.folder / "new.yaml"))
    assert said.code == 2 and said.err.count("\n") == 1, said.err
