"""Words to labels, named entities or any tags, in documents that may be longer than what is read at once.

A longer document is read in pieces that overlap by `stride`; every word is labelled once, by the piece in which it has
most context, in training as in prediction.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
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
from ...losses import at_least_fp32, per_item
from ...modeling_longbert import LongBertForTokenClassification
from ..examples import ExampleArguments, Split, infer_labels, label_index, read_examples, with_labels
from ..metrics import EntityMetric, Figures, WordMetric
from ..pieces import Outputs, Row, decided_tokens, overlapping, piece_starts
from ..strategies import Reader
from .task import PieceTask


OUTSIDE = "O"


@dataclass(kw_only=True)
class TokenClassificationArguments(ExampleArguments):
    """What the examples hold."""

    words_column: str = described("words", "column of the documents, each a list of words")
    labels_column: str = described("labels", "column of the labels, a list of them, one for every word")
    stride: int = described(128, "tokens that neighbouring pieces of a long document share")


def read_words(path: str, arguments: TokenClassificationArguments) -> datasets.Dataset:
    """Read a file of examples as `id`, `words`, `labels`.

    Raises:
        ValueError: words or labels are not lists, differ in number, or are empty.
    """
    columns = {"words": arguments.words_column, "labels": arguments.labels_column}
    examples = read_examples(path, {**columns, "id": arguments.id_column, "group": arguments.group_column})
    for name, words, labels in zip(examples["id"], examples["words"], examples["labels"], strict=True):
        if not isinstance(words, list) or not isinstance(labels, list):
            raise ValueError(f"example {name}: words and labels must be lists, got {words!r:.80} and {labels!r:.80}")
        if len(words) != len(labels):
            raise ValueError(
                f"example {name} has {len(words)} words and {len(labels)} labels: every word must have one label"
            )
        if not words:
            raise ValueError(f"example {name} has no words: leave it out")
    return examples


def are_iob2(labels: Sequence[str]) -> bool:
    """Whether labels look like IOB2, which marks entities of several words, rather than plain tags of words."""
    return all(label == OUTSIDE or label[:2] in ("B-", "I-") for label in labels)


def continues(labels: Sequence[str], number: int) -> bool:
    """Whether word `number` is of the same entity as the word before, in IOB2 labels."""
    kind = labels[number][2:]
    return labels[number].startswith("I-") and number > 0 and labels[number - 1] in (f"B-{kind}", f"I-{kind}")


def beginning_within(labels: list[str], start: int, stop: int) -> list[str]:
    """Labels from word `start` on that keep every entity which begins before word `stop`, whole, and no other.

    Returns:
        `stop - start` labels, or more where the last entity goes on.
    """
    first = start
    while first < stop and continues(labels, first):
        first += 1
    last = stop
    while first < stop and last < len(labels) and continues(labels, last):
        last += 1
    return [OUTSIDE] * (first - start) + labels[first:last]


@dataclass
class TokenClassification(PieceTask):
    """The task of `finetune/token_classification.py`.

    Args:
        labels: their names in the order of their numbers; where all are IOB2, entities are scored, else words.
        unread: the label of a word that the model does not see.
    """

    model_class = LongBertForTokenClassification
    in_the_middle = "would leave words in the middle without a label"

    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    unread: str
    stride: int = 128
    batch_size: int = 8
    entities: bool = field(init=False)
    metric: Figures = field(init=False)

    def __post_init__(self) -> None:
        self.entities = are_iob2(self.labels)
        self.metric = EntityMetric() if self.entities else WordMetric()

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, splits: list[Split], stride: int, batch_size: int
    ) -> "TokenClassification":
        """The task of some examples: labels are those of all training sets. A word that is not seen gets O or, where
        there is no such label, the most frequent one."""
        values = [labels for split in splits for labels in split.train["labels"]]
        names = infer_labels(values)
        counts = Counter(str(label) for labels in values for label in labels)
        unread = OUTSIDE if OUTSIDE in counts else counts.most_common(1)[0][0]
        return cls(tokenizer, names, unread, stride, batch_size)

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
                or labels that look like IOB2 and are not.
        """

        def tokens(row: dict[str, Any]) -> dict[str, Any]:
            text = self.tokenizer(row["words"], is_split_into_words=True, add_special_tokens=False, verbose=False)
            ids, owners = text["input_ids"], text.word_ids()
            if not ids:
                raise ValueError(f"example {row['id']} has no word that the tokenizer can read: {row['words']!r:.80}")
            labels = [label_index(self.labels, row["id"], label) for label in row["labels"]]
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
        if not self.entities:
            return
        for number, label in enumerate(row["labels"]):
            if label.startswith("I-") and not continues(row["labels"], number):
                raise ValueError(
                    f"example {row['id']}: word {number}, {row['words'][number]!r}, has the label {label} and "
                    f"continues no entity. In IOB2 the first word of an entity is B-{label[2:]}, those that continue "
                    f"it are {label}, and words outside are {OUTSIDE}: write B-{label[2:]} here"
                )

    def configure(self, config: LongBertConfig) -> LongBertConfig:
        """With labels."""
        return with_labels(config, self.labels)

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
        kept = {name: beginning_within(line[name], first, end) for name in names}
        longest = max(map(len, kept.values()))
        return {name: labels + [OUTSIDE] * (longest - len(labels)) for name, labels in kept.items()}
