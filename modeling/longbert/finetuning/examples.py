"""Labelled examples: read from files with the columns that a config names, checked before any work starts."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ..arguments import described
from ..configuration_longbert import LongBertConfig
from ..folders import resolve_path


BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
SPLITS = ("train", "validation", "test")


@dataclass(kw_only=True)
class ExampleArguments:
    """Where the examples are."""

    train_file: str | None = described(None, "csv, json(l) or parquet file, glob, or a folder written by datasets")
    validation_file: str | None = described(
        None, "chooses the best checkpoint; by default a tenth of the training set"
    )
    test_file: str | None = described(None, "what the table measures; by default the validation set")
    folds: int = described(0, "cross-validation: this many folds of train_file instead of the other files")
    group_column: str | None = described(None, "examples with the same value never lie on both sides of a split")
    id_column: str | None = described(None, "names an example in predictions; by default its number")

    def __post_init__(self) -> None:
        if self.train_file is None:
            raise ValueError("train_file must name a file of examples")
        if self.folds and (self.validation_file or self.test_file):
            raise ValueError("folds divide train_file: leave validation_file and test_file out")
        if self.folds in (1, 2) or self.folds < 0:
            raise ValueError(f"folds must be 0 or at least 3 (test, validation, training), got {self.folds}")


def read_examples(path: str, columns: dict[str, str | None]) -> datasets.Dataset:
    """Read one split, its columns renamed to what the scripts call them, and `id`.

    Args:
        columns: our name -> the file's; None where the file has none.

    Raises:
        ValueError: no such file or column.
    """
    path = resolve_path(path)
    if Path(path, "state.json").exists():
        dataset = datasets.load_from_disk(path)
    else:
        builder = BUILDERS.get(Path(path).suffix)
        if builder is None:
            raise ValueError(f"{path}: examples come from .csv, .json(l) or .parquet files, or a saved dataset")
        dataset = datasets.load_dataset(builder, data_files=path, split="train")
    wanted = {ours: theirs for ours, theirs in columns.items() if theirs is not None}
    for ours, theirs in wanted.items():
        if theirs not in dataset.column_names:
            raise ValueError(f"{path} has columns {dataset.column_names}, not {theirs!r}: set {ours}_column")

    def rename(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        renamed = {ours: batch[theirs] for ours, theirs in wanted.items()}
        return renamed if "id" in renamed else {**renamed, "id": [str(index) for index in indices]}

    return dataset.map(rename, with_indices=True, batched=True, remove_columns=dataset.column_names)


def refuse_empty(examples: datasets.Dataset, column: str) -> None:
    """Raise `ValueError` where a text is empty."""
    for name, text in zip(examples["id"], examples[column], strict=True):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"example {name} has an empty {column}: {text!r}")


@dataclass
class Split:
    """One way to divide the examples."""

    name: str
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset

    def map(self, function: Callable[[datasets.Dataset], datasets.Dataset]) -> "Split":
        """Apply `function` to each part; a part that is used twice is processed once."""
        train, validation = function(self.train), function(self.validation)
        return Split(self.name, train, validation, validation if self.test is self.validation else function(self.test))

    def everything(self) -> datasets.Dataset:
        """All examples, each once."""
        parts = [self.train, self.validation, *([self.test] if self.test is not self.validation else [])]
        return datasets.concatenate_datasets(parts)


def make_splits(
    arguments: ExampleArguments, read: Callable[[str], datasets.Dataset], stratify: str | None, seed: int
) -> list[Split]:
    """The splits: one as the files divide the examples, or one for each fold.

    Args:
        read: makes examples of a file.
        stratify: the column whose values are spread evenly over folds; None for none.
    """
    train = read(str(arguments.train_file))
    if arguments.folds:
        return _folds(train, arguments.folds, stratify, seed)
    if arguments.validation_file:
        validation = read(arguments.validation_file)
    else:
        first, *_ = _folds(train, 10, stratify, seed)
        train, validation = datasets.concatenate_datasets([first.train, first.validation]), first.test
    test = read(arguments.test_file) if arguments.test_file else validation
    return [Split("", train, validation, test)]


def _folds(examples: datasets.Dataset, number: int, stratify: str | None, seed: int) -> list[Split]:
    """Fold k is the test set and fold k + 1 the validation set of division k."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    groups = examples["group"][:] if "group" in examples.column_names else None
    targets = None if stratify is None else [str(value) for value in examples[stratify]]
    kinds: dict[tuple[bool, bool], Any] = {
        (False, False): KFold,
        (False, True): StratifiedKFold,
        (True, False): GroupKFold,
        (True, True): StratifiedGroupKFold,
    }
    folding = kinds[groups is not None, targets is not None](number, shuffle=True, random_state=seed)
    tests = [test for _, test in folding.split(range(len(examples)), targets, groups)]

    def part(*folds: int) -> datasets.Dataset:
        return examples.select(sorted(int(index) for fold in folds for index in tests[fold]))

    return [
        Split(
            f"fold-{fold}",
            part(*(other for other in range(number) if other not in (fold, (fold + 1) % number))),
            part((fold + 1) % number),
            part(fold),
        )
        for fold in range(number)
    ]


def infer_labels(values: Sequence[Any]) -> list[str]:
    """The labels in a training set, sorted."""
    flat = {str(label) for value in values for label in (value if isinstance(value, list) else [value])}
    if len(flat) < 2:
        raise ValueError(f"classification needs at least two labels in the training set, there is {sorted(flat)}")
    return sorted(flat)


def label_index(labels: list[str], example: str, label: Any) -> int:
    """The number of a label.

    Raises:
        ValueError: it is not one of those seen in training.
    """
    try:
        return labels.index(str(label))
    except ValueError:
        raise ValueError(
            f"example {example} has the label {label!r}, which the training set does not have: {', '.join(labels)}"
        ) from None


def with_labels(config: LongBertConfig, labels: list[str]) -> LongBertConfig:
    """A copy of a config that names labels in the order of their numbers."""
    config = copy.deepcopy(config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    return config
