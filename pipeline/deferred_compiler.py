"""torch's compiler is imported when something is compiled, not when an optimizer is made.

torch 2.13 marks functions that its compiler must not trace, those of each optimizer and of the meta device among them,
and imports the compiler to do so when such a function is first called: two seconds of every command and of every rank,
for what nobody there uses. As long as the compiler is not imported nothing is traced, and such a function can be
called as it is. In sys.modules lies a module that does just that; whatever else it is asked, it makes room for the
real one.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any

NAME = "torch._dynamo"
LOCK = threading.RLock()


class _Deferred(types.ModuleType):
    """A module that is imported when anything is asked of it that it has not itself."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of each module, by inspect for one
            raise AttributeError(name)
        return getattr(self.real(), name)

    def real(self) -> Any:
        with LOCK:
            if isinstance(sys.modules.get(NAME), _Deferred):
                del sys.modules[NAME]
            return importlib.import_module(self.__name__)


class _Rules(_Deferred):
    """Which functions are traced; torch.distributed forgets them as a group of ranks begins."""

    def clear_lru_cache(self) -> None:
        """Nothing is kept yet."""
        if not _deferred():
            self.real().clear_lru_cache()


class _Compiler(_Deferred):
    """torch._dynamo. What is here is called where nothing is compiled."""

    __path__: list[str] = []  # noqa: RUF012 (a package; what is in it, _Parts finds)
    trace_rules = _Rules(f"{NAME}.trace_rules")

    def disable(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        """`fn`, not traced: as it is, until the compiler is there, then as the compiler marks it."""
        if not isinstance(fn, types.FunctionType):
            return self.real().disable(fn, recursive, **options)
        marked: list[Callable[..., Any]] = []

        def call(*args: Any, **kwargs: Any) -> Any:
            if not marked:
                if _deferred() or not hasattr(sys.modules.get(NAME), "disable"):  # in the midst of its import
                    return fn(*args, **kwargs)
                marked.append(self.real().disable(fn, recursive, **options))
            return marked[0](*args, **kwargs)

        return call

    def graph_break(self, *args: Any, **kwargs: Any) -> None:
        """Ends what is being traced: nothing."""
        if not _deferred():
            self.real().graph_break(*args, **kwargs)


class _Parts(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a part of the compiler that is asked for before the whole: imports the whole, and gives the part of it.

    Python would import the part once more, which then knows nothing of the compiler that is at work.
    """

    def __init__(self) -> None:
        self.specs: dict[str, Any] = {}

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if not (name.startswith(f"{NAME}.") and _deferred()):
            return None
        whole = sys.modules[NAME].real()
        if part := sys.modules.get(name):
            self.specs[name] = part.__spec__
            vars(part)["__spec__"] = None  # with one, Python takes it instead of this, and loads by it
            return importlib.machinery.ModuleSpec(name, self)
        return importlib.machinery.PathFinder.find_spec(name, whole.__path__, target)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module)["__spec__"] = self.specs.pop(module.__name__)  # a part that is settings takes no attribute


def _deferred() -> bool:
    return isinstance(sys.modules.get(NAME), _Deferred)


def defer() -> None:
    """Put off the import of torch's compiler, unless it is there already."""
    if NAME not in sys.modules:
        sys.modules[NAME] = _Compiler(NAME)
        sys.meta_path.insert(0, _Parts())
