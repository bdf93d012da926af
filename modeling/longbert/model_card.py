"""The card that describes a model on the Hub. Travels beside the model, so that every push can write it."""

from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .configuration_longbert import LongBertConfig


PIPELINE_TAGS = {
    "LongBertModel": "feature-extraction",
    "LongBertForPreTraining": "fill-mask",
    "LongBertForMaskedLM": "fill-mask",
    "LongBertForSequenceClassification": "text-classification",
    "LongBertForTokenClassification": "token-classification",
    "LongBertForQuestionAnswering": "question-answering",
    "LongBertForMultipleChoice": "multiple-choice",
}
# what transformers writes where a repository has no card
STUB = "This model card has been automatically generated."
ENCODER_LIBRARY = "sentence-transformers"


def model_card(
    config: LongBertConfig,
    repo_id: str,
    source: str | None = None,
    sections: dict[str, str] | None = None,
    **metadata: Any,
) -> ModelCard:
    """The card of a model: how to load it, what was extended, its limits, and what else is known.

    Args:
        source: the name of what was extended, where `config.extended_from` does not say it.
        sections: text by title, between the description and the limits.
        metadata: fields of `huggingface_hub.ModelCardData` that replace those derived from the config.
    """
    architecture = architecture_of(config)
    source = source or config.extended_from
    data = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINE_TAGS.get(architecture),
        "base_model": config.extended_from,
        "tags": ["longbert", "bert", "long-context"],
        **metadata,
    }
    n, reach = config.pretrained_positions, config.max_position_embeddings
    named = f"`{source}`" if source else "A BERT"
    extent = f"taken from {n:,} to {reach:,} tokens by longbert" if reach > n else f"{n:,} tokens, in longbert's code"
    parts = [
        f"# {repo_id.rpartition('/')[2]}",
        f"{named}, {extent}.",
        "## Use",
        _encoder_usage(repo_id) if data["library_name"] == ENCODER_LIBRARY else _usage(architecture, repo_id),
        "## What was extended",
        _description(config, source),
        *(part for title, text in (sections or {}).items() for part in (f"## {title}", text)),
        "## Limits",
        _limits(config),
    ]
    header = ModelCardData(**data, ignore_metadata_errors=True).to_yaml()
    return ModelCard(f"---\n{header}\n---\n\n" + "\n\n".join(parts) + "\n")


def architecture_of(config: LongBertConfig) -> str:
    """The class that a checkpoint was saved from."""
    return (config.architectures or ["LongBertModel"])[0]


def _usage(architecture: str, repo_id: str) -> str:
    auto_class = architecture.replace("LongBert", "AutoModel").replace("AutoModelModel", "AutoModel")
    return _in_python(
        f"from transformers import {auto_class}, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{repo_id}")\n'
        f'model = {auto_class}.from_pretrained("{repo_id}", trust_remote_code=True)'
    )


def _encoder_usage(repo_id: str) -> str:
    return _in_python(
        "from sentence_transformers import SentenceTransformer\n\n"
        f'encoder = SentenceTransformer("{repo_id}", trust_remote_code=True)\n'
        "vectors = encoder.encode(documents)"
    )


def _in_python(code: str) -> str:
    return (
        f"```python\n{code}\n```\n\n"
        "On the Hub the code is beside the weights, and imports nothing but torch, transformers and huggingface_hub. "
        "Where longbert is installed, `import longbert` takes the place of `trust_remote_code=True`."
    )


def _description(config: LongBertConfig, source: str | None) -> str:
    n, reach = config.pretrained_positions, config.max_position_embeddings
    positions = {
        "learned": "the source's own table",
        "learned-extended": f"a table of {reach:,} rows; those past {n:,} were filled by `{config.position_init}`",
        "hierarchical": f"made of the source's {n:,} rows, alpha {config.hierarchical_alpha}",
        "sinusoidal": "sines and cosines in place of the source's table",
    }.get(config.position_type, "a type of its own")
    window = config.attention_window
    attention = (
        "full"
        if window is None
        else (f"a window of {window} tokens and {config.global_tokens} global, in texts of more than {n:,} tokens")
    )
    if closed := config.closed_attention_layers:
        attention += f"; layers {', '.join(map(str, sorted(closed)))} have learned to look past it (`far_gate`)"
    rows = {
        "source": f"`{source}`, {n:,} positions" if source else f"{n:,} positions",
        "reach": f"{reach:,} tokens (`max_position_embeddings`)",
        "positions": f"`{config.position_type}`: {positions}",
        "attention": attention,
        "size": f"{config.num_hidden_layers} layers of {config.hidden_size}, vocabulary {config.vocab_size:,}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())])


def _limits(config: LongBertConfig) -> str:
    n, reach = config.pretrained_positions, config.max_position_embeddings
    limits = [f"A text of more than {reach:,} tokens is an error, not cut: pass `truncation=True` to the tokenizer."]
    if config.attention_window is not None:
        limits.append(
            f"Tokens further apart than {config.attention_window // 2} see each other through the layers and the "
            "global tokens alone."
        )
    if config.position_type == "sinusoidal":
        limits.append("Its positions mean nothing to the source's weights until they are trained.")
    elif config.attention_window is None and reach > n:
        limits.append(
            f"Under full attention positions past {n:,} look like earlier ones until they are trained: read the "
            "figures above, or measure."
        )
    limits.append("The source's errors and biases are kept.")
    return "\n".join(f"- {limit}" for limit in limits)
