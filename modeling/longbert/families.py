"""Architectures that are BERT under other names. Travels to the Hub beside the model.

A family's encoder computes what BERT's does from weights and settings that are called something else. All that is
special about a family stands in its entry; nothing else in longbert knows one by name.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
# What a table of positions is called on its way in, where it is not simply BERT's; see `transplant.py`.
RESERVED_POSITIONS = "embeddings.reserved_and_position_embeddings.weight"
POSITIONS_WITHOUT_SEGMENTS = "embeddings.position_without_token_type_embeddings.weight"
LONG_POSITIONS = "embeddings.long_position_embeddings.weight"


@dataclass(frozen=True)
class Family:
    """What tells a family's checkpoints from BERT's.

    Args:
        class_prefix: what its classes are called instead of `Bert...`.
        key_prefix: what its heads call their encoder.
        renamings: its weights' names, as regular expressions, and BERT's in their place.
        positions: the kind of its position table, one of the names above.
        reserves_rows: positions begin at `pad_token_id` + 1, as fairseq's do.
        settings_names: its config's names, and BERT's in their place.
        settings: BERT's settings that its config leaves out.
        own_settings: settings that BERT does not have and longbert ignores.
        must_be: settings under which its encoder is BERT's; any other value is refused.
        must_agree: pairs of settings that have to be the same number.
        mlm_activation: the activation of its MLM head, whatever `hidden_act` says; None if it is `hidden_act`.
        own_heads: classes whose head BERT does not have, and the weight that marks it; only their encoder can be
            loaded.
    """

    class_prefix: str
    key_prefix: str
    renamings: dict[str, str] = field(default_factory=dict)
    positions: str = POSITIONS
    reserves_rows: bool = False
    settings_names: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    own_settings: tuple[str, ...] = ()
    must_be: dict[str, Any] = field(default_factory=dict)
    must_agree: dict[str, str] = field(default_factory=dict)
    mlm_activation: str | None = None
    own_heads: dict[str, str] = field(default_factory=dict)

    def key_mapping(self, tied: bool = True) -> dict[str, str]:
        """All renamings, in the order in which they are applied.

        Args:
            tied: whether the MLM head's decoder shares the word vectors; if not, BERT keeps its bias elsewhere.
        """
        mapping = {rf"^{self.key_prefix}\.": "bert."} if self.key_prefix != "bert" else {}
        mapping |= self.renamings
        if not tied:
            own = "cls.predictions.decoder.bias"
            mapping = {old: own if new == "cls.predictions.bias" else new for old, new in mapping.items()}
        if self.positions != POSITIONS:
            mapping[r"embeddings\.position_embeddings\.weight$"] = self.positions
        return mapping

    def long_class(self, architecture: str) -> str | None:
        """The name of the LongBert class with a checkpoint's head; None where there is none."""
        if architecture in self.own_heads or not architecture.startswith(self.class_prefix):
            return None
        return f"LongBert{architecture.removeprefix(self.class_prefix)}"

    def reserved_rows(self, config_dict: dict[str, Any]) -> int:
        """How many rows of its table come before position 0."""
        padding = config_dict.get("pad_token_id")
        return (1 if padding is None else padding) + 1 if self.reserves_rows else 0

    def as_bert(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        """Its config in BERT's words."""
        renamed = {self.settings_names.get(name, name): value for name, value in config_dict.items()}
        return {name: value for name, value in (self.settings | renamed).items() if name not in self.own_settings}


def _fairseq(class_prefix: str, key_prefix: str = "roberta") -> Family:
    return Family(
        class_prefix,
        key_prefix,
        renamings={
            r"^lm_head\.dense\.": "cls.predictions.transform.dense.",
            r"^lm_head\.layer_norm\.": "cls.predictions.transform.LayerNorm.",
            r"^lm_head\.(?=decoder|bias)": "cls.predictions.",
            # a classifier's first layer is what BERT calls the pooler
            r"^classifier\.dense\.": "bert.pooler.dense.",
            r"^classifier\.out_proj\.": "classifier.",
        },
        positions=RESERVED_POSITIONS,
        reserves_rows=True,
        settings={"pad_token_id": 1},
        mlm_activation="gelu",
        own_heads={f"{class_prefix}ForCausalLM": ""},
    )


FAMILIES = {
    "bert": Family("Bert", "bert", own_heads={"BertLMHeadModel": ""}),
    "longbert": Family("LongBert", "bert", positions=LONG_POSITIONS),
    "roberta": _fairseq("Roberta"),
    "xlm-roberta": _fairseq("XLMRoberta"),
    "camembert": _fairseq("Camembert"),
    "data2vec-text": _fairseq("Data2VecText", "data2vec_text"),
    "electra": Family(
        "Electra",
        "electra",
        renamings={
            r"^generator_predictions\.": "cls.predictions.transform.",
            r"^generator_lm_head\.weight": "cls.predictions.decoder.weight",
            r"^generator_lm_head\.bias": "cls.predictions.bias",
        },
        own_settings=(
            "embedding_size",
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_last_dropout",
        ),
        # the small ones, and all generators, project their embeddings to another size, which BERT does not
        must_agree={"embedding_size": "hidden_size"},
        mlm_activation="gelu",
        # replaced-token detection, and heads with GELU where BERT has tanh
        own_heads={
            "ElectraForPreTraining": "discriminator_predictions.",
            "ElectraForSequenceClassification": "classifier.dense.",
            "ElectraForMultipleChoice": "sequence_summary.",
            "ElectraForCausalLM": "",
        },
    ),
    "ernie": Family(
        "Ernie",
        "ernie",
        own_settings=("task_type_vocab_size", "use_task_id"),
        # a third table, of tasks, beside those of words and segments
        must_be={"use_task_id": False},
        own_heads={"ErnieForCausalLM": ""},
    ),
    "distilbert": Family(
        "DistilBert",
        "distilbert",
        renamings={
            r"transformer\.layer\.": "encoder.layer.",
            r"\.attention\.q_lin\.": ".attention.self.query.",
            r"\.attention\.k_lin\.": ".attention.self.key.",
            r"\.attention\.v_lin\.": ".attention.self.value.",
            r"\.attention\.out_lin\.": ".attention.output.dense.",
            r"\.sa_layer_norm\.": ".attention.output.LayerNorm.",
            r"\.ffn\.lin1\.": ".intermediate.dense.",
            r"\.ffn\.lin2\.": ".output.dense.",
            r"\.output_layer_norm\.": ".output.LayerNorm.",
            r"^vocab_transform\.": "cls.predictions.transform.dense.",
            r"^vocab_layer_norm\.": "cls.predictions.transform.LayerNorm.",
            r"^vocab_projector\.weight": "cls.predictions.decoder.weight",
            r"^vocab_projector\.bias": "cls.predictions.bias",
        },
        positions=POSITIONS_WITHOUT_SEGMENTS,
        settings_names={
            "dim": "hidden_size",
            "n_layers": "num_hidden_layers",
            "n_heads": "num_attention_heads",
            "hidden_dim": "intermediate_size",
            "dropout": "hidden_dropout_prob",
            "attention_dropout": "attention_probs_dropout_prob",
            "activation": "hidden_act",
        },
        # DistilBERT's defaults, where a config leaves them out, and its one segment
        settings={
            "hidden_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 4 * 768,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-12,
        },
        own_settings=("sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout", "tie_weights_"),
        # heads with ReLU where BERT has tanh
        own_heads={
            "DistilBertForSequenceClassification": "pre_classifier.",
            "DistilBertForMultipleChoice": "pre_classifier.",
        },
    ),
}


def family_of(config_dict: dict[str, Any]) -> Family:
    """The family of a checkpoint, from its config's `model_type` or, where an old one has none, its architectures;
    else BERT's.

    Raises:
        ValueError: the architecture is not BERT under another name, or its settings make it different from BERT.
    """
    refuse_kinds(config_dict)
    model_type = config_dict.get("model_type") or _type_of(architectures_in(config_dict))
    if model_type == "bert":
        _refuse_fairseq(config_dict)
    if model_type not in FAMILIES:
        raise ValueError(
            f"longbert extends checkpoints of model_type {', '.join(FAMILIES)}, got {model_type!r}, whose encoder is "
            "not BERT's"
        )
    family = FAMILIES[model_type]
    _refuse_settings(family, model_type, config_dict)
    return family


def refuse_kinds(config_dict: dict[str, Any]) -> None:
    """Raise `ValueError` where a setting that is used before the config is checked is of another kind."""
    for name, (is_kind, what) in READ_FIRST.items():
        value = config_dict.get(name)
        if value is not None and not is_kind(value):
            raise ValueError(f"{name} must be {what}, got {value!r:.80}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST


def _names_classes(value: Any) -> bool:
    return all(isinstance(name, str) for name in (value if isinstance(value, list) else [value]))


def _is_dtype(value: Any) -> bool:
    return isinstance(getattr(torch, value, None) if isinstance(value, str) else value, torch.dtype)


def _numbers_labels(value: Any) -> bool:
    return isinstance(value, dict) and all(str(key).isdecimal() and len(str(key)) < 10 for key in value)


MOST = 2**31  # of anything that a model has
READ_FIRST: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_type": (lambda value: isinstance(value, str), "a text"),
    "architectures": (_names_classes, "a list of names of classes"),
    "max_position_embeddings": (_is_number, "a whole number"),
    "pretrained_positions": (_is_number, "a whole number"),
    "pad_token_id": (_is_number, "a whole number"),
    "num_labels": (lambda value: _is_number(value) and 0 < value <= 100_000, "a number of labels"),
    "id2label": (_numbers_labels, "a mapping of numbers to labels"),
    "label2id": (lambda value: isinstance(value, dict), "a mapping of labels to numbers"),
    "dtype": (_is_dtype, "the name of a dtype of torch"),
    "torch_dtype": (_is_dtype, "the name of a dtype of torch"),
}


def architectures_in(config_dict: dict[str, Any]) -> list[str]:
    """The classes that a config says the checkpoint was saved from, without what FSDP puts before their names."""
    stated = config_dict.get("architectures") or []
    return [name.removeprefix("FSDP") for name in ([stated] if isinstance(stated, str) else stated)]


def _refuse_fairseq(config_dict: dict[str, Any]) -> None:
    """Raise `ValueError` for a RoBERTa that says it is a BERT or does not say what it is: their names are alike."""
    rows = config_dict.get("max_position_embeddings") or 512
    reserved = rows > 2 and (rows - 2) & (rows - 3) == 0  # 514 and the like: a power of 2, and the reserved rows
    like_roberta = config_dict.get("pad_token_id") == 1 and config_dict.get("type_vocab_size") == 1
    if like_roberta and (reserved or not config_dict.get("model_type")):
        raise ValueError(
            f"pad_token_id=1, type_vocab_size=1 and max_position_embeddings={rows} are a RoBERTa's, and the config is "
            "read as a BERT's: set model_type in config.json to what the checkpoint is, such as roberta or xlm-roberta"
        )


def _type_of(architectures: list[str]) -> str:
    for architecture in architectures:
        for model_type, family in FAMILIES.items():
            if architecture.startswith(family.class_prefix):
                return model_type
    return "bert"


def family_of_encoder(name: str) -> Family | None:
    """The family whose heads call their encoder `name`; None where no family does."""
    return next((family for family in FAMILIES.values() if family.key_prefix == name), None)


def _refuse_settings(family: Family, model_type: str, config_dict: dict[str, Any]) -> None:
    for name, value in (family.must_be | {"position_embedding_type": "absolute"}).items():
        if config_dict.get(name, value) not in (value, None):
            raise ValueError(
                f"{name}={config_dict[name]!r} adds what longbert's BERT does not have: {model_type} checkpoints with "
                f"{name}={value!r} can be extended"
            )
    for name, other in family.must_agree.items():
        if config_dict.get(name, config_dict.get(other)) != config_dict.get(other):
            raise ValueError(
                f"{name}={config_dict[name]} is not {other}={config_dict.get(other)}: this {model_type} projects one "
                "to the other, which BERT does not, so it cannot be extended; checkpoints whose two sizes agree can"
            )
