"""The work of a cluster in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.cluster.said import Said


class Inline:
    """The same `map` in this process, without Ray: for tests and for work too small to place."""

    def alone(self) -> int:
        """CPU threads of a task beside which nothing else runs."""
        return 1

    def map(
        self,
        function: Callable[..., Any],
        items: Sequence[Any],
        threads: int = 1,
        setup: Callable[[], Any] | None = None,
        gpus: float = 0,
        said: Said | None = None,
    ) -> Iterator[Any]:
        state = [setup()] if setup else []
        for item in items:
            yield function(*state, item)
