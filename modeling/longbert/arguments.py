"""What a run is told: dataclasses that YAML files and `key=value` overrides map onto, one to one."""

import dataclasses
import difflib
import json
from argparse import ArgumentError
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser

from .configuration_longbert import LongBertConfig


# What a user can mend: entry points print these in one line, anything else is ours
USER_ERRORS = (ValueError, OSError, StrictDataclassError)


def described(default: Any, text: str) -> Any:
    """A dataclass field with its help text, which lives nowhere else."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(kw_only=True)
class ModelArguments:
    """Which checkpoint, and how it is taken past its last position."""

    model: str = described("", "source checkpoint: a folder, a Hub id, or package://name/folder")
    position_type: str = described(LongBertConfig.position_type, "where positions past the source's table come from")
    position_init: str = described(LongBertConfig.position_init, "how learned-extended fills its new rows")
    hierarchical_alpha: float = described(LongBertConfig.hierarchical_alpha, "weight of the block code, hierarchical")
    attention_window: int | None = described(None, "tokens a token of a long text sees around it; None is all")
    max_position_embeddings: int = described(2048, "positions the extended model reaches")

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model must name a source checkpoint: a folder, a Hub id, or package://name/folder")

    def config_overrides(self) -> dict[str, Any]:
        """The fields that `LongBertConfig.from_pretrained(source, ...)` takes."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "model"}


@dataclass(kw_only=True)
class DataArguments:
    """Which documents, cut and masked how."""

    data: list[str] = described([], "files, globs or folders of documents; package://name/... works too")
    text_column: str = described("text", "column of the documents in json, parquet and csv files")
    held_out_every: int = described(10, "documents 0, k, 2k, ... are never trained on and make the proof")
    max_seq_length: int = described(2048, "tokens of a training row, [CLS] and [SEP] counted")
    mlm_probability: float = described(0.15, "share of tokens to predict")
    checkpoint_from: int = described(4096, "rows of this many tokens or more train with gradient checkpointing")
    native_steps: int = described(
        0, "optimizer steps of MLM at the source's own length first, where its head is to learn"
    )
    proof_documents: int = described(64, "held-out texts, at most, that the proof reads")

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data must name at least one file, glob or folder of documents")
        if not 0 < self.mlm_probability < 1:
            raise ValueError(f"mlm_probability must lie between 0 and 1, got {self.mlm_probability}")
        if self.max_seq_length < 3:
            raise ValueError(f"max_seq_length must leave room between [CLS] and [SEP], got {self.max_seq_length}")


def parse_config(argv: list[str], *types: type) -> tuple[Any, ...]:
    """Read `config.yaml key=value ...` into one instance of each dataclass.

    Raises:
        ValueError: no such file, an unknown key, an ill-typed or an impossible value.
    """
    if not argv or "=" in argv[0] or not Path(argv[0]).is_file():
        raise ValueError(f"usage: CONFIG.yaml [key=value ...]; no such file: {argv[0] if argv else '(none given)'}")
    settings = yaml.safe_load(Path(argv[0]).read_text()) or {}
    for override in argv[1:]:
        key, separator, value = override.partition("=")
        if not separator:
            raise ValueError(f"overrides are key=value, got {override!r}")
        settings[key] = yaml.safe_load(value)
    return from_settings(settings, *types)


def from_settings(settings: dict[str, Any], *types: type) -> tuple[Any, ...]:
    """Build the dataclasses from a flat mapping; their annotations decide what a value may be."""
    known = {field.name for type_ in types for field in dataclasses.fields(type_) if field.init}
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(sorted(known))}"
            raise ValueError(f"unknown setting {key!r}: {hint}")
    arguments: list[str] = []
    for key, value in settings.items():
        arguments += _as_arguments(key, value)
    parser = HfArgumentParser(types, exit_on_error=False)
    try:
        return parser.parse_args_into_dataclasses(args=arguments, look_for_args_file=False)
    except ArgumentError as error:
        raise ValueError(
            f"setting {(error.argument_name or '').split('/')[0].lstrip('-')}: {error.message}"
        ) from error


def _as_arguments(key: str, value: Any) -> list[str]:
    """A YAML value in the words of a command line, so that argparse converts and checks it by the field's type."""
    if value is None or value == []:
        return []
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, dict | bool) else value}"]


def write_config(file: str | Path, *instances: Any) -> None:
    """Write the resolved settings: all of ours, and of others those that are not their default."""
    settings: dict[str, Any] = {}
    for instance in instances:
        ours = type(instance).__module__ == __name__
        for spec in dataclasses.fields(instance):
            value = getattr(instance, spec.name)
            value = value.value if isinstance(value, Enum) else value
            writable = spec.init and isinstance(value, str | int | float | bool | list | dict)
            if writable and (ours or value != spec.default):
                settings[spec.name] = value
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(yaml.safe_dump(settings, sort_keys=False))
