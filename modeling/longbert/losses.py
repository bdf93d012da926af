"""Losses that mean the same for any split of a batch. Travels to the Hub beside the model."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


IGNORE_INDEX = -100
ROWS_PER_CHUNK = 2048  # 250 MB of fp32 logits at BERT's vocabulary; a single chunk is not recomputed


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """Convert half precision to fp32, which long sums need; fp64 stays fp64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def per_item(total: torch.Tensor, number: torch.Tensor | int) -> torch.Tensor:
    """`total / number`; 0, not NaN, if there are 0 items, from which nothing can be learnt."""
    return total * (number != 0) / (number + (number == 0))


def masked_lm_loss(
    predict: Callable[[torch.Tensor], torch.Tensor],
    hidden_states: torch.Tensor,
    labels: torch.LongTensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross-entropy in fp32 (fp64 for an fp64 model), summed over labelled positions and divided by their number.

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
    # found once: a mask as an index would make the host wait for a GPU at each use
    labelled = (labels != IGNORE_INDEX).flatten().nonzero()[:, 0]
    rows, targets = hidden_states.flatten(0, -2)[labelled], labels.flatten()[labelled]

    def summed(rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(at_least_fp32(predict(rows)), targets, reduction="sum")

    chunks = zip(rows.split(ROWS_PER_CHUNK), targets.split(ROWS_PER_CHUNK), strict=True)
    if len(rows) <= ROWS_PER_CHUNK:
        total = summed(rows, targets)
    else:
        total = torch.stack([checkpoint(summed, *chunk, use_reentrant=False) for chunk in chunks]).sum()
    number = (labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
    return per_item(total, number)


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
    total = F.cross_entropy(at_least_fp32(logits), labels, reduction="sum", ignore_index=IGNORE_INDEX)
    return per_item(total, (labels != IGNORE_INDEX).sum() if num_pairs_in_batch is None else num_pairs_in_batch)


def span_loss(
    start_logits: torch.Tensor,
    end_logits: torch.Tensor,
    start_positions: torch.LongTensor,
    end_positions: torch.LongTensor,
    real: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy in fp32 of the first and the last token of an answer, the mean of both.

    Args:
        start_logits, end_logits: `[batch_size, seq_length]`, as from `hidden_at_padding`.
        start_positions, end_positions: `[batch_size]` or `[batch_size, 1]`. What lies past the text is ignored, and
            what is below 0 is taken for 0, as in BERT.
        real: `[batch_size, seq_length]` bool, False at padding; None where there is none.

    Returns:
        A scalar; 0 where every position is ignored.
    """

    def mean(logits: torch.Tensor, positions: torch.LongTensor) -> torch.Tensor:
        length = logits.shape[1]
        targets = positions.reshape(len(logits)).clamp(0, length)
        known = targets < length
        if real is not None:
            known = known & real.gather(1, targets.clamp(max=length - 1)[:, None])[:, 0]
        total = F.cross_entropy(at_least_fp32(logits), targets.where(known, IGNORE_INDEX), reduction="sum")
        return per_item(total, known.sum())

    return (mean(start_logits, start_positions) + mean(end_logits, end_positions)) / 2


def hidden_at_padding(logits: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Scores of tokens `[batch_size, seq_length]`, so low at padding that no softmax sees it.

    Args:
        real: `[batch_size, seq_length]` bool, False at padding; None where there is none.
    """
    return logits if real is None else logits.masked_fill(~real, torch.finfo(logits.dtype).min)
