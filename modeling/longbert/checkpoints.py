"""Whole checkpoint folders: make a long model of a source, and say whether one holds together."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from . import modeling_longbert
from .cards import write_card
from .configuration_longbert import LongBertConfig
from .data.documents import resolve_path
from .families import family_of
from .modeling_longbert import LongBertForMaskedLM, LongBertForPreTraining, LongBertModel, LongBertPreTrainedModel
from .position_embeddings import extend_table
from .saving import refuse_occupied, written_aside


logger = logging.get_logger(__name__)

# what makes a folder a SentenceTransformer, beside its model
ENCODER_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")


def load_tokenizer(source: str, config: LongBertConfig) -> PreTrainedTokenizerBase:
    """The source's tokenizer, told the model's reach."""
    # BERTs older than `model_type` are not known by their folder; other families are, and have tokenizers of their own
    stated, _ = PreTrainedConfig.get_config_dict(source)
    of_bert = family_of(stated).class_prefix.endswith("Bert")
    tokenizer = AutoTokenizer.from_pretrained(source, config=config if of_bert else None)
    tokenizer.model_max_length = config.max_position_embeddings
    return tokenizer


def load_extended(source: str, **config_overrides: Any) -> LongBertPreTrainedModel:
    """Load a source, with the head it was saved with, as a long model."""
    source = resolve_path(source)
    config = LongBertConfig.from_pretrained(source, **config_overrides)
    stated, _ = PreTrainedConfig.get_config_dict(source)
    for architecture in config.architectures or []:
        name = family_of(stated).long_class(architecture)
        if name is not None and hasattr(modeling_longbert, name):
            return getattr(modeling_longbert, name).from_pretrained(source, config=config)
    # old checkpoints do not say which head they carry: take the richest that is there
    for model_class in (LongBertForPreTraining, LongBertForMaskedLM, LongBertModel):
        model, info = model_class.from_pretrained(source, config=config, output_loading_info=True)
        if not info["missing_keys"]:
            break
    return model


def extend(source: str, out: str | Path, with_code: bool = False, **config_overrides: Any) -> LongBertPreTrainedModel:
    """Write a source, extended, with its tokenizer into `out`, which appears whole or not at all.

    Args:
        source: a folder, a Hub id, or `package://name/folder`.
        out: a new or empty folder.
        with_code: write the modeling files too, so that the folder loads without longbert (`trust_remote_code=True`).
        config_overrides: fields of `LongBertConfig`.
    """
    refuse_occupied(out)
    model = load_extended(source, **config_overrides)
    tokenizer = load_tokenizer(resolve_path(source), model.config)
    model.config.architectures = [type(model).__name__]
    with written_aside(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        copy_encoder_modules(Path(resolve_path(source)), folder, model.config.max_position_embeddings)
        if not with_code:
            _drop_code(folder)
        write_card(folder, source, name=Path(out).name)
    return model


def _drop_code(folder: Path) -> None:
    for file in folder.glob("*.py"):
        file.unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def describe(model: LongBertPreTrainedModel) -> list[str]:
    """Which positions there are, whose their vectors are, and what a token sees, a line each."""
    config, weight = model.config, model.get_position_embeddings().weight
    n, reach = config.pretrained_positions, config.max_position_embeddings
    lines = [
        f"{type(model).__name__}, position_type {config.position_type!r}, reach {reach} positions",
        f"stored: {tuple(weight.shape)} {str(weight.dtype).removeprefix('torch.')}",
    ]
    if config.position_type == "learned-extended" and reach > n:
        table = weight.detach()
        filled = config.position_init != "random" and torch.equal(extend_table(table[:n], reach, config), table)
        state = "as filled, never trained" if filled else "trained since, or noise"
        lines.append(f"rows 0-{n - 1}: the source's; rows {n}-{reach - 1}: {config.position_init!r}, {state}")
    elif config.position_type == "hierarchical":
        lines.append(
            f"rows 0-{n - 1}: the source's; positions {n}-{reach - 1}: made of them, alpha {config.hierarchical_alpha}"
        )
    elif config.position_type == "sinusoidal":
        lines.append(f"no rows: sinusoids of base {config.sinusoidal_base}, scale {weight.item():.4g}")
    else:
        lines.append(f"rows 0-{reach - 1}: stored")
    window = config.attention_window
    lines.append(f"attention: {f'a window of {window} tokens, {config.global_tokens} global' if window else 'full'}")
    return lines


def disagreements(model: LongBertPreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What in a checkpoint contradicts its config's reach; empty where all agrees."""
    reach, embeddings = model.config.max_position_embeddings, model.base_model.embeddings
    found = []
    for name in ("position_ids", "token_type_ids"):
        buffer = getattr(embeddings, name)
        expected = torch.arange(reach) if name == "position_ids" else torch.zeros(reach)
        if not torch.equal(buffer[0].cpu(), expected.to(buffer.dtype)):
            found.append(f"buffer {name} {tuple(buffer.shape)} does not cover positions 0-{reach - 1}")
    if tokenizer.model_max_length != reach:
        found.append(f"tokenizer.model_max_length is {tokenizer.model_max_length}, the model reaches {reach}")
    if len(tokenizer) > model.config.vocab_size:
        found.append(f"the tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}")
    if not model.position_table().isfinite().all():
        found.append("the position table holds values that are not finite")
    return found


@torch.no_grad()
def run_last_token(model: LongBertPreTrainedModel) -> None:
    """Run the model at its last positions, and over one token more than the source could read.

    Raises:
        RuntimeError: an output is not finite.
    """
    reach = model.config.max_position_embeddings
    length = min(model.config.pretrained_positions + 1, reach)
    input_ids = torch.ones(1, length, dtype=torch.long, device=model.device)
    last_positions = torch.arange(reach - length, reach, device=model.device)[None]
    for position_ids in (None, last_positions):
        if not model.base_model(input_ids, position_ids=position_ids).last_hidden_state.isfinite().all():
            raise RuntimeError(f"{length} tokens, positions up to {reach - 1}, give values that are not finite")


def load(path: str) -> tuple[LongBertPreTrainedModel, PreTrainedTokenizerBase]:
    """A long model with the head it was saved with, and its tokenizer as saved."""
    model = load_extended(path).eval()
    return model, AutoTokenizer.from_pretrained(resolve_path(path), config=model.config)


def copy_encoder_modules(source: Path, folder: Path, max_seq_length: int) -> None:
    """Copy what makes a folder a SentenceTransformer beside its model, told the model's reach; nothing where it is
    none."""
    for name in ENCODER_FILES:
        if (source / name).exists():
            settings = json.loads((source / name).read_text())
            if isinstance(settings, dict) and "max_seq_length" in settings:
                settings["max_seq_length"] = max_seq_length
            (folder / name).write_text(json.dumps(settings, indent=2) + "\n")
    for module in source.glob("[0-9]_*"):
        shutil.copytree(module, folder / module.name)
