"""What the documents say of the repository: links and their anchors, paths, commands, the order of the rooms."""

from __future__ import annotations

import importlib
import os
import re
import tomllib
from functools import cache
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[3]
LEFT_OUT = {"runs", "mlruns", "mlartifacts", "shared"}  # not part of the repository; nor is what begins with a dot
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
PATH = re.compile(r"(?<![\w./-])(?:pipeline|models|jobs|tests|slurm)/[\w./-]*(?:\.(?:py|yaml|sh)\b|/(?![\w.<*{]))")
VERB = re.compile(r"`(?:\.venv/bin/)?ldm ([a-z]+)")
MADE_BY_A_SITE = {"slurm/site.sh"}


def documents() -> list[Path]:
    """All .md files, seen from the repository's root."""
    found: list[Path] = []
    for folder, folders, files in os.walk(ROOT):
        own = LEFT_OUT | ({"data"} if Path(folder) == ROOT else set())  # where configs say to put data
        folders[:] = [name for name in folders if name not in own and not name.startswith(".")]
        found += [(Path(folder) / name).relative_to(ROOT) for name in files if name.endswith(".md")]
    return sorted(found)


def prose(text: str) -> str:
    """The text without blocks of code."""
    return re.sub(r"^(```+)[^\n]*\n.*?^\1[^\S\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(document: Path) -> frozenset[str]:
    """The anchors that GitHub gives the headings of a document."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", prose((ROOT / document).read_text()), flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return frozenset(names)


def broken(document: Path, text: str) -> list[str]:
    """The relative links of a document's text that lead nowhere."""
    lost = []
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", prose(text))):
        if re.match(r"[a-z]+:", target):  # an address elsewhere
            continue
        path, _, anchor = target.partition("#")
        place = Path(os.path.normpath(document.parent / path)) if path else document
        whole = (ROOT / place).exists() and not place.is_absolute() and place.parts[0] != ".."
        if not whole or (anchor and (place.suffix != ".md" or anchor not in anchors(place))):
            lost.append(target)
    return lost


@pytest.mark.parametrize("document", documents(), ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    assert broken(document, (ROOT / document).read_text()) == []


@pytest.mark.parametrize(
    "link",
    ["[x](none.md)", "[x](docs/operations.md#none)", "[two\nlines](#none)", "![x](docs/img/none.png)", "[x](../y)"],
)
def test_the_check_of_links_can_fail(link: str) -> None:
    assert len(broken(Path("README.md"), f"word {link} word\n```\n[code](no/link.md)\n```\n")) == 1


def test_anchors_are_those_of_github() -> None:
    assert "before-a-run-ldm-preflight---config-x" in anchors(Path("docs/operations.md"))


@pytest.mark.parametrize("document", documents(), ids=str)
def test_paths_exist(document: Path) -> None:
    named = set(PATH.findall((ROOT / document).read_text())) - MADE_BY_A_SITE
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_short_paths_of_the_house_exist() -> None:
    """In architecture.md a path may begin at `pipeline/`: `training/prune.py`, `config.py`."""
    text = (ROOT / "docs/architecture.md").read_text()
    named = [Path(path) for path in re.findall(r"`([\w/]+\.py)`", text)]
    assert [str(path) for path in named if not ((ROOT / path).exists() or (ROOT / "pipeline" / path).exists())] == []


def test_the_check_of_paths_sees_them() -> None:
    line = "`pipeline/data/none.py`, models/diffusion/, jobs/configs/digits.yaml, models:/NAME, artifacts/models/x.py"
    assert PATH.findall(line) == ["pipeline/data/none.py", "models/diffusion/", "jobs/configs/digits.yaml"]


@pytest.mark.parametrize("document", documents(), ids=str)
def test_commands_exist(document: Path) -> None:
    from jobs.cli import group

    verbs = set(group.list_commands(click.Context(group)))
    assert set(VERB.findall((ROOT / document).read_text())) - verbs == set()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("folder", ["docs/guide", "findings"])
def test_an_index_names_all_of_its_folder(folder: str) -> None:
    index = (ROOT / folder / "README.md").read_text()
    pages = {path.name for path in (ROOT / folder).iterdir() if path.is_file()} - {"README.md"}
    assert pages and {page for page in pages if f"]({page})" not in index} == set()


def test_the_house_is_drawn_as_it_stands() -> None:
    """The table of rooms in architecture.md: the linter's order, and each room's own question."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract.get("containers") == ["pipeline"])
    inside = [name.strip() for layer in layers for name in layer.split("|")]
    rooms = [name for name in inside if (ROOT / "pipeline" / name).is_dir() and name != "schema"]
    table = re.findall(r"^\|[ \d]*\| `(\w+)/` \| (.+) \|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    assert [room for room, _ in table] == rooms
    for room, question in table:
        said = " ".join((importlib.import_module(f"pipeline.{room}").__doc__ or "").split())
        assert said.lower().startswith(question.lower()), room


def test_ten_first_questions_lead_to_one_room_and_one_file() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    section = text[text.index("## Ten first questions") : text.index("## Where a question is answered")]
    rows = [row.strip("|").split("|") for row in section.splitlines() if row.startswith("|")][2:]
    assert len(rows) == 10
    for question, room, file in rows:
        path = PATH.findall(file)
        assert len(path) == 1, question
        assert room.strip(" `") in (f"{Path(path[0]).parts[1]}/", f"{Path(path[0]).parts[0]}/", "ground")
