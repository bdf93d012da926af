"""Splits: examples divided into those to train on, to choose a checkpoint by, and to test on."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from ...data.fingerprints import Fingerprint, of_rows
from .reading import ExampleArguments, place_of


HELD_OUT = 10  # one of so many parts is held out where no file chooses the best checkpoint


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


def fingerprints(splits: list[Split]) -> dict[str, Fingerprint]:
    """Of each part of the examples, or of all that folds divide; where their files lie is no part of it."""
    split = splits[0]
    if len(splits) > 1:
        parts = {"examples": split.everything()}
    else:
        parts = {"training set": split.train, "validation set": split.validation, "test set": split.test}
    return {
        name: of_rows(part.remove_columns([column for column in part.column_names if column == "place"]))
        for name, part in parts.items()
    }


def make_splits(
    arguments: ExampleArguments,
    read: Callable[[str], datasets.Dataset],
    targets: Callable[[datasets.Dataset], Sequence[Any] | None],
    seed: int,
) -> list[Split]:
    """The splits: one as the files divide the examples, or one for each fold.

    Args:
        read: makes examples of a file.
        targets: of examples, the values to spread evenly over the parts, a label or a number each, or a list of
            labels; None for none.

    Raises:
        ValueError: there are too few examples, or groups, to divide.
    """
    train = read(str(arguments.train_file))
    if arguments.folds:
        _refuse_repeated(train)
        return _cross_validation(train, _Division(train, targets(train), seed), arguments.folds)
    if arguments.validation_file:
        validation = read(arguments.validation_file)
    else:
        division = _Division(train, targets(train), seed)
        held_out = division.held_out()
        validation = train.select(held_out)
        train = train.select(sorted({*range(len(train))} - {*held_out}))
    test = read(arguments.test_file) if arguments.test_file else validation
    _refuse_repeated(test)
    if arguments.group_column:
        _refuse_shared_groups(train, validation, "validation_file")
        _refuse_shared_groups(train, test, "test_file")
    return [Split("", train, validation, test)]


def _refuse_repeated(tested: datasets.Dataset) -> None:
    """Raise `ValueError` where two examples have one id: predictions of an id are those of one example."""
    numbers: dict[str, int] = {}
    for number, name in enumerate(tested["id"]):
        if name in numbers:
            first, second = (place_of(tested[each]) for each in (numbers[name], number))
            raise ValueError(
                f"{second} has the id {name!r}, as has {first}: give each example to test on an id of its own, or "
                "leave id_column out"
            )
        numbers[name] = number


def _refuse_shared_groups(train: datasets.Dataset, other: datasets.Dataset, name: str) -> None:
    """Raise `ValueError` where examples of one group lie on both sides."""
    shared = {*train["group"]} & {*other["group"]}
    if shared:
        first = next(number for number, group in enumerate(other["group"]) if group in shared)
        raise ValueError(
            f"{place_of(other[first])} is of the group {other[first]['group']!r}, of which train_file has examples, "
            f"as of {len(shared):,} groups of {name}: leave them out of one, or leave group_column out"
        )


def _cross_validation(examples: datasets.Dataset, division: "_Division", number: int) -> list[Split]:
    """Fold k is the test set and fold k + 1 the validation set of division k."""
    parts = division.parts(number)
    unseen = division.unseen(parts)
    if unseen:
        print(f"{', '.join(unseen)}: some examples are tested by models that have never seen the label")

    def part(*folds: int) -> datasets.Dataset:
        return examples.select(sorted(index for fold in folds for index in parts[fold]))

    return [
        Split(
            f"fold-{fold}",
            part(*(other for other in range(number) if other not in (fold, (fold + 1) % number))),
            part((fold + 1) % number),
            part(fold),
        )
        for fold in range(number)
    ]


class _Division:
    """Examples that are divided at random, groups kept together, targets spread evenly.

    Args:
        targets: as `make_splits` has them.
    """

    def __init__(self, examples: datasets.Dataset, targets: Sequence[Any] | None, seed: int):
        self.number, self.seed = len(examples), seed
        self.groups = examples["group"][:] if "group" in examples.column_names else None
        self.labels = [] if targets is None else [_labels_of(target) for target in targets]
        self.strata = None if targets is None else _strata(list(targets))
        self.counts = Counter(label for labels in self.labels for label in labels)

    def parts(self, number: int) -> list[list[int]]:
        """The examples' numbers in so many parts.

        Raises:
            ValueError: there are fewer examples, or groups, than parts.
        """
        from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

        units = self.number if self.groups is None else len({*self.groups})
        if units < number:
            what = "examples" if self.groups is None else "groups"
            raise ValueError(
                f"{units} {what} cannot be divided into {number} parts: set folds to at most {units}, or name "
                "validation_file and test_file"
            )
        # a stratum of fewer than two cannot be spread, and scikit-learn asks for one that fills all parts
        strata = self.strata if self.strata and max(Counter(self.strata).values()) >= number else None
        kinds: dict[tuple[bool, bool], Any] = {
            (False, False): KFold,
            (False, True): StratifiedKFold,
            (True, False): GroupKFold,
            (True, True): StratifiedGroupKFold,
        }
        folding = kinds[self.groups is not None, strata is not None](number, shuffle=True, random_state=self.seed)
        return [[int(index) for index in part] for _, part in folding.split(range(self.number), strata, self.groups)]

    def held_out(self) -> list[int]:
        """About a tenth of the examples, without which every label is still there to be learned.

        Raises:
            ValueError: there is no such tenth.
        """
        units = self.number if self.groups is None else len({*self.groups})
        if units < 2:
            what = "example" if self.groups is None else "group"
            raise ValueError(f"one {what} cannot be trained on and held out: name validation_file")
        parts = self.parts(min(HELD_OUT, units))
        if self.groups is None:
            # an example that alone has its label is there to be learned
            single = {
                index for index, labels in enumerate(self.labels) if any(self.counts[label] == 1 for label in labels)
            }
            parts = [[index for index in part if index not in single] for part in parts]
        fitting = [part for part in parts if part and not self._lost(part)]
        if not fitting:
            fewest = min((self._lost(part) for part in parts if part), key=len, default=sorted(self.counts))
            raise ValueError(
                f"no tenth of the training set can be held out without losing all examples of {', '.join(fewest)}: "
                "name validation_file, or give these labels more examples"
            )
        return sorted(fitting[0])

    def unseen(self, parts: list[list[int]]) -> list[str]:
        """The labels that are nowhere but in a part and the next, which are left out of training together."""
        pairs = zip(parts, [*parts[1:], *parts[:1]], strict=True)
        inside = ({label for index in part for label in self.labels[index]} for part in parts) if self.labels else ()
        lost = ({*self._lost([*part, *after])} for part, after in pairs)
        return sorted(set().union(*(there & gone for there, gone in zip(inside, lost, strict=False))))

    def _lost(self, part: list[int]) -> list[str]:
        """The labels that are nowhere but in a part."""
        inside = Counter(label for index in part if self.labels for label in self.labels[index])
        return sorted(label for label, count in inside.items() if count == self.counts[label])


def _labels_of(target: Any) -> list[str]:
    if isinstance(target, float):
        return []
    return [str(label) for label in target] if isinstance(target, list) else [str(target)]


def _strata(targets: list[Any]) -> list[str] | None:
    """What is spread evenly: labels; of numbers the quarter they lie in; of lists nothing."""
    if all(isinstance(target, float) for target in targets):
        return [str(bin_) for bin_ in np.searchsorted(np.quantile(targets, [0.25, 0.5, 0.75]), targets)]
    return None if any(isinstance(target, list) for target in targets) else [str(target) for target in targets]
