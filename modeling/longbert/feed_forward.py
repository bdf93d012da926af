"""BERT's MLP with less to keep for the backward pass. Travels to the Hub beside the model."""

import torch
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN
from transformers.models.bert.modeling_bert import BertIntermediate, BertOutput

from .configuration_longbert import LongBertConfig
from .texts import is_traced


RECOMPUTED_FROM = 2**22  # numbers in an activation; below it the time to recompute it would be seen and its memory not


class LongBertIntermediate(BertIntermediate):
    """BERT's first half of the MLP, less its activation function, which `LongBertOutput` applies."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dense(hidden_states)


class LongBertOutput(BertOutput):
    """BERT's activation function and second half of the MLP.

    A long activation is not kept for the backward pass but computed again there, from what it was computed from, which
    is kept anyway: a quarter less of what training a layer holds, and the same gradients bit for bit.
    """

    def __init__(self, config: LongBertConfig):
        super().__init__(config)
        self.activation = ACT2FN[config.hidden_act] if isinstance(config.hidden_act, str) else config.hidden_act

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        if hidden_states.requires_grad and not is_traced() and hidden_states.numel() >= RECOMPUTED_FROM:
            # recomputing ends once all is there that was not kept: the product is not among it
            hidden_states = checkpoint(self._project, hidden_states, use_reentrant=False)
        else:
            hidden_states = self._project(hidden_states)
        return self.LayerNorm(self.dropout(hidden_states) + input_tensor)

    def _project(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dense(self.activation(hidden_states))
