"""How a source's position table becomes what the model stores. Travels to the Hub beside the model.

The seam is transformers' own weight conversion, which serves every way in: any head, `.bin`, shards, device maps, and
a long encoder inside another model.
"""

from types import SimpleNamespace
from typing import Any

import torch
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter

from .configuration_longbert import REPEATING, LongBertConfig
from .families import FAMILIES, LONG_POSITIONS, POSITIONS, POSITIONS_WITHOUT_SEGMENTS, RESERVED_POSITIONS, TOKEN_TYPES
from .position_embeddings import POSITION_INITS, POSITION_TYPES, PositionEmbedding, extend_table, refuse_moving
from .source_weights import SourceWeights


class Transplant(ConversionOps):
    """Turn a source's learned position table into what the model stores; nothing to do for our own checkpoints.

    The name that the table comes under says what it is: BERT's, one with reserved rows before position 0, one of an
    architecture that has no segments, or a longbert model's of another length or type.
    """

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        full_layer_name: str = "",
        model: Any = None,
        **kwargs: Any,
    ) -> dict[str, list[torch.Tensor]]:
        positions = model.get_submodule(full_layer_name.rpartition(".")[0])
        ((name, tensors),) = input_dict.items()
        table = tensors[0] if isinstance(tensors, list) else tensors
        # another model's, beside ours in a composite one. Not told by its class: a process may hold several copies of
        # this code, the package's and those of Hub folders, of which the last that was imported converts for all
        if not hasattr(positions, "transplant"):
            return {POSITIONS: [table]}
        config = positions.config
        if name == RESERVED_POSITIONS:
            table = table[len(table) - config.pretrained_positions :]
        if table.shape != positions.weight.shape:
            if name != LONG_POSITIONS:
                refuse_table(table.shape, config)
            table = positions.transplant(table)
        segments = (
            {TOKEN_TYPES: [table.new_zeros(1, config.hidden_size)]} if name == POSITIONS_WITHOUT_SEGMENTS else {}
        )
        return {POSITIONS: [table]} | segments

    @property
    def reverse_op(self) -> ConversionOps:
        return KeepAsIs()


class KeepAsIs(ConversionOps):
    """Saving writes what the model stores."""

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        return input_dict

    @property
    def reverse_op(self) -> ConversionOps:
        return Transplant()


def register_transplant(class_name: str) -> None:
    """Make every way of loading weights into the class transplant a source's table.

    One converter for all names that a table may have: a second one with the same target would be the one that saving
    reverses, and would lose what stands before the name inside another model.
    """
    names = [POSITIONS, RESERVED_POSITIONS, POSITIONS_WITHOUT_SEGMENTS, LONG_POSITIONS]
    converter = WeightConverter(source_patterns=names, target_patterns=POSITIONS, operations=[Transplant()])
    register_checkpoint_conversion_mapping(class_name, [converter], overwrite=True)


def refuse_table(shape: torch.Size | tuple[int, ...], config: LongBertConfig) -> None:
    """Raise `ValueError` where a BERT's position table `[rows, hidden_size]` does not fit the config."""
    expected = (config.pretrained_positions, config.hidden_size)
    if tuple(shape) != expected:
        raise ValueError(
            f"the source stores position vectors of shape {tuple(shape)}, the config expects [pretrained_positions, "
            f"hidden_size] = {list(expected)}: build it from the source with LongBertConfig.from_pretrained(source, "
            "position_type=..., max_position_embeddings=...)"
        )


def refuse_source(
    weights: SourceWeights, source_dict: dict[str, Any] | None, config: LongBertConfig, encoders: list[str]
) -> None:
    """Raise `ValueError` where a source's tables, or what its config says of them, do not fit `config`.

    Args:
        source_dict: the source's own config; None where there is none beside the weights.
        encoders: what the class calls its long encoders.
    """
    source = None
    if source_dict is not None and source_dict.get("model_type") == LongBertConfig.model_type:
        source = LongBertConfig.from_dict(source_dict)
    reserved = weights.family.reserved_rows(config.to_dict() if source_dict is None else source_dict)
    for shape in weights.tables(encoders):
        if source is not None:
            _refuse_long_source(shape, source, config)
        elif source_dict is None and not reserved and shape == _stored_shape(config):
            _refuse_doubtful(weights, shape, config)  # a longbert model's own state_dict
        else:
            refuse_table((shape[0] - reserved, *shape[1:]), config)


def _stored_shape(config: LongBertConfig) -> tuple[int, ...]:
    rows = POSITION_TYPES[config.position_type].stored_rows(config)
    return (rows, config.hidden_size) if rows else (1,)


def _refuse_doubtful(weights: SourceWeights, shape: tuple[int, ...], config: LongBertConfig) -> None:
    """Raise `ValueError` where nameless weights may be a RoBERTa's, whose table has two rows that are no positions."""
    reserved = FAMILIES["roberta"].reserved_rows(config.to_dict())
    if config.pad_token_id == 1 and weights.prefixes == ("",) and shape[0] == config.pretrained_positions + reserved:
        raise ValueError(
            f"a table of {shape[0]} rows is a RoBERTa's of {config.pretrained_positions} positions or a longbert "
            "model's of as many, and weights without a config do not say which: load them from their folder"
        )


def _refuse_long_source(shape: tuple[int, ...], source: LongBertConfig, config: LongBertConfig) -> None:
    stored = POSITION_TYPES[source.position_type].stored_rows(source)
    if stored == 0:
        if config.position_type != source.position_type:
            raise ValueError(
                f"the source is {source.position_type!r} and stores no position rows to make "
                f"{config.position_type!r} of"
            )
        return
    if shape != (stored, source.hidden_size):
        raise ValueError(
            f"the source's config.json says that {(stored, source.hidden_size)} position vectors are stored, and its "
            f"file holds {shape}: leave config.json as it was saved, and name what is to change in from_pretrained"
        )
    taken = POSITION_TYPES[config.position_type].takes_rows(config, stored)
    if source.hidden_size != config.hidden_size or not taken:
        raise ValueError(
            f"the source stores position vectors of shape {shape}, of which {config.position_type!r} positions "
            f"with max_position_embeddings={config.max_position_embeddings}, pretrained_positions="
            f"{config.pretrained_positions} and hidden_size={config.hidden_size} cannot be made: build the config "
            "with LongBertConfig.from_pretrained(source, position_type=..., max_position_embeddings=...)"
        )
    if config.position_type == REPEATING:
        refuse_moving(config, stored, config.max_position_embeddings)


def first_source_length(positions: PositionEmbedding) -> int | None:
    """The length of a table's first source, where it is shorter than its config's `pretrained_positions`; else None.

    Versions of longbert before 0.2 took the number of stored rows for the source length when a model was loaded with
    its position type named again. The rows past the first source are still near the ones they were copied from, also
    after training.
    """
    config, table = positions.config, positions.weight.detach()
    n = config.pretrained_positions
    if config.position_type != REPEATING or n < 4 or table.is_meta or not table.is_floating_point():
        return None
    rows = table[:n].float().cpu()
    likely = {config.attention_window or 0, (config.attention_window or 0) + 1, 512}
    # where a table begins again: with the row after [CLS]'s, or with [CLS]'s
    again = [(rows[2:] == rows[index]).all(-1).nonzero()[:1, 0] + 2 for index in (1, 0)]
    for length in sorted(likely.union(*(found.tolist() for found in again))):
        if 3 <= length < n and any(_is_filled(rows, length, name, config) for name in POSITION_INITS):
            return length
    return None


def _is_filled(rows: torch.Tensor, length: int, position_init: str, config: LongBertConfig) -> bool:
    """Whether the rows after the first `length` are near what `position_init` fills in."""
    if position_init in ("random", "interpolate"):
        return False
    settings = SimpleNamespace(
        position_init=position_init,
        pretrained_positions=length,
        hierarchical_alpha=config.hierarchical_alpha,
        hierarchical_rows=0,
    )
    filled = rows[length : 2 * length]
    expected = extend_table(rows[:length], length + len(filled), settings)[length:]
    return bool((filled - expected).norm() < 0.5 * (filled - filled.mean(0)).norm())
