"""How a source comes into a class: what is refused before anything is read, and what has to have arrived after it.
Travels to the Hub beside the model.
"""

import copy
import dataclasses
from typing import Any

import torch
from torch import nn
from transformers import BertForMaskedLM, BertForPreTraining, BertModel, PreTrainedConfig
from transformers.utils import find_adapter_config_file, logging

from .configuration_longbert import REPEATING, LongBertConfig, default_window
from .families import FAMILIES
from .position_embeddings import PositionEmbedding
from .source_weights import LOCATION, SourceWeights, read_shapes, shapes_of, some
from .transplant import first_source_length, refuse_source


logger = logging.get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class Loading:
    """One call of `from_pretrained`.

    Args:
        source: the checkpoint, for messages.
        weights: what it holds; None where it holds several encoders, which are then found by their names alone.
        encoders: what the class calls its long encoders; "" where it is one.
        base_model_prefix: what transformers puts before the names of an encoder that comes without a head.
    """

    source: str
    weights: SourceWeights | None
    encoders: list[str]
    base_model_prefix: str

    @classmethod
    def of(cls, model_class: Any, source: Any, config: Any, arguments: dict[str, Any]) -> "Loading | None":
        """Read what a source holds, without its weights; None where there is nothing to read, or in a format that only
        transformers knows.

        Args:
            source, config, arguments: what `from_pretrained` was given.

        Raises:
            ValueError: it cannot come into the class.
        """
        location = {name: arguments[name] for name in LOCATION if name in arguments}
        if source is not None:
            source = _base_of_adapter(source, location)
        stated = None if source is None else _stated_config(source, location)
        shapes = _shapes(source, arguments, location)
        if not shapes:
            return None
        wanted = config
        if not isinstance(config, PreTrainedConfig):
            fields = {field.name for field in dataclasses.fields(LongBertConfig)} - {"dtype"}
            overrides = {name: value for name, value in arguments.items() if name in fields}
            wanted = LongBertConfig.from_pretrained(source if config is None else config, **location, **overrides)
        named = "the state_dict" if source is None else str(source)
        try:
            weights = SourceWeights.of(shapes, stated)
            if weights is not None:
                _refuse_head(model_class, weights, stated or {}, wanted)
                refuse_source(weights, stated, wanted)
        except ValueError as error:
            raise ValueError(f"{named}: {error}") from None
        if weights is not None:
            _say_what_full_attention_costs(weights.table()[0], wanted)
        return cls(named, weights, _encoders_of(model_class, wanted), model_class.base_model_prefix)

    def key_mapping(self) -> dict[str, str]:
        """What the source's weights are to be called, for `from_pretrained`."""
        if self.weights is None:  # saved by a class of several encoders, under the names that it loads
            return FAMILIES["longbert"].key_mapping()
        mapping = self.weights.key_mapping()
        target = self.encoders[0] if self.encoders else ""
        start = f"{target}." if target else ""
        # transformers itself adds and takes off `base_model_prefix`, `bert` unless a user's class says else
        if target != "bert" and (target or self.base_model_prefix != "bert"):
            mapping[r"^bert\."] = start
        if target not in ("", self.base_model_prefix):
            mapping[r"^(?=(?:embeddings|encoder\.layer|pooler)\.)"] = start
        return mapping

    def complete(self, model: nn.Module, info: dict[str, Any]) -> None:
        """Account for what arrived; of several encoders, those that the source does not name begin as the first.

        Args:
            info: transformers' loading info; what is filled here is no longer missing in it.

        Raises:
            ValueError: an encoder did not arrive.
        """
        missing = set(info["missing_keys"])
        lacking = {name: _under(name, missing) for name in self.encoders}
        whole = [name for name, keys in lacking.items() if not keys]
        for name, keys in lacking.items():
            if keys and whole and self.weights is not None:
                model.get_submodule(name).load_state_dict(model.get_submodule(whole[0]).state_dict(), strict=False)
                info["missing_keys"] = type(info["missing_keys"])(missing := missing - _of_encoder(name, missing))
            elif keys:
                unexpected = info["unexpected_keys"]
                raise ValueError(
                    f"{self.source}: {len(keys)} weights of the encoder did not arrive ({some(keys)})"
                    + (f"; {some(unexpected)} fit nowhere" if unexpected else "")
                    + f". {type(model).__name__} looks for an encoder called {name or self.base_model_prefix!r}: set "
                    "base_model_prefix in the class, or key_mapping={source's names: its names} in from_pretrained"
                )
        for name in self.encoders:
            _say_where_the_window_should_begin(self.source, model.get_submodule(name))


def _base_of_adapter(source: Any, location: dict[str, Any]) -> Any:
    """The checkpoint that an adapter's folder names; the source itself where it is no adapter's."""
    file = find_adapter_config_file(source, **location)
    return source if file is None else PreTrainedConfig.get_config_dict(file)[0]["base_model_name_or_path"]


def _stated_config(source: Any, location: dict[str, Any]) -> dict[str, Any] | None:
    """The config beside a source's weights; None where there is none."""
    try:
        return PreTrainedConfig.get_config_dict(source, **location)[0] or None
    except OSError:
        return None


def _shapes(source: Any, arguments: dict[str, Any], location: dict[str, Any]) -> dict[str, tuple[int, ...]] | None:
    if arguments.get("gguf_file"):
        return None
    if source is None:
        return shapes_of(arguments.get("state_dict") or {})
    return read_shapes(source, arguments.get("variant"), arguments.get("use_safetensors"), **location)


def _refuse_head(model_class: type, weights: SourceWeights, stated: dict[str, Any], config: LongBertConfig) -> None:
    """Raise `ValueError` where the class would take a head that is not BERT's for one that is."""
    family = weights.family
    wanted = f"{family.class_prefix}{model_class.__name__.removeprefix('LongBert')}"
    mark = family.own_heads.get(wanted)
    if mark is not None and (
        wanted in (stated.get("architectures") or []) or (mark and any(mark in name for name in weights.shapes))
    ):
        raise ValueError(
            f"{wanted} has a head that is not BERT's: load the encoder alone, as LongBertModel or with a new head of "
            "another kind (`longbert extend --encoder-only`)"
        )
    has_head = any(name.startswith("cls.predictions.") for name in weights.bert_names())
    activation = family.mlm_activation
    if activation not in (None, config.hidden_act) and has_head and issubclass(model_class, MLM_CLASSES):
        raise ValueError(
            f"its MLM head computes with {activation!r}, as every {family.class_prefix}'s, and BERT's would with "
            f"hidden_act={config.hidden_act!r}: load the encoder alone, as LongBertModel "
            "(`longbert extend --encoder-only`)"
        )


MLM_CLASSES = (BertForMaskedLM, BertForPreTraining)


def _encoders_of(model_class: type, config: LongBertConfig) -> list[str]:
    """What a class calls its long encoders."""
    if issubclass(model_class, BertModel):
        return [""]
    with torch.device("meta"):
        return long_encoders(model_class(copy.deepcopy(config)))


def long_encoders(model: nn.Module) -> list[str]:
    """The names of a model's encoders with positions of ours."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, BertModel) and isinstance(module.embeddings.position_embeddings, PositionEmbedding)
    ]


def _of_encoder(name: str, keys: set[str]) -> set[str]:
    return {key for key in keys if not name or key.startswith(f"{name}.")}


def _under(name: str, keys: set[str]) -> list[str]:
    """The weights of an encoder itself, its pooler aside, which a head may bring or not."""
    start = f"{name}." if name else ""
    return sorted(key for key in keys if key.startswith((f"{start}embeddings.", f"{start}encoder.")))


def _say_what_full_attention_costs(rows: int, config: LongBertConfig) -> None:
    n, is_full = config.pretrained_positions, config.attention_window is None
    filled = config.position_type == REPEATING and rows < config.max_position_embeddings
    if is_full and filled:
        logger.warning_once(
            f"attention_window=None: full attention over rows that are filled from {n} on costs 75 % of loss and more "
            f"until it is trained (docs/study.md); attention_window={default_window(n)} needs no training"
        )


def _say_where_the_window_should_begin(source: str, encoder: Any) -> None:
    first = first_source_length(encoder.embeddings.position_embeddings)
    if first is not None:
        logger.warning_once(f"{source}: {late_window(encoder.config, first)}")


def late_window(config: LongBertConfig, first: int) -> str:
    """That the source length in a config is not the first source's, in words."""
    return (
        f"pretrained_positions={config.pretrained_positions}, but rows from {first} on repeat the first {first}: an "
        "earlier longbert wrote the wrong number, and a window begins too late. Load it with "
        f"pretrained_positions={first}, and save it"
    )
