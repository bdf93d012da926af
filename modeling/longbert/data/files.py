"""Files: what a user names is found, opened and read record by record, by libraries that know the format.

Whatever cannot be read as it is meant is a `ValueError` that names the file and the row. Rows of a csv count as in a
spreadsheet, where the header is row 1; all others from 1 on.
"""

import codecs
import csv
import glob
import gzip
import io
import itertools
import json
import math
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import charset_normalizer
import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ..arguments import FileArguments
from ..folders import read_json, resolve_path


TABLES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
SAVED = "saved"  # a folder written by datasets' `save_to_disk`
DELIMITERS = ",;\t|"
MARKS = {  # of an encoding, at a file's start; the longer ones first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
PACKED = {  # what is no text, by its first bytes
    b"PK\x03\x04": "a zip file, as spreadsheets of .xlsx and .ods are: export the sheet as csv, or unpack it",
    b"\x1f\x8b": "packed by gzip, and its name does not say so: end it in .gz, or unpack it",
    b"\xd0\xcf\x11\xe0": "a spreadsheet or document of old Office: export it as csv",
    b"PAR1": "a parquet file: end its name in .parquet",
}
# what texts are still kept in where they are not in UTF-8; others are less likely than a wrong guess
LEGACY_ENCODINGS = ["cp1252", "cp1250", "cp1251", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "cp874"]
SAMPLE = 1 << 16
DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)  # what reading a broken .gz raises
UNSEEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs"}  # what BERT's tokenizers leave out, by its Unicode category

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a cell may hold a whole book


class MissingColumnError(ValueError):
    """A file lacks a column that was asked for."""

    def __init__(self, file: Path, column: str, columns: Sequence[str]):
        super().__init__(f"{file} has the columns {', '.join(map(repr, columns))}, not {column!r}")
        self.column = column


@dataclass(frozen=True)
class Record:
    """A row of a file.

    Args:
        place: of the row, for messages: file and number.
        values: of the columns that were asked for; None where the row has none.
    """

    place: str
    values: dict[str, Any]


def kind_of(file: str | Path, kinds: dict[str, str] = TABLES) -> str | None:
    """What a file holds, by the end of its name, in capitals or small letters, with or without .gz; None where it is
    not to be read."""
    name = Path(file).name.lower().removesuffix(".gz")
    return kinds.get(Path(name).suffix)


def find_files(path: str, kinds: dict[str, str] = TABLES, say: Callable[[str], None] = print) -> list[Path]:
    """The files that a path names, sorted: the path itself, what a folder holds, or what a glob matches.

    A name that exists is taken as it is, whatever brackets are in it. What else a folder holds is said, and so is what
    is read where that is of several kinds.

    Args:
        path: may also lead into a package, `package://name/...`.
        kinds: endings to read, and what they hold.
        say: takes a remark.

    Raises:
        ValueError: there is nothing, or nothing that is read.
    """
    path = resolve_path(path)
    place = Path(path)
    if (place / "dataset_dict.json").exists():
        splits = read_json(place / "dataset_dict.json").get("splits") or ["..."]
        raise ValueError(f"{path} holds the splits {', '.join(splits)}: name one, such as {place / splits[0]}")
    if place.exists():
        found = _held_by(place)
    else:
        found = sorted({file for match in glob.glob(path, recursive=True) for file in _held_by(Path(match))})
    read = [file for file in found if file.is_dir() or kind_of(file, kinds)]
    if not read:
        what = f"none of the {len(found)} files at {path} is read" if found else f"there is no file at {path}"
        raise ValueError(f"{what}: expected {', '.join(kinds)} (also .gz), or a folder written by datasets")
    others = [file for file in found if file not in read]
    if others or len({kind_of(file, kinds) for file in read}) > 1:
        say(f"{path}: {_counted(read)} are read" + (f", {_counted(others)} are not" if others else ""))
    return read


def _held_by(place: Path) -> list[Path]:
    """The files of a folder and of those in it, but for hidden ones, sorted; saved datasets as their folders."""
    if place.is_file() or (place / "state.json").exists():
        return [place]
    saved = {state.parent for state in place.rglob("state.json") if (state.parent / "dataset_info.json").exists()}
    files = (file for file in place.rglob("*") if _is_meant(file) and saved.isdisjoint(file.parents))
    return sorted(file for file in (*files, *saved) if not _is_hidden(file, place))


def _is_meant(file: Path) -> bool:
    """Whether somebody put a file there, or a link to one, be it gone."""
    return file.is_file() or not file.exists()


def _counted(files: list[Path]) -> str:
    """How many files there are of each ending."""
    endings = Counter(
        "saved dataset"
        if file.is_dir()
        else "".join(Path(file.name.lower()).suffixes[-2 if file.suffix.lower() == ".gz" else -1 :]) or file.name
        for file in files
    )
    return ", ".join(f"{number} {ending}" for ending, number in sorted(endings.items()))


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def read_records(file: Path, columns: Sequence[str], settings: FileArguments) -> Iterator[Record]:
    """The rows of a table, one after the other, so that any file fits into memory.

    Raises:
        ValueError: the file is empty, is not what its name says, lacks a column, or is in another encoding.
    """
    kind = SAVED if file.is_dir() else kind_of(file)
    readers: dict[str | None, Callable[..., Iterator[Record]]] = {
        "csv": _csv_records,
        "json": _json_records,
        "jsonl": _jsonl_records,
        "parquet": _parquet_records,
        SAVED: _saved_records,
    }
    try:
        records = readers[kind](file, columns, settings)
        first = next(records, None)
        if first is None:
            raise ValueError(f"{file} holds no rows")
        yield from itertools.chain([first], records)
    except UnicodeDecodeError as error:
        raise ValueError(wrong_encoding(file, error.encoding)) from error
    except (pa.ArrowException, *DAMAGED) as error:
        raise ValueError(f"{file} is damaged, or not what its name says: {error}") from error


def open_text(file: Path, settings: FileArguments) -> io.TextIOWrapper:
    """A text file, unpacked where it is a .gz; in UTF-8 where neither the settings nor its first bytes say otherwise.

    Line ends stay as they are.
    """
    stream = open_bytes(file)
    start = stream.read(SAMPLE)
    stream.seek(0)
    marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8")
    encoding = codecs.lookup(settings.encoding).name if settings.encoding else marked
    encoding = marked if encoding == "utf-8" else encoding  # which may have a mark all the same
    packed = next((what for mark, what in PACKED.items() if start.startswith(mark)), None)
    if packed:
        stream.close()
        raise ValueError(f"{file} is {packed}")
    if b"\0" in start and not encoding.startswith(("utf-16", "utf-32")):
        stream.close()
        raise ValueError(f"{file} holds bytes of 0, as no text in {encoding} does: is it in utf-16? set encoding")
    return io.TextIOWrapper(stream, encoding, newline="")


def open_bytes(file: Path) -> BinaryIO:
    """A file, unpacked where it is a .gz."""
    return gzip.open(file) if file.name.lower().endswith(".gz") else open(file, "rb")  # type: ignore[return-value]


def read_text(file: Path, settings: FileArguments, size: int = -1) -> Iterator[str]:
    """The text of a file, in pieces of `size` characters, with line ends as Unix writes them.

    Raises:
        ValueError: the file is in another encoding.
    """
    try:
        with open_text(file, settings) as stream:
            decoder = io.IncrementalNewlineDecoder(None, translate=True)
            while piece := stream.read(size):
                yield decoder.decode(piece)
            yield decoder.decode("", final=True)
    except UnicodeDecodeError as error:
        raise ValueError(wrong_encoding(file, error.encoding)) from error
    except DAMAGED as error:
        raise ValueError(f"{file} is damaged, or not what its name says: {error}") from error


def wrong_encoding(file: Path, encoding: str) -> str:
    """Where a file stops being in an encoding, and which one would read it."""
    sample, line = b"", 1
    with open_bytes(file) as stream:
        while piece := stream.read(SAMPLE) + stream.readline():
            try:
                piece.decode(encoding)
            except UnicodeDecodeError as error:
                line += piece[: error.start].count(b"\n")
                sample = piece
                break
            line += piece.count(b"\n")
    guesses = charset_normalizer.from_bytes(sample, cp_isolation=LEGACY_ENCODINGS)
    matches = {name for guess in guesses for name in guess.could_be_from_charset}
    likely = [name for name in LEGACY_ENCODINGS if name in matches][:3]
    advice = f"it may be in {' or '.join(likely)}: set encoding" if likely else "set encoding"
    return f"{file}, line {line} is not in {encoding}; {advice}, or save the file in UTF-8"


def _csv_records(file: Path, columns: Sequence[str], settings: FileArguments) -> Iterator[Record]:
    with open_text(file, settings) as stream:
        first = stream.readline()
        declared = first.strip().lower()  # Excel's way to name the delimiter, in a line before the header
        skips = len(declared) == 5 and declared.startswith("sep=")
        header = stream.readline() if skips else first
        if not header.strip():
            raise ValueError(f"{file} is empty, or its first line is")
        delimiter = settings.delimiter or (declared[4] if skips else _delimiter(header, columns))
        stream.seek(0)
        if skips:
            stream.readline()
        rows = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            names = [name.strip().removeprefix("\ufeff") for name in next(rows)]
        except csv.Error as error:
            raise ValueError(f"{file}, row 1, the header, is no csv: {error}") from error
        for column in columns:
            if column not in names:
                raise MissingColumnError(file, column, names)
            if names.count(column) > 1:
                raise ValueError(f"{file} has the column {column!r} more than once")
        number = 1
        try:
            for number, row in enumerate(rows, start=2):
                if any(cell.strip() for cell in row[len(names) :]):
                    raise ValueError(
                        f"{file}, row {number} has {len(row)} cells, the header has {len(names)}: put quotes around "
                        f"cells that hold the delimiter {delimiter!r}, or set delimiter"
                    )
                cells = dict(zip(names, row, strict=False))
                yield Record(f"{file}, row {number}", {column: cells.get(column) for column in columns})
        except csv.Error as error:
            raise ValueError(f"{file}, row {number + 1} is no csv: {error}") from error


def _delimiter(header: str, columns: Sequence[str]) -> str:
    """The delimiter by which a header has the columns asked for, or else the most columns."""

    def names(delimiter: str) -> list[str]:
        return [name.strip().removeprefix("\ufeff") for name in next(csv.reader([header], delimiter=delimiter))]

    return max(DELIMITERS, key=lambda delimiter: (len({*names(delimiter)} & {*columns}), len(names(delimiter))))


def read_objects(file: Path, columns: Sequence[str], settings: FileArguments) -> Iterator[Record]:
    """The lines of a jsonl file with all that they hold, of which `columns` are there.

    Raises:
        ValueError: the file is in another encoding, a line is no object, or lacks a column.
    """
    try:
        with open_text(file, settings) as stream:
            for number, content in enumerate(_json_lines(file, stream), start=1):
                place = f"{file}, line {number}"
                if content == {}:  # an empty line
                    content = dict.fromkeys(columns)
                for column in columns:
                    if not isinstance(content, dict) or column not in content:
                        raise ValueError(f"{place} has no {column!r}: each line needs {', '.join(columns)}")
                yield Record(place, content)
    except UnicodeDecodeError as error:
        raise ValueError(wrong_encoding(file, error.encoding)) from error


def _jsonl_records(file: Path, columns: Sequence[str], settings: FileArguments) -> Iterator[Record]:
    with open_text(file, settings) as stream:
        yield from _objects(file, columns, _json_lines(file, stream), "line")


def _json_lines(file: Path, lines: Iterator[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line.removeprefix("\ufeff")) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number} is not JSON: {error}") from error


def _json_records(file: Path, columns: Sequence[str], settings: FileArguments) -> Iterator[Record]:
    """One list of objects, or an object a line."""
    text = "".join(read_text(file, settings)).removeprefix("\ufeff")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = [*io.StringIO(text)]  # not splitlines, as a text may hold U+2028
        if not lines or not lines[0].strip().endswith("}"):
            raise ValueError(f"{file} is not JSON: {error}") from error
        yield from _objects(file, columns, _json_lines(file, iter(lines)), "line")
        return
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    yield from _objects(file, columns, iter(content if isinstance(content, list) else [content]), "row")


def _objects(file: Path, columns: Sequence[str], objects: Iterator[Any], unit: str) -> Iterator[Record]:
    """Objects may leave out what is null in them; a column that none of them has is missing."""
    seen: dict[str, None] = {}
    for number, content in enumerate(objects, start=1):
        if not isinstance(content, dict):
            raise ValueError(f"{file}, {unit} {number} must be an object with columns, got {content!r:.80}")
        seen |= dict.fromkeys(content)
        yield Record(f"{file}, {unit} {number}", {column: content.get(column) for column in columns})
    for column in columns:
        if seen and column not in seen:
            raise MissingColumnError(file, column, [*seen])


def _parquet_records(file: Path, columns: Sequence[str], settings: FileArguments) -> Iterator[Record]:
    table = pq.ParquetFile(file)
    names = table.schema_arrow.names
    for column in columns:
        if column not in names:
            raise MissingColumnError(file, column, names)
    features = datasets.Features.from_arrow_schema(table.schema_arrow)
    numbers = itertools.count(1)
    for batch in table.iter_batches(batch_size=256, columns=list(columns)):
        for row in batch.to_pylist():
            yield _named(f"{file}, row {next(numbers)}", row, features)


def _saved_records(file: Path, columns: Sequence[str], settings: FileArguments) -> Iterator[Record]:
    try:
        dataset = datasets.load_from_disk(str(file))
    except Exception as error:  # datasets promises no kind of error for files that are damaged
        raise ValueError(f"{file} is no dataset that can be loaded: {type(error).__name__}: {error}") from error
    for column in columns:
        if column not in dataset.column_names:
            raise MissingColumnError(file, column, dataset.column_names)
    features = dataset.features
    for number, row in enumerate(dataset.select_columns(list(columns)), start=1):
        yield _named(f"{file}, row {number}", row, features)


def _named(place: str, row: dict[str, Any], features: datasets.Features) -> Record:
    """A row with the names of its classes in place of their numbers."""
    return Record(place, {column: _class_names(value, features[column]) for column, value in row.items()})


def _class_names(value: Any, feature: Any) -> Any:
    if isinstance(feature, datasets.ClassLabel):
        return None if value is None or value < 0 else feature.int2str(value)
    if isinstance(feature, datasets.List | datasets.LargeList) and value is not None:
        return [_class_names(each, feature.feature) for each in value]
    return value


def is_missing(value: Any) -> bool:
    """Whether a value says nothing: null, NaN, or a text of blanks and of characters that are not seen."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return all(unicodedata.category(character) in UNSEEN for character in str(value))


def refuse_half_characters(place: str, values: Any) -> None:
    """Raise `ValueError` for a text, or texts within a row, that no file can hold: JSON can spell half of a
    character."""
    text = values if isinstance(values, str) else json.dumps(values, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place} holds half a character, {text[error.start : error.end]!a}") from error


def refuse_rows(empty: Sequence[str], what: str) -> None:
    """Raise `ValueError` where rows are not to be used, and nobody has said that they may be left out."""
    if empty:
        some = "; ".join(empty[:5]) + (f"; and {len(empty) - 5:,} more" if len(empty) > 5 else "")
        raise ValueError(
            f"{len(empty):,} rows have {what} ({some}): fill them, or set skip_empty: true to leave them out"
        )
