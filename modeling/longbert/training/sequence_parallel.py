"""Sequence parallelism for a bidirectional encoder: neighbouring processes share the tokens of each batch.

Every stock one (accelerate's context parallelism, DeepSpeed's Ulysses) is causal only. Here a process computes its
stretch of the tokens and is sent the keys and values of others that it sees (`halo.py`), so activations shrink by the
number of processes and the result is that of one process, padding, packing and windows included.
"""

import torch.distributed as dist

from ..modeling_longbert import LongBertPreTrainedModel


def share_sequences(model: LongBertPreTrainedModel, size: int) -> None:
    """Let every `size` neighbouring processes share their batches' tokens; call it in all processes.

    Raises:
        ValueError: `size` does not divide the number of processes.
    """
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if processes % size:
        raise ValueError(
            f"sequence_parallel_size={size} must divide the number of processes, which is {processes}: launch with "
            "accelerate launch --num_processes or torchrun --nproc_per_node"
        )
    if size > 1:
        groups = [list(range(first, first + size)) for first in range(0, processes, size)]
        model.base_model.sequence_group, _ = dist.new_subgroups_by_enumeration(groups)
