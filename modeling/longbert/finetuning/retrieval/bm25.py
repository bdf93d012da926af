"""BM25: what words alone find, the opponent of every encoder."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import bm25s
import numpy as np
import torch

from ...data.words import UNSPACED_LETTERS


TOKENS = re.compile(rf"[{UNSPACED_LETTERS}]+|[^\W{UNSPACED_LETTERS}]+")


def words_of(text: str) -> list[str]:
    """Its words in lower case, of letters, digits and underscores; of a script without spaces between words every two
    letters that stand together, as Lucene's CJKAnalyzer has it. Nothing is stemmed or stopped."""
    return [word for run in TOKENS.findall(text.lower()) for word in _split(run)]


def _split(run: str) -> Iterable[str]:
    unspaced = re.match(f"[{UNSPACED_LETTERS}]", run) and len(run) > 2
    return (run[start : start + 2] for start in range(len(run) - 1)) if unspaced else (run,)


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
    """Score every document for every query by Lucene's BM25 (Kamphuis et al. 2020, doi 10.1007/978-3-030-45442-5_4)
    with k1 = 1.5 and b = 0.75, the defaults of bm25s; a word's rarity is that in all documents."""
    corpus, asked = ([words_of(text) for text in texts] for texts in (documents, queries))
    scores, stored = np.zeros((len(asked), len(corpus)), np.float32), 0
    if any(corpus):
        index = bm25s.BM25()
        index.index(corpus, show_progress=False)
        stored = sum(part.nbytes for part in index.scores.values() if isinstance(part, np.ndarray))
        for row, words in enumerate(asked):
            if words:
                scores[row] = index.get_scores(words)
    return WordReading(torch.from_numpy(scores), sum(map(len, (*corpus, *asked))), stored)
