"""Tables as spreadsheets and programs write them are read alike; what was found and mended is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.data import sources
from pipeline.data.listing import Listing
from pipeline.data.text_tables import TextTable, find_delimiter
from pipeline.errors import UserError
from pipeline.schema.data import Data

HEAD = ["image", "label", "caption"]
ROWS = [["i/0.png", "Bär", 'a "0", drawn; in blue'], ["i/1.png", "cat", "two\nlines"], ["i/2.png", "cat", "1,5\tm"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "i").mkdir()
    for i in range(3):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / "i" / f"{i}.png")
    return tmp_path


def spreadsheet(
    path: Path, delimiter: str, encoding: str, ending: str = "\r\n", first: str = "", more: str = ""
) -> Path:
    import csv
    import io

    out = io.StringIO()
    quoting = csv.QUOTE_ALL if ending == "\r" else csv.QUOTE_MINIMAL
    csv.writer(out, delimiter=delimiter, lineterminator=ending, quoting=quoting).writerows([HEAD, *ROWS])
    path.write_bytes((first + out.getvalue() + more).encode(encoding))
    return path


def listed(path: Path, **options: Any) -> Listing:
    source = {"kind": "table", "path": str(path), "label": "label", "caption": "caption", **options}
    return sources.open_listing(Data.model_validate({"source": source}))


def told(found: Listing) -> list[list[Any]]:
    return [[Path(row.key).name, row.label, row.caption, row.attributes] for row in found.rows]


PLAIN = [["0", "Bär", ROWS[0][2], {}], ["1", "cat", "two\nlines", {}], ["2", "cat", "1,5\tm", {}]]


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding", "ending", "said"),
    [
        ("t.csv", ",", "utf-8", "\n", None),
        ("t.csv", ",", "utf-8-sig", "\r\n", None),
        ("t.csv", ",", "utf-8", "\r", None),  # Excel's "CSV (Macintosh)"
        ("t.tsv", "\t", "utf-8", "\n", None),
        ("T.TSV", "\t", "utf-8", "\n", None),
        ("t.csv", ";", "utf-8-sig", "\r\n", "with semicolons between columns"),
        ("t.csv", ";", "cp1252", "\r\n", "in cp1252 with semicolons between columns"),
        ("t.csv", "\t", "utf-16", "\r\n", "in utf-16 with tabs between columns"),
        ("t.csv", "\t", "utf-16-le", "\r\n", "in utf-16-le with tabs"),
        ("t.csv", "|", "utf-8", "\n", "with bars between columns"),
        ("t.tsv", ",", "utf-8", "\n", "with commas between columns"),
    ],
)
def test_spreadsheets(folder: Path, name: str, delimiter: str, encoding: str, ending: str, said: str | None) -> None:
    found = listed(spreadsheet(folder / name, delimiter, encoding, ending))
    assert told(found) == PLAIN
    assert [said in note for note in found.notes] == [True] if said else found.notes == []


def test_what_is_set_is_not_guessed(folder: Path) -> None:
    path = spreadsheet(folder / "t.csv", "#", "cp1250")  # ä has the same byte, but nobody can know
    assert told(listed(path, delimiter="#", encoding="cp1250")) == PLAIN
    assert listed(path, delimiter="#", encoding="cp1250").notes == []
    with pytest.raises(UserError, match="'klingon' is no encoding"):
        listed(path, encoding="klingon")
    with pytest.raises(UserError, match=r"not text in utf-8.*set `data\.source\.encoding`"):
        listed(path, delimiter="#", encoding="utf-8")
    (folder / "t.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="leave it out"):
        listed(folder / "t.jsonl", delimiter=";")


def test_a_first_line_for_excel_empty_lines_and_trailing_delimiters(folder: Path) -> None:
    path = spreadsheet(folder / "t.csv", ";", "utf-8-sig", first="sep=;\r\n", more=";;\r\n\r\n;;\r\n")
    found = listed(path)
    assert told(found) == PLAIN and "t.csv: empty lines passed over: 2" in found.notes
    (folder / "t.csv").write_text("image,label,caption,,\ni/0.png,a,b,,\ni/1.png,b,c,,,\n")  # columns without a name
    assert [row.attributes for row in listed(path).rows] == [{}, {}]
    (folder / "t.csv").write_text(",image , label,caption\n0,i/0.png,a,b\n")  # pandas' index, blanks in the header
    assert [row.attributes for row in listed(path).rows] == [{"": "0"}]


def test_lines_are_counted_from_the_files_first(folder: Path) -> None:
    (folder / "t.csv").write_text('sep=;\nimage;label;caption\ni/0.png;a;"b\nc"\ni/1.png;a\n')
    with pytest.raises(UserError, match=r"t\.csv:5: a row of more or fewer than 3 columns"):
        listed(folder / "t.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,label\n\x81\x8d,\xe9\n", "neither in UTF-8, UTF-16 nor cp1252"),
        ("image,label\nä,é".encode()[:-1], "ends within a character"),
    ],
)
def test_what_no_encoding_fits_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        TextTable(folder / "t.csv")


def test_a_tab_can_be_written_and_a_column_twice_is_refused(folder: Path) -> None:
    assert told(listed(spreadsheet(folder / "t.csv", "\t", "utf-8"), delimiter="tab")) == PLAIN
    with pytest.raises(ValueError, match="delimiter"):
        listed(folder / "t.csv", delimiter=";;")
    (folder / "t.csv").write_text("image,label,caption,label,x,x\ni/0.png,a,b,c,d,e\n")
    with pytest.raises(UserError, match="'label' is the name of more than one column"):
        listed(folder / "t.csv")
    assert len(listed(folder / "t.csv", label=None).rows) == 1


def test_the_usual_delimiter_wins_where_it_fits() -> None:
    assert find_delimiter("a,b;c\n1,2;3\n", False, ",") == ","
    assert find_delimiter("a;b\n1,5;2\n", False, ",") == ";"
    assert find_delimiter("a;b\n1;2\n3;", True, ",") == ";"  # the last line is cut
    assert find_delimiter("image\nx.png\n", False, ",") == ","


def test_paths_of_windows_and_with_blanks(folder: Path) -> None:
    (folder / "t.csv").write_text("image,label,caption\ni\\0.png,a,\n i/1.png ,a,\ni/2.png,a,\n")
    found = listed(folder / "t.csv")
    assert [row.key for row in found.rows] == ["i/0", "i/1", "i/2"] and len(found.notes) == 2
    (folder / "t.csv").write_text(f"image,label,caption\n{'x' * 3000},a,\ni/1.png,a,\n")
    assert listed(folder / "t.csv").missing == ["x" * 3000]


def jsonl(folder: Path, *lines: str) -> Path:
    (folder / "t.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "t.jsonl"


def line(i: int, **more: Any) -> str:
    return json.dumps({"image": f"i/{i}.png", "label": "a", "caption": "", **more})


def test_empty_lines_of_jsonl_are_passed_over(folder: Path) -> None:
    found = listed(jsonl(folder, line(0), "", line(1), "  ", ""))
    assert len(found.rows) == 2 and found.notes == ["t.jsonl: empty lines passed over: 3"]


def test_half_characters_are_mended_and_counted(folder: Path) -> None:
    path = jsonl(folder, line(0), line(1, caption="b \ud83d", deep={"k": ["\ude00"]}, label="c\ud83d"))
    found = listed(path)
    assert (found.rows[1].caption, found.rows[1].label) == ("b \ufffd", "c\ufffd")
    assert found.rows[1].attributes == {"deep": {"k": ["\ufffd"]}}
    assert any(f"{path}:2, column 'deep'" in note and note.startswith("3 texts") for note in found.notes)
    json.dumps(told(found), ensure_ascii=False).encode()  # as a shard's members are written


def test_nan_is_null_and_infinity_is_named(folder: Path) -> None:
    found = listed(jsonl(folder, line(0, age=float("nan")), line(1, age=1.5, caption=float("nan"))))
    assert [row.attributes for row in found.rows] == [{"age": None}, {"age": 1.5}] and found.rows[1].caption is None
    assert found.notes[0].startswith("2 values that are not numbers (NaN) are kept as null")
    with pytest.raises(UserError, match=r"t\.jsonl:2: column 'age' holds infinity"):
        listed(jsonl(folder, line(0), line(1).replace('"a"', '"a", "age": 1e999')))


def test_a_name_of_a_file_keeps_its_odd_bytes(folder: Path) -> None:
    name = b"i/\xe9.png".decode("utf-8", "surrogateescape")
    (folder / name).write_bytes((folder / "i" / "0.png").read_bytes())
    found = listed(jsonl(folder, line(0, image=name), line(1, image="i/\ud83d.png")))
    assert [row.key for row in found.rows] == [name[:-4]] and found.missing == ["i/\ufffd.png"]


@pytest.mark.parametrize(
    ("second", "found"),
    [
        ('"Begins\t2\nb\t3\nand ends" here', ['"Begins', "b", 'and ends" here']),  # one cell of three rows
        ('"Hello," he said.', ['"Hello," he said.']),
        ('"never ends', ['"never ends']),
        ('"in ""marks"""', ['in "marks"']),
        ('"two\nlines"', ["two\nlines"]),
    ],
)
def test_quotation_marks_of_sentences_are_no_bounds_of_columns(tmp_path: Path, second: str, found: list[str]) -> None:
    (tmp_path / "t.tsv").write_text(f"text\tn\na\t1\n{second}\t4\n", encoding="utf-8")
    table = TextTable(tmp_path / "t.tsv")
    assert [record["text"] for _, record in table.rows()] == ["a", *found]
    assert bool(table.notes()) == (found[0][0] == '"')


def test_quotation_marks_that_are_lost_are_said(tmp_path: Path) -> None:
    for row, lost in (('"Hello" he said', True), ('"never ends', True), ('"two\nlines, and a comma"', False)):
        (tmp_path / "t.csv").write_text(f"text\na\n{row}\n")
        table = TextTable(tmp_path / "t.csv")
        assert len(list(table.rows())) == 2 and ("are lost" in " ".join(table.notes())) == lost
