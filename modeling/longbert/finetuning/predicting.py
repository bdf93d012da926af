"""Run a fine-tuned classifier over documents, and say which are longer than it reaches."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.rows import FRAME
from ..modeling_longbert import LongBertForSequenceClassification
from .classification import Classification
from .reading import STRATEGIES


logger = logging.get_logger(__name__)


@torch.no_grad()
def predict_documents(
    model: LongBertForSequenceClassification, tokenizer: PreTrainedTokenizerBase, documents: Iterable[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """For each (name, text): `id`, `prediction` as a label or figure, `scores`, `tokens`, and whether all were read.

    A text that is longer than `config.max_position_embeddings` is read from its beginning, and a warning says so.
    """
    reach = model.config.max_position_embeddings
    labels = [model.config.id2label[number] for number in range(model.config.num_labels)]
    task = Classification(tokenizer, labels, model.config.problem_type or "single_label_classification")
    encoder = task.encoder(STRATEGIES["long"], reach, reach)
    model.eval()
    for name, text in documents:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        tokens = len(ids) + FRAME
        if tokens > reach:
            logger.warning(f"{name} has {tokens} tokens, this model reaches {reach}: the rest is not read")
        batch = encoder.batch([{"id": name, "input_ids": ids, "label": 0}], ())
        inputs = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
        decided = task.decide(model(**inputs).logits[0].float().cpu())
        prediction = task.named(decided["prediction"])
        yield {
            "id": name,
            "prediction": prediction,
            "scores": decided["scores"],
            "tokens": tokens,
            "read_whole": tokens <= reach,
        }
