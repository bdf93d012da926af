"""Any position type under full attention as an ordinary BERT checkpoint, which every server and exporter loads."""

import dataclasses
from pathlib import Path

import transformers
from transformers import BertConfig, BertPreTrainedModel

from .configuration_longbert import LongBertConfig
from .folders import refuse_occupied, written_aside
from .modeling_longbert import LongBertPreTrainedModel
from .source import copy_sentence_modules, find_source, load_whole


def bake(model: LongBertPreTrainedModel, max_positions: int | None = None) -> BertPreTrainedModel:
    """BERT's own class with every position's vector written into its table: the same outputs for every text up to
    `max_positions` tokens, by default all that the model reaches.

    A text that is padded on the left is the exception: BERT counts positions from the padding on.

    Raises:
        ValueError: a window or a mean-pooled head, which BERT does not have, or positions past the model's reach.
    """
    config = model.config
    length = config.max_position_embeddings if max_positions is None else max_positions
    refuse_unbakable(model, length)
    plain_class = getattr(transformers, type(model).__name__.removeprefix("Long"))
    plain = plain_class(plain_config(config, length)).to(model.dtype)
    if plain.base_model.pooler is not None and model.base_model.pooler is None:
        plain.base_model.pooler = None
    # closed layers are closed to what is past the source's positions, which a baked model does not reach
    weights = {name: weight for name, weight in model.state_dict().items() if not name.endswith(".far_gate")}
    (key,) = (name for name in weights if name.endswith("embeddings.position_embeddings.weight"))
    plain.load_state_dict({**weights, key: model.position_table(length)})
    return plain.eval()


def plain_config(config: LongBertConfig, length: int) -> BertConfig:
    """BERT's own config of `length` positions, without what only a long model has."""
    ours = {field.name for field in dataclasses.fields(LongBertConfig)}
    ours -= {field.name for field in dataclasses.fields(BertConfig)}
    dropped = ours | {"model_type", "auto_map", "architectures"}
    settings = {name: value for name, value in config.to_dict().items() if name not in dropped}
    return BertConfig(**{**settings, "max_position_embeddings": length})


def refuse_unbakable(model: LongBertPreTrainedModel, length: int) -> None:
    """Raise `ValueError` where an ordinary BERT of `length` positions cannot give the model's outputs."""
    config = model.config
    if not 1 <= length <= config.max_position_embeddings:
        raise ValueError(
            f"max_positions must lie in 1-{config.max_position_embeddings}, the model's reach, got {length}: extend "
            "the model first (`longbert extend MODEL OUT --max-positions N`)"
        )
    n = config.pretrained_positions
    if config.attention_window is not None and length > n:
        raise ValueError(
            f"attention_window={config.attention_window} cannot be baked: an ordinary BERT attends in full, and would "
            f"say something else about every text of more than {n} tokens. Bake at most {n} positions, write a graph "
            "that has the window (`longbert export`), or push the model with its code (`longbert push`)"
        )
    if config.classifier_pooling == "mean" and model.base_model.pooler is not None:
        raise ValueError(
            "classifier_pooling='mean' cannot be baked: an ordinary BERT's pooler reads [CLS]. Write a graph of it "
            "(`longbert export`), or push the model with its code (`longbert push`)"
        )


def baked_size(model: LongBertPreTrainedModel, length: int) -> tuple[int, int]:
    """Bytes of the baked weights, and of the position table among them."""
    positions = model.get_position_embeddings().weight
    table = length * model.config.hidden_size * positions.element_size()
    stored = sum(parameter.nbytes for parameter in model.parameters())
    return stored - positions.nbytes + table, table


def write_baked(path: str, out: str | Path, max_positions: int | None = None) -> None:
    """Bake a checkpoint into a new or empty folder with its tokenizer; the size is printed before anything is written.

    A SentenceTransformer's folder stays one.
    """
    refuse_occupied(out)
    model, tokenizer = load_whole(path)
    length = model.config.max_position_embeddings if max_positions is None else max_positions
    refuse_unbakable(model, length)
    whole, table = baked_size(model, length)
    print(f"{whole / 1e6:,.1f} MB, of which {table / 1e6:,.1f} MB are the table of {length:,} positions")
    tokenizer.model_max_length = length
    with written_aside(out) as folder:
        bake(model, length).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        copy_sentence_modules(find_source(path), folder, length)
