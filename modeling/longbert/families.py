"""Architectures that are BERT under other names. Travels to the Hub beside the model.

A family's encoder computes what BERT's does from weights that are called something else; its checkpoints load into
LongBert's classes by these renamings.
"""

from dataclasses import dataclass, field
from typing import Any


POSITIONS = "embeddings.position_embeddings.weight"
# where the first rows are reserved and position 0 comes after them
RESERVED_POSITIONS = "embeddings.reserved_and_position_embeddings.weight"


@dataclass(frozen=True)
class Family:
    """What tells a family's checkpoints from BERT's.

    Args:
        class_prefix: what its classes have in the place of `Bert`.
        renamings: its weights' names, as regular expressions, and BERT's in their place.
        reserves_rows: positions begin at `pad_token_id` + 1, as fairseq's do.
        must_be: settings under which its encoder is BERT's; any other value is refused.
        own_heads: classes whose head BERT does not have; the encoder is all that can be loaded of them.
    """

    class_prefix: str
    renamings: dict[str, str] = field(default_factory=dict)
    reserves_rows: bool = False
    must_be: dict[str, Any] = field(default_factory=dict)
    own_heads: tuple[str, ...] = ()

    def long_class(self, architecture: str) -> str | None:
        """The name of the LongBert class with a checkpoint's head; None where there is none."""
        if architecture in self.own_heads or not architecture.startswith(self.class_prefix):
            return None
        return f"LongBert{architecture.removeprefix(self.class_prefix)}"

    def first_row(self, config_dict: dict[str, Any]) -> int:
        """The row of its table that is position 0."""
        return config_dict.get("pad_token_id", 1) + 1 if self.reserves_rows else 0


def _fairseq(class_prefix: str, key_prefix: str = "roberta") -> Family:
    return Family(
        class_prefix,
        renamings={
            rf"^{key_prefix}\.": "bert.",
            r"^lm_head\.dense\.": "cls.predictions.transform.dense.",
            r"^lm_head\.layer_norm\.": "cls.predictions.transform.LayerNorm.",
            r"^lm_head\.(?=decoder|bias)": "cls.predictions.",
            # a classifier's first layer is what BERT calls the pooler
            r"^classifier\.dense\.": "bert.pooler.dense.",
            r"^classifier\.out_proj\.": "classifier.",
            r"embeddings\.position_embeddings\.weight$": RESERVED_POSITIONS,
        },
        reserves_rows=True,
        own_heads=(f"{class_prefix}ForCausalLM",),
    )


FAMILIES = {
    "bert": Family("Bert"),
    "longbert": Family("LongBert"),
    "roberta": _fairseq("Roberta"),
    "xlm-roberta": _fairseq("XLMRoberta"),
    "camembert": _fairseq("Camembert"),
    "data2vec-text": _fairseq("Data2VecText", "data2vec_text"),
    "electra": Family(
        "Electra",
        renamings={
            r"^electra\.": "bert.",
            r"^generator_predictions\.": "cls.predictions.transform.",
            r"^generator_lm_head\.weight": "cls.predictions.decoder.weight",
            r"^generator_lm_head\.bias": "cls.predictions.bias",
        },
        # replaced-token detection, and heads with GELU where BERT has tanh
        own_heads=(
            "ElectraForPreTraining",
            "ElectraForSequenceClassification",
            "ElectraForMultipleChoice",
            "ElectraForCausalLM",
        ),
    ),
    "ernie": Family("Ernie", renamings={r"^ernie\.": "bert."}, must_be={"use_task_id": False}),
}


def family_of(config_dict: dict[str, Any]) -> Family:
    """The family of a checkpoint's config; checkpoints older than `model_type` are BERT's.

    Raises:
        ValueError: an architecture that is not BERT under another name, or one whose settings make it another.
    """
    model_type = config_dict.get("model_type", "bert")
    if model_type not in FAMILIES:
        raise ValueError(
            f"longbert extends checkpoints of model_type {', '.join(FAMILIES)}, got {model_type!r}, whose encoder is "
            "not BERT's"
        )
    family = FAMILIES[model_type]
    size = config_dict.get("embedding_size", config_dict.get("hidden_size"))
    if model_type == "electra" and size != config_dict.get("hidden_size"):
        raise ValueError(
            f"this ELECTRA projects embeddings of {size} to hidden_size={config_dict.get('hidden_size')}, which BERT "
            "does not: checkpoints whose two sizes agree can be extended, the small ones and the generators cannot"
        )
    for name, value in family.must_be.items():
        if config_dict.get(name, value) != value:
            raise ValueError(
                f"{name}={config_dict[name]!r} adds what BERT's embeddings do not have: {model_type} checkpoints with "
                f"{name}={value!r} can be extended"
            )
    return family
