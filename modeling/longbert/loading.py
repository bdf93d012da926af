"""How a source is loaded into a class: what is refused before, and what must have arrived afterwards.
Travels to the Hub beside the model.
"""

import copy
import dataclasses
import inspect
import re
from typing import Any

import torch
from torch import nn
from transformers import BertForMaskedLM, BertForPreTraining, BertModel, PreTrainedConfig
from transformers.utils import find_adapter_config_file, logging

from .configuration_longbert import REPEATING, LongBertConfig, default_window, says_something
from .families import architectures_in
from .position_embeddings import PositionEmbedding
from .source_weights import LOCATION, Shapes, SourceWeights, read_shapes, shapes_of, some
from .transplant import first_source_length, refuse_source


logger = logging.get_logger(__name__)

MLM_CLASSES = (BertForMaskedLM, BertForPreTraining)
# what every encoder of BERT's has; what a user's class adds beside it may be new
OF_EVERY_ENCODER = re.compile(
    r"(embeddings\.((word|position|token_type)_embeddings\.weight|LayerNorm\.(weight|bias))"
    r"|encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|((attention|intermediate)\.)?(output\.)?(dense|LayerNorm))"
    r"\.(weight|bias))$"
)


@dataclasses.dataclass(frozen=True)
class Loading:
    """One call of `from_pretrained`.

    Args:
        source: the checkpoint, for messages.
        weights: what it holds.
        is_long: whether it is a longbert model's.
        tied: whether its MLM decoder shares the word vectors.
        encoders: the attribute names of the class's long encoders; "" if the class is an encoder itself.
        base_model_prefix: what transformers puts before the names of an encoder that comes without a head.
    """

    source: str
    weights: SourceWeights
    is_long: bool
    tied: bool
    encoders: list[str]
    base_model_prefix: str

    @classmethod
    def of(
        cls, model_class: Any, source: Any, config: Any, model_arguments: tuple[Any, ...], arguments: dict[str, Any]
    ) -> "Loading | None":
        """Read what a source holds, without its weights; None where there is nothing to read, or in a format that only
        transformers knows.

        Args:
            source, config, model_arguments, arguments: what `from_pretrained` was given.

        Raises:
            ValueError: it cannot be loaded into the class.
        """
        location = {name: arguments[name] for name in LOCATION if name in arguments}
        if source is not None:
            source = _base_of_adapter(source, location)
        shapes = _shapes(source, arguments, location)
        if not shapes:
            return None
        stated = None if source is None else _stated_config(source, location, model_class.config_class)
        wanted = _wanted_config(model_class.config_class, source, config, arguments, location)
        named = "the state_dict" if source is None else str(source)
        try:
            weights = SourceWeights.of(shapes, stated, arguments.get("key_mapping"))
            _refuse_head(model_class, weights, stated or {}, wanted)
            encoders = _encoders_of(model_class, wanted, model_arguments, arguments)
            refuse_source(weights, stated, wanted, encoders)
        except ValueError as error:
            raise ValueError(f"{named}: {error}") from None
        _say_what_full_attention_costs(weights.tables(encoders), wanted)
        return cls(
            source=named,
            weights=weights,
            is_long=(stated or {}).get("model_type") == LongBertConfig.model_type,
            tied=(stated or wanted.to_dict()).get("tie_word_embeddings", True),
            encoders=encoders,
            base_model_prefix=model_class.base_model_prefix,
        )

    def key_mapping(self) -> dict[str, str]:
        """What the source's weights are to be called, for `from_pretrained`."""
        mapping = self.weights.key_mapping(self.tied)
        if len(self.weights.prefixes) > 1:  # the names of a class of several encoders, which are those that it loads
            return mapping
        target = self.encoders[0] if self.encoders else ""
        start = f"{target}." if target else ""
        # transformers itself adds and takes off `base_model_prefix`, `bert` unless a user's class says else
        if target not in ("", self.base_model_prefix):
            mapping[r"^(?=(?:embeddings|encoder\.layer|pooler)\.)"] = start
        if target != "bert" and (target or self.base_model_prefix != "bert"):
            mapping[r"^bert\."] = start
        return mapping

    def complete(self, model: nn.Module, info: dict[str, Any]) -> None:
        """Account for what arrived. Where the source has one encoder and the class several, the others begin as
        copies.

        Args:
            info: transformers' loading info; what is filled here is no longer missing in it.

        Raises:
            ValueError: an encoder did not arrive, or not whole.
        """
        missing = set(info["missing_keys"])
        lacking = {name: _lacking(model.get_submodule(name), name, missing) for name in self.encoders}
        arrived = [name for name, keys in lacking.items() if not keys]
        for name, keys in lacking.items():
            if keys and len(self.weights.prefixes) == 1 and arrived and _lacks_all(model.get_submodule(name), keys):
                missing -= self._begin_as(model, name, arrived[0], missing)
            elif keys:
                self._refuse_incomplete(type(model), name, keys, info["unexpected_keys"])
        info["missing_keys"] = type(info["missing_keys"])(sorted(missing))
        for name in self.encoders if self.is_long else []:
            encoder = model.get_submodule(name)
            if (first := first_source_length(encoder.embeddings.position_embeddings)) is not None:
                logger.warning_once(f"{self.source}: {late_window(encoder.config, first)}")

    def _begin_as(self, model: nn.Module, name: str, other: str, missing: set[str]) -> set[str]:
        """Copy one encoder's weights into another, and return the names that are no longer missing."""
        encoder = model.get_submodule(name)
        start, other_start = (f"{each}." if each else "" for each in (name, other))
        weights = model.get_submodule(other).state_dict()
        copied = {key: weight for key, weight in weights.items() if other_start + key not in missing}
        own = encoder.state_dict()
        if any(key not in own or own[key].shape != weight.shape for key, weight in copied.items()) or _lacking(
            encoder, name, {start + key for key in own.keys() - copied.keys()}
        ):
            raise ValueError(
                f"{self.source} has one encoder, and {name} of {type(model).__name__} is of another size: load each "
                "from a source of its own"
            )
        encoder.load_state_dict(copied, strict=False)
        return {start + key for key in copied}

    def _refuse_incomplete(self, model_class: type, name: str, keys: list[str], unexpected: Any) -> None:
        strays = f"; {some(unexpected)} fit nowhere" if unexpected else ""
        raise ValueError(
            f"{self.source}: of the encoder's weights {len(keys)} did not arrive ({some(keys)}){strays}. "
            f"{model_class.__name__} looks for an encoder called {name or self.base_model_prefix!r}: name a whole "
            "checkpoint, or key_mapping={the source's names: its names} in from_pretrained"
        )


def _base_of_adapter(source: Any, location: dict[str, Any]) -> Any:
    """The checkpoint that an adapter's folder names; the source itself where it is no adapter's."""
    file = find_adapter_config_file(source, **location)
    return source if file is None else PreTrainedConfig.get_config_dict(file)[0]["base_model_name_or_path"]


def _stated_config(source: Any, location: dict[str, Any], config_class: Any) -> dict[str, Any] | None:
    """The config beside a source's weights; None where there is none. A user's subclass of our config counts as
    ours."""
    try:
        stated = PreTrainedConfig.get_config_dict(source, **location)[0]
    except OSError:
        return None
    if stated and stated.get("model_type") == config_class.model_type:
        stated = {**stated, "model_type": LongBertConfig.model_type}
    return stated if stated and says_something(stated) else None


def _wanted_config(
    config_class: Any, source: Any, config: Any, arguments: dict[str, Any], location: dict[str, Any]
) -> LongBertConfig:
    """The config that `from_pretrained` will build, or that it was given."""
    if isinstance(config, PreTrainedConfig):
        return config  # type: ignore[return-value]
    fields = {field.name for field in dataclasses.fields(config_class)} - {"dtype"}
    overrides = {name: value for name, value in arguments.items() if name in fields}
    return config_class.from_pretrained(source if config is None else config, **location, **overrides)


def _shapes(source: Any, arguments: dict[str, Any], location: dict[str, Any]) -> Shapes | None:
    if arguments.get("gguf_file"):
        return None
    if source is None:
        return shapes_of(arguments.get("state_dict") or {})
    return read_shapes(source, arguments.get("variant"), arguments.get("use_safetensors"), **location)


def _refuse_head(model_class: type, weights: SourceWeights, stated: dict[str, Any], config: LongBertConfig) -> None:
    """Raise `ValueError` where the class would load a head that only looks like BERT's."""
    family = weights.family
    wanted = f"{family.class_prefix}{model_class.__name__.removeprefix('LongBert')}"
    mark = family.own_heads.get(wanted)
    if mark is not None and (
        wanted in architectures_in(stated) or (mark and any(mark in name for name in weights.shapes))
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


def _encoders_of(
    model_class: Any, config: LongBertConfig, model_arguments: tuple[Any, ...], arguments: dict[str, Any]
) -> list[str]:
    """The attribute names of a class's long encoders, found by building it once without memory."""
    if issubclass(model_class, BertModel):
        return [""]
    taken = inspect.signature(model_class.__init__).parameters
    own = {name: value for name, value in arguments.items() if name in taken}
    with torch.device("meta"):
        return long_encoders(model_class(copy.deepcopy(config), *model_arguments, **own))


def long_encoders(model: nn.Module) -> list[str]:
    """The names of a model's encoders with positions of ours."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, BertModel) and isinstance(module.embeddings.position_embeddings, PositionEmbedding)
    ]


def _lacking(encoder: nn.Module, name: str, missing: set[str]) -> list[str]:
    """The full names of the weights that every BERT encoder has and this one lacks."""
    start = f"{name}." if name else ""
    return [start + key for key in encoder.state_dict() if start + key in missing and OF_EVERY_ENCODER.match(key)]


def _lacks_all(encoder: nn.Module, lacking: list[str]) -> bool:
    return len(lacking) == sum(OF_EVERY_ENCODER.match(key) is not None for key in encoder.state_dict())


def _say_what_full_attention_costs(tables: list[tuple[int, ...]], config: LongBertConfig) -> None:
    n, is_full = config.pretrained_positions, config.attention_window is None
    filled = config.position_type == REPEATING and any(table[0] < config.max_position_embeddings for table in tables)
    if is_full and filled:
        logger.warning_once(
            f"attention_window=None: full attention over rows that are filled from {n} on costs 75 % of loss and more "
            f"until it is trained (docs/study.md); attention_window={default_window(n)} needs no training"
        )


def late_window(config: LongBertConfig, first: int) -> str:
    """A message saying that the config's source length is not that of the first source."""
    return (
        f"pretrained_positions={config.pretrained_positions}, but rows from {first} on repeat the first {first}: an "
        "earlier longbert wrote the wrong number, and a window begins too late. Load it with "
        f"pretrained_positions={first}, and save it"
    )
