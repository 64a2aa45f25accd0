"""Text as data: `data.source.kind: text`, files of lines, paragraphs or records, and how long a passage of them is."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from pipeline.schema.section import Place, Positive, Section


class TextSource(Section):
    """Text in .txt files (each is a document), or in a column of a .csv, .tsv, .jsonl or Parquet file. Cleaned, cut
    into passages at the ends of sentences, without duplicates; passages of a document are held out together."""

    kind: Literal["text"]
    path: Place = Field(description="A folder of .txt files, one such file, or a table.")
    unit: Literal["line", "paragraph", "file"] = Field(
        "paragraph",
        description="What of a .txt file is a text: a line, what is between empty lines, all of it; of a table a row.",
    )
    passage: int = Field(
        256, ge=16, le=65536, description="Bytes (UTF-8) of a passage at most; a longer text becomes several."
    )
    longest: Positive = Field(
        100_000,
        description="Bytes of a text at most; one that is longer goes to quarantine (a line of 10 MB is no line).",
    )
    column: str = Field("text", min_length=1, description="Of a table: the column of the text.")
    label: str | None = Field(None, description="Of a table: the column of the class; none: texts have no class.")
    document: str | None = Field(
        None,
        description="Of a table: the column that names a text's document; none: each row is one, as is a row where it "
        "is empty.",
    )
    before: str | None = Field(
        None,
        min_length=1,
        description="Of a table: the column of the text before, which `diffusion.condition.caption` tells the model: a "
        "text, or a list of turns to which the text replies; none: there is none.",
    )
    before_bytes: Positive = Field(
        200, le=4095, description="Bytes of the text before at most: the last turns of it that fit."
    )
    class_from: str | None = Field(
        None,
        min_length=1,
        description="Of files: `folder` (its name is the class), or a pattern (regular expression) that is looked for "
        "in a file's path inside the source, whose first group is the class; none: texts have no class.",
    )

    @model_validator(mode="after")
    def _pattern(self) -> TextSource:
        if self.class_from not in (None, "folder"):
            try:
                groups = re.compile(str(self.class_from)).groups
            except re.error as error:
                raise ValueError(
                    f"`class_from` {self.class_from!r}: no regular expression ({error}); or give folder"
                ) from None
            if groups < 1:
                raise ValueError(f"`class_from` {self.class_from!r}: has no group (...), which would be the class")
        if self.longest < self.passage:
            raise ValueError(f"`longest` {self.longest} is below `passage` {self.passage}: no text would be whole")
        return self
