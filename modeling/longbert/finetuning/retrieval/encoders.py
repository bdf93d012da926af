"""Sentence encoders past 512 tokens, and the ways in which an encoder reads a long document."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.util import is_sentence_transformer_model

from ...configuration_longbert import LongBertConfig
from ...data.features import FRAME, collate, framed
from ...modeling_longbert import LongBertModel
from ...source import Source
from ..pieces import refuse_no_number
from ..strategies import STRATEGIES, Strategy
from .collection import Retrieval


@dataclass(frozen=True)
class Way(Strategy):
    """A strategy of an encoder, whose texts are compared by their cosine.

    Args:
        as_shipped: read as many tokens as the source was shipped to read, not all that its positions reach.
        nearest: a document is as near to a query as its nearest piece; else its vector is the mean of its pieces'.
    """

    as_shipped: bool = False
    nearest: bool = False


KINDS = ("query", "document")  # of texts, each with a prompt of its own; columns of the pairs
WAYS = {
    "long": Way(**vars(STRATEGIES["long"])),
    "shipped": Way(**vars(STRATEGIES["truncate"]), as_shipped=True),
    "truncate": Way(**vars(STRATEGIES["truncate"])),
    "chunk-mean": Way(**vars(STRATEGIES["chunk-pool"])),
    "chunk-max": Way(**vars(STRATEGIES["chunk-pool"]), nearest=True),
}


def load_encoder(source: Source, prompts: dict[str, str] | None = None, device: str = "cpu") -> SentenceTransformer:
    """The source as a sentence encoder; a plain BERT, without a modules.json, pools the normalised mean of its tokens.

    Args:
        prompts: what stands before every `query` and every `document`, where the source does not say it itself.

    Raises:
        ValueError: there is no checkpoint.
    """
    if source.path is None:
        raise ValueError("a sentence encoder cannot start from a config alone: model must name a checkpoint")
    encoder = SentenceTransformer(source.path, prompts=prompts, device=device)
    if not is_sentence_transformer_model(source.path):
        encoder.append(Normalize())
    return encoder


def exchange_model(encoder: SentenceTransformer, source: Source, config: LongBertConfig, max_length: int) -> None:
    """Give an encoder the source's weights as a LongBertModel; tokenizer, prompts, pooling and all else stay its own.

    With the source's own config it computes what the source does, without its padding.

    Args:
        max_length: tokens that it then reads of a text.
    """
    encoder[0].model = LongBertModel.from_pretrained(source.path, config=config).to(encoder.device)
    encoder.max_seq_length = max_length


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


def _cosines(queries: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Of unit vectors, `[queries, vectors]`: a matrix product rounds equal columns differently, so each is computed
    once."""
    different, number = vectors.unique(dim=0, return_inverse=True)
    return (queries @ different.T)[:, number]


def read(encoder: SentenceTransformer, retrieval: Retrieval, way: Strategy, batch_size: int) -> Reading:
    """Read every query, and every document in a strategy's pieces, which are as long as the encoder reads. What is
    there twice is read once, so that documents in which an encoder reads the same tie."""

    def vectors(kind: str, texts: list[list[list[int]]]) -> torch.Tensor:
        return _embed(encoder, [piece for pieces in texts for piece in pieces], prompts[kind], batch_size)

    tokenizer = encoder.tokenizer
    prompts = {kind: tokenizer(encoder.prompts[kind], add_special_tokens=False)["input_ids"] for kind in KINDS}
    sizes = {kind: encoder.max_seq_length - len(prompt) - FRAME for kind, prompt in prompts.items()}
    queries = [[query.ids[: sizes["query"]]] for query in retrieval.queries]
    documents = [way.read(document.ids, sizes["document"]) for document in retrieval.documents.values()]
    owner = torch.arange(len(documents)).repeat_interleave(torch.tensor([len(pieces) for pieces in documents]))
    tokens = sum(
        len(prompts[kind]) + FRAME + len(piece)
        for kind, texts in (("query", queries), ("document", documents))
        for pieces in texts
        for piece in pieces
    )
    return Reading(vectors("query", queries), vectors("document", documents), owner, tokens)


@torch.no_grad()
def _embed(encoder: SentenceTransformer, texts: list[list[int]], prompt: list[int], batch_size: int) -> torch.Tensor:
    """As `SentenceTransformer.encode`, of token ids; texts of like length together, the longest first."""
    was_training = encoder.training
    encoder.eval()
    tokenizer = encoder.tokenizer
    order = sorted({*map(tuple, texts)}, key=lambda text: (-len(text), text))
    vectors = []
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        features = collate([framed(tokenizer, [*prompt, *text]) for text in some], tokenizer)
        features = {name: tensor.to(encoder.device) for name, tensor in features.items()}
        # some poolings leave the prompt out
        outputs = encoder({**features, "prompt_length": len(prompt) + 1 if prompt else 0})
        refuse_no_number([outputs["sentence_embedding"]], f"a text of {len(some[0]):,} tokens or fewer")
        vectors.append(F.normalize(outputs["sentence_embedding"].float(), dim=-1).cpu())
    encoder.train(was_training)
    numbers = {text: number for number, text in enumerate(order)}
    return torch.cat(vectors)[[numbers[tuple(text)] for text in texts]]
