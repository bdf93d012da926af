"""Words to labels, named entities or any tags, in documents that may be longer than what is read at once.

A longer document is read in pieces that overlap by `stride`; every word is labelled once, by the piece in which it has
most context, in training as in prediction.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import TokenClassifierOutput

from ...arguments import described
from ...configuration_longbert import LongBertConfig
from ...data.features import FRAME, IGNORE_INDEX, framed, framed_labels
from ...data.files import is_missing
from ...losses import at_least_fp32, per_item
from ...modeling_longbert import LongBertForTokenClassification
from ...source import Source
from ..examples.entities import OUTSIDE, beginning_within, first_malformed, mark_entities, scheme_of, to_iob2
from ..examples.labels import (
    IGNORED,
    MissingValueError,
    agree_on_labels,
    as_list,
    infer_labels,
    label_index,
    label_text,
    listed,
    with_labels,
)
from ..examples.reading import ExampleArguments, named_columns, place_of, read_examples
from ..examples.splits import Split
from ..examples.words import splitter_of
from ..pieces import Outputs, Row, decided_tokens, overlapping, piece_starts
from ..results.metrics import EntityMetric, Figures, WordMetric
from ..strategies import Reader
from .task import PieceTask


FOUND_AGAIN = 0.5  # of the words; below that a tagger reads other words than it was trained on


@dataclass(kw_only=True)
class TokenClassificationArguments(ExampleArguments):
    """What the examples hold."""

    words_column: str = described("words", "column of the documents, each a list of words")
    labels_column: str = described("labels", "column of the labels, a list of them, one for every word")
    stride: int = described(128, "tokens that neighbouring pieces of a long document share")


def read_words(path: str, arguments: TokenClassificationArguments) -> datasets.Dataset:
    """Read a file of examples as `id`, `place`, `words`, `labels`.

    Raises:
        ValueError: words or labels are no lists, or differ in number.
    """
    columns = {"words": arguments.words_column, "labels": arguments.labels_column, **named_columns(arguments)}

    def parse(values: dict[str, Any]) -> dict[str, Any]:
        words, labels = (_each(values[name], name) for name in ("words", "labels"))
        if len(words) != len(labels):
            raise ValueError(f"{len(words)} words and {len(labels)} labels: every word must have one label")
        names = [label_text(label) for label in labels]
        if IGNORED in names:
            raise ValueError(
                f"word {names.index(IGNORED)} has the label {IGNORED}, by which transformers leaves tokens out: give "
                "words as they were before they were tokenized, each with its label"
            )
        return {"words": [str(word) for word in words], "labels": names}

    return read_examples(path, columns, parse, arguments)


def _each(value: Any, what: str) -> list[Any]:
    """A list, as it is, as a csv writes it, or as a text with spaces between."""
    if is_missing(value):
        raise MissingValueError(f"no {what}")
    value = as_list(value)
    found = value.split() if isinstance(value, str) else value
    if not isinstance(found, list | tuple):
        raise ValueError(f"{what} must be a list, got {value!r:.80}")
    if not found or any(each is None for each in found):
        raise MissingValueError(f"no {what}, or a null among them")
    return list(found)


@dataclass
class TokenClassification(PieceTask):
    """The task of `finetune/token_classification.py`.

    Args:
        labels: their names in the order of their numbers; where they mark entities these are scored, else words.
        unread: the label of a word that the model does not see.
        scheme: how entities are marked, "" where none are; labels that do not fit it are refused, which any do IOB1.
        word_splitter: how `longbert predict` splits a text into words: a key of `WORD_SPLITTERS`.
        words_found: the share of the training words that it finds again.
    """

    model_class = LongBertForTokenClassification
    in_the_middle = "would leave words in the middle without a label"

    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    unread: str
    stride: int = 128
    batch_size: int = 8
    keeps_head: bool = True
    scheme: str = "IOB2"
    word_splitter: str = "punctuation"
    words_found: float = 1.0
    entities: bool = field(init=False)
    metric: Figures = field(init=False)

    def __post_init__(self) -> None:
        self.entities = mark_entities(self.labels)
        self.scheme = self.scheme if self.entities else ""
        self.metric = EntityMetric() if self.entities else WordMetric()

    @classmethod
    def of(cls, source: Source, splits: list[Split], stride: int, batch_size: int) -> "TokenClassification":
        """The task of some examples: labels are those of all training sets, in the order of the source's own head, if
        it has one that knows them. A word that is not seen gets O or, where there is no such label, the most frequent
        one."""
        values = [labels for split in splits for labels in split.train["labels"]]
        names, keeps_head = agree_on_labels(source.labels(cls.model_class), infer_labels(values))
        counts = Counter(label for labels in values for label in labels)
        unread = OUTSIDE if OUTSIDE in counts else counts.most_common(1)[0][0]
        scheme = scheme_of(values) if mark_entities(names) else ""
        scored = f"whole entities in {scheme}" if scheme else "single words, as the labels are not B-X, I-X and O"
        print(f"{len(names):,} labels: {listed(names)}; what is scored is {scored}")
        words = [words for split in splits for words in split.train["words"]]
        if all(len(each) == 1 for each in words):
            raise ValueError(
                "every document to train on has one word: a row is a document, with the list of all its words and of "
                "their labels"
            )
        splitter, share = splitter_of(words)
        few = "; it will not find what these labels mark: split words as a text can be split" * (share < FOUND_AGAIN)
        print(
            f"`longbert predict` will split texts at {splitter}, which finds {share:.1%} of the training words again"
            + few
        )
        return cls(source.tokenizer, names, unread, stride, batch_size, keeps_head, scheme, splitter, round(share, 3))

    def accept(self, readers: Mapping[str, Reader]) -> None:
        """Check the strategies, and that their pieces can share `stride` tokens.

        Raises:
            ValueError: a strategy that would leave a gap, or a stride that is too long.
        """
        super().accept(readers)
        for reader in readers.values():
            overlapping(reader.at_once, reader.at_once - FRAME, self.stride)

    def tokenize(self, examples: datasets.Dataset, at_once: int) -> datasets.Dataset:
        """Tokenize, and turn labels into numbers.

        Word n has the tokens from `bounds[n]` up to `bounds[n + 1]`: none where the tokenizer leaves nothing of it, as
        of a control character. Its label is the target of the first.

        Raises:
            ValueError: a document that the tokenizer turns into no token, a label that the training set does not have,
                or labels that mark entities and do not fit together.
        """

        def tokens(row: dict[str, Any]) -> dict[str, Any]:
            text = self.tokenizer(row["words"], is_split_into_words=True, add_special_tokens=False, verbose=False)
            ids, owners = text["input_ids"], text.word_ids()
            if not ids:
                raise ValueError(f"{place_of(row)} has no word that the tokenizer can read: {row['words']!r:.80}")
            labels = [label_index(self.labels, place_of(row), label) for label in row["labels"]]
            self._refuse_malformed(row)
            bounds = [bisect_left(owners, number) for number in range(len(labels) + 1)]
            # What is labelled is a word, and the metric counts words. With a label on each of its pieces a rare word
            # would weigh more in the loss than a common one, and its pieces could disagree in prediction.
            targets = [IGNORE_INDEX] * len(ids)
            for (first, end), label in zip(pairwise(bounds), labels, strict=True):
                if first < end:
                    targets[first] = label
            return {
                "id": row["id"],
                "input_ids": ids,
                "targets": targets,
                "bounds": bounds,
                "labels": labels,
                "length": len(ids) + FRAME,
            }

        return examples.map(tokens, remove_columns=examples.column_names, desc="tokenizing")

    def _refuse_malformed(self, row: dict[str, Any]) -> None:
        if self.scheme in ("", "IOB1"):
            return
        number = first_malformed(row["labels"])
        if number is not None:
            label = row["labels"][number]
            raise ValueError(
                f"{place_of(row)}: word {number}, {row['words'][number]!r}, has the label {label} and continues no "
                f"entity. In {self.scheme} the first word of an entity is B-{label[2:]}, and words outside are "
                f"{OUTSIDE}: write B-{label[2:]} here"
            )

    def configure(self, config: LongBertConfig) -> LongBertConfig:
        """With labels, and how words are split."""
        config = with_labels(config, self.labels)
        names = ("stride", "word_splitter", "words_found")
        config.task_settings = {name: getattr(self, name) for name in names}
        return config

    def pieces(self, example: Row, reader: Reader) -> list[Row]:
        """Every piece of a document, with a label at the first token of every word that it decides."""
        ids, size = example["input_ids"], reader.at_once - FRAME
        starts = piece_starts(reader.strategy, len(ids), size, self.stride)
        rows = []
        for start, (first, end) in zip(starts, decided_tokens(starts, len(ids), size, self.stride), strict=True):
            piece = ids[start : start + size]
            labels = [IGNORE_INDEX] * len(piece)
            labels[first - start : end - start] = example["targets"][first:end]
            # `decides` is one further on, behind [CLS]
            decides = [first - start + 1, end - start + 1]
            rows.append({**framed(self.tokenizer, piece), "labels": framed_labels(labels), "decides": decides})
        return rows

    def rows(self, examples: datasets.Dataset, reader: Reader, train: bool = False) -> datasets.Dataset:
        """The pieces; in training those that decide a word, as others have no loss to divide."""
        rows = super().rows(examples, reader)
        if not train:
            return rows
        return rows.filter(lambda labels: any(label != IGNORE_INDEX for label in labels), input_columns="labels")

    def loss(
        self,
        outputs: TokenClassifierOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Cross-entropy of the labels of words; `num_items_in_batch` counts these, as Trainer does."""
        logits = at_least_fp32(outputs.logits).flatten(0, 1)
        total = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
        return per_item(total, (labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch)

    def decide(self, example: Row, pieces: list[tuple[Row, Outputs]]) -> dict[str, Any]:
        """The labels of a document's words, how probable each is, and at which token the words begin, [CLS] counted;
        where a word is not seen its score is None."""
        logits = torch.cat([outputs["logits"][slice(*row["decides"])] for row, outputs in pieces])
        highest, numbers = (best.tolist() for best in logits.softmax(-1).max(-1))
        prediction: list[str] = []
        scores: list[float | None] = []
        for first, end in pairwise(example["bounds"]):
            seen = first < min(end, len(numbers))
            prediction.append(self.labels[numbers[first]] if seen else self.unread)
            scores.append(round(highest[first], 4) if seen else None)
        return {
            "prediction": prediction,
            "reference": [self.labels[number] for number in example["labels"]],
            "scores": scores,
            "positions": [first + 1 for first in example["bounds"][:-1]],
        }

    def within(self, lines: list[dict[str, Any]], start: int, stop: int | None) -> list[dict[str, Any]]:
        """The documents that have words there, cut to these; an entity belongs to where it begins, and stays whole."""
        found = []
        for line in lines:
            positions = line["positions"]
            first, end = (
                bisect_left(positions, start),
                len(positions) if stop is None else bisect_left(positions, stop),
            )
            if first < end:
                found.append({"id": line["id"], **self._cut(line, first, end)})
        return found

    def _cut(self, line: dict[str, Any], first: int, end: int) -> dict[str, list[str]]:
        names = ("prediction", "reference")
        if not self.entities:
            return {name: line[name][first:end] for name in names}
        kept = {name: beginning_within(to_iob2(line[name]), first, end) for name in names}
        longest = max(map(len, kept.values()))
        return {name: labels + [OUTSIDE] * (longest - len(labels)) for name, labels in kept.items()}
