"""An archive: the texts of files of many kinds, all looked at before the first is used; bad files are left out, by
name and reason."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from ...arguments import FileArguments
from ...data import documents
from ...data.files import find_files, kind_of
from ...folders import sha256_of


HTML = "html"
KINDS = {**documents.KINDS, ".html": HTML, ".htm": HTML}
Text: TypeAlias = tuple[str, str]  # its name, and itself


def to_stderr(line: str) -> None:
    """Say something beside the results."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Input:
    """A file, and what was found in it.

    Args:
        size: in bytes; of a saved dataset, of all its files.
        texts: that it gives.
        empty: the places of texts that are left out.
        refused: why it is not used; None where it is.
    """

    name: str
    size: int
    sha256: str
    texts: int = 0
    empty: tuple[str, ...] = ()
    refused: str | None = None


@dataclass(frozen=True)
class Archive:
    """Files that were looked at, in order, and how they are read."""

    inputs: list[Input]
    column: str
    settings: FileArguments

    @classmethod
    def of(
        cls, paths: list[str], column: str, settings: FileArguments, say: Callable[[str], None] = to_stderr
    ) -> "Archive":
        """Look at every file that paths name: files, globs, folders.

        Args:
            column: of the texts in tables.
            say: takes what is read, left out and refused, a line each.

        Raises:
            ValueError: a path that names nothing that is read.
        """
        files: dict[Path, Path] = {}
        for path in paths:
            for file in find_files(path, KINDS, say):
                if files.setdefault(file.resolve(), file) is not file:
                    say(f"{file} is named more than once, and read once")
        archive = cls([_look_at(file, column, settings) for file in files.values()], column, settings)
        for each in archive.inputs:
            if each.empty:
                say(f"{each.name}: {len(each.empty):,} empty texts are left out: {documents.some(each.empty)}")
        for each in archive.refused:
            say(f"{each.name} is not read: {each.refused}")
        if not len(archive) and not archive.refused:
            raise ValueError(f"all texts of {', '.join(paths)} are empty")
        return archive

    @property
    def refused(self) -> list[Input]:
        """The files that are not used."""
        return [each for each in self.inputs if each.refused]

    def __len__(self) -> int:
        return sum(each.texts for each in self.inputs)

    def texts(self, wanted: Callable[[range], bool] = lambda numbers: True) -> Iterator[tuple[int, Text]]:
        """Every text with its number, from 0 on.

        Args:
            wanted: whether a file is read that holds the texts of these numbers.

        Raises:
            ValueError: a file has changed since it was looked at.
        """
        begin = 0
        for each in self.inputs:
            numbers = range(begin, begin + each.texts)
            begin = numbers.stop
            if numbers and wanted(numbers):
                yield from zip(numbers, self._read(each), strict=True)

    def _read(self, each: Input) -> Iterator[Text]:
        read = 0
        for place, text in _texts(Path(each.name), self.column, self.settings):
            if text.strip():
                read += 1
                if read <= each.texts:
                    yield place, text
        if read != each.texts:
            raise ValueError(f"{each.name} has changed since it was looked at: it had {each.texts} texts, now {read}")

    def shards(self, wanted: set[int], size: int) -> Iterator[tuple[int, Iterator[Text]]]:
        """The texts in shards of `size`, those that are wanted, each with its number; to be used one after another."""

        def holds_wanted(numbers: range) -> bool:
            return any(shard in wanted for shard in range(numbers[0] // size, numbers[-1] // size + 1))

        for shard, some in groupby(self.texts(holds_wanted), key=lambda numbered: numbered[0] // size):
            if shard in wanted:
                yield shard, (text for _, text in some)

    def record(self) -> dict[str, Any]:
        """What it is made of, as json has it."""
        return {each.name: dataclasses.asdict(each) | {"empty": list(each.empty)} for each in self.inputs}


def _look_at(file: Path, column: str, settings: FileArguments) -> Input:
    """Read a file once, to know what is in it and that it can be read."""
    size, checksum = 0, ""
    try:
        size, checksum = _version(file)
        texts, empty = _count(_texts(file, column, settings))
        if empty and not settings.skip_empty:
            what = f"{len(empty):,} of its {texts + len(empty):,} texts are empty ({documents.some(empty)})"
            raise ValueError(f"{what}: fill them, or leave them out with --skip-empty")
        return Input(str(file), size, checksum, texts, tuple(empty))
    except (ValueError, OSError, RecursionError) as error:
        return Input(str(file), size, checksum, refused=_reason(file, error))


def _reason(file: Path, error: Exception) -> str:
    """What is wrong with a file, in words that can follow its name."""
    said = " ".join(str(error).split())
    said = f"it {said.removeprefix(f'{file} ')}" if said.startswith(f"{file} ") else said.removeprefix(f"{file}, ")
    said = said.replace(": set text_column", ": name its column of texts, --text-column")
    return said.replace("set encoding", "name it, --encoding").replace("set delimiter", "name it, --delimiter")


def _version(file: Path) -> tuple[int, str]:
    """Its size, and the sha256 of its bytes; of a saved dataset those of its files."""
    parts = sorted(part for part in file.iterdir() if part.is_file()) if file.is_dir() else [file]
    return sum(part.stat().st_size for part in parts), ", ".join(map(sha256_of, parts))


def _count(texts: Iterable[Text]) -> tuple[int, list[str]]:
    """How many texts there are, and the places of the empty ones."""
    number, empty = 0, []
    for place, text in texts:
        if text.strip():
            number += 1
        else:
            empty.append(place)
    return number, empty


def _texts(file: Path, column: str, settings: FileArguments) -> Iterator[Text]:
    """The texts of a file, each with its place."""
    if file.is_file() and kind_of(file, KINDS) == HTML:
        from ...data.html import read_html  # needs an extra, which only those need who have such files

        yield str(file), read_html(file, settings)
        return
    for place, pieces in documents.texts_of(file, column, settings):
        yield place, "".join(pieces)
