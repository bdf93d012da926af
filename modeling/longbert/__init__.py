"""longbert takes any BERT checkpoint past 512 tokens. Importing it registers its classes with the Auto classes."""

from typing import Any

import transformers

from . import modeling_longbert
from .configuration_longbert import AUTO_MAP, LongBertConfig
from .modeling_longbert import (
    LongBertEmbeddings,
    LongBertForMaskedLM,
    LongBertForMultipleChoice,
    LongBertForNextSentencePrediction,
    LongBertForPreTraining,
    LongBertForQuestionAnswering,
    LongBertForSequenceClassification,
    LongBertForTokenClassification,
    LongBertModel,
    LongBertPreTrainedModel,
)
from .position_embeddings import (
    POSITION_INITS,
    POSITION_TYPES,
    PositionEmbedding,
    PositionInit,
    extend_table,
    register_position_init,
    register_position_type,
)


__version__ = "0.1.0"

__all__ = [
    "POSITION_INITS",
    "POSITION_TYPES",
    "LongBertConfig",
    "LongBertEmbeddings",
    "LongBertForMaskedLM",
    "LongBertForMultipleChoice",
    "LongBertForNextSentencePrediction",
    "LongBertForPreTraining",
    "LongBertForQuestionAnswering",
    "LongBertForSequenceClassification",
    "LongBertForTokenClassification",
    "LongBertModel",
    "LongBertPreTrainedModel",
    "PositionEmbedding",
    "PositionInit",
    "extend",
    "extend_table",
    "register_position_init",
    "register_position_type",
]

transformers.AutoConfig.register(LongBertConfig.model_type, LongBertConfig, exist_ok=True)
transformers.AutoTokenizer.register(LongBertConfig, fast_tokenizer_class=transformers.BertTokenizer, exist_ok=True)
LongBertConfig.register_for_auto_class()
for _auto_class, _path in AUTO_MAP.items():
    if _auto_class != "AutoConfig":
        _model_class = getattr(modeling_longbert, _path.rpartition(".")[2])
        getattr(transformers, _auto_class).register(LongBertConfig, _model_class, exist_ok=True)
        _model_class.register_for_auto_class(_auto_class)


def __getattr__(name: str) -> Any:
    if name == "extend":  # what it needs, such as datasets, is not needed to load a model
        from .extending import extend

        return extend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
