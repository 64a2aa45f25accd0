"""The house: from a config to a registered model. Each folder is a room that answers one question.

Rooms import rooms below them only (pyproject.toml, import-linter; docs/architecture.md draws it). On the ground floor
lie `schema/`, `config.py`, `artifacts.py`, `files.py`, `errors.py` and `networks.py`: what a run is, what lies on disk.
`deferred_compiler.py` spares each process an import.
"""

from pipeline import deferred_compiler

deferred_compiler.defer()
