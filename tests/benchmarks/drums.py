"""A table of drum sounds from the drumkits of Hydrogen: `python tests/benchmarks/drums.py FOLDER [TABLE]`.

FOLDER: that of the kits (Debian's hydrogen-drumkits: usr/share/hydrogen/data/drumkits). The table (default:
FOLDER/drums.csv) has a row a sound: sound (path), class, kit. The class follows from the instrument's name in
drumkit.xml, else from the file's; sounds of other instruments, of none that is known and empty ones are left out.
"""

from __future__ import annotations

import csv
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

CLASSES = (  # the first that is found in a name
    ("hihat", r"hi-?\s?hat|hhat|\bhat\b|\bhats?[-_ ]|\b[cop]?hh\b|\b[cop]hh|sabian ?hat|hihat|hat-light"),
    ("kick", r"kick|bass ?drum|\bbd"),
    ("snare", r"snare|\bsn\b|rim ?shot"),
    ("tom", r"\btom|floor ?tom|tomhi|\btm"),
    ("cymbal", r"crash|ride|splash|china|cymbal"),
)
OTHERS = r"clap|cow ?bell"  # too few of them


def class_of(instrument: str, file: str) -> str | None:
    for name in (instrument, Path(file).stem.replace("_", " ")):
        if re.search(OTHERS, name.lower()):
            return None
        for found, pattern in CLASSES:
            if re.search(pattern, name.lower()):
                return found
    return None


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """(path inside `folder`, class, kit) of each sound."""
    found: dict[str, tuple[str, str]] = {}
    for file in sorted(folder.glob("*/drumkit.xml")):
        root = ElementTree.parse(file).getroot()
        for part in root.iter():
            part.tag = part.tag.rpartition("}")[2]  # some kits have a name space
        for instrument in root.iter("instrument"):
            for layer in instrument.iter("filename"):
                name = (layer.text or "").strip()
                label = class_of(instrument.findtext("name") or "", name)
                path = file.parent / name
                if label and name and path.is_file() and "empty" not in name.lower():
                    found.setdefault(path.relative_to(folder).as_posix(), (label, file.parent.name))
    return [(path, *told) for path, told in sorted(found.items())]


def main(folder: Path, table: Path) -> None:
    found = rows(folder)
    with open(table, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("sound", "class", "kit"))
        writer.writerows(((folder / path).absolute(), label, kit) for path, label, kit in found)
    for kit in sorted({kit for _, _, kit in found}):
        print(kit, dict(Counter(label for _, label, its in found if its == kit)))
    print(len(found), "sounds in", table, dict(Counter(label for _, label, _ in found)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else Path(sys.argv[1]) / "drums.csv"))
