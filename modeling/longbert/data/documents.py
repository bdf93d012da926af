"""Documents: read from files, folders and packages, named, checked, and long ones in parts."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets.exceptions import DatasetGenerationError

from ..arguments import FileArguments
from .files import (
    SAMPLE,
    TABLES,
    MissingColumnError,
    Record,
    find_files,
    is_missing,
    kind_of,
    read_records,
    read_text,
    refuse_half_characters,
    refuse_rows,
)
from .parts import PART, in_parts, parse_separator, separated


TEXT = "text"
KINDS = {".txt": TEXT, ".md": TEXT, **TABLES}
FEATURES = datasets.Features(
    {
        "text": datasets.Value("large_string"),
        "document": datasets.Value("string"),
        "part": datasets.Value("int64"),
        "characters": datasets.Value("int64"),
        "number": datasets.Value("int32"),
        "digest": datasets.Value("int64"),
    }
)
READ_AS = 2  # raise it when files are read otherwise, so that no cache of the old way is used

Documents: TypeAlias = datasets.Dataset | datasets.IterableDataset


def load_documents(
    paths: list[str],
    text_column: str = "text",
    streaming: bool = False,
    *,
    settings: FileArguments | None = None,
    separator: str | None = None,
    part_size: int | None = PART,
) -> Documents:
    """Read documents, one a text file or one a row, in sorted order of their files.

    Args:
        paths: files, globs or folders of .txt, .md, .csv, .tsv, .json(l) or .parquet, also .gz; a folder written by
            `datasets.save_to_disk`; or any of these inside a package, `package://name/...`.
        streaming: read them while they are used, and write no cache: for corpora larger than the disk. They are read
            once before, to find what cannot be used.
        settings: encoding, delimiter, and whether empty documents may be left out.
        separator: `line`, `empty-line` or a regular expression of headings, which makes documents of one text.
        part_size: characters of the parts that longer documents are read in; None for whole documents.

    Returns:
        The columns `text`; `document`, its name for messages; `part`, its number in the document; `characters`; and
        `digest`, which is the text's own wherever it stands.

    Raises:
        ValueError: nothing found; a file that is not what its name says; no such column; a document that is empty or
            not a text; a separator that separates nothing.
    """
    settings = settings or FileArguments()
    pattern = parse_separator(separator) if separator else None
    options: dict[str, Any] = {
        "files": _versions(paths),
        "column": text_column,
        "encoding": settings.encoding,
        "delimiter": settings.delimiter,
        "separator": separator,
        "size": part_size,
    }
    documents = _streamed(options) if streaming else _cached({**options, "read_as": READ_AS})
    survey = Survey.of(read_documents(**options) if streaming else _rows_of(documents))
    if pattern and not survey.separated:
        raise ValueError(f"no line of {', '.join(paths)} matches document_separator {separator!r}")
    if not settings.skip_empty:
        refuse_rows(survey.empty, "no text")
    elif survey.empty:
        print(f"{len(survey.empty):,} empty documents are left out: {some(survey.empty)}")
        documents = documents.filter(lambda characters: characters > 0, input_columns=["characters"])
    if not survey.documents:
        raise ValueError(f"all documents of {', '.join(paths)} are empty")
    if streaming:
        print(f"a stream of {survey.documents:,} documents of {survey.characters:,} characters, all read once")
    return documents.remove_columns(["number"])


def some(names: Sequence[str]) -> str:
    """The first names of many, and how many more there are."""
    return "; ".join(names[:5]) + (f"; and {len(names) - 5:,} more" if len(names) > 5 else "")


def _versions(paths: list[str]) -> tuple[tuple[str, int, int], ...]:
    """Every file once, with its size and time of change, so that a file that changed is read anew."""
    files: dict[Path, Path] = {}
    for path in paths:
        for file in find_files(path, KINDS):
            if file.resolve() in files:
                print(f"{file} is named more than once, and read once")
            files.setdefault(file.resolve(), file)
    return tuple(_version(file) for file in files.values())


def _version(file: Path) -> tuple[str, int, int]:
    states = [each.stat() for each in (sorted(file.iterdir()) if file.is_dir() else [file])]
    return str(file), sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)


def _cached(options: dict[str, Any]) -> datasets.Dataset:
    try:
        # a part may have a million characters: not a thousand are held before they are written
        return datasets.Dataset.from_generator(
            read_documents, features=FEATURES, gen_kwargs=options, writer_batch_size=64
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError | OSError):
            raise error.__cause__ from None
        raise


def _streamed(options: dict[str, Any]) -> datasets.IterableDataset:
    return datasets.IterableDataset.from_generator(read_documents, features=FEATURES, gen_kwargs=options)


def read_documents(
    files: tuple[tuple[str, int, int], ...],
    column: str,
    encoding: str | None,
    delimiter: str | None,
    separator: str | None,
    size: int | None,
    read_as: int = READ_AS,
) -> Iterator[dict[str, Any]]:
    """The parts of all documents, in order; an empty document is one part of no characters."""
    settings = FileArguments(encoding=encoding, delimiter=delimiter)
    for file, *_ in files:
        for place, pieces in texts_of(Path(file), column, settings):
            for number, document in separated(pieces, separator):
                for part, text in enumerate(in_parts(document, size)):
                    text = "" if part == 0 and not text.strip() else text
                    yield {
                        "text": text,
                        "document": f"{place} #{number}" if number else place,
                        "part": part,
                        "characters": len(text),
                        "number": number,
                        "digest": digest_of(text),
                    }


def digest_of(text: str) -> int:
    """A number between 0 and 2**63 that no other text has, but by chance."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def texts_of(file: Path, column: str, settings: FileArguments) -> Iterator[tuple[str, Iterable[str]]]:
    """The texts of a file, each with its place and in pieces; an empty one may be a piece of no characters.

    Raises:
        ValueError: the file is not what its name says, or holds something else than texts.
    """
    if file.is_file() and kind_of(file, KINDS) == TEXT:
        yield str(file), (_writable(str(file), piece) for piece in read_text(file, settings, SAMPLE))
        return
    for record in _records(file, column, settings):
        text = record.values[column]
        text = "" if is_missing(text) else text
        if not isinstance(text, str):
            raise ValueError(f"{record.place} has {type(text).__name__} in column {column!r}, not text")
        yield record.place, [_writable(record.place, text)]


def _writable(place: str, text: str) -> str:
    """The text, if it is one.

    Raises:
        ValueError: it holds bytes of 0, or half a character, as JSON can.
    """
    if "\0" in text:
        raise ValueError(f"{place} holds bytes of 0, as no text does")
    refuse_half_characters(place, text)
    return text


def _records(file: Path, column: str, settings: FileArguments) -> Iterator[Record]:
    try:
        yield from read_records(file, [column], settings)
    except MissingColumnError as error:
        raise ValueError(f"{error}: set text_column") from error


def _rows_of(documents: datasets.Dataset) -> Iterator[dict[str, Any]]:
    """All but the texts."""
    facts = documents.select_columns(["document", "part", "characters", "number"])
    for batch in facts.iter(batch_size=10_000):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


@dataclass
class Survey:
    """What was read: documents that hold a text, their characters, names of the empty ones, and whether any text was
    separated."""

    documents: int = 0
    characters: int = 0
    separated: bool = False
    empty: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Iterable[dict[str, Any]]) -> "Survey":
        """Of rows as `read_documents` gives them."""
        survey = cls()
        for row in rows:
            survey.characters += row["characters"]
            survey.separated |= row["number"] > 0
            if row["part"] == 0 and row["characters"]:
                survey.documents += 1
            elif row["part"] == 0:
                survey.empty.append(row["document"])
        return survey
