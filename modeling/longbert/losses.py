"""Pretraining losses that mean the same for any split of a batch. Travels to the Hub beside the model."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


IGNORE_INDEX = -100
ROWS_PER_CHUNK = 2048  # 250 MB of fp32 logits at BERT's vocabulary; a single chunk is not recomputed


def masked_lm_loss(
    predict: Callable[[torch.Tensor], torch.Tensor],
    hidden_states: torch.Tensor,
    labels: torch.LongTensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross-entropy in fp32, summed over labelled positions and divided by their number.

    Vocabulary-sized logits exist for `ROWS_PER_CHUNK` labelled positions at a time, in the backward pass too.

    Args:
        predict: the head, `[rows, hidden_size] -> [rows, vocab_size]`.
        hidden_states: `[batch_size, seq_length, hidden_size]`.
        labels: `[batch_size, seq_length]`, -100 where nothing is to be predicted.
        num_items_in_batch: labelled positions of the whole optimizer step, over micro-batches and processes, so that
            the loss means the same however the step is split; by default those of this call.

    Returns:
        A scalar; 0 where nothing is labelled.
    """
    labelled = labels != IGNORE_INDEX
    rows, targets = hidden_states[labelled], labels[labelled]

    def summed(rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(predict(rows).float(), targets, reduction="sum")

    chunks = zip(rows.split(ROWS_PER_CHUNK), targets.split(ROWS_PER_CHUNK), strict=True)
    if len(rows) <= ROWS_PER_CHUNK:
        total = summed(rows, targets)
    else:
        total = torch.stack([checkpoint(summed, *chunk, use_reentrant=False) for chunk in chunks]).sum()
    return total / (labelled.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


def sentence_pair_loss(
    logits: torch.Tensor, labels: torch.LongTensor, num_pairs_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy in fp32 of next-sentence or sentence-order prediction.

    Args:
        logits: `[batch_size, 2]`.
        labels: `[batch_size]`, 0 where the second sentence follows the first; -100 where nothing is known.
        num_pairs_in_batch: pairs of the whole optimizer step, as `num_items_in_batch` of `masked_lm_loss`.

    Returns:
        A scalar; 0 where nothing is labelled.
    """
    total = F.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=IGNORE_INDEX)
    number = (labels != IGNORE_INDEX).sum().clamp(min=1) if num_pairs_in_batch is None else num_pairs_in_batch
    return total / number
