"""Labelled examples: read from files with the columns that a config names; every row is used, left out or refused."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from ...arguments import FileArguments, described
from ...data.files import (
    MissingColumnError,
    Record,
    find_files,
    is_missing,
    read_records,
    refuse_half_characters,
    refuse_rows,
)
from .labels import MissingValueError


SPLITS = ("train", "validation", "test")


@dataclass(kw_only=True)
class ExampleArguments(FileArguments):
    """Where the examples are."""

    train_file: str | None = described(
        None, "csv, json(l) or parquet file, glob, folder of these, or a folder written by datasets"
    )
    validation_file: str | None = described(
        None, "chooses the best checkpoint; by default a tenth of the training set"
    )
    test_file: str | None = described(None, "what the table measures; by default the validation set")
    folds: int = described(0, "cross-validation: this many folds of train_file instead of the other files")
    group_column: str | None = described(None, "examples with the same value never lie on both sides of a split")
    id_column: str | None = described(None, "names an example in predictions; by default its number")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_file is None:
            raise ValueError("train_file must name a file of examples")
        if self.folds and (self.validation_file or self.test_file):
            raise ValueError("folds divide train_file: leave validation_file and test_file out")
        if self.folds in (1, 2) or self.folds < 0:
            raise ValueError(f"folds must be 0 or at least 3 (test, validation, training), got {self.folds}")


def read_examples(
    path: str,
    columns: Mapping[str, str | None],
    parse: Callable[[dict[str, Any]], dict[str, Any]],
    arguments: FileArguments,
) -> datasets.Dataset:
    """Read one split, its columns as the scripts call them, with the `id` of every example and its `place` in a file.

    Args:
        columns: our name -> the file's; None where the file has none. `id` and `group` are among them.
        parse: the values of a row by our names -> the example.

    Raises:
        ValueError: no such file or column, rows that lack what is asked for, or a row that cannot be used.
    """
    wanted = {ours: theirs for ours, theirs in columns.items() if theirs is not None}

    def rows() -> Iterator[Record]:
        for file in find_files(path):
            try:
                for record in read_records(file, list(dict.fromkeys(wanted.values())), arguments):
                    yield Record(record.place, {ours: record.values[theirs] for ours, theirs in wanted.items()})
            except MissingColumnError as error:
                ours = next(ours for ours, theirs in wanted.items() if theirs == error.column)
                raise ValueError(f"{error}: set {ours}_column") from error

    return parse_rows(path, rows(), parse, arguments)


def parse_rows(
    path: str,
    rows: Iterable[Record],
    parse: Callable[[dict[str, Any]], dict[str, Any]],
    arguments: FileArguments,
) -> datasets.Dataset:
    """Examples of rows that have our names already; what `read_examples` says holds here too."""
    examples: list[dict[str, Any]] = []
    lacking: dict[str, list[str]] = {}
    for row in rows:
        try:
            named = _named(row.values, len(examples), row.place)
            examples.append({**named, **parse(row.values)})
        except MissingValueError as error:
            lacking.setdefault(str(error), []).append(row.place)
        except ValueError as error:
            raise ValueError(f"{row.place}: {error}") from error
        else:
            refuse_half_characters(row.place, examples[-1])
    for what, places in lacking.items():
        if not arguments.skip_empty:
            refuse_rows(places, what)
        print(f"{path}: {len(places):,} rows with {what} are left out")
    if not examples:
        raise ValueError(f"{path} holds no example that can be used")
    _refuse_mixed(examples)
    return datasets.Dataset.from_list(examples)


def _refuse_mixed(examples: list[dict[str, Any]]) -> None:
    """Raise `ValueError` where a column holds a list in one row and none in another."""
    first = examples[0]
    for example in examples:
        for name, value in example.items():
            if isinstance(value, list) != isinstance(first[name], list):
                raise ValueError(
                    f"{example['place']}: {name} is {value!r:.80}, and in {first['place']} it is {first[name]!r:.80}: "
                    "write a list in every row, or in none"
                )


def named_columns(arguments: ExampleArguments) -> dict[str, str | None]:
    """The columns that any example may have."""
    return {"id": arguments.id_column, "group": arguments.group_column}


def _named(values: dict[str, Any], number: int, place: str) -> dict[str, str]:
    """The `id` of a row, its `place` and, where it has one, its `group`."""
    named = {"id": str(values.get("id", number)), "place": place}
    for column in {"id", "group"} & values.keys():
        if is_missing(values[column]):
            raise MissingValueError(f"no {column}")
        named[column] = str(values[column])
    return named


def place_of(example: Mapping[str, Any]) -> str:
    """Where an example stands, for messages."""
    return example.get("place") or f"example {example['id']}"


def as_text(value: Any, what: str) -> str:
    """A text as it is, a number as text.

    Raises:
        MissingValueError: there is none, or nothing but blanks.
        ValueError: it is neither.
    """
    if is_missing(value):
        raise MissingValueError(f"an empty {what}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{what} must be a text, got {value!r:.80}")
    return str(value)
