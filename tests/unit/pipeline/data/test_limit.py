"""A limit takes the classes' shares, the same images each time, and reads no others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import listing, sources
from pipeline.data.held_out import held_out
from pipeline.data.limit import chosen, shares
from pipeline.schema.data import Data


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.integers(2, 250))
def test_shares_are_proportional_and_whole(strata: list[int], limit: int) -> None:
    keys = [f"k{i}" for i in range(len(strata))]
    places = chosen(keys, strata, limit)
    assert places == sorted(set(places)) and len(places) == min(limit, len(keys))
    assert places == chosen(keys, strata, limit)
    counts, taken = Counter(strata), Counter(strata[place] for place in places)
    assert all(taken[s] <= counts[s] for s in counts)
    if limit >= len(counts):
        assert all(taken[s] >= 1 for s in counts)
    if min(counts.values()) * limit >= len(keys):  # none has less than one by its share
        assert all(abs(taken[s] - counts[s] * min(1, limit / len(keys))) < 1 for s in counts)


def test_who_is_chosen_hangs_on_the_key_alone() -> None:
    keys = [f"k{i}" for i in range(1000)]
    first = {keys[place] for place in chosen(keys, [0] * 1000, 100)}
    assert first == {keys[::-1][place] for place in chosen(keys[::-1], [0] * 1000, 100)}
    assert first < {keys[place] for place in chosen(keys, [0] * 1000, 200)}
    held = sum(held_out(key, 0.2) for key in first)  # another hash than the split's
    assert 8 <= held <= 35
    assert shares({"a": 97, "b": 2, "c": 1}, 10) == {"a": 8, "b": 1, "c": 1}


def test_only_what_is_chosen_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(40):
        (tmp_path / f"c{i % 4}").mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / f"c{i % 4}" / f"{i}.png")
    read: list[str] = []
    real = listing.sha256_file
    monkeypatch.setattr(listing, "sha256_file", lambda path: read.append(str(path)) or real(path))
    source = {"kind": "folder", "path": str(tmp_path)}
    found = sources.open_listing(Data.model_validate({"source": source, "limit": 12}))
    assert Counter(row.label for row in found.rows) == {f"c{i}": 3 for i in range(4)} and len(read) == 12
    assert all(len(row.digest) == 64 for row in found.rows)
    assert found.notes == ["data.limit: 12 of 40 images are taken"]


@pytest.mark.parametrize("source", [{"kind": "digits"}, {"kind": "shapes", "count": 60}, {"kind": "gaussians"}])
def test_computed_sources_are_limited_as_well(source: dict[str, object]) -> None:
    data = Data.model_validate({"source": source, "limit": 40})
    whole = {row.key: row.digest for row in sources.open_listing(Data.model_validate({"source": source})).rows}
    rows = sources.open_listing(data).rows
    assert len(rows) == 40 and all(whole[row.key] == row.digest for row in rows)
