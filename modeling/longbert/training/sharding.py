"""Parameters divided among processes: FSDP2, as accelerate applies it, told what it cannot know of a BERT."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import nn
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import strtobool


def division(args: TrainingArguments) -> str | None:
    """What divides parameters, gradients or optimizer states among a run's processes, by its launch or settings."""
    if args.deepspeed_plugin is not None:
        return "DeepSpeed"
    launched = strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false"))
    return "FSDP" if launched or args.fsdp_plugin_args is not None else None


def refuse_division(args: TrainingArguments) -> None:
    """Raise `ValueError` for ways to divide parameters from which no model would come out; call it before any work."""
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "DeepSpeed's stage 3 divides the parameters while the model is read, before the proof could read with "
            "it: set zero_stage to 2, or divide them by configs/accelerate/fsdp2.yaml"
        )
    if division(args) != "FSDP":
        return
    version, kind = os.environ.get("FSDP_VERSION", "1"), os.environ.get("FSDP_STATE_DICT_TYPE")
    if args.fsdp_plugin_args is not None:
        version, kind = args.fsdp_plugin_args["fsdp_version"], args.fsdp_plugin_args["state_dict_type"]
    if int(version) != 2:
        raise ValueError(f"fsdp_version must be 2, got {version}: see configs/accelerate/fsdp2.yaml")
    if kind != "FULL_STATE_DICT":
        raise ValueError(
            f"fsdp_state_dict_type must be FULL_STATE_DICT, got {kind}, of which no model could be saved: see "
            "configs/accelerate/fsdp2.yaml"
        )


@contextlib.contextmanager
def dividing(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """While accelerate divides a model's parameters among processes by FSDP2; nothing where it does not.

    The embeddings and the head stay in the root's group. accelerate would give what `get_input_embeddings` and
    `get_output_embeddings` return a group of their own, but the bias of BERT's MLM head has a second name outside of
    it, which torch does not allow; and the loss calls the head once for every chunk of labels.
    """
    if not accelerator.is_fsdp2:
        yield
        return
    from torch.distributed.fsdp import register_fsdp_forward_method  # which not every build of torch has

    plugin = accelerator.state.fsdp_plugin
    if plugin.mixed_precision_policy is not None:
        # accelerate's own rounds the loss, and the sum of the processes' gradients, to half precision
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )
    accessors = ("get_input_embeddings", "get_output_embeddings")
    for name in accessors:
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in accessors:
            delattr(model, name)
    if hasattr(model, "labelled_logits"):
        register_fsdp_forward_method(model, "labelled_logits")
