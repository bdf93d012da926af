"""Strategies: ways to read a document that is longer than BERT reads, the long model's and the usual baselines'."""

from collections.abc import Callable
from dataclasses import dataclass

from ..source import Source


HEAD_TOKENS = 128  # of 510, the rest from the end: Sun et al. 2019 (arXiv 1905.05583), section 5.3.1


def _first(ids: list[int], size: int) -> list[list[int]]:
    return [ids[:size]]


def _head_tail(ids: list[int], size: int) -> list[list[int]]:
    head = HEAD_TOKENS * size // 510
    return [ids] if len(ids) <= size else [ids[:head] + ids[head - size :]]


def _pieces(ids: list[int], size: int) -> list[list[int]]:
    return [ids[start : start + size] for start in range(0, max(1, len(ids)), size)]


@dataclass(frozen=True)
class Strategy:
    """How a document is read.

    Args:
        extended: the long model reads; else the source, at its own length.
        pooled: the document is read in several pieces, whose vectors are pooled.
        read: (ids without special tokens, tokens of a piece) -> pieces.
        first_alone: of a text in several pieces it reads the first and no other.
        skips_middle: it leaves out what lies between, so that answers and words there cannot be found.
    """

    extended: bool
    pooled: bool
    read: Callable[[list[int], int], list[list[int]]]
    first_alone: bool = False
    skips_middle: bool = False


STRATEGIES = {
    "long": Strategy(extended=True, pooled=False, read=_first),
    "truncate": Strategy(extended=False, pooled=False, read=_first, first_alone=True),
    "head-tail": Strategy(extended=False, pooled=False, read=_head_tail, skips_middle=True),
    "chunk-pool": Strategy(extended=False, pooled=True, read=_pieces),
}


@dataclass(frozen=True)
class Reader:
    """A strategy with its lengths, in tokens, special tokens counted.

    Args:
        at_once: what it reads at once.
        in_all: what `long` reads; a strategy that pools pieces reads no more in all.
    """

    strategy: Strategy
    at_once: int
    in_all: int

    @classmethod
    def of(cls, strategy: Strategy, source: Source, max_length: int | None) -> "Reader":
        """How a strategy reads with a source.

        Args:
            max_length: what `long` reads; by default all that the extended model reaches.

        Raises:
            ValueError: that is more than it reaches.
        """
        reach = source.config.max_position_embeddings
        if (max_length or 0) > reach:
            raise ValueError(
                f"max_length={max_length}, and the model reaches {reach}: set max_length to at most that, or a "
                "greater max_position_embeddings"
            )
        in_all = max_length or reach
        return cls(strategy, in_all if strategy.extended else source.native.pretrained_positions, in_all)
