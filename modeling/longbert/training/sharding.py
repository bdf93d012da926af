"""FSDP2, as accelerate applies it, told what it cannot know of a BERT."""

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method


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
