"""Contrastive training of an encoder on (query, document) pairs: sentence-transformers' own, as safe as any run."""

from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoderTrainer, SentenceTransformerTrainer
from sentence_transformers.base import BaseModel
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from ...training.safety import SafeTrainer
from ..results.metrics import Figures
from ..results.report import score
from .collection import Retrieval
from .encoders import KINDS
from .reading import read
from .ways import Way


@dataclass
class PairCollator(SentenceTransformerDataCollator):
    """Pairs as sentence-transformers' losses take them, with the document names that `SafeTrainer` reports if a step
    diverges.

    Args:
        reach: documents are placed at random positions up to this one, as LongEmbed trains them (Zhu et al. 2024,
            arXiv 2404.12096, section 4.2, after PoSE); None to start at 0. A batch always gets the same positions, so
            that a resumed run draws what the one that was never stopped does.
    """

    reach: int | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__([{kind: pair[kind] for kind in KINDS} for pair in features])
        batch["documents"] = [pair["id"] for pair in features]
        if self.reach is not None:
            mask = batch["document_attention_mask"]
            generator = torch.Generator().manual_seed(int(batch["document_input_ids"].sum()))
            room = self.reach - mask.sum(dim=1, keepdim=True) + 1
            shift = (torch.rand(room.shape, generator=generator) * room).long()
            batch["document_position_ids"] = ((mask.cumsum(dim=1) - 1).clamp(min=0) + shift) * mask
        return batch


class PairTrainer(SafeTrainer):
    """Before a Trainer of sentence-transformers: whole checkpoints, a clean stop on SIGTERM, a guard against
    divergence."""

    def get_batch_samples(self, *args: Any) -> tuple[list, Any]:
        """One optimizer step's micro-batches."""
        batches, number = super().get_batch_samples(*args)
        self.step_documents = sorted({name for batch in batches for name in batch.pop("documents")})
        self.tokens_read += sum(int(batch[f"{kind}_attention_mask"].sum()) for batch in batches for kind in KINDS)
        return batches, number


class EmbeddingTrainer(PairTrainer, SentenceTransformerTrainer):
    """Of encoders with one vector for a text."""


class MultiVectorTrainer(PairTrainer, MultiVectorEncoderTrainer):
    """Of encoders with a vector for every token."""


class RetrievalEvaluator(BaseEvaluator):
    """Gives an encoder's figures while it trains."""

    def __init__(self, metric: Figures, retrieval: Retrieval, way: Way, batch_size: int):
        super().__init__()
        self.metric, self.retrieval, self.way, self.batch_size = metric, retrieval, way, batch_size

    def __call__(self, model: BaseModel, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The metric's figures; what comes after `model` is sentence-transformers' and not needed."""
        reading = read(model, self.retrieval, self.way, self.batch_size)
        return score(self.metric, self.retrieval.lines(reading.similarities(self.way.nearest)))
