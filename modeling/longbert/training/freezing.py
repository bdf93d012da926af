"""Which weights are trained: all, the new positions only, or those that regular expressions name."""

import copy
import re

import torch
from torch.func import functional_call

from ..modeling_longbert import LongBertPreTrainedModel
from ..position_embeddings import POSITION_TYPES, PositionEmbedding


def select_parameters(model: LongBertPreTrainedModel, train_only: list[str]) -> str:
    """Freeze all that is not to be trained.

    Args:
        train_only: `["all"]`; `["positions"]`, the position vectors past the source's, as Longformer (Beltagy et al.
            2020, arXiv 2004.05150, section 5, "Copied initialization") and LongEmbed (Zhu et al. 2024, arXiv
            2404.12096) train them first; or regular expressions, each searched for in parameter names.

    Returns:
        What trains, in words.

    Raises:
        ValueError: there are no new positions, or an expression names no parameter.
    """
    if train_only == ["positions"]:
        return _train_new_positions(model)
    if train_only != ["all"]:
        named = dict(model.named_parameters())
        for expression in train_only:
            try:
                matches = any(re.search(expression, name) for name in named)
            except re.error as error:
                raise ValueError(f"train_only: {expression!r} is no regular expression: {error}") from error
            if not matches:
                raise ValueError(
                    f"train_only: {expression!r} names no parameter. There are 'all', 'positions', or expressions for "
                    f"names such as {', '.join(list(named)[:4])}, ..."
                )
        for name, parameter in named.items():
            parameter.requires_grad = any(re.search(expression, name) for expression in train_only)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"{trained:,} of {model.num_parameters():,} parameters train"


def freeze_pooler(model: LongBertPreTrainedModel) -> None:
    """Freeze the pooler of an encoder whose token vectors alone are read: no gradient reaches it, and DDP would wait
    for one."""
    if model.base_model.pooler is not None:
        model.base_model.pooler.requires_grad_(False)


def _train_new_positions(model: LongBertPreTrainedModel) -> str:
    config, weight = model.config, model.get_position_embeddings().weight
    kept, rows = config.pretrained_positions, POSITION_TYPES[config.position_type].stored_rows(config)
    if 0 < rows <= kept:
        raise ValueError(
            f"train_only: positions trains the rows past the source's {kept}, and position_type "
            f"{config.position_type!r} stores {rows}: use 'learned-extended', or train_only: all"
        )
    model.requires_grad_(False)
    weight.requires_grad = True
    if rows == 0:
        return "the weights that positions are computed from train, all else is frozen"
    _freeze_rows(model.get_position_embeddings(), kept)
    return f"position rows {kept} to {rows - 1} train, all else is frozen"


def _freeze_rows(positions: PositionEmbedding, kept: int) -> None:
    """Let no gradient reach the first `kept` rows: a zero gradient moves nothing under Adam without decay, and
    positions never decay.

    It is done in the forward pass because there alone `weight` is the whole table under FSDP2, which puts a part of
    it, without any hook, in the parameter's place.
    """
    reader = copy.copy(positions)  # with the same parameters and the class's own forward

    def forward(position_ids: torch.LongTensor) -> torch.Tensor:
        weight = torch.cat((positions.weight[:kept].detach(), positions.weight[kept:]))
        return functional_call(reader, {"weight": weight}, (position_ids,))

    positions.forward = forward  # type: ignore[method-assign]
