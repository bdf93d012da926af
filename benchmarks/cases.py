"""What bench.py compares: every case, and the steps they are made of. What is published of it: docs/attention.md.

Weights are random, equal on both sides where the model is the same one.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from models import BIGBIRD_SCRAP, bert, bigbird, longbert, longformer, modernbert_of_our_size
from sides import SIZE, Work, draw_tokens, draw_weights, encoder_work, generator, serve
from torch import nn
from transformers import BertConfig, BertForMaskedLM
from transformers.models.bert.modeling_bert import BertOnlyMLMHead

from longbert import LongBertForMaskedLM
from longbert.losses import masked_lm_loss


# ---- steps: (model, length, ..., shrink) -> the work to measure; all lengths are divided by `shrink`


def encoder(
    model: Callable[..., nn.Module],
    length: int,
    shrink: int,
    batch_size: int = 1,
    backward: bool = True,
    **fields: Any,
) -> Work:
    """Forward, and with `backward` back, through an encoder; all tokens are real."""
    length //= shrink
    scrap = BIGBIRD_SCRAP if model is bigbird else 64
    return encoder_work(model(length, **fields), length, batch_size=batch_size, backward=backward, scrap=scrap)


def draw_labels(tokens: torch.Tensor) -> torch.Tensor:
    """15 % of the tokens, -100 elsewhere."""
    return tokens.masked_fill(torch.rand(tokens.shape, generator=generator()) >= 0.15, -100)


def mlm(
    model: Callable[..., nn.Module], lengths: tuple[int, ...], shrink: int, checkpointing: bool = False, **fields: Any
) -> Work:
    """An MLM training step without the optimizer, on texts of `lengths` padded to the longest; returns the loss."""
    counts = torch.tensor(lengths) // shrink
    length = int(counts.max())
    built = draw_weights(model(length, **fields)).train()
    if checkpointing:
        built.gradient_checkpointing_enable()
    real = torch.arange(length) < counts[:, None]
    tokens = draw_tokens(len(counts), length)
    batch = {
        "input_ids": tokens.masked_fill(~real, 0),
        "attention_mask": real.long(),
        "labels": draw_labels(tokens).masked_fill(~real, -100),
    }

    def step(length: int) -> torch.Tensor:
        loss = built(**{name: tensor[:, :length].contiguous() for name, tensor in batch.items()}).loss
        loss.backward()
        return loss.detach()

    return Work(list(built.parameters()), step, length)


def all_positions_loss(head: nn.Module, hidden_states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What BertForMaskedLM does."""
    return nn.CrossEntropyLoss()(head(hidden_states).flatten(0, 1), labels.flatten())


def mlm_head(loss: Callable[..., torch.Tensor], length: int, shrink: int) -> Work:
    """The MLM head and its loss alone, forward and backward; returns the gradient of the hidden states."""
    length //= shrink
    head = draw_weights(BertOnlyMLMHead(BertConfig(**SIZE)))
    hidden_states = nn.Parameter(torch.randn(1, length, SIZE["hidden_size"], generator=generator()))
    labels = draw_labels(draw_tokens(1, length))

    def step(length: int) -> torch.Tensor:
        loss(head, hidden_states[:, :length], labels[:, :length]).backward()
        return hidden_states.grad

    return Work([*head.parameters(), hidden_states], step, length)


# ---- cases


@dataclass(frozen=True)
class Goal:
    """What a measurement is to show; without a limit it is only measured.

    Args:
        kind: `gain`, how many times as much the other side needs, at least `limit`; `cost`, how many times as much
            ours needs, at most `limit`; `amount`, the seconds or bytes that ours needs, at most `limit`.
    """

    kind: Literal["gain", "cost", "amount"]
    limit: float | None = None


gain, cost, amount = (partial(Goal, kind) for kind in ("gain", "cost", "amount"))


@dataclass(frozen=True)
class Case:
    """One claim.

    Args:
        what: the claim's conditions and opponent, for the reader.
        ours: builds our side, from `shrink`.
        against: builds the other side; the name of a script beside this one is run by `--lsg-python`.
        time: what the seconds are to show; None where they are not measured.
        memory: the same for peak bytes above the model and its gradients.
        same_to: the sides' results must agree to this, relative to the largest value; None where they differ.
        rounds: pairs of time samples for each of `--repeats`.
        keeps_memory: whether times are measured under an allocator that keeps its memory, on both sides.
    """

    name: str
    what: str
    ours: Callable[[int], Work]
    against: Callable[[int], Work] | str | None = None
    time: Goal | None = None
    memory: Goal | None = None
    same_to: float | None = None
    rounds: int = 1
    keeps_memory: bool = False


ours_mlm, stock_mlm = partial(mlm, longbert, head=LongBertForMaskedLM), partial(mlm, bert, head=BertForMaskedLM)
ours, window = partial(encoder, longbert), partial(encoder, longbert, attention_window=512)
PADDED = (2048, 512, 256, 128)
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}

CASES = [
    Case(
        "padded-mlm",
        f"padded MLM step {list(PADDED)}, against BertForMaskedLM (sdpa)",
        ours=partial(ours_mlm, PADDED),
        against=partial(stock_mlm, PADDED),
        time=gain(4.5),
        memory=gain(5),
        same_to=1e-5,
    ),
    Case(
        "padded-mlm-checkpointed",
        "the same with gradient checkpointing on our side only",
        ours=partial(ours_mlm, PADDED, checkpointing=True),
        against=partial(stock_mlm, PADDED),
        time=gain(3.5),
        memory=gain(8),
        same_to=1e-5,
    ),
    Case(
        "mlm-loss",
        "MLM head and loss, 8,192 tokens, 15 % labelled, against all positions",
        ours=partial(mlm_head, masked_lm_loss, 8192),
        against=partial(mlm_head, all_positions_loss, 8192),
        time=gain(5),
        memory=gain(5),
        same_to=1e-5,
    ),
    Case(
        "default-dropout",
        "BERT's default dropout 0.1, 2,048 tokens, against BertModel (sdpa)",
        ours=partial(ours, 2048, **DROPOUT),
        against=partial(encoder, bert, 2048, **DROPOUT),
        time=gain(1.8),
        memory=gain(4),
    ),
    Case(
        "window-longformer",
        "window 512 + [CLS], 8,192 tokens, against LongformerModel",
        ours=partial(window, 8192),
        against=partial(encoder, longformer, 8192),
        time=gain(3),
        memory=gain(3),
    ),
    Case(
        "window-bigbird",
        "window 512 + [CLS], 4,096 tokens, against BigBirdModel (blocks of 64, 3 random)",
        ours=partial(window, 4096),
        against=partial(encoder, bigbird, 4096),
        time=gain(2.4),
        memory=gain(4),
    ),
    Case(
        "window-lsg",
        "window 512 + [CLS], 4,096 tokens, against LSGBertModel (blocks of 256, transformers 4.40.2)",
        ours=partial(window, 4096),
        against="lsg_peer.py",
        time=gain(1.7),
        memory=gain(2.3),
    ),
    Case(
        "window-full",
        "window 512 + [CLS], 8,192 tokens, against our own full attention",
        ours=partial(window, 8192),
        against=partial(ours, 8192),
        time=gain(2.2),
        memory=gain(),
    ),
    Case(
        "window-modernbert",
        "window 512 + [CLS], 8,192 tokens, forward, against ModernBertModel (sdpa, every third layer global)",
        ours=partial(window, 8192, backward=False),
        against=partial(encoder, modernbert_of_our_size, 8192, backward=False),
        time=gain(2),
    ),
    Case(
        "window-doubling",
        "window 512 + [CLS], 16,384 tokens for 8,192",
        ours=partial(window, 16384),
        against=partial(window, 8192),
        time=cost(2.02),
        memory=cost(2.02),
        keeps_memory=True,
    ),
    *(
        Case(
            f"short-{length}",
            f"8 unpadded texts of {length} tokens, for BertModel (sdpa)",
            ours=partial(ours, length, batch_size=8),
            against=partial(encoder, bert, length, batch_size=8),
            time=cost(1.05),
            same_to=1e-5,
            rounds=rounds,
        )
        for length, rounds in ((512, 3), (128, 5))
    ),
    *(
        Case(
            f"window-{n}", f"window 512 + [CLS], {n:,} tokens", ours=partial(window, n), time=amount(), memory=amount()
        )
        for n in (4096, 8192)
    ),
    Case(
        "exact-16384",
        "MLM step of a BERT-base (12 layers) on 16,384 tokens, full attention, checkpointing, fp32",
        ours=partial(ours_mlm, (16384,), checkpointing=True, num_hidden_layers=12),
        memory=amount(2e9),
    ),
]
BY_NAME = {case.name: case for case in CASES}


if __name__ == "__main__":  # bench.py's child
    side, name, threads, shrink = sys.argv[1:]
    serve(lambda: getattr(BY_NAME[name], side)(shrink=int(shrink)), int(threads))
