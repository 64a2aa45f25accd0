"""Writes the dialogues that `jobs/configs/dialogue_cpu.yaml` is trained on: replies, each with the turns before it.

    pip download --no-deps chitchat-dataset==0.9.0 -d data && python tests/benchmarks/chitchat.py data
    ldm run jobs/configs/dialogue_cpu.yaml

7,168 conversations of two people each, collected for a challenge of 2018 (PyPI `chitchat-dataset` 0.9.0, MIT). Takes
the wheel in FOLDER, of which one file of JSON is read, and writes FOLDER/chitchat.jsonl: context (a list, the last
turns before), reply, conversation, in the order of the file. A turn is all that one says before the other does. Held
out are conversations, by the config's `document: conversation`.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WHEEL, INSIDE = "chitchat_dataset-0.9.0-py3-none-any.whl", "chitchat_dataset/dataset.json"
TURNS = 4  # before a reply, at most; a config keeps of these what fits


def pairs(conversations: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """{context, reply, conversation} of each turn but a conversation's first."""
    for name, conversation in conversations.items():
        turns = [" ".join(said["text"] for said in turn).strip() for turn in conversation["messages"]]
        turns = [turn for turn in turns if turn]
        for i in range(1, len(turns)):
            yield {"context": turns[max(0, i - TURNS) : i], "reply": turns[i], "conversation": name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if not (folder / WHEEL).is_file():
        sys.exit(f"{folder / WHEEL} is not there; pip download --no-deps chitchat-dataset==0.9.0 -d {folder}")
    with zipfile.ZipFile(folder / WHEEL) as wheel:
        conversations = json.loads(wheel.read(INSIDE))
    found = list(pairs(conversations))
    with open(folder / "chitchat.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in found)
    print(f"{len(found):,} replies of {len(conversations):,} conversations in {folder / 'chitchat.jsonl'}")


if __name__ == "__main__":
    main()
