""".npy members of tars as images: which arrays are taken, which are refused before their values are read."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.cluster.inline import Inline
from pipeline.data.array_members import values_of
from pipeline.data.index import Index, read_image
from pipeline.data.transforms import BadImage
from pipeline.schema.data import Data
from pipeline.stages import ingest
from tests.unit.pipeline.data.rasters import noise
from tests.unit.pipeline.data.test_foreign_tars import make


def npy(array, **how):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **how)
    return buffer.getvalue()


def data(path="x.tar", dtype="float32", channels=3, values=None, source=None, **more):
    return Data.model_validate(
        {
            "source": {"kind": "webdataset", "path": str(path), **(source or {})}, "size": 8, "channels": channels,
            "values": {"dtype": dtype, **(values or {"range": [0, 1]})}, **more,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stored", "dtype", "channels", "how"),
    [
        (noise(8, 9, 3, dtype="float32"), "float32", 3, {}),  # as datasets have it: bands last
        (noise(3, 8, 9, dtype="float32"), "float32", 3, {}),
        (noise(8, 9), "uint16", 1, {}),
        (noise(8, 9, 1), "uint16", 1, {}),
        (noise(8, 9).astype(">u2"), "uint16", 1, {}),
        (np.asfortranarray(noise(8, 9, 5)), "uint16", 5, {}),
        (noise(8, 9, dtype="float32").astype("float64"), "float32", 1, {}),
        (noise(8, 9), "uint16", 1, {"version": (2, 0)}),
    ],
)
def test_arrays_of_any_order_give_their_values(stored, dtype, channels, how):
    found = values_of(npy(stored, **how), data(dtype=dtype, channels=channels))
    last = stored.ndim == 3 and stored.shape[-1] == channels
    expected = np.moveaxis(stored, -1, 0) if last else stored.reshape(channels, *stored.shape[-2:])
    assert found.dtype == dtype and found.shape == (channels, 8, 9) and np.array_equal(found, expected)


def head(shape, descr="<f4", version=(1, 0)):
    """A .npy file's header that says what it likes."""
    buffer = io.BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == (1, 0) else np.lib.format.write_array_header_2_0
    write(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "undecodable"),
        (b"\x93NUMPY\x03\x00" + b"x" * 90, "undecodable"),
        (npy(np.array([{"a": 1}], dtype=object)), "undecodable"),  # a pickle
        (npy(np.zeros(9, [("r", "u1"), ("g", "u1")])), "undecodable"),
        (npy(np.array(["text"] * 9)), "undecodable"),
        (npy(noise(8, 8, 3))[:-1], "truncated"),
        (npy(noise(8, 8, 3)) + b"\0", "truncated"),
        (head((1 << 20, 1 << 20, 3)), "oversized"),  # 12 TiB, in a hundred bytes
        (head((1 << 62, 1 << 62, 3)), "oversized"),
        (head((80, 80, 3)) + bytes(80 * 80 * 12), "oversized"),  # more pixels than `max_pixels`
        (head((8, 0, 3)), "undecodable"),
        (head((-8, -8, 3)), "undecodable"),
        (head(()), "undecodable"),
        (head((8, 8, 3, 1)) + bytes(8 * 8 * 12), "other bands"),
        (npy(noise(4, 3, 8, 8, dtype="float32")), "several images"),
        (npy(noise(8, 8, 4, dtype="float32")), "other bands"),
        (npy(np.full((8, 8, 3), np.nan, np.float32)), "not finite"),
        (npy(np.zeros((8, 8, 3), np.complex64)), "undecodable"),
        (b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little") + b" " * 99, "undecodable"),  # a header of a GiB
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(content, reason):
    with pytest.raises(BadImage) as caught:
        values_of(content, data(max_pixels=5000))
    assert caught.value.reason == reason, caught.value


def ran(tmp_path, one):
    config = SimpleNamespace(run=SimpleNamespace(root=str(tmp_path / "root")), data=one)
    writer = SimpleNamespace(path=tmp_path / "out", work=tmp_path / "out" / "work")
    return ingest.run(config, {}, writer, Inline(), None), writer.path


def test_tars_of_arrays_are_indexed_where_they_lie(tmp_path):
    arrays = {f"{i:02d}": noise(8, 8, 2) for i in range(12)}
    members = [
        one
        for key, array in arrays.items()
        for one in (
            (f"{key}.jpg", b"a preview"),
            (f"{key}.npy", npy(array)),
            (f"{key}.cls", str(int(key) % 2).encode()),
        )
    ]
    members += [("evil.npy", npy(np.array([{}], dtype=object))), ("again.npy", npy(arrays["00"].astype(">u2")))]
    make(tmp_path / "a.tar", [*members, ("none.jpg", b"no array")])
    how = {"split": {"val_fraction": 0.3}, "max_quarantine": 0.5, "values": {"percentiles": [1, 99]}}
    one = data(tmp_path / "a.tar", "uint16", 2, **how)
    summary, folder = ran(tmp_path, one)
    assert summary["quarantine_reasons"] == {"undecodable": 1, "duplicate": 1, "no image": 1}
    stored = {}
    for split in ("train", "val"):
        index = Index.open(folder, split)
        stored |= {index.key(i): (read_image(index, i, one), index.label(i)) for i in range(len(index))}
    assert sorted(stored) == sorted(arrays)
    for key, (values, label) in stored.items():
        assert np.array_equal(values, arrays[key].transpose(2, 0, 1)) and label == int(key) % 2
    index = Index.open(folder, "train")
    training = np.stack([read_image(index, i, one) for i in range(len(index))])
    expected = np.percentile(training, [1, 99], axis=(0, 2, 3), method="inverted_cdf")
    assert (index.values.low, index.values.high) == tuple(map(tuple, expected))
    quarantine = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert "an array of object" in next(entry["detail"] for entry in quarantine if "evil" in entry["key"])
