"""A run's throughput: tokens a second, with and without padding, and the share of a GPU's arithmetic in use."""

import contextlib
import re
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from ..configuration_longbert import LongBertConfig


# FLOP a second, dense, fp16 and bf16 with sums in fp32, from the makers' data sheets
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10": 125e12,
    "A10G": 70e12,
    "A6000": 155e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "5090": 209e12,
    "4090": 165e12,
    "3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(name: str) -> float | None:
    """Of a GPU by its driver's name for it, "NVIDIA A10" or "Tesla V100-SXM2-16GB"; None if it is not known."""
    # whole words: an L40 is no L4, an A100 no A10
    return next((PEAK_FLOPS[word] for word in re.split(r"[ -]", name) if word in PEAK_FLOPS), None)


def training_flops(config: LongBertConfig, text_lengths: list[int], labelled: int) -> float:
    """FLOP of one forward and backward pass, counting matrix products only and no recomputation.

    A multiplication and an addition are 2, and the backward pass is twice the forward: 6 for every weight and token,
    and for attention 12 hidden_size for every layer, token and token it sees (Kaplan et al. 2020, arXiv 2001.08361,
    section 2.1).
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    weights = layers * (4 * hidden**2 + 2 * hidden * config.intermediate_size)
    seen = sum(length * visible_tokens(config, length) for length in text_lengths)
    head = labelled * hidden * (hidden + config.vocab_size)
    return 6 * (weights * sum(text_lengths) + head) + 12 * hidden * seen


def visible_tokens(config: LongBertConfig, length: int) -> int:
    """Tokens that one of a text's tokens sees, summed over the layers."""
    layers = config.num_hidden_layers
    if config.attention_window is None or length <= config.pretrained_positions:
        return layers * length
    in_full = len({*(config.full_attention_layers or [])})
    closed = len({*(config.closed_attention_layers or [])})
    through_window = min(length, config.attention_window + 1 + config.global_tokens)
    return (in_full + closed) * length + (layers - in_full) * through_window  # a closed layer computes both


class Meter:
    """Counts tokens and time between two lines of the log."""

    def __init__(self, config: LongBertConfig):
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Begin to count."""
        self.sums = {"tokens": 0.0, "real_tokens": 0.0, "flops": 0.0}
        self.pairs: list[torch.Tensor] = []
        self.since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is not counted."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start

    def add(self, batch: dict[str, Any], text_lengths: list[int]) -> None:
        """Count a micro-batch."""
        self.sums["tokens"] += batch["input_ids"].numel()
        self.sums["real_tokens"] += sum(text_lengths)
        self.sums["flops"] += training_flops(self.config, text_lengths, int((batch["labels"] >= 0).sum()))

    def add_pairs(self, logits: torch.Tensor, labels: torch.LongTensor) -> None:
        """Count next-sentence predictions, `[pairs, 2]`: their number, summed loss, and how many are right."""
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        right = (logits.argmax(-1) == labels).sum()
        self.pairs.append(torch.stack((torch.full_like(loss, len(labels)), loss, right.to(loss.dtype))))

    def report(self, accelerator: Accelerator, loss: float, shared_by: int = 1) -> dict[str, float]:
        """Figures for the log, over all processes; then start counting again.

        Args:
            loss: the mean training loss since the last report.
            shared_by: processes that count the same batch.
        """
        seconds = time.perf_counter() - self.since
        local = torch.tensor(list(self.sums.values()), dtype=torch.float64, device=accelerator.device)
        total = accelerator.reduce(local) / shared_by
        tokens, real_tokens, flops = (total / seconds).tolist()
        figures = {"tokens_per_second": round(tokens), "real_tokens_per_second": round(real_tokens)}
        peak = self._peak(accelerator.device)
        if peak:
            figures["mfu"] = flops / (peak * accelerator.num_processes)
        if self.pairs:
            number, summed, right = accelerator.reduce(torch.stack(self.pairs).sum(0)).tolist()
            figures |= {
                "nsp_loss": summed / number,
                "nsp_accuracy": right / number,
                "mlm_loss": loss - summed / number,
            }
        self.reset()
        return figures

    @staticmethod
    def _peak(device: torch.device) -> float | None:
        if device.type != "cuda":
            return None
        return peak_flops(torch.cuda.get_device_name(device))
