"""BM25: what words alone find, the opponent of every encoder."""

import dataclasses
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import bm25s
import numpy as np
import torch
from transformers import TrainingArguments

from ...data.words import UNSPACED_LETTERS
from ...training.estimates import Estimate, Part
from ..comparison import Run
from ..results.costs import Cost, RunMeter
from ..results.report import Lines
from .collection import Retrieval


BM25 = "BM25"
NOTHING = dict.fromkeys(("training", "evaluations", "checkpoints", "test"), Part(0, 0.0))  # of an estimate

TOKENS = re.compile(rf"[{UNSPACED_LETTERS}]+|[^\W{UNSPACED_LETTERS}]+")


def words_of(text: str) -> list[str]:
    """Its words in lower case, of letters, digits and underscores; of a script without spaces between words every two
    letters that stand together, as Lucene's CJKAnalyzer has it. Nothing is stemmed or stopped."""
    return [word for run in TOKENS.findall(text.lower()) for word in _split(run)]


def _split(run: str) -> Iterable[str]:
    unspaced = re.match(f"[{UNSPACED_LETTERS}]", run) and len(run) > 2
    return (run[start : start + 2] for start in range(len(run) - 1)) if unspaced else (run,)


class WordIndex:
    """Lucene's BM25 (Kamphuis et al. 2020, doi 10.1007/978-3-030-45442-5_4) of documents, with k1 = 1.5 and b = 0.75,
    the defaults of bm25s; a word's rarity is that in all documents.

    Attributes:
        stored: bytes of the index.
        tokens: words of the documents.
    """

    def __init__(self, documents: Sequence[str]):
        corpus = [words_of(text) for text in documents]
        self.documents, self.tokens, self.stored = len(corpus), sum(map(len, corpus)), 0
        self.index = None
        if self.tokens:
            self.index = bm25s.BM25()
            self.index.index(corpus, show_progress=False)
            self.stored = sum(part.nbytes for part in self.index.scores.values() if isinstance(part, np.ndarray))

    def scores(self, words: list[str]) -> np.ndarray:
        """`[documents]`, for a query's words."""
        if self.index is None or not words:
            return np.zeros(self.documents, np.float32)
        return self.index.get_scores(words)


@dataclass(frozen=True)
class WordReading:
    """BM25's scores of a test.

    Args:
        scores: `[queries, documents]`.
        tokens: words that were read.
        stored: bytes of the index.
    """

    scores: torch.Tensor
    tokens: int
    stored: int


def read_words(documents: Sequence[str], queries: Sequence[str]) -> WordReading:
    """Score every document for every query by BM25."""
    index, asked = WordIndex(documents), [words_of(text) for text in queries]
    scores = torch.from_numpy(np.stack([index.scores(words) for words in asked]))
    return WordReading(scores, index.tokens + sum(map(len, asked)), index.stored)


def read_test(test: Retrieval) -> WordReading:
    """BM25's scores of a test's documents for its queries."""
    return read_words([each.text for each in test.documents.values()], [query.text for query in test.queries])


def run_of_words(test: Retrieval, args: TrainingArguments) -> Run:
    """The row of BM25, which every table of retrieval has. It has no vectors."""

    def predict() -> tuple[Lines, Cost]:
        meter, start = RunMeter(args.device), time.perf_counter()
        reading = read_test(test)
        cost = meter.cost(time.perf_counter() - start, reading.tokens, len(test.documents))
        return test.lines(reading.scores), dataclasses.replace(cost, stored_bytes=reading.stored)

    def estimate() -> Estimate:
        _, cost = predict()
        return Estimate(
            parts=NOTHING | {"test": Part(1, cost.prediction_seconds)},
            peak_memory=cost.peak_memory,
            memory_of=cost.memory_of,
            training_rate=None,
            prediction_rate=cost.prediction_tokens / cost.prediction_seconds,
        )

    return Run(BM25, Path(args.output_dir, "bm25"), False, predict, estimate)
