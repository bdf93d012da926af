"""A cross-encoder past 512 tokens: what it learns from, how it trains, how it reads what BM25 found first."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from sentence_transformers import CrossEncoder, CrossEncoderTrainer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.data_collator import CrossEncoderDataCollator

from ...configuration_longbert import LongBertConfig
from ...data.features import PAIR_FRAME, collate, framed
from ...errors import refuse_no_number
from ...modeling_longbert import LongBertForSequenceClassification
from ...source import Source
from ...training.safety import SafeTrainer
from ..results.metrics import Figures
from ..results.report import score
from .bm25 import WordIndex, read_test, words_of
from .collection import Retrieval
from .ways import Way


LABELLED = ("query", "document", "label")


def load_reranker(
    source: Source, config: LongBertConfig, max_length: int, device: str = "cpu", trained: bool = False
) -> CrossEncoder:
    """The source as a cross-encoder whose head gives one score.

    Args:
        config: of the model that reads; the source's own, or a longer one.
        max_length: tokens that it reads of a query and a document together.
        trained: the source brings its head along.

    Raises:
        ValueError: there is no checkpoint, or it has no such head though it is to be `trained`.
    """
    if source.path is None:
        raise ValueError("a reranker cannot start from a config alone: model must name a checkpoint")
    config = copy.deepcopy(config)
    config.num_labels = 1
    model, info = LongBertForSequenceClassification.from_pretrained(
        source.path, config=config, output_loading_info=True, ignore_mismatched_sizes=True
    )
    if trained and (info["missing_keys"] or info["mismatched_keys"]):
        raise ValueError(f"{source.path} has no head that gives one score: leave train at true")
    transformer = Transformer(source.path, transformer_task="sequence-classification", config_kwargs={"num_labels": 1})
    transformer.model = model
    reranker = CrossEncoder(modules=[transformer], device=device)
    reranker.max_seq_length = max_length
    return reranker


def label_pairs(pairs: datasets.Dataset, negatives: int, tokenizer: Any, max_length: int) -> datasets.Dataset:
    """Pairs with label 1, and for each as many with label 0: the documents that BM25 ranks first for its query among
    those that no pair names as its answer.

    Returns:
        `query`, `document`, `label`, `id`, and `length`, the tokens that are read of the row.
    """
    texts = list(dict.fromkeys(pairs["document"]))
    answers: dict[str, set[str]] = {}
    for query, document in zip(pairs["query"], pairs["document"], strict=True):
        answers.setdefault(query, set()).add(document)
    index = WordIndex(texts)
    of_text = {text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts}

    def rows() -> Iterator[dict[str, Any]]:
        for pair in pairs:
            query = pair["query"]
            size = len(tokenizer(query, add_special_tokens=False)["input_ids"])
            ranked = (texts[place] for place in np.argsort(-index.scores(words_of(query)), kind="stable"))
            wrong = [text for text in ranked if text not in answers[query]][:negatives]
            for number, text in enumerate([pair["document"], *wrong]):
                length = min(max_length, size + of_text[text] + PAIR_FRAME)
                yield {
                    "query": query,
                    "document": text,
                    "label": float(number == 0),
                    "id": f"{pair['id']}{f', wrong {number}' * (number > 0)}",
                    "length": length,
                }

    return datasets.Dataset.from_list(list(rows()))


@dataclass
class LabelledCollator(CrossEncoderDataCollator):
    """Labelled pairs as sentence-transformers' losses take them, their names and their tokens beside them."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__([{name: row[name] for name in LABELLED} for row in features])
        return batch | {
            "documents": [row["id"] for row in features],
            "tokens": sum(row["length"] for row in features),
        }


class RerankingTrainer(SafeTrainer, CrossEncoderTrainer):
    """sentence-transformers' Trainer of cross-encoders with whole checkpoints, a clean stop on SIGTERM, a guard
    against divergence."""

    def get_batch_samples(self, *args: Any) -> tuple[list, Any]:
        """One optimizer step's micro-batches."""
        batches, number = super().get_batch_samples(*args)
        self.step_documents = sorted({name for batch in batches for name in batch.pop("documents")})
        self.tokens_read += sum(batch.pop("tokens") for batch in batches)
        return batches, number


class RerankingEvaluator(BaseEvaluator):
    """Gives a reranker's figures while it trains."""

    def __init__(self, metric: Figures, candidates: "Candidates", way: Way, batch_size: int):
        super().__init__()
        self.metric, self.candidates, self.way, self.batch_size = metric, candidates, way, batch_size

    def __call__(self, model: CrossEncoder, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The metric's figures; what comes after `model` is sentence-transformers' and not needed."""
        scores = self.candidates.scores(model, self.way, self.batch_size)
        return score(self.metric, self.candidates.test.lines(scores))


@dataclass(frozen=True)
class Candidates:
    """What BM25 finds first for each query of a test.

    Args:
        places: `[queries, documents]`, true where a document is one of them.
    """

    test: Retrieval
    places: torch.Tensor

    @classmethod
    def of(cls, test: Retrieval, number: int) -> "Candidates":
        """The first so many documents of each query's group."""
        found = test.of_their_group(read_test(test).scores)
        places = torch.zeros_like(found, dtype=torch.bool)
        places.scatter_(1, found.topk(min(number, found.shape[1])).indices, True)
        return cls(test, places & (found > -torch.inf))

    def inputs(self, reranker: CrossEncoder, way: Way) -> list[tuple[int, int, int, int]]:
        """What is read: (tokens, query, document, piece), the longest first; documents that are alike once."""
        documents = [document.ids for document in self.test.documents.values()]
        inputs = []
        for query, place in self._different().nonzero().tolist():
            asked = self._asked(reranker, query)
            pieces = way.pieces(documents[place], reranker.max_seq_length - PAIR_FRAME - len(asked))
            inputs += [
                (len(asked) + len(piece) + PAIR_FRAME, query, place, number) for number, piece in enumerate(pieces)
            ]
        return sorted(inputs, reverse=True)

    @torch.no_grad()
    def scores(self, reranker: CrossEncoder, way: Way, batch_size: int) -> torch.Tensor:
        """`[queries, documents]`, of a document's best piece; -inf for what is no candidate."""
        was_training = reranker.training
        reranker.eval()
        documents = [document.ids for document in self.test.documents.values()]
        scores = torch.full(self.places.shape, -torch.inf)
        inputs = self.inputs(reranker, way)
        for start in range(0, len(inputs), batch_size):
            some, rows = inputs[start : start + batch_size], []
            for _, query, place, number in some:
                asked = self._asked(reranker, query)
                pieces = way.pieces(documents[place], reranker.max_seq_length - PAIR_FRAME - len(asked))
                rows.append(framed(reranker.tokenizer, asked, pieces[number]))
            features = collate(rows, reranker.tokenizer)
            outputs = reranker({name: tensor.to(reranker.device) for name, tensor in features.items()})
            refuse_no_number([outputs["scores"]], f"a query and a document of {some[0][0]:,} tokens or fewer")
            for (_, query, place, _), value in zip(some, outputs["scores"].float().flatten().tolist(), strict=True):
                scores[query, place] = max(float(scores[query, place]), value)
        reranker.train(was_training)
        return scores[:, self._firsts()].masked_fill(~self.places, -torch.inf)

    def _asked(self, reranker: CrossEncoder, query: int) -> list[int]:
        """A query, at most half of what is read."""
        return self.test.queries[query].ids[: reranker.max_seq_length // 2]

    def _firsts(self) -> list[int]:
        """For each document the first one that is like it."""
        firsts: dict[tuple[int, ...], int] = {}
        return [firsts.setdefault(tuple(each.ids), place) for place, each in enumerate(self.test.documents.values())]

    def _different(self) -> torch.Tensor:
        """As `places`, what is alike in its first place alone."""
        firsts = torch.tensor(self._firsts())
        return torch.zeros(self.places.shape).index_add(1, firsts, self.places.float()) > 0
