"""Imports go one way, and each heavy library is imported where the map says (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [p for package in ("models", "pipeline", "jobs") for p in sorted((ROOT / package).rglob("*.py"))]
BELOW = {"models": {"models"}, "pipeline": {"models", "pipeline"}, "jobs": {"models", "pipeline", "jobs"}}
ONLY_IN = {
    "deepspeed": {"pipeline/engine.py"},
    "ray": {"pipeline/cluster.py", "pipeline/nodes.py"},
    "mlflow": {"pipeline/mlflow_store.py", "pipeline/shipper.py", "pipeline/pyfunc.py"},
    "torch.distributed": {"pipeline/ranks.py"},
    "yaml": {"pipeline/config.py"},
    "optuna": {"pipeline/search.py"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    found = imports(path)
    ours = {module.partition(".")[0] for module in found} & set(BELOW)
    assert ours <= BELOW[name.partition("/")[0]]
    for library, allowed in ONLY_IN.items():
        if any(module == library or module.startswith(f"{library}.") for module in found):
            assert name in allowed, f"{name} imports {library}"
