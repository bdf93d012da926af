"""LongBertConfig: a BERT config that says where positions come from. Travels to the Hub beside the model."""

# No `from __future__ import annotations` here: it would silently switch the strict field checks off.

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator
from os.path import exists
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import BertConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

from .families import MOST, family_of, refuse_kinds
from .position_embeddings import POSITION_INITS, POSITION_TYPES


logger = logging.get_logger(__name__)

# the type whose new positions are copies of earlier ones, which a token must not see side by side
REPEATING = "learned-extended"

RANGES: dict[str, tuple[float, float]] = {
    "vocab_size": (1, MOST),
    "hidden_size": (1, 2**20),
    "num_hidden_layers": (1, 10_000),
    "num_attention_heads": (1, MOST),
    "intermediate_size": (1, 2**24),
    "type_vocab_size": (1, MOST),
    "max_position_embeddings": (1, MOST),
    "hidden_dropout_prob": (0, 1),
    "attention_probs_dropout_prob": (0, 1),
    "classifier_dropout": (0, 1),
    "layer_norm_eps": (0, 1),
    "initializer_range": (0, 1e6),
}
NAMING_LAYERS = ("full_attention_layers", "closed_attention_layers")
AUTO_MAP = {
    "AutoConfig": "configuration_longbert.LongBertConfig",
    "AutoModel": "modeling_longbert.LongBertModel",
    "AutoModelForPreTraining": "modeling_longbert.LongBertForPreTraining",
    "AutoModelForMaskedLM": "modeling_longbert.LongBertForMaskedLM",
    "AutoModelForNextSentencePrediction": "modeling_longbert.LongBertForNextSentencePrediction",
    "AutoModelForSequenceClassification": "modeling_longbert.LongBertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_longbert.LongBertForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_longbert.LongBertForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling_longbert.LongBertForMultipleChoice",
}


@strict
class LongBertConfig(BertConfig):
    """BERT's config and the positions past its table.

    `max_position_embeddings` is always the effective length, whatever is stored: other tools read it.

    Args:
        position_type: a key of `POSITION_TYPES`: learned, learned-extended, hierarchical, sinusoidal, or registered.
        position_init: a key of `POSITION_INITS`: how `learned-extended` fills the rows that the source never had.
        pretrained_positions: the source length n: how many tokens the first source read. The window acts only in
            longer texts, and the proof's chunks are n tokens long. Read from the source by `from_pretrained`, and
            kept however often the model is extended. Left at 0, from scratch, it becomes 512, or all positions where
            there are fewer or the type is `learned`.
        hierarchical_rows: how many rows `hierarchical` combines, if not n: as many as a longer learned table had
            when it became hierarchical.
        hierarchical_alpha: weight of the block code in `hierarchical`, in (0, 1) without 0.5.
        sinusoidal_base: the longest wavelength of `sinusoidal` is about 2 pi times this many positions.
        attention_window: tokens w, even: a token of a text longer than `pretrained_positions` sees w/2 tokens to each
            side, and the global ones. None is full attention. `from_pretrained` gives a plain BERT that becomes
            `learned-extended` a window of the source length, unless it is told otherwise.
        global_tokens: the first tokens of every text, [CLS] by default, that see and are seen by all under a window;
            `global_attention_mask` names others at call time.
        full_attention_layers: layers that ignore the window, counted from 0; or "every 3rd", or any other "every Nth",
            which is kept as the list that it is: the 3rd, 6th, 9th ... layer are layers 2, 5, 8 ....
        closed_attention_layers: layers, named alike, that ignore it too, but begin nearly as if they did not: a weight
            of each head, `far_gate`, says how much keys outside the window count, and is learned
            (`closed_attention.py`).
        closed_attention_start: the value that these weights begin with; far keys count by its sigmoid, 0.018 of a
            near one's weight at -4.
        classifier_pooling: what the pooler, and so a classifier, reads: "cls", [CLS] as BERT, or "mean", the mean of
            all tokens, as sentence encoders are trained to.
        extended_from: the Hub id of the checkpoint that was extended; read from the source by `from_pretrained`.
        task_settings: how a fine-tuned model's texts were read and its answers chosen, for `longbert predict`; the
            model itself does not look at them.
        zero_padding_positions: give padding positions, as marked by `attention_mask`, the zero vector (`sinusoidal`).

    Raises:
        huggingface_hub.errors.StrictDataclassError: an impossible value or combination; it names the valid choices.
    """

    model_type = "longbert"

    position_type: str = "learned-extended"
    position_init: str = "tile-skip-special"
    pretrained_positions: int = 0
    hierarchical_rows: int = 0
    hierarchical_alpha: float | int = 0.4
    sinusoidal_base: float | int = 10000.0
    zero_padding_positions: bool = False
    attention_window: int | None = None
    global_tokens: int = 1
    full_attention_layers: list[int] | str | None = None
    closed_attention_layers: list[int] | str | None = None
    closed_attention_start: float | int = -4.0
    classifier_pooling: Literal["cls", "mean"] = "cls"
    extended_from: str | None = None
    task_settings: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_kinds({**self.__dict__, **kwargs})
        if kwargs.get("num_labels", 0) is None:  # in a file; it counts what id2label names
            del kwargs["num_labels"]
        if self.pretrained_positions == 0:
            from_scratch = self.max_position_embeddings if self.position_type == "learned" else 512
            self.pretrained_positions = min(self.max_position_embeddings, from_scratch)
        for name in NAMING_LAYERS:
            if isinstance(said := getattr(self, name), str):
                setattr(self, name, layers_of(name, said, self.num_hidden_layers))
        _refuse_misspelt(kwargs)
        super().__post_init__(**kwargs)

    def validate_positions(self) -> None:
        """Called on construction, on saving and when a model is built."""
        if self.position_type not in POSITION_TYPES:
            raise ValueError(
                f"position_type must be one of {sorted(POSITION_TYPES)}, got {self.position_type!r}; a type of your "
                "own is made known by longbert.register_position_type"
            )
        if self.position_init not in POSITION_INITS:
            raise ValueError(f"position_init must be one of {sorted(POSITION_INITS)}, got {self.position_init!r}")
        if self.pretrained_positions < 1:
            raise ValueError(f"pretrained_positions must be at least 1, got {self.pretrained_positions}")
        if self.max_position_embeddings < self.pretrained_positions:
            raise ValueError(
                f"max_position_embeddings={self.max_position_embeddings} is fewer than the source's "
                f"{self.pretrained_positions} positions: ask for at least as many"
            )
        if self.hierarchical_rows < 0:
            raise ValueError(f"hierarchical_rows must be a number of rows or 0, got {self.hierarchical_rows}")
        if self.zero_padding_positions and self.position_type != "sinusoidal":
            raise ValueError(f"zero_padding_positions needs position_type='sinusoidal', got {self.position_type!r}")
        POSITION_TYPES[self.position_type].validate_config(self)

    def validate_sizes(self) -> None:
        """Called on construction, on saving and when a model is built."""
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} must lie between {least} and {most}, got {value}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {', '.join(ACT2FN)}, got {self.hidden_act!r}")
        if self.pad_token_id is not None and not -self.vocab_size <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id must be below vocab_size={self.vocab_size}, got {self.pad_token_id}")
        if self.add_cross_attention and not self.is_decoder:
            raise ValueError("add_cross_attention needs is_decoder=True")
        shown = False if self.output_hidden_states is None else self.output_hidden_states  # all, or of some layers
        if not all(isinstance(each, int) for each in (shown if isinstance(shown, list) else [shown])):
            raise ValueError(f"output_hidden_states must be true, false or a list of layers, got {shown!r}")
        if not isinstance(self.chunk_size_feed_forward, int):
            raise ValueError(f"chunk_size_feed_forward must be a whole number, got {self.chunk_size_feed_forward!r}")

    def validate_attention(self) -> None:
        """Called on construction, on saving and when a model is built."""
        if self.attention_window is not None and (self.attention_window < 2 or self.attention_window % 2):
            raise ValueError(f"attention_window must be an even number of tokens or None, got {self.attention_window}")
        if self.global_tokens < 0:
            raise ValueError(f"global_tokens must not be negative, got {self.global_tokens}")
        for name in NAMING_LAYERS:
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name} of a config that is there is set to a list, got {getattr(self, name)!r}")
            for layer in getattr(self, name) or []:
                if not 0 <= layer < self.num_hidden_layers:
                    raise ValueError(f"{name} must lie in 0-{self.num_hidden_layers - 1}, got {layer}")
        if self.closed_attention_layers and self.attention_window is None:
            raise ValueError(
                f"closed_attention_layers={self.closed_attention_layers} are closed to what is outside of a window: "
                "set attention_window, or leave them out"
            )
        if both := sorted({*(self.full_attention_layers or [])} & {*(self.closed_attention_layers or [])}):
            raise ValueError(f"layers {both} are in full_attention_layers and in closed_attention_layers: name one")
        if self.is_decoder and self.attention_window is not None:
            raise ValueError("attention_window needs a bidirectional encoder, got is_decoder=True")

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        try:
            config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except RecursionError as error:
            raise OSError(f"{pretrained_model_name_or_path}: config.json is damaged: {error}") from error
        if not says_something(config_dict):
            raise OSError(f"{pretrained_model_name_or_path} has no config.json: a folder of a model needs one")
        adopted = _adopt(cls, config_dict)
        if adopted is not config_dict and not exists(pretrained_model_name_or_path):
            adopted["extended_from"] = str(pretrained_model_name_or_path)
        return adopted, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs: Any) -> "LongBertConfig":
        """Read a BERT's or a longbert's config; field overrides in `kwargs` are checked together with the rest.

        What is not named stays as it was, so a model that is loaded again or extended further gives the same outputs
        at every length that it reached before. A model that is extended past its source for the first time gets a
        window if its rows repeat (`default_window`).
        """
        family_names = {} if _is_long(cls, config_dict) else family_of(config_dict).settings_names
        config_dict = _without_misspelt(_adopt(cls, config_dict))
        names = {field.name for field in dataclasses.fields(cls)} - {"dtype"}
        kwargs = {family_names.get(name, name): value for name, value in kwargs.items()}
        overrides = {name: kwargs.pop(name) for name in sorted(names & set(kwargs))}
        if overrides.get("pretrained_positions") == 0:
            raise ValueError("pretrained_positions must be at least 1, got 0: left out, the source's own is kept")
        _refuse_misspelt(kwargs)
        source = cls(**config_dict)
        carried = _positions_carried_over(source, overrides) | _window_of_extended(source, overrides)
        return super().from_dict({**config_dict, **carried, **overrides}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        if "auto_map" in output:
            # transformers names only the class being saved, and every other Auto class would fail to load the folder
            output["auto_map"] = {**AUTO_MAP, **output["auto_map"]}
        return output


def _misspelt(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Settings that are nearly a field's name, with that name: transformers keeps or drops unknown ones silently."""
    fields = [field.name for field in dataclasses.fields(LongBertConfig)]
    for name in names:
        close = difflib.get_close_matches(name, fields, n=1, cutoff=0.85)
        if close and name not in fields:
            yield name, close[0]


def _refuse_misspelt(names: Iterable[str]) -> None:
    for name, close in _misspelt(names):
        raise ValueError(f"unknown setting {name!r}: did you mean {close!r}?")


def _without_misspelt(config_dict: dict) -> dict:
    """A file's settings; one that is nearly a field is left out with a warning, as other tools write into files."""
    ignored = dict(_misspelt(config_dict))
    for name, close in ignored.items():
        logger.warning_once(f"the config's unknown setting {name!r} is ignored: did its author mean {close!r}?")
    return {name: value for name, value in config_dict.items() if name not in ignored}


def _is_long(cls: type[LongBertConfig], config_dict: dict) -> bool:
    """Whether a config is a longbert model's, or that of a user's subclass which reads it."""
    return config_dict.get("model_type") in (LongBertConfig.model_type, cls.model_type)


def _adopt(cls: type[LongBertConfig], config_dict: dict) -> dict:
    """A BERT's config, whatever its family calls it, as a longbert's: same numbers, and the positions of its table as
    `pretrained_positions`.

    Raises:
        ValueError: the config is of another architecture.
    """
    if _is_long(cls, config_dict):
        family_of(config_dict | {"model_type": LongBertConfig.model_type})
        return config_dict
    family = family_of(config_dict)
    adopted = family.as_bert(config_dict)
    rows = adopted.get("max_position_embeddings") or BertConfig.max_position_embeddings
    positions = rows - family.reserved_rows(config_dict)
    return {
        **adopted,
        "model_type": cls.model_type,
        "max_position_embeddings": positions,
        "pretrained_positions": positions,
    }


def parse_every(name: str, text: str) -> int:
    """The N of "every Nth", in the words of English: every 1st, 2nd, 3rd, 4th, ..., 11th, ..., 21st.

    Args:
        name: of the setting, for messages.

    Raises:
        ValueError: it is something else.
    """
    found = re.fullmatch(r"every ([1-9][0-9]{0,4})(st|nd|rd|th)", text)
    number = int(found[1]) if found else 0
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    if not found or found[2] != ending:
        raise ValueError(
            f"{name} takes numbers of layers, such as [2, 5], or every Nth, such as every 3rd, which is layers 2, 5, "
            f"8 ..., got {text!r}"
        )
    return number


def layers_of(name: str, text: str, layers: int) -> list[int]:
    """The layers that "every Nth" of so many names: the Nth, the 2Nth, ..., counted from 0 as everywhere else.

    Raises:
        ValueError: it is something else, or there are fewer than N layers.
    """
    step = parse_every(name, text)
    if step > layers:
        raise ValueError(f"{name}: {text!r} names none of {layers} layers: N is at most their number")
    return list(range(step - 1, layers, step))


def says_something(config_dict: dict) -> bool:
    """Whether a config.json was there and held settings; transformers before 5.24 notes its commit in an empty one."""
    return any(not name.startswith("_") for name in config_dict)


def default_window(source_length: int) -> int:
    """The window that the study found to need no training: as long as the source, which never sees two positions whose
    vectors are copies of each other (docs/study.md)."""
    return max(2, source_length - source_length % 2)


def _window_of_extended(source: LongBertConfig, overrides: dict) -> dict:
    """The window of a model that is taken past its source for the first time and whose rows will repeat."""
    n, reach = source.pretrained_positions, overrides.get("max_position_embeddings")
    if source.max_position_embeddings > n or not isinstance(reach, int) or reach <= n:
        return {}
    if source.attention_window is not None or overrides.get("position_type", source.position_type) != REPEATING:
        return {}
    if overrides.get("is_decoder", source.is_decoder):  # a window needs an encoder
        return {}
    return {"attention_window": default_window(n)}


def _positions_carried_over(source: LongBertConfig, overrides: dict) -> dict:
    """What a longbert model of another position type needs so that its positions keep their vectors."""
    wanted = overrides.get("position_type", source.position_type)
    rows = POSITION_TYPES[source.position_type].stored_rows(source)
    if wanted == source.position_type:
        return {}
    if wanted == "hierarchical" and rows > source.pretrained_positions:
        return {"hierarchical_rows": rows}
    if source.position_type == "hierarchical" and wanted == REPEATING:
        asked = overrides.get("position_init", "hierarchical")
        if asked != "hierarchical" and source.max_position_embeddings > rows:
            raise ValueError(
                f"position_init={asked!r} would replace the vectors that the model has for positions {rows} and up, "
                "which hierarchical positions made: leave it out to keep them, or extend the model's source anew"
            )
        return {"position_init": "hierarchical"}
    return {}
