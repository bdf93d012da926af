"""The pieces that continued pretraining adds to transformers' Trainer, each at a seam of its own."""

import dataclasses
from pathlib import Path

import torch
from torch import nn
from transformers import (
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from .configuration_longbert import LongBertConfig
from .data import MaskedRows
from .modeling_longbert import LongBertForMaskedLM


logger = logging.get_logger(__name__)


def load_for_mlm(source: str, config: LongBertConfig) -> LongBertForMaskedLM:
    """A source with an MLM head; one that has none gets a head that begins as the identity, and a warning says so."""
    model, info = LongBertForMaskedLM.from_pretrained(source, config=config, output_loading_info=True)
    if any(key.startswith("cls.predictions.transform") for key in info["missing_keys"]):
        # a token's vector then predicts the words nearest to it, which is far better than noise
        nn.init.eye_(model.cls.predictions.transform.dense.weight)
        logger.warning(
            f"{source} has no MLM head: a new one is added, which predicts poorly until it is trained. Set "
            "native_steps to train it at the source's own length first, or the proof compares with a source "
            "that cannot predict"
        )
    return model


def mlm_trainer(
    model: LongBertForMaskedLM, rows: MaskedRows, tokenizer: PreTrainedTokenizerBase, arguments: TrainingArguments
) -> Trainer:
    """transformers' Trainer over rows that are masked already; batches are padded to their longest row."""
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
    )


def native_arguments(arguments: TrainingArguments, steps: int, tokens_factor: int) -> TrainingArguments:
    """The same run at the source's own length: `steps` steps with as many tokens each, nothing saved on the way."""
    return dataclasses.replace(
        arguments,
        output_dir=str(Path(arguments.output_dir, "native")),
        max_steps=steps,
        per_device_train_batch_size=arguments.per_device_train_batch_size * max(1, tokens_factor),
        save_strategy="no",
        eval_strategy="no",
        push_to_hub=False,
    )


def parameter_count(model: nn.Module) -> tuple[int, int]:
    """Trainable and all parameters."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(map(torch.Tensor.numel, parameters))
