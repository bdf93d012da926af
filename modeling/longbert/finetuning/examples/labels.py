"""Labels: the same rows of any file become the same targets, in the order that a finished model already has."""

import ast
import copy
import io
import json
import math
import re
import tokenize
from collections.abc import Sequence
from typing import Any

from ...configuration_longbert import LongBertConfig
from ...data.files import is_missing


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"

# what spreadsheets and pandas write where there is no value
NO_VALUE = {"NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL", "<NA>"}
WHOLE_NUMBER = re.compile(r"([+-]?)(0|[1-9]\d*)([.,]0+)?")
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
TRUTH = {"true", "false"}
GROUPED = re.compile(r"[+-]?\d{1,3}(?:(?:,\d{3})+\.|(?:\.\d{3})+,)\d+")  # 1,234.5 or 1.234,5
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")  # or a number with three digits behind a decimal comma
IGNORED = "-100"  # the label of what transformers does not count


class MissingValueError(ValueError):
    """A row lacks what is asked for: it is refused, or left out where the user says so."""


def as_list(value: Any) -> Any:
    """A list that a csv holds as text, in JSON or as Python writes it; anything else as it is.

    Raises:
        ValueError: the text begins like a list and is none.
    """
    if not isinstance(value, str) or not value.strip().startswith(("[", "{")):
        return value
    text = value.strip()
    for parse in (json.loads, _python_literal):
        try:
            return parse(text)
        except (ValueError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError):
            continue
    raise ValueError(f"holds no list that JSON or Python could read: {text!r:.80}")


def _python_literal(text: str) -> Any:
    """What Python, NumPy and pandas write into a csv: also arrays, their numbers, nan, and vectors without commas.

    Raises:
        ValueError: it is none of these.
    """
    return ast.literal_eval(_WithoutNumPy().visit(ast.parse(_with_commas(text), mode="eval")))


class _WithoutNumPy(ast.NodeTransformer):
    """`array([...], dtype=...)` and `np.int64(...)` as what they hold, `nan` as None."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        is_numpys = ast.unparse(node.func).split(".")[0] in ("array", "np", "numpy")
        return self.visit(node.args[0]) if is_numpys and len(node.args) == 1 else self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(None) if node.id == "nan" else node


def _with_commas(text: str) -> str:
    """A vector as NumPy prints it, `['a' 'b']`, with commas: Python would take it for one text, 'ab'.

    Raises:
        ValueError: some items have commas between them and others have none.
    """
    read = [each for each in tokenize.generate_tokens(io.StringIO(text).readline) if each.string.strip()]
    items = [each.type in (tokenize.STRING, tokenize.NUMBER, tokenize.NAME) for each in read]
    starts = [item or each.string in ("+", "-") for item, each in zip(items, read, strict=True)]
    follows = [False, *(before and start for before, start in zip(items, starts[1:], strict=False))]
    if any(follows) and any(each.string == "," for each in read):
        raise ValueError("a comma is missing")
    return " ".join(f", {each.string}" if after else each.string for each, after in zip(read, follows, strict=True))


def label_text(value: Any) -> str:
    """One label as text, the same whatever file it came from: 1, 1.0, "1" and "1.0" are one label, as are True and
    "true".

    Raises:
        MissingValueError: there is none.
        ValueError: it is neither a text nor a finite number.
    """
    if is_missing(value) or str(value).strip() in NO_VALUE:
        raise MissingValueError("no label")
    if not isinstance(value, str | int | float):
        raise ValueError(f"a label must be a text or a number, got {value!r:.80}")
    if value in (math.inf, -math.inf) or as_number(str(value)) in (math.inf, -math.inf):
        raise ValueError(f"the label {value} is no finite number")
    if isinstance(value, float) and value != int(value):
        return repr(value)
    text = str(value).strip()
    if text.lower() in TRUTH:
        return text.lower()
    whole = WHOLE_NUMBER.fullmatch(text)
    return f"{'-' if whole[1] == '-' else ''}{whole[2]}" if whole else text


def as_number(text: str) -> float | None:
    """A label as a number, also with a decimal comma; None where it is none."""
    return float(text.replace(",", ".")) if NUMBER.fullmatch(text) else None


def read_label(value: Any, separator: str | None = None) -> str | list[str]:
    """A cell as one label, or as a list of labels.

    Args:
        separator: between the labels of a text that names several.

    Raises:
        MissingValueError: there is none, or there is none in the list.
    """
    if separator is not None and isinstance(value, str) and not is_missing(value):
        return [label_text(part) for part in value.split(separator) if part.strip()]
    value = as_list(value)
    return [label_text(each) for each in value] if isinstance(value, list | tuple) else label_text(value)


def refuse_thousands(cells: Sequence[Any]) -> None:
    """Raise `ValueError` for numbers with marks of thousands, and for those such as 1,234 where nothing says whether
    the comma stands before decimals."""
    for cell in cells:
        if isinstance(cell, str) and GROUPED.fullmatch(cell.strip()):
            raise ValueError(f"the label {cell.strip()!r} has marks of thousands: write it without them")
    numbers = [cell.strip() for cell in cells if isinstance(cell, str) and NUMBER.fullmatch(cell.strip())]
    grouped = [number for number in numbers if THOUSANDS.fullmatch(number)]
    if grouped and not any("," in number and not THOUSANDS.fullmatch(number) for number in numbers):
        number = grouped[0]
        raise ValueError(
            f"the label {number!r} may be {number.replace(',', '')} or {number.replace(',', '.')}: write one of these"
        )


def infer_problem_type(values: Sequence[str | list[str]], places: Sequence[str] = ()) -> str:
    """Lists are several labels, numbers with a fraction are regression, anything else is one label.

    Args:
        places: of the values, for messages.

    Raises:
        ValueError: some are lists and others are not, some are numbers with a fraction and some are none, or lists
            that are neither names nor vectors of 0 and 1.
    """
    lists = sum(isinstance(value, list) for value in values)
    if lists == len(values):
        _refuse_shares(values, places)
        return MULTI
    if lists:
        raise ValueError(
            f"{lists:,} of {len(values):,} labels are lists, the others are not: write all of them as lists"
        )
    numbers = [as_number(str(value)) for value in values]
    fractions = any(number is not None and number != int(number) for number in numbers)
    if fractions and None in numbers and 2 * numbers.count(None) < len(numbers):
        first = numbers.index(None)
        at = f"{places[first]}: " if places else ""
        raise ValueError(
            f"{at}{numbers.count(None):,} of {len(values):,} labels are no numbers, such as {values[first]!r}; the "
            f"others are: mend them, leave them empty and set skip_empty: true, or set problem_type: {SINGLE}"
        )
    return REGRESSION if fractions and None not in numbers else SINGLE


def _refuse_shares(values: Sequence[Any], places: Sequence[str]) -> None:
    """Raise `ValueError` for vectors of shares, one for each label, which no loss here learns."""
    numbers = [as_number(label) for value in values for label in value]
    shares = all(number is not None and 0 <= number <= 1 for number in numbers)
    if shares and len({len(value) for value in values}) == 1 and any(number not in (0, 1) for number in numbers):
        at = f"{places[0]}: " if places else ""
        raise ValueError(f"{at}the label {values[0]} is a vector of shares: write 0 or 1 for each label, or names")


def are_multi_hot(values: Sequence[list[str]]) -> bool:
    """Whether lists are vectors of 0 and 1, one number for each label, rather than names of labels."""
    sizes = {len(value) if isinstance(value, list) else 0 for value in values}
    found = {label for value in values for label in value}
    return len(sizes) == 1 and sizes.pop() > 1 and (found <= {"0", "1"} or found <= TRUTH)


def in_order(labels: set[str]) -> list[str]:
    """Labels sorted, numbers by their size."""
    numbers = {label: as_number(label) for label in labels}
    if None in numbers.values():
        return sorted(labels)
    return sorted(labels, key=lambda label: (numbers[label], label))


def infer_labels(values: Sequence[Any]) -> list[str]:
    """The labels in a training set, sorted.

    Raises:
        ValueError: there are fewer than two.
    """
    found = {label for value in values for label in (value if isinstance(value, list) else [value])}
    if len(found) < 2:
        raise ValueError(f"classification needs at least two labels in the training set, there is {sorted(found)}")
    return in_order(found)


def are_unnamed(labels: Sequence[str]) -> bool:
    """Whether these are the names that transformers gives where nobody has named the labels."""
    return all(label == f"LABEL_{number}" for number, label in enumerate(labels))


def agree_on_labels(known: list[str] | None, found: list[str], by_number: bool = False) -> tuple[list[str], bool]:
    """The labels of a model to train, and whether the source's head is trained further; printed where it has one.

    A head keeps its labels in their order if it knows every label of the data. One that says LABEL_0, LABEL_1, ...
    knows the numbers 0, 1, ...

    Args:
        known: labels of the source's head; None where it has none, and nothing is to be replaced.
        found: labels of the data.
        by_number: the data does not name its labels, but gives each a place in a vector.
    """
    if known is None:
        return found, True
    numbers = [str(number) for number in range(len(known))]
    if by_number:
        labels, keeps = (known, True) if len(known) == len(found) else (found, False)
    elif {*found} <= {*known}:
        labels, keeps = known, True
    else:
        keeps = are_unnamed(known) and {*found} <= {*numbers}
        labels = numbers if keeps else found
    what = "is trained further, in its own order of labels" if keeps else "is replaced by a new one"
    print(f"the source's head for {listed(known)} {what}; the data has {listed(found)}")
    return labels, keeps


def listed(labels: list[str]) -> str:
    """The first ten labels, and how many more there are."""
    return ", ".join(labels[:10]) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")


def label_index(labels: list[str], place: str, label: str) -> int:
    """The number of a label.

    Raises:
        ValueError: it is not one of those seen in training.
    """
    try:
        return labels.index(label)
    except ValueError:
        raise ValueError(
            f"{place} has the label {label!r}, which the training set does not have: {', '.join(labels)}"
        ) from None


def with_labels(config: LongBertConfig, labels: list[str]) -> LongBertConfig:
    """A copy of a config that names labels in the order of their numbers."""
    config = copy.deepcopy(config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    return config
