"""What an encoder reads of a test in some way, and how near its documents are to its queries."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sentence_transformers.base import BaseModel
from sentence_transformers.util.similarity import maxsim
from torch.nn.utils.rnn import pad_sequence

from ...data.features import FRAME, collate, framed
from ...errors import refuse_no_number
from .collection import Retrieval
from .encoders import KINDS
from .ways import Way


AT_ONCE = 2**24  # numbers that MaxSim holds at once, 64 MB

Text = tuple[int, ...]  # ids without special tokens
Vectors = list[torch.Tensor]  # of a text each, [its vectors, hidden_size]


@dataclass(frozen=True)
class Reading:
    """An encoder's vectors of a test's texts: unit vectors, in fp32, on the CPU.

    Args:
        queries: `[queries, hidden_size]`.
        pieces: `[pieces, hidden_size]`, of all documents one after the other.
        owner: `[pieces]`, the number of the document that a piece is of.
        tokens: that were read for all of them.
    """

    queries: torch.Tensor
    pieces: torch.Tensor
    owner: torch.Tensor
    tokens: int = 0

    def similarities(self, nearest: bool) -> torch.Tensor:
        """Cosines `[queries, documents]`: of the nearest piece, or of the mean of all. Those of equal vectors are
        equal."""
        documents = int(self.owner[-1]) + 1
        if nearest:
            found = _cosines(self.queries, self.pieces)
            empty = found.new_zeros(len(found), documents)
            return empty.scatter_reduce(1, self.owner.expand_as(found), found, "amax", include_self=False)
        sums = self.pieces.new_zeros(documents, self.pieces.shape[1]).index_add(0, self.owner, self.pieces)
        return _cosines(self.queries, F.normalize(sums, dim=-1))

    def stored(self, nearest: bool) -> tuple[int, int]:
        """Vectors that an index of the documents holds, and their bytes."""
        vectors = len(self.pieces) if nearest else int(self.owner[-1]) + 1
        return vectors, vectors * self.pieces[0].nbytes


@dataclass(frozen=True)
class TokenReading:
    """MaxSim of a test, whose vectors, one a token, are gone.

    Args:
        scores: `[queries, documents]`.
        vectors: that the documents had.
        vector_bytes: of one of them.
        tokens: that were read.
    """

    scores: torch.Tensor
    vectors: int
    vector_bytes: int
    tokens: int

    def similarities(self, nearest: bool) -> torch.Tensor:
        """The scores: of all pieces of a document together."""
        return self.scores

    def stored(self, nearest: bool) -> tuple[int, int]:
        """Vectors that an index of the documents holds, and their bytes."""
        return self.vectors, self.vectors * self.vector_bytes


def _cosines(queries: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Of unit vectors, `[queries, vectors]`: a matrix product rounds equal columns differently, so each is computed
    once."""
    different, number = vectors.unique(dim=0, return_inverse=True)
    return (queries @ different.T)[:, number]


def read(encoder: BaseModel, retrieval: Retrieval, way: Way, batch_size: int) -> Reading | TokenReading:
    """Read every query, and every document in a way's pieces, which are at most as long as the encoder reads. What is
    there twice is read once, so that documents in which an encoder reads the same tie.

    Args:
        batch_size: texts that are read at once; of documents with a vector for every token also those whose vectors
            are in memory at once.
    """
    query_reader, document_reader = (_TextReader(encoder, kind, batch_size) for kind in KINDS)
    queries = [[tuple(query.ids[: query_reader.room])] for query in retrieval.queries]
    documents = [
        [tuple(piece) for piece in way.pieces(document.ids, document_reader.room)]
        for document in retrieval.documents.values()
    ]
    tokens = query_reader.tokens(queries) + document_reader.tokens(documents)
    if way.by_token:
        return _read_by_token(query_reader, document_reader, queries, documents, tokens)
    pool = query_reader.pooled
    asked = torch.cat([vectors for (vectors,) in query_reader.read(queries, pool)])
    if way.late:
        assert way.size is not None
        pool = document_reader.pooled_by(way.size)
    found = [torch.cat(vectors) for vectors in document_reader.read(documents, pool)]
    owner = torch.arange(len(found)).repeat_interleave(torch.tensor([*map(len, found)]))
    return Reading(asked, torch.cat(found), owner, tokens)


def _read_by_token(
    query_reader: "_TextReader",
    document_reader: "_TextReader",
    queries: list[list[Text]],
    documents: list[list[Text]],
    tokens: int,
) -> TokenReading:
    """Score documents some at a time, the longest first; those of the same pieces once."""
    asked = [vectors for (vectors,) in query_reader.read(queries, query_reader.by_token)]
    order = sorted({*map(tuple, documents)}, key=lambda pieces: (-sum(map(len, pieces)), pieces))
    scores: list[torch.Tensor] = []
    lengths: dict[tuple[Text, ...], int] = {}
    for start in range(0, len(order), document_reader.batch_size):
        some = order[start : start + document_reader.batch_size]
        found = [torch.cat(vectors) for vectors in document_reader.read(some, document_reader.by_token)]
        scores.append(maxsim(asked, found, chunk_elements=AT_ONCE, device=document_reader.encoder.device))
        lengths |= {pieces: len(vectors) for pieces, vectors in zip(some, found, strict=True)}
    numbers = {pieces: number for number, pieces in enumerate(order)}
    of_documents = torch.cat(scores, dim=1)[:, [numbers[tuple(pieces)] for pieces in documents]]
    vectors = sum(lengths[tuple(pieces)] for pieces in documents)
    return TokenReading(of_documents, vectors, asked[0][0].nbytes, tokens)


class _TextReader:
    """Reads texts of one kind, with its prompt."""

    def __init__(self, encoder: BaseModel, kind: str, batch_size: int):
        self.encoder, self.kind, self.batch_size = encoder, kind, batch_size
        self.prompt = encoder.tokenizer(encoder.prompts[kind], add_special_tokens=False)["input_ids"]
        self.room = encoder.max_seq_length - len(self.prompt) - FRAME  # of a text

    def tokens(self, texts: Sequence[Sequence[Text]]) -> int:
        """That are read of texts in pieces."""
        return sum(len(self.prompt) + FRAME + len(piece) for pieces in texts for piece in pieces)

    @torch.no_grad()
    def read(self, texts: Sequence[Sequence[Text]], pool: Callable) -> list[Vectors]:
        """The vectors of each text's pieces, unit vectors in fp32 on the CPU; pieces of like length are read together,
        the longest first."""
        was_training = self.encoder.training
        self.encoder.eval()
        order = sorted({piece for pieces in texts for piece in pieces}, key=lambda piece: (-len(piece), piece))
        vectors = {piece: F.normalize(each.float(), dim=-1).cpu() for piece, each in self._batches(order, pool)}
        self.encoder.train(was_training)
        return [[vectors[piece] for piece in pieces] for pieces in texts]

    def _batches(self, pieces: list[Text], pool: Callable) -> Iterator[tuple[Text, torch.Tensor]]:
        for start in range(0, len(pieces), self.batch_size):
            some = pieces[start : start + self.batch_size]
            rows = [framed(self.encoder.tokenizer, [*self.prompt, *piece]) for piece in some]
            features = collate(rows, self.encoder.tokenizer)
            features = {name: tensor.to(self.encoder.device) for name, tensor in features.items()}
            # some poolings leave the prompt out
            features["prompt_length"] = len(self.prompt) + 1 if self.prompt else 0
            found = pool(features, some)
            refuse_no_number(found, f"a text of {len(some[0]):,} tokens or fewer")
            yield from zip(some, found, strict=True)

    def pooled(self, features: dict, pieces: list[Text]) -> Sequence[torch.Tensor]:
        """A vector for each piece, as `SentenceTransformer.encode`."""
        return self.encoder(features)["sentence_embedding"][:, None]

    def by_token(self, features: dict, pieces: list[Text]) -> Vectors:
        """A vector for each token, as `MultiVectorEncoder.encode`."""
        outputs = self.encoder(features, task=self.kind)
        return [
            vectors[mask.bool()]
            for vectors, mask in zip(outputs["token_embeddings"], outputs["attention_mask"], strict=True)
        ]

    def pooled_by(self, size: int) -> Callable:
        """Late chunking: a vector for every `size` tokens, [CLS] and the prompt with the first, [SEP] with the last,
        pooled as the encoder pools a text."""
        transformer, *modules = self.encoder
        left_out = 0 if modules[0].include_prompt or not self.prompt else len(self.prompt) + 1

        def pool(features: dict, pieces: list[Text]) -> Vectors:
            states = transformer(features)["token_embeddings"]
            found = []
            for piece, row in zip(pieces, states, strict=True):
                lengths = [len(piece[start : start + size]) for start in range(0, max(1, len(piece)), size)]
                lengths[0] += 1 + len(self.prompt) - left_out
                lengths[-1] += 1
                parts = row[left_out : left_out + sum(lengths)].split(lengths)
                mask = pad_sequence([states.new_ones(length) for length in lengths], True)
                outputs = {"token_embeddings": pad_sequence(parts, True), "attention_mask": mask}
                for module in modules:
                    outputs = module(outputs)
                found.append(outputs["sentence_embedding"])
            return found

        return pool
