"""Documents: read from files, folders and packages, named, and split into those to train on and those held out."""

import glob
import itertools
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from ..folders import resolve_path


BUILDERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}

Documents: TypeAlias = datasets.Dataset | datasets.IterableDataset


def load_documents(paths: list[str], text_column: str = "text", streaming: bool = False) -> Documents:
    """Read documents, one a text file or one a row, in sorted order of their files.

    Args:
        paths: files, globs or folders of .txt, .json(l), .parquet or .csv; a folder written by
            `datasets.save_to_disk`; or any of these inside a package, `package://name/...`.
        streaming: read them while they are used, and write no cache: for corpora larger than the disk.

    Returns:
        The columns `text` and `document`, its name for messages.

    Raises:
        ValueError: nothing found, several kinds of file, no such column, or a document that is not a text; the last
            only once it is reached where `streaming`.
    """
    return datasets.concatenate_datasets([_read(resolve_path(path), text_column, streaming) for path in paths])


def _read(path: str, text_column: str, streaming: bool) -> Documents:
    files: list[str] = []
    if Path(path, "state.json").exists():
        dataset = datasets.load_from_disk(path)
        dataset = dataset.to_iterable_dataset() if streaming else dataset
    else:
        found = _files(path)
        suffixes = {Path(file).suffix for file in found}
        if len(suffixes) != 1:
            raise ValueError(f"{path} mixes {sorted(suffixes)}: name one kind of file, for example '{path}/*.txt'")
        builder = BUILDERS[suffixes.pop()]
        files = found if builder == "text" else []
        options: dict[str, Any] = {"sample_by": "document"} if files else {}
        dataset = datasets.load_dataset(builder, data_files=found, split="train", streaming=streaming, **options)
    columns = dataset.column_names or list(next(iter(dataset)))
    if text_column not in columns:
        raise ValueError(f"{path} has columns {columns}, not {text_column!r}: set text_column")

    def name(texts: list[Any], indices: list[int]) -> dict[str, list[str]]:
        names = [files[index] if files else f"{path} #{index}" for index in indices]
        for title, text in zip(names, texts, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"document {title} has {type(text).__name__} in column {text_column!r}, not text")
        return {"text": texts, "document": names}

    return dataset.map(name, with_indices=True, batched=True, input_columns=[text_column], remove_columns=columns)


def _files(path: str) -> list[str]:
    pattern = str(Path(path, "**", "*")) if Path(path).is_dir() else path
    files = sorted(file for file in glob.glob(pattern, recursive=True) if Path(file).suffix in BUILDERS)
    if not files:
        raise ValueError(f"no documents at {path}: expected {', '.join(BUILDERS)} files or a saved dataset")
    return files


def split_held_out(documents: Documents, every: int, at_most: int | None = None) -> tuple[Documents, datasets.Dataset]:
    """Training and held-out documents: number 0, `every`, 2 `every`, ... are held out.

    Args:
        at_most: the most held-out documents of a stream that are kept in memory.
    """
    if isinstance(documents, datasets.IterableDataset):
        if every < 2:
            raise ValueError(f"held_out_every must be at least 2, got {every}")
        held_out = documents.filter(lambda _, index: index % every == 0, with_indices=True)
        training = documents.filter(lambda _, index: index % every > 0, with_indices=True)
        return training, datasets.Dataset.from_list(list(itertools.islice(held_out, at_most)))
    if not 2 <= every <= len(documents):
        raise ValueError(
            f"held_out_every must lie between 2 and the {len(documents)} documents there are, got {every}"
        )
    return (
        documents.select([index for index in range(len(documents)) if index % every]),
        documents.select(range(0, len(documents), every)),
    )
