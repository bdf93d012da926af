"""Ways in which an encoder reads a long document, by their names."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ...data.features import FRAME
from ..comparison import refuse_names
from ..strategies import STRATEGIES, Strategy


@dataclass(frozen=True)
class Way(Strategy):
    """A strategy of an encoder, whose texts are compared by the cosines of their vectors.

    Args:
        as_shipped: read as many tokens as the source was shipped to read, not all that its positions reach.
        nearest: a document is as near to a query as its nearest piece; else its vector is the mean of its pieces'.
        late: read at once and pooled piece by piece afterwards, late chunking (Günther et al. 2024, arXiv 2409.04701).
        by_token: a vector for every token, compared by MaxSim: each of the query's tokens with the nearest of the
            document's, their cosines summed (ColBERT, Khattab and Zaharia 2020, arXiv 2004.12832).
        size: tokens of a piece, special tokens not counted; by default as many as are read at once.
    """

    as_shipped: bool = False
    nearest: bool = False
    late: bool = False
    by_token: bool = False
    size: int | None = None

    @property
    def trained_as(self) -> str:
        """The way that trains an encoder for this one, where it is not trained itself."""
        return "multi-vector" if self.by_token else "long"

    def pieces(self, ids: list[int], room: int) -> list[list[int]]:
        """What is read at once of a document, and no more than `room` tokens of it."""
        return self.read(ids, room if self.late else min(room, self.size or room))


WAYS = {
    "long": Way(**vars(STRATEGIES["long"])),
    "shipped": Way(**vars(STRATEGIES["truncate"]), as_shipped=True),
    "truncate": Way(**vars(STRATEGIES["truncate"])),
    "chunk-mean": Way(**vars(STRATEGIES["chunk-pool"])),
    "chunk-max": Way(**vars(STRATEGIES["chunk-pool"]), nearest=True),
    "late-chunk": Way(extended=True, pooled=True, read=STRATEGIES["long"].read, nearest=True, late=True),
    "multi-vector": Way(**vars(STRATEGIES["long"]), by_token=True),
    "chunk-multi-vector": Way(**vars(STRATEGIES["chunk-pool"]), by_token=True),
}
SIZED = ("chunk-mean", "chunk-max", "late-chunk", "chunk-multi-vector")  # may name the tokens of a piece
NAMES = f"{', '.join(WAYS)}; the tokens of a chunk may follow its name, as in chunk-max-128"


def _parts(name: str) -> tuple[str, int | None]:
    """The name of a way, and the tokens of a piece where it names them."""
    way, _, size = name.rpartition("-")
    return (way, int(size)) if way in SIZED and size.isdecimal() and int(size) else (name, None)


def way_of(name: str, source_length: int | None = None) -> Way:
    """The way of a name.

    Args:
        source_length: tokens that the source reads: as many are in a piece, special tokens counted, where the name
            does not say how many.
    """
    kind, size = _parts(name)
    if size is None and kind in SIZED and source_length is not None:
        size = source_length - FRAME
    return dataclasses.replace(WAYS[kind], size=size)


def refuse_ways(names: Sequence[str]) -> None:
    """Raise `ValueError` where names of ways are none, unknown, or there twice."""
    unknown = [name for name in names if _parts(name)[0] not in WAYS]
    if unknown or not names:
        raise ValueError(f"strategies must be of {NAMES}; got {', '.join(unknown) or 'none'}")
    refuse_names("strategies", names, names)


def refuse_sizes(names: Sequence[str], source_length: int) -> None:
    """Raise `ValueError` where chunks are asked for that are longer than what the source reads at once."""
    for name in names:
        way = way_of(name)
        if (way.size or 0) > source_length - FRAME and not way.late:
            raise ValueError(
                f"{name} asks for chunks of {way.size} tokens, and the source reads {source_length - FRAME} of a text "
                f"at once: name at most {_parts(name)[0]}-{source_length - FRAME}, or late-chunk-{way.size}"
            )
