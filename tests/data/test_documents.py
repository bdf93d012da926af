"""Documents: the same texts in any file are the same documents, and what is no document is refused by file and row."""

import gzip
import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longbert.arguments import FileArguments
from longbert.data.documents import load_documents


TEXTS = ['One; two,\tthree "four" | five.', "却说曹操大惊！\n众将何在？", "Grüße aus Köln", "x"]


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def as_csv(delimiter: str, end: str = "\n", start: str = "") -> str:
    rows = [f"id{delimiter}text", *(f"{number}{delimiter}{quoted(text)}" for number, text in enumerate(TEXTS))]
    return start + end.join(rows) + end


def as_jsonl(texts=TEXTS) -> str:
    return "".join(json.dumps({"id": str(number), "text": text}) + "\n" for number, text in enumerate(texts))


def parquet(kind: pa.DataType):
    return lambda file: pq.write_table(pa.table({"text": pa.array(TEXTS, kind), "id": [*range(len(TEXTS))]}), file)


def saved(folder: Path) -> None:
    datasets.Dataset.from_dict({"text": TEXTS, "id": [*range(len(TEXTS))]}).save_to_disk(folder)


def texts(folder: Path) -> None:
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.{'TXT' if number % 2 else 'txt'}").write_text(text, "utf-8")


def raw(content: str, encoding: str = "utf-8", pack: bool = False):
    data = content.encode(encoding)
    return lambda file: file.write_bytes(gzip.compress(data) if pack else data)


FORMATS = {
    "folder of texts": ("texts", texts),
    "csv": ("a.csv", raw(as_csv(","))),
    "semicolons": ("a.csv", raw(as_csv(";"))),
    "tabs": ("a.tsv", raw(as_csv("\t"))),
    "Excel": ("a.csv", raw(as_csv(";", "\r\n", "sep=;\r\n"), "utf-8-sig")),
    "utf-16": ("a.csv", raw(as_csv("\t"), "utf-16")),
    "jsonl": ("a.jsonl", raw(as_jsonl())),
    "capitals": ("A.JSONL", raw(as_jsonl())),
    "json list": ("a.json", raw(json.dumps([{"text": text} for text in TEXTS]))),
    "packed": ("a.jsonl.gz", raw(as_jsonl(), pack=True)),
    "packed csv": ("a.csv.GZ", raw(as_csv(","), pack=True)),
    "parquet": ("a.parquet", parquet(pa.string())),
    "large parquet": ("a.parquet", parquet(pa.large_string())),
    "saved": ("saved", saved),
    "brackets": ("chapter[1] é (2).jsonl", raw(as_jsonl())),
}
every_format = pytest.mark.parametrize("kind", FORMATS)
both_ways = pytest.mark.parametrize("streaming", [False, True], ids=["dataset", "stream"])


@both_ways
@every_format
def test_the_same_texts_are_the_same_documents(kind, streaming, tmp_path):
    name, write = FORMATS[kind]
    write(tmp_path / name)
    rows = list(load_documents([str(tmp_path / name)], streaming=streaming))
    assert [row["text"] for row in rows] == TEXTS
    assert [row["characters"] for row in rows] == [*map(len, TEXTS)]
    assert all(str(tmp_path) in row["document"] for row in rows)
    assert len({row["document"] for row in rows}) == len(TEXTS)


@both_ways
def test_a_folder_may_mix_what_can_be_read_and_says_what_it_is(streaming, tmp_path, capsys):
    for name in ("a.txt", "b.md", "sub/c.TXT", "notes.pdf", "old.docx", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "d.jsonl").write_text('{"text": "d"}\n')
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"e"))
    datasets.Dataset.from_dict({"text": ["f"]}).save_to_disk(tmp_path / "f")
    rows = list(load_documents([str(tmp_path)], streaming=streaming))
    assert [row["text"] for row in rows] == ["a.txt", "b.md", "d", "e", "f", "sub/c.TXT"]
    read = "1 .jsonl, 1 .md, 2 .txt, 1 .txt.gz, 1 saved dataset are read, 1 .docx, 1 .pdf are not"
    assert read in capsys.readouterr().out


def test_brackets_in_a_name_are_no_pattern(tmp_path):
    (tmp_path / "chapter[1].txt").write_text("with brackets")
    (tmp_path / "chapter1.txt").write_text("without")
    named = load_documents([str(tmp_path / "chapter[1].txt")])
    assert named["text"][:] == ["with brackets"]


def test_a_file_named_twice_is_read_once(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a")
    assert len(load_documents([str(tmp_path), str(tmp_path / "a.txt")])) == 1
    assert "named more than once" in capsys.readouterr().out


BAD = {
    "latin-1": ("a.txt", "Grüße\n".encode("latin-1"), "a.txt, line 1 is not in utf-8; it may be in"),
    "gbk": (
        "a.csv",
        b"text\nok\n" + "却说曹操大惊，众将何在？".encode("gbk"),
        "a.csv, line 3 is not in utf-8",
    ),
    "binary": ("a.txt", b"%PDF\0\0\1", "a.txt holds bytes of 0"),
    "bytes of 0": ("a.txt", b"a" * 100_000 + b"\0", "a.txt holds bytes of 0"),
    "half a character": ("a.jsonl", b'{"text": "a\\ud800"}\n', "a.jsonl, line 1 holds half a character"),
    "broken jsonl": ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl, line 2 is not JSON"),
    "no column": ("a.csv", b"body,id\nx,1\n", "not 'text': set text_column"),
    "a number": ("a.jsonl", b'{"text": 1}\n', "a.jsonl, line 1 has int in column 'text', not text"),
    "lists": ("a.jsonl", b'{"text": ["a"]}\n', "a.jsonl, line 1 has list in column 'text', not text"),
    "null": ("a.jsonl", b'{"text": "a"}\n{"text": null}\n', "1 rows have no text .*a.jsonl, line 2.*skip_empty"),
    "empty row": ("a.csv", b"id,text\n1,a\n2,\n3,  \n", "2 rows have no text .*a.csv, row 3; .*a.csv, row 4"),
    "blank file": ("a.txt", b" \n\n", "1 rows have no text .*a.txt"),
    "empty file": ("a.txt", b"", "1 rows have no text .*a.txt"),
    "empty csv": ("a.csv", b"", "a.csv is empty"),
    "header alone": ("a.csv", b"text\n", "a.csv holds no rows"),
    "empty jsonl": ("a.jsonl", b"", "a.jsonl holds no rows"),
    "no gzip": ("a.txt.gz", b"plain", "a.txt.gz is damaged"),
    "no parquet": ("a.parquet", b"plain", "a.parquet is damaged"),
    "not read": ("a.pdf", b"x", "none of the 1 files at"),
    "a cell too many": ("a.csv", b"id,text\n1,a,b\n", "a.csv, row 2 has 3 cells, the header has 2"),
}


@both_ways
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_document_is_refused_before_any_is_used(kind, streaming, tmp_path):
    name, content, message = BAD[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        load_documents([str(tmp_path / name)], streaming=streaming)
    assert "\n" not in str(raised.value)


@both_ways
def test_empty_documents_are_left_out_where_that_is_asked_for_and_counted(streaming, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(as_jsonl(["a", "", "b", None, " "]))
    (tmp_path / "b.txt").write_text("\n")
    settings = FileArguments(skip_empty=True)
    rows = list(load_documents([str(tmp_path)], streaming=streaming, settings=settings))
    assert [row["text"] for row in rows] == ["a", "b"]
    assert "4 empty documents are left out: " in capsys.readouterr().out
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(ValueError, match="all documents .* are empty"):
        load_documents([str(tmp_path)], streaming=streaming, settings=settings)


@both_ways
@pytest.mark.parametrize(
    ("encoding", "text"), [("cp1252", "Grüße “quoted”"), ("gb18030", TEXTS[1]), ("shift_jis", "吾輩は猫である")]
)
def test_an_encoding_that_is_set_is_read(encoding, text, streaming, tmp_path):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    settings = FileArguments(encoding=encoding)
    assert [row["text"] for row in load_documents([str(tmp_path)], streaming=streaming, settings=settings)] == [text]


def test_a_mark_of_the_encoding_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("a".encode("utf-8-sig"))
    for encoding in (None, "utf-8", "UTF8"):
        assert load_documents([str(tmp_path)], settings=FileArguments(encoding=encoding))["text"][:] == ["a"]


def test_a_file_that_changed_is_read_anew(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    assert load_documents([str(file)])["text"][:] == ["old"]
    stamp = file.stat().st_mtime_ns
    file.write_text("new")  # of the same size
    os.utime(file, ns=(stamp, stamp + 1))
    assert load_documents([str(file)])["text"][:] == ["new"]


NOVEL = "A title\n\nCHAPTER 1\none\n\ntwo\nCHAPTER 2\nsee CHAPTER 1\n\n\nthree"
SEPARATED = {
    "line": ["A title", "CHAPTER 1", "one", "two", "CHAPTER 2", "see CHAPTER 1", "three"],
    "empty-line": ["A title\n", "CHAPTER 1\none\n", "two\nCHAPTER 2\nsee CHAPTER 1\n", "three"],
    "^CHAPTER ": ["A title\n\n", "CHAPTER 1\none\n\ntwo\n", "CHAPTER 2\nsee CHAPTER 1\n\n\nthree"],
    r"CHAPTER \d": ["A title\n\n", "CHAPTER 1\none\n\ntwo\n", "CHAPTER 2\nsee CHAPTER 1\n\n\nthree"],
}


@both_ways
@pytest.mark.parametrize("name", ["novel.txt", "novel.jsonl"])
@pytest.mark.parametrize("separator", SEPARATED)
def test_one_text_is_divided_into_documents(separator, name, streaming, tmp_path):
    file = tmp_path / name
    file.write_bytes((json.dumps({"text": NOVEL}) if name.endswith("l") else NOVEL.replace("\n", "\r\n")).encode())
    rows = list(load_documents([str(file)], streaming=streaming, separator=separator))
    assert [row["text"] for row in rows] == SEPARATED[separator]
    names = [row["document"] for row in rows]
    assert len({*names}) == len(names)
    place = f"{file}, line 1" if name.endswith("l") else str(file)
    assert names[-1] == f"{place} #{len(names) - (separator not in ('line', 'empty-line'))}"


@both_ways
@pytest.mark.parametrize(
    ("separator", "message"),
    [
        ("(", "document_separator must be line, empty-line or a regular expression, got '\\('"),
        ("x*", "matches every line"),
        ("^BOOK", "no line of .* matches document_separator '\\^BOOK'"),
    ],
)
def test_a_separator_that_separates_nothing_is_refused(separator, message, streaming, tmp_path):
    (tmp_path / "novel.txt").write_text(NOVEL)
    with pytest.raises(ValueError, match=message):
        load_documents([str(tmp_path)], streaming=streaming, separator=separator)


@both_ways
def test_a_long_line_is_read_in_parts(streaming, tmp_path):
    sentence = "It was the best of times, it was the worst of times. "
    (tmp_path / "a.txt").write_text(sentence * 1000)
    rows = list(load_documents([str(tmp_path)], streaming=streaming, part_size=5000))
    assert "".join(row["text"] for row in rows) == sentence * 1000
    assert [row["part"] for row in rows] == [*range(len(rows))]
    assert all(len(row["text"]) <= 5000 and row["text"].endswith(". ") for row in rows)
    assert len({row["document"] for row in rows}) == 1


def test_a_link_to_nothing_is_not_passed_over(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(FileNotFoundError, match="b.txt"):
        load_documents([str(tmp_path)])
