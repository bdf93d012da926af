"""The pieces that continued pretraining adds to transformers' Trainer, each at a seam of its own."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
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


def _keep_attention(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Recompute everything but attention, whose output is small and whose computation alone grows with n²."""
    attends = "attention" in str(operation) and "backward" not in str(operation)
    return CheckpointPolicy.MUST_SAVE if attends else CheckpointPolicy.PREFER_RECOMPUTE


def checkpoint_activations(model: LongBertForMaskedLM, max_seq_length: int) -> str:
    """Switch gradient checkpointing on, keeping attention's outputs where attention dominates.

    Per token and layer, BERT's linear maps cost 24 hidden_size² FLOP forwards and full attention 4 n hidden_size, so
    attention dominates past n = 6 hidden_size, unless a window bounds n.

    Returns:
        What was done, in words.
    """
    settings: dict[str, Any] = {"use_reentrant": False}
    selective = model.config.attention_window is None and max_seq_length > 6 * model.config.hidden_size
    if selective:
        settings["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_attention)
    # the name since transformers 5.2x; 5.17 has the old one
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(settings)
    return "selective gradient checkpointing: attention is kept" if selective else "gradient checkpointing"


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
