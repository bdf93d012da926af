"""Words to labels, named entities or any tags, in documents that may be longer than what is read at once.

A longer document is read in windows that overlap by `stride`; every word is labelled once, by the window in which it
has most context, in training as in prediction.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import TokenClassifierOutput

from ...arguments import described
from ...data.batches import Collator, Key
from ...data.masking import IGNORE_INDEX, collate
from ...data.rows import FRAME
from ...losses import at_least_fp32, per_item
from ...modeling_longbert import LongBertForTokenClassification
from ...source import Source
from ..examples import ExampleArguments, Split, infer_labels, label_index, read_examples, with_labels
from ..metrics import EntityMetric, Figures, WordMetric
from ..strategies import Strategy, decided_tokens, overlapping, read_windows, window_rows, window_starts
from .task import Task


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
class WordCollator:
    """Micro-batches of windows; `labels` are `[windows, seq_length]`, one at the first token of every word that the
    window decides, `IGNORE_INDEX` elsewhere."""

    tokenizer: PreTrainedTokenizerBase
    strategy: Strategy
    max_length: int

    def batch(self, rows: list[dict[str, Any]], keys: Sequence[Key] = ()) -> dict[str, Any]:
        """A micro-batch of windows."""
        features = [{name: torch.tensor(row[name]) for name in ("input_ids", "labels")} for row in rows]
        batch: dict[str, Any] = collate(features, self.tokenizer)
        batch["documents"] = [row["id"] for row in rows]
        batch["text_lengths"] = [len(row["input_ids"]) for row in rows]
        return batch


@dataclass
class TokenClassification(Task):
    """The task of `finetune/token_classification.py`.

    Args:
        labels: their names in the order of their numbers; where all are IOB2, entities are scored, else words.
        unread: the label of a word that the model does not see.
    """

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

    def encode(self, examples: datasets.Dataset) -> datasets.Dataset:
        """Tokenise, and turn labels into numbers.

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

    def windows(self, examples: datasets.Dataset, collator: WordCollator) -> datasets.Dataset:
        """A row for every window of every document."""
        return window_rows(examples, lambda example: self._windows(example, collator))

    def _windows(self, example: dict[str, Any], collator: WordCollator) -> list[dict[str, Any]]:
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        ids, size = example["input_ids"], collator.max_length - FRAME
        starts = window_starts(collator.strategy, len(ids), size, self.stride)
        decided = decided_tokens(starts, len(ids), size, self.stride)
        rows = []
        for start, (first, end) in zip(starts, decided, strict=True):
            piece = ids[start : start + size]
            labels = [IGNORE_INDEX] * (len(piece) + FRAME)
            # one further on, behind [CLS]
            first_place, end_place = first - start + 1, end - start + 1
            labels[first_place:end_place] = example["targets"][first:end]
            rows.append(
                {
                    "id": example["id"],
                    "input_ids": [cls, *piece, sep],
                    "labels": labels,
                    "decides": [first_place, end_place],
                    "length": len(piece) + FRAME,
                }
            )
        return rows

    def training_rows(self, examples: datasets.Dataset, collator: WordCollator) -> datasets.Dataset:
        """What a plan trains on: the windows that decide a word, as others have no loss to divide."""
        return self.windows(examples, collator).filter(
            lambda labels: any(label != IGNORE_INDEX for label in labels), input_columns="labels"
        )

    def build(self, source: Source, strategy: Strategy) -> nn.Module:
        """A model with a label for every token."""
        config = with_labels(source.config if strategy.extended else source.native, self.labels)
        return LongBertForTokenClassification.from_pretrained(source.path, config=config)

    def collator(self, strategy: Strategy, max_length: int, long_length: int) -> Collator:
        """What makes micro-batches.

        Raises:
            ValueError: a strategy that would leave a gap, or windows that cannot share `stride` tokens.
        """
        if strategy.skips_middle:
            raise ValueError(
                "head-tail would leave words in the middle without a label: strategies must be of long, truncate, "
                "chunk-pool"
            )
        if not strategy.extended:
            # refuses a stride now; how much the long model reads is not known yet
            overlapping(max_length, max_length - FRAME, self.stride)
        return WordCollator(self.tokenizer, strategy, max_length)

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

    def predict(self, model: nn.Module, examples: datasets.Dataset, collator: WordCollator) -> list[dict[str, Any]]:
        """For each document the labels of its words, how probable each is, and at which token the words begin, [CLS]
        counted; where a word is not seen its score is None."""
        read = read_windows(model, self.windows(examples, collator), collator, self.batch_size)
        return [self._decide(example, windows) for example, windows in zip(examples, read, strict=True)]

    def _decide(self, example: dict[str, Any], windows: list[tuple[dict, dict[str, torch.Tensor]]]) -> dict[str, Any]:
        logits = torch.cat([outputs["logits"][slice(*row["decides"])] for row, outputs in windows])
        highest, numbers = (best.tolist() for best in logits.softmax(-1).max(-1))
        prediction: list[str] = []
        scores: list[float | None] = []
        for first, end in pairwise(example["bounds"]):
            seen = first < min(end, len(numbers))
            prediction.append(self.labels[numbers[first]] if seen else self.unread)
            scores.append(round(highest[first], 4) if seen else None)
        return {
            "id": example["id"],
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
