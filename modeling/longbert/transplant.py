"""How a source's position table becomes what the model stores. Travels to the Hub beside the model.

The seam is transformers' own weight conversion, which serves every way in: any head, `.bin`, shards, device maps.
"""

from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter

from .configuration_longbert import LongBertConfig
from .families import POSITIONS, RESERVED_POSITIONS, family_of
from .position_embeddings import POSITION_TYPES


class Transplant(ConversionOps):
    """Turn a source's learned position table into what the model stores; nothing to do for our own checkpoints."""

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
        (tensors,) = input_dict.values()
        tensor = tensors[0] if isinstance(tensors, list) else tensors
        if tensor.shape != positions.weight.shape:
            refuse_table(tensor.shape, positions.config)
            tensor = positions.transplant(tensor)
        return {target_patterns[0]: [tensor]}

    @property
    def reverse_op(self) -> ConversionOps:
        return KeepAsIs()


class DropReservedRows(ConversionOps):
    """Leave out a source's first rows, where they are no positions (`Family.reserves_rows`)."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, list[torch.Tensor]]:
        (tensors,) = input_dict.values()
        table = tensors[0] if isinstance(tensors, list) else tensors
        return {target_patterns[0]: [table[len(table) - kwargs["config"].pretrained_positions :]]}

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
    """Make every way of loading weights into the class transplant a source's table."""
    operations = {POSITIONS: [Transplant()], RESERVED_POSITIONS: [DropReservedRows(), Transplant()]}
    converters = [
        WeightConverter(source_patterns=key, target_patterns=POSITIONS, operations=chain)
        for key, chain in operations.items()
    ]
    register_checkpoint_conversion_mapping(class_name, converters, overwrite=True)


def refuse_table(shape: torch.Size | tuple[int, ...], config: LongBertConfig) -> None:
    """Raise `ValueError` where a source's position table `[rows, hidden_size]` does not fit the config."""
    expected = (config.pretrained_positions, config.hidden_size)
    if tuple(shape) != expected:
        raise ValueError(
            f"the source stores position vectors of shape {tuple(shape)}, the config expects [pretrained_positions, "
            f"hidden_size] = {list(expected)}: build it from the source with LongBertConfig.from_pretrained(source, "
            "position_type=..., max_position_embeddings=...)"
        )


def renamings_of(source: Any, config: Any, model_class: str, hub_kwargs: dict) -> dict[str, str]:
    """What a source's weights are called, as `from_pretrained`'s `key_mapping`; none where its config cannot be read.

    Raises:
        ValueError: the source's config says that its weights do not fit `config`, or BERT at all.
    """
    try:
        source_dict, _ = PreTrainedConfig.get_config_dict(source, **hub_kwargs)
    except OSError:  # no config to compare with: the transplant itself still refuses a table that does not fit
        return {}
    family = family_of(source_dict)
    same_head = family.class_prefix + model_class.removeprefix("LongBert")
    for architecture in source_dict.get("architectures") or []:
        if architecture == same_head and architecture in family.own_heads:
            raise ValueError(
                f"{source} is an {architecture}, whose head is not BERT's: load its encoder, as LongBertModel or with "
                "another head, which is then new"
            )
    if isinstance(config, LongBertConfig):
        refuse_source(source, source_dict, config)
    return family.renamings


def refuse_source(source: Any, source_dict: dict, config: LongBertConfig) -> None:
    """Raise `ValueError` where a source's config says that its weights do not fit `config`."""
    stored = LongBertConfig.from_dict(source_dict)
    if stored.hidden_size != config.hidden_size:
        raise ValueError(
            f"{source} has hidden_size={stored.hidden_size}, the config says {config.hidden_size}: build it with "
            "LongBertConfig.from_pretrained(source, position_type=..., max_position_embeddings=...)"
        )
    if not _stores_the_same(stored, config):
        rows = POSITION_TYPES[stored.position_type].stored_rows(stored)
        if rows == 0:
            raise ValueError(
                f"{source} is {stored.position_type!r} and stores no position rows to make {config.position_type!r} of"
            )
        refuse_table((rows, stored.hidden_size), config)


def _stores_the_same(source: LongBertConfig, config: LongBertConfig) -> bool:
    rows = POSITION_TYPES[source.position_type].stored_rows(source)
    return rows == POSITION_TYPES[config.position_type].stored_rows(config) and (
        rows > 0 or source.position_type == config.position_type
    )
