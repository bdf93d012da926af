"""Sentence encoders past 512 tokens, with one vector for a text or one for every token."""

from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base import BaseModel
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.util import is_sentence_transformer_model

from ...configuration_longbert import LongBertConfig
from ...modeling_longbert import LongBertModel
from ...source import Source


KINDS = ("query", "document")  # of texts, each with a prompt of its own; columns of the pairs


def load_encoder(source: Source, prompts: dict[str, str] | None = None, device: str = "cpu") -> SentenceTransformer:
    """The source as a sentence encoder; a plain BERT, without a modules.json, pools the normalised mean of its tokens.

    Args:
        prompts: what stands before every `query` and every `document`, where the source does not say it itself.

    Raises:
        ValueError: there is no checkpoint.
    """
    if source.path is None:
        raise ValueError("a sentence encoder cannot start from a config alone: model must name a checkpoint")
    encoder = SentenceTransformer(source.path, prompts=prompts, device=device)
    if not is_sentence_transformer_model(source.path):
        encoder.append(Normalize())
    return encoder


def with_token_vectors(encoder: SentenceTransformer) -> MultiVectorEncoder:
    """The same encoder with a unit vector for every token, special tokens and prompts among them, in place of pooling;
    nothing is projected, so nothing has to be trained."""
    modules = [encoder[0], MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    return MultiVectorEncoder(modules=modules, prompts=dict(encoder.prompts), device=str(encoder.device))


def exchange_model(encoder: BaseModel, source: Source, config: LongBertConfig, max_length: int) -> None:
    """Give an encoder the source's weights as a LongBertModel; tokenizer, prompts, pooling and all else stay its own.

    With the source's own config it computes what the source does, without its padding.

    Args:
        max_length: tokens that it then reads of a text.
    """
    encoder[0].model = LongBertModel.from_pretrained(source.path, config=config).to(encoder.device)
    encoder.max_seq_length = max_length
