"""The few collectives, on two ranks that are threads with a real gloo each; and tensors out of C order in files."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from pipeline.networks import save_weights
from pipeline.training.checkpoint import write_safetensors
from pipeline.training.ranks import Ranks

VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": lambda x: x,
    "transposed": lambda x: x.t(),
    "with gaps": lambda x: x[:, ::2],
    "a column": lambda x: x[:, 0],
}


@pytest.fixture
def on_two_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Ranks], Any]], list[Any]]:
    """Runs a function on both ranks and gives both results."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    mine, store = threading.local(), dist.HashStore()  # type: ignore[attr-defined]  # exported, says its documentation

    def all_reduce(values: torch.Tensor, op: Any) -> None:
        options = dist.AllreduceOptions()
        options.reduceOp = op
        mine.group.allreduce([values], options).wait()

    monkeypatch.setattr(dist, "all_reduce", all_reduce)

    def run(function: Callable[[Ranks], Any]) -> list[Any]:
        def one(rank: int) -> Any:
            mine.group = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=30))
            return function(Ranks(rank, 2, rank, torch.device("cpu")))

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(2)))

    return run


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_reduced_as_its_elements_are(on_two_ranks: Any, name: str) -> None:
    view = VIEWS[name]

    def reduce(ranks: Ranks) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.arange(8.0).reshape(2, 4) + 100 * ranks.rank
        return x, ranks.all_reduce(view(x))

    for rank, (x, reduced) in enumerate(on_two_ranks(reduce)):
        before = torch.arange(8.0).reshape(2, 4)
        expected = before + 100 * rank
        view(expected).copy_(view(2 * before + 100))  # what lies beside the view stays
        assert torch.equal(reduced, view(2 * before + 100)) and torch.equal(x, expected)


def test_ranks_may_hold_the_same_in_other_orders(on_two_ranks: Any) -> None:
    def reduce(ranks: Ranks) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.arange(6.0).reshape(3, 2)
        values = values.t() if ranks.rank else values.t().contiguous()
        return ranks.stack(values), ranks.all_reduce(values, "max")

    for stacked, largest in on_two_ranks(reduce):
        assert stacked.tolist() == 2 * [[0, 2, 4], [1, 3, 5]] and largest.tolist() == [[0, 2, 4], [1, 3, 5]]


def test_files_hold_values_by_index_not_by_memory(tmp_path: Path) -> None:
    """What safetensors' numpy writer does not (findings/safetensors_memory_order.sh); ruff refuses it here."""
    x = torch.arange(24.0).reshape(2, 3, 4)
    written = {"transposed": x.permute(2, 0, 1), "gaps": x[:, :, ::2], "C": x}
    save_weights(tmp_path / "a.safetensors", written)
    write_safetensors(tmp_path / "b.safetensors", written)
    for name in ("a", "b"):
        back = load_file(tmp_path / f"{name}.safetensors")
        assert {key: value.tolist() for key, value in back.items()} == {k: v.tolist() for k, v in written.items()}
