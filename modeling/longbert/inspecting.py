"""Checks of a long model's folder: what it holds, whether its parts agree, whether its last position runs."""

import torch
from transformers import PreTrainedTokenizerBase

from .loading import late_window
from .modeling_longbert import LongBertPreTrainedModel
from .position_embeddings import POSITION_INITS, extend_table
from .source import Arrived, is_too_small
from .transplant import first_source_length


def describe(model: LongBertPreTrainedModel) -> list[str]:
    """Describe reach, origin of the position rows, and attention, a line each."""
    config, weight = model.config, model.get_position_embeddings().weight
    n, reach = config.pretrained_positions, config.max_position_embeddings
    lines = [
        f"{type(model).__name__}, position_type {config.position_type!r}, reach {reach} positions",
        f"stored: {tuple(weight.shape)} {str(weight.dtype).removeprefix('torch.')}",
    ]
    if config.position_type == "learned-extended" and reach > n:
        state = "as filled, never trained" if _is_as_filled(model) else "trained since, or noise"
        lines.append(f"rows 0-{n - 1}: the source's; rows {n}-{reach - 1}: {config.position_init!r}, {state}")
    elif config.position_type == "hierarchical":
        rows = len(weight)
        lines.append(
            f"rows 0-{rows - 1}: stored; positions {rows}-{reach - 1}: made of them, alpha {config.hierarchical_alpha}"
        )
    elif config.position_type == "sinusoidal":
        lines.append(f"no rows: sinusoids of base {config.sinusoidal_base}, scale {weight.item():.4g}")
    elif config.position_type in ("learned", "learned-extended"):
        lines.append(f"rows 0-{reach - 1}: stored")
    else:
        lines.append(f"positions 0-{reach - 1}: of a registered type")
    window, tokens = config.attention_window, config.global_tokens
    lines.append(
        f"attention: a window of {window} tokens, {tokens} global, in texts of more than {n}"
        if window
        else "attention: full"
    )
    for name, what in (("full", "read all in full"), ("closed", "learn how much counts what is outside of it")):
        if layers := getattr(config, f"{name}_attention_layers"):
            lines.append(f"layers {', '.join(map(str, sorted(layers)))}: {what}")
    return lines


def _is_as_filled(model: LongBertPreTrainedModel) -> bool:
    config, table = model.config, model.get_position_embeddings().weight.detach()
    n, init = config.pretrained_positions, POSITION_INITS[config.position_init]
    if not init.keeps_rows or config.position_init == "random":
        return False
    return torch.equal(extend_table(table[:n], len(table), config), table)


def disagreements(arrived: Arrived, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Messages on what contradicts the config or is missing; empty if all agrees."""
    model = arrived.model
    config, embeddings = model.config, model.base_model.embeddings
    reach, words = config.max_position_embeddings, len(tokenizer)
    found = [f"{line}" for line in arrived.in_words()]
    for name in ("position_ids", "token_type_ids"):
        buffer = getattr(embeddings, name)
        expected = torch.arange(reach) if name == "position_ids" else torch.zeros(reach)
        if not torch.equal(buffer[0].cpu(), expected.to(buffer.dtype)):
            found.append(f"buffer {name} {tuple(buffer.shape)} does not cover positions 0-{reach - 1}")
    if tokenizer.model_max_length != reach:
        found.append(f"tokenizer.model_max_length is {tokenizer.model_max_length}, the model reaches {reach}")
    if words > config.vocab_size or is_too_small(tokenizer, config):
        found.append(f"the tokenizer has {words} tokens, the model {config.vocab_size}")
    if config.type_vocab_size == 1 and "token_type_ids" in tokenizer.model_input_names:
        found.append("the tokenizer gives token_type_ids for two segments, the model has one")
    if not model.position_table().isfinite().all():
        found.append("the position table holds values that are not finite")
    if (first := first_source_length(embeddings.position_embeddings)) is not None:
        found.append(late_window(config, first))
    return found


@torch.no_grad()
def run_last_token(model: LongBertPreTrainedModel) -> None:
    """Run the model at its last positions, and over one token more than the source could read.

    Raises:
        RuntimeError: an output is not finite.
    """
    reach = model.config.max_position_embeddings
    length = min(model.config.pretrained_positions + 1, reach)
    input_ids = torch.ones(1, length, dtype=torch.long, device=model.device)
    last_positions = torch.arange(reach - length, reach, device=model.device)[None]
    for position_ids in (None, last_positions):
        if not model.base_model(input_ids, position_ids=position_ids).last_hidden_state.isfinite().all():
            raise RuntimeError(f"{length} tokens, positions up to {reach - 1}, give values that are not finite")
