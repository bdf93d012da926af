"""Memory of a run: gradient checkpointing, and the peak that was measured."""

import functools
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from ..source import PretrainingModel


def is_attention(operation: Any) -> bool:
    """Whether an operation of torch is attention, forwards, whatever kernel computes it.

    torch's own are called `_scaled_dot_product_..._attention...`, `_flash_attention_forward` and
    `_efficient_attention_forward`; packages call theirs `..._attn...`.
    """
    name = str(operation)
    return ("attention" in name or "attn" in name) and "backward" not in name


def _keep_attention(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Recompute everything but attention, whose output is small and whose computation alone grows with n²."""
    return CheckpointPolicy.MUST_SAVE if is_attention(operation) else CheckpointPolicy.PREFER_RECOMPUTE


def checkpoint_activations(model: PretrainingModel, max_seq_length: int) -> str:
    """Switch gradient checkpointing on, keeping attention's outputs where attention dominates.

    Per token and layer, BERT's linear maps cost 24 hidden_size² FLOP forwards and full attention 4 n hidden_size, so
    attention dominates past n = 6 hidden_size in the layers that no window bounds.

    Returns:
        What was done, in words.
    """
    settings: dict[str, Any] = {"use_reentrant": False}
    config = model.config
    in_full = config.full_attention_layers or config.closed_attention_layers
    some_in_full = config.attention_window is None or bool(in_full)
    selective = some_in_full and max_seq_length > 6 * config.hidden_size
    if selective:
        settings["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_attention)
    # the name since transformers 5.2x; 5.17 has the old one
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(settings)
    return "selective gradient checkpointing: attention is kept" if selective else "gradient checkpointing"


def reset_peak_memory(device: torch.device) -> bool:
    """Let `peak_memory` begin anew; False where the system cannot, and it goes on from the process's start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # Linux alone
    except OSError:
        return False
    return True


def memory_of(device: torch.device) -> str:
    """Whose memory `peak_memory` says: a device's name, or `process`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "process"


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held on the device, or in all on a CPU, since `reset_peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # which Windows does not have

    # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
