"""The settings of a run: dataclasses whose fields are the keys of YAML files and of `key=value` overrides."""

import dataclasses
import difflib
import json
import math
import sys
import textwrap
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

from .configuration_longbert import NAMING_LAYERS, parse_every
from .disclosure import HIDDEN, hand_on_token, is_secret, redacted, refuse_secrets
from .errors import USER_ERRORS
from .folders import scripts_folder
from .position_embeddings import POSITION_INITS, POSITION_TYPES
from .settings import fit, read_override, read_yaml


def described(default: Any, text: str) -> Any:
    """A dataclass field with its help text, which lives nowhere else."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(kw_only=True)
class ModelArguments:
    """Which checkpoint, and how it is extended; what is not set stays as the checkpoint has it."""

    model: str = described(
        "", "source checkpoint: a folder, a Hub id, or package://name/folder; a config file X.json trains from scratch"
    )
    tokenizer: str | None = described(None, "folder or Hub id; by default the source's own")
    position_type: str | None = described(
        None, f"where positions past the source's table come from: {', '.join(POSITION_TYPES)}"
    )
    position_init: str | None = described(
        None, f"how learned-extended fills its new rows: {', '.join(POSITION_INITS)}"
    )
    hierarchical_alpha: float | None = described(
        None, "weight of the block's vector in hierarchical positions, between 0 and 1, not 0.5"
    )
    attention_window: str | None = described(
        None,
        "how many tokens around it a token of a long text sees: an even number, or full. By default a source that "
        "becomes learned-extended gets a window of its own length, and a longbert model keeps its window",
    )
    global_tokens: int | None = described(
        None, "how many first tokens see, and are seen by, all others under a window"
    )
    full_attention_layers: list[int] | str = described(
        [], "layers that read long texts without the window: numbers from 0 on, or every 3rd, which is 2, 5, 8 ..."
    )
    closed_attention_layers: list[int] | str = described(
        [],
        "layers, named alike, that begin with the window and learn, head by head, how much what is outside of it "
        "counts",
    )
    closed_attention_start: float | None = described(
        None, "where that learning begins: what is outside counts by this number's sigmoid; by default -4"
    )
    max_position_embeddings: int | None = described(None, "positions the extended model reaches")
    hidden_dropout_prob: float | None = described(None, "dropout of the hidden states")
    classifier_pooling: str | None = described(None, "what a classifier reads: cls, or mean of all tokens")

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model must name a source checkpoint: a folder, a Hub id, or package://name/folder")
        if self.attention_window is not None:
            parse_window(str(self.attention_window))
        for name in NAMING_LAYERS:
            if isinstance(said := getattr(self, name), str):
                parse_every(name, said)
        if not self.from_scratch:
            return
        if self.tokenizer is None:
            raise ValueError(f"{self.model} has no tokenizer of its own: set tokenizer to a folder or a Hub id")
        for name in self.config_overrides():
            raise ValueError(f"{name} of a model from scratch is set in {self.model}: leave it out here")

    @property
    def from_scratch(self) -> bool:
        """Whether there is no checkpoint to start from."""
        return self.model.endswith(".json")

    def config_overrides(self) -> dict[str, Any]:
        """The fields that `LongBertConfig.from_pretrained(source, ...)` takes."""
        fields = dataclasses.asdict(self)
        overrides = {
            key: fields[key] for key in fields if key not in ("model", "tokenizer") and fields[key] not in (None, [])
        }
        if "attention_window" in overrides:
            overrides["attention_window"] = parse_window(str(overrides["attention_window"]))
        return overrides


@dataclass(kw_only=True)
class FileArguments:
    """How files are read, where their content does not say it."""

    encoding: str | None = described(None, "of text files, such as cp1252 or gb18030; by default UTF-8")
    delimiter: str | None = described(
        None, "between the cells of a csv; by default the one of , ; tab | that gives the columns asked for"
    )
    skip_empty: bool = described(False, "leave out rows that lack what is asked for, and count them")

    def __post_init__(self) -> None:
        if self.encoding is not None:
            try:
                "a".encode(self.encoding)
            except (LookupError, UnicodeError):  # also for those of bytes, such as hex, which are none of texts
                raise ValueError(f"encoding must be a name that Python knows, got {self.encoding!r}") from None
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ValueError(f"delimiter must be one character, got {self.delimiter!r}")


RETRIEVAL_AWARE = "retrieval-aware"
MASKINGS = ("plain", RETRIEVAL_AWARE)


@dataclass(kw_only=True)
class DataArguments(FileArguments):
    """Which documents, and how they are cut and masked."""

    data: list[str] = described([], "files, globs or folders of documents; package://name/... works too")
    text_column: str = described("text", "column of the documents in json, parquet and csv files")
    streaming: bool = described(False, "read documents as they are needed, for corpora larger than the disk cache")
    document_separator: str | None = described(
        None,
        "divides one text into documents: line, empty-line, or a regular expression of headings, such as ^CHAPTER, "
        "each of which begins a document",
    )
    held_out_every: int = described(
        10,
        "k: about one document in k, chosen by its text, is held out from training; the proof reads those. Fewer than "
        "k documents are divided into pieces, of which some are held out",
    )
    packing: bool = described(False, "put several short documents into one row; they do not see each other")
    stride: int = described(0, "tokens that each row of a long document repeats from the row before")
    short_seq_probability: float | None = described(
        None, "share of rows cut at a random shorter length; by default 0.1 for sentence pairs, as in BERT, else 0"
    )
    mlm_probability: float = described(0.15, "share of tokens to predict")
    masking: str = described(
        "plain",
        "plain, or retrieval-aware: words that can only be copied from further away than the window reaches are "
        "masked twice as often",
    )
    whole_word_mask: bool = described(False, "mask whole words: all word pieces of a word or none")
    word_segmenter: str | None = described(
        None,
        "finds words where a script writes no spaces, for whole_word_mask: a package with a function cut, such as "
        "rjieba for Chinese, or package:function, such as pythainlp.tokenize:word_tokenize",
    )
    proof_documents: int = described(64, "the most held-out texts that the proof reads")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise ValueError("data must name at least one file, glob or folder of documents")
        if self.word_segmenter and not self.whole_word_mask:
            raise ValueError("word_segmenter is for whole_word_mask: true")
        if not 0 < self.mlm_probability < 1:
            raise ValueError(f"mlm_probability must lie between 0 and 1, got {self.mlm_probability}")
        if self.masking not in MASKINGS:
            raise ValueError(f"masking must be one of {', '.join(MASKINGS)}, got {self.masking!r}")
        if not 0 <= (self.short_seq_probability or 0) < 1:
            raise ValueError(f"short_seq_probability must lie between 0 and 1, got {self.short_seq_probability}")


FULL = "full"


def parse_window(text: str) -> int | None:
    """The tokens of an attention window; None for full attention.

    Raises:
        ValueError: it is neither a number nor `full`.
    """
    if text != FULL and not text.isdecimal():
        raise ValueError(f"attention_window is an even number of tokens, such as 512, or {FULL}, got {text!r}")
    return None if text == FULL else int(text)


@dataclass(kw_only=True)
class RunArguments:
    """How a run is kept safe: what every training, pretraining or fine-tuning, can be told."""

    checkpoint_from: int = described(4096, "rows of this many tokens or more train with gradient checkpointing")
    resume: str | None = described(
        None, "auto for the newest whole checkpoint in output_dir, or a checkpoint's folder"
    )
    resume_with_changes: bool = described(
        False, "go on although settings, data or versions are not those that the run was begun with, and write it down"
    )
    max_loss_ratio: float = described(3.0, "stop if a loss is this many times the mean of the last 100 steps")
    closed_attention_learning_rate: float = described(
        0.05, "of the weights that open closed_attention_layers, which are few, and have far to go"
    )

    def __post_init__(self) -> None:
        if self.max_loss_ratio <= 1:
            raise ValueError(f"max_loss_ratio must be greater than 1, got {self.max_loss_ratio}")
        if self.resume_with_changes and self.resume is None:
            raise ValueError("resume_with_changes=true is for a run that goes on: set resume, to auto or a checkpoint")


Schedule: typing.TypeAlias = list[list[int | float]] | str | None
OBJECTIVES = ("mlm", "mlm+nsp", "mlm+sop")


@dataclass(kw_only=True)
class PretrainingArguments(RunArguments):
    """What is learned, in which order, and how a run is kept safe."""

    objective: str = described("mlm", "mlm, or with sentence pairs mlm+nsp (next sentence) or mlm+sop (their order)")
    max_seq_length: int = described(
        2048, "tokens of the longest row, [CLS] and [SEP] counted; also of the proof's texts"
    )
    length_schedule: Schedule = described(
        None,
        "[[share of the steps, row length], ...], with as many tokens in every step; BERT's: [[0.9,128],[0.1,512]]",
    )
    position_sampling: str = described(
        "none", "offset: place rows anywhere in the model's reach, not only at its start"
    )
    train_only: list[str] = described(
        ["all"], "all; positions (the rows past the source's); or regular expressions for parameter names"
    )
    native_steps: int = described(
        0, "optimizer steps of MLM at the source's own length that come first, if its MLM head is new or broken"
    )
    native_length_schedule: Schedule = described(
        None, "a length_schedule for native_steps; a new head learns sooner from short rows"
    )
    sequence_parallel_size: int = described(
        1, "neighbouring processes that share each text, if one GPU's memory is too small"
    )
    dry_run: bool = described(False, "try some steps and readings, say what the run would cost, exit")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.max_seq_length < 4:
            raise ValueError(f"max_seq_length must leave room between [CLS] and [SEP], got {self.max_seq_length}")
        if self.position_sampling not in ("none", "offset"):
            raise ValueError(f"position_sampling must be none or offset, got {self.position_sampling!r}")
        if self.sequence_parallel_size < 1:
            raise ValueError(f"sequence_parallel_size must be at least 1, got {self.sequence_parallel_size}")
        self.phases()
        parse_schedule("native_length_schedule", self.native_length_schedule, self.max_seq_length)

    def phases(self) -> list[tuple[float, int]]:
        """(share of the steps, row length) of each phase."""
        return parse_schedule("length_schedule", self.length_schedule, self.max_seq_length)


def parse_schedule(name: str, schedule: Schedule, longest: int) -> list[tuple[float, int]]:
    """(share of the steps, row length) of each phase of a schedule; without one, a single phase of the longest rows.

    Raises:
        ValueError: it is not a schedule, its shares do not sum to 1, or a row is longer than `longest`.
    """
    if schedule is None:
        return [(1.0, longest)]
    try:
        pairs = json.loads(schedule) if isinstance(schedule, str) else schedule
        phases = [(float(share), int(length)) for share, length in pairs]
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{name} must be [[share, row length], ...], got {schedule}") from error
    if not abs(sum(share for share, _ in phases) - 1) <= 1e-6 or any(share <= 0 for share, _ in phases):
        raise ValueError(f"the shares of {name} must be positive and sum to 1, got {schedule}")
    if any(float(length) != int(length) for _, length in pairs):
        raise ValueError(f"rows of {name} have whole numbers of tokens, got {schedule}")
    if any(not 4 <= length <= longest for _, length in phases):
        raise ValueError(f"rows of {name} must have 4 to {longest} tokens, got {schedule}")
    return phases


def parse_config(argv: list[str], *types: type) -> tuple[Any, ...]:
    """Read `config.yaml key=value ...` into one instance of each dataclass.

    Raises:
        ValueError: no such file, an unknown key, an ill-typed or an impossible value.
    """
    if {"-h", "--help"} & set(argv):
        print("usage: CONFIG.yaml [key=value ...] [--dry-run]\n\n" + "\n\n".join(map(keys_in_words, types)))
        sys.exit(0)
    file = find_config(argv[0]) if argv and "=" not in argv[0] else None
    if file is None:
        raise ValueError(
            f"usage: CONFIG.yaml [key=value ...] [--dry-run]; no such file: {argv[0] if argv else '(none given)'}"
        )
    settings, kinds = read_config(file), kinds_of(*types)
    for override in argv[1:]:
        override = "dry_run=true" if override == "--dry-run" else override
        key, value = read_override(override, kinds.get(override.partition("=")[0]))
        settings[key] = value
    return from_settings(settings, *types)


def read_config(file: Path) -> dict[str, Any]:
    """The settings of a config file.

    Raises:
        ValueError: it is not YAML, or no mapping.
    """
    try:
        settings = read_yaml(file.read_text("utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8: {error}") from error
    if not isinstance(settings or {}, dict):
        raise ValueError(f"{file} must hold settings, a line `key: value` each, got {settings!r:.80}")
    return settings or {}


def find_config(name: str) -> Path | None:
    """A config file: a path, or the name of one that longbert brings along, such as pretrain/base-4096.yaml."""
    shipped = scripts_folder() / "configs"
    places = (Path(name), shipped / name, shipped.parent / name)
    return next((place for place in places if place.is_file()), None)


def keys_in_words(type_: type) -> str:
    """Every key of a dataclass with its type, its default and its help text, a line or two each."""
    lines = [f"{type_.__name__}: {(type_.__doc__ or '').strip().splitlines()[0]}"]
    for spec in dataclasses.fields(type_):
        if not spec.init:
            continue
        default = spec.default_factory() if spec.default_factory is not dataclasses.MISSING else spec.default
        kind = spec.type.__name__ if type(spec.type) is type else spec.type
        lines.append(f"  {spec.name}: {kind} = {default!r}")
        if text := spec.metadata.get("help"):
            lines.append(textwrap.fill(text, 116, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


def kinds_of(*types: type) -> dict[str, Any]:
    """What the fields of dataclasses are annotated with; where there are choices, those."""
    kinds = {}
    for type_ in types:
        hints = typing.get_type_hints(type_)
        for spec in dataclasses.fields(type_):
            if spec.init:
                choices = spec.metadata.get("choices")
                kinds[spec.name] = typing.Literal[tuple(choices)] if choices else hints[spec.name]
    return kinds


def from_settings(settings: dict[str, Any], *types: type) -> tuple[Any, ...]:
    """Build the dataclasses from a flat mapping; their annotations decide what a value may be, and null leaves the
    default. A token is handed on, and not among what is returned.

    Raises:
        ValueError: an unknown key, an ill-typed or an impossible value.
    """
    kinds = kinds_of(*types)
    for key in settings:
        if key not in kinds:
            close = difflib.get_close_matches(str(key), kinds, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(sorted(kinds))}"
            raise ValueError(f"unknown setting {key!r}: {hint}")
    values = {key: _fit(key, value, kinds[key]) for key, value in settings.items() if value is not None}
    refuse_secrets(values)
    refuse_precision(values)
    refuse_impossible(values)
    made = tuple(_make(type_, values) for type_ in types)
    for args in (each for each in made if isinstance(each, TrainingArguments)):
        hand_on_token(args)
        refuse_reports(args.report_to)
        refuse_schedule(args)
        refuse_optimizer(args)
        refuse_compiler(args)
    return made


def _fit(key: str, value: Any, kind: Any) -> Any:
    try:
        return fit(key, value, kind)
    except ValueError:
        if not is_secret(key):
            raise
    return fit(key, [HIDDEN], kind)  # says what may be, and not what was given


def _make(type_: type, values: dict[str, Any]) -> Any:
    """One dataclass of the values that are its own."""
    own = {each.name: values[each.name] for each in dataclasses.fields(type_) if each.init and each.name in values}
    if type_.__module__.startswith(__package__):
        return type_(**own)
    try:
        return type_(**own)
    except json.JSONDecodeError as error:
        files = [f"{key}={value}" for key, value in own.items() if isinstance(value, str) and Path(value).is_file()]
        raise ValueError(f"{' or '.join(files)} is not JSON: {error}") from error
    except USER_ERRORS:
        raise
    except Exception as error:  # another library's, which promises no kind of error for a value that it does not like
        raise ValueError(f"{type_.__name__} does not take these settings: {type(error).__name__}: {error}") from error


def refuse_reports(names: list[str]) -> None:
    """Raise `ValueError` for a service to report to whose package is not installed; Trainer would notice later."""
    for callback in get_reporting_integration_callbacks(names):
        try:
            callback()
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"report_to: {error}") from error


def refuse_schedule(args: TrainingArguments) -> None:
    """Raise `ValueError` for a schedule of the learning rate that transformers cannot make, which it would notice when
    all data is read: one is made here, of a single weight."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    try:
        get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=2,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
    except Exception as error:  # whatever the schedule's own function raises for what it is given
        name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise ValueError(
            f"lr_scheduler_type={name} with lr_scheduler_kwargs={args.lr_scheduler_kwargs}: {error}"
        ) from error


def refuse_optimizer(args: TrainingArguments) -> None:
    """Raise `ValueError` for an optimizer whose package is not installed, or whose `optim_args` cannot be read, which
    Trainer would notice when all data is read."""
    from transformers import Trainer  # takes a second, and only training needs it

    try:
        Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Linear(1, 1))
    except Exception as error:  # whatever it raises for what it is given
        name = getattr(args.optim, "value", args.optim)
        raise ValueError(f"optim={name} with optim_args={args.optim_args}: {error}") from error


def refuse_compiler(args: TrainingArguments) -> None:
    """Raise `ValueError` for a backend or mode that torch.compile does not have; nothing is compiled here."""
    if args.torch_compile:
        backend, mode = str(args.torch_compile_backend), args.torch_compile_mode
        try:
            torch.compile(torch.nn.Identity(), backend=backend, mode=mode)
        except Exception as error:  # RuntimeError, or one of torch's compiler
            raise ValueError(f"torch_compile_backend={backend} with torch_compile_mode={mode}: {error}") from error


ANY_NUMBER = 2**31 - 1  # more than there are of anything that is counted here
# of settings whose other values fail only where they are used, or never end
RANGES: dict[str, tuple[float, float]] = {
    "per_device_train_batch_size": (1, 2**20),
    "per_device_eval_batch_size": (1, 2**20),
    "gradient_accumulation_steps": (1, 2**20),
    "dataloader_num_workers": (0, 4096),
    "num_train_epochs": (math.ulp(0), 1e6),
    "learning_rate": (0, 1e6),
    "positions_learning_rate": (0, 1e6),
    "closed_attention_learning_rate": (0, 1e6),
    "weight_decay": (0, 1e6),
    "adam_beta1": (0, 1 - 1e-9),
    "adam_beta2": (0, 1 - 1e-9),
    "adam_epsilon": (0, 1),
    "max_grad_norm": (0, math.inf),
    "neftune_noise_alpha": (0, 1e6),
    "eval_accumulation_steps": (1, ANY_NUMBER),
    "dataloader_prefetch_factor": (1, 2**20),
    "ddp_bucket_cap_mb": (1, 2**20),
    "warmup_steps": (0, ANY_NUMBER),
    "logging_steps": (math.ulp(0), ANY_NUMBER),
    "eval_steps": (math.ulp(0), ANY_NUMBER),
    "save_steps": (math.ulp(0), ANY_NUMBER),
    "eval_delay": (0, ANY_NUMBER),
    "save_total_limit": (1, ANY_NUMBER),
    "seed": (0, 2**32 - 1),  # of numpy
    "data_seed": (0, 2**32 - 1),
    "ddp_timeout": (1, ANY_NUMBER),
    "hidden_dropout_prob": (0, 1),
    "stride": (0, ANY_NUMBER),
    "native_steps": (0, ANY_NUMBER),
    "proof_documents": (1, ANY_NUMBER),
    "held_out_every": (2, ANY_NUMBER),
    "folds": (0, ANY_NUMBER),
    "seeds": (1, ANY_NUMBER),
}


def refuse_impossible(settings: dict[str, Any]) -> None:
    """Raise `ValueError` for numbers that no run can have, and for what transformers would pass over in silence, as
    the loss is ours."""
    for key, (least, most) in RANGES.items():
        value = settings.get(key, least)
        if not least <= value <= most:
            few = "more than 0" if least == math.ulp(0) else f"at least {least}"
            raise ValueError(f"{key} must be {few if value < least else f'at most {most:,.10g}'}, got {value}")
    steps = settings.get("max_steps")
    if steps is not None and not (1 <= steps <= ANY_NUMBER or steps == -1):
        raise ValueError(f"max_steps must be at least 1, or -1 for num_train_epochs, got {steps}")
    if settings.get("streaming"):
        if settings.get("dataloader_num_workers"):
            raise ValueError("a stream is read in the main process: leave dataloader_num_workers out, or streaming")
        if (steps or -1) < 0:
            raise ValueError("streaming needs max_steps, because the length of an epoch is not known")
    for key, value in settings.items():
        if value == [] and key in ("strategies", "train", "train_only"):
            raise ValueError(f"{key} must name one at least, got []")
        if key.endswith("_kwargs") and not isinstance(value, dict):
            raise ValueError(f"{key} must be a mapping, {{name: value}}, got {value!r}")
    if settings.get("label_smoothing_factor"):
        raise ValueError("label_smoothing_factor is not used by the losses here: leave it out")


def refuse_precision(settings: dict[str, Any]) -> None:
    """Raise `ValueError` for bf16 or fp16 where the device that will train has none.

    transformers refuses bf16 alone, in words that name no setting; fp16 on a CPU is passed over in silence.
    """
    halves = ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval")
    given = [key for key in halves if settings.get(key) is True]
    if not given or is_torch_xla_available():
        return
    use_cpu = settings.get("use_cpu") is True
    on_cpu = use_cpu or not torch.accelerator.is_available()
    for key in given:
        fp32 = f"set {key}=false, for fp32"
        if key.startswith("fp16") and on_cpu:
            raise ValueError(
                f"{key}=true, but the CPU does not train in fp16: {fp32}, or bf16=true with use_cpu=true, for bf16 on "
                "the CPU"
            )
        if key.startswith("fp16") or use_cpu or is_torch_bf16_gpu_available():
            continue
        if on_cpu:
            raise ValueError(
                f"{key}=true, but there is no GPU here: {fp32}, or use_cpu=true beside it, for bf16 on the CPU"
            )
        device = torch.accelerator.current_accelerator()
        other = f"fp16{key.removeprefix('bf16')}"
        raise ValueError(f"{key}=true, but this {device} device has no bf16: {fp32}, or {other}=true instead")


def write_config(file: str | Path, *instances: Any, notes: Sequence[str] = ()) -> None:
    """Write the settings of a run, without tokens: all of ours, and those of other classes that differ from their
    default.

    Args:
        notes: lines to end with, as comments.
    """
    settings: dict[str, Any] = {}
    for instance in instances:
        ours = type(instance).__module__.startswith(__package__)
        for spec in dataclasses.fields(instance):
            value = plain(getattr(instance, spec.name))
            writable = (
                spec.init and not is_secret(spec.name) and isinstance(value, str | int | float | bool | list | dict)
            )
            if writable and (ours or value != spec.default):
                settings[spec.name] = value
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    comments = "".join(f"# {' '.join(note.split())}\n" for note in notes)
    Path(file).write_text(redacted(yaml.safe_dump(settings, sort_keys=False) + comments), "utf-8")


def written_config(file: str | Path) -> dict[str, Any]:
    """The settings that `write_config` wrote.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        settings = yaml.safe_load(Path(file).read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(settings or {}, dict):
        raise ValueError(f"{file} is damaged: it holds no settings")
    return settings or {}


def plain(value: Any) -> Any:
    """A setting's value as YAML has it."""
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, AcceleratorConfig):
        return None if value == AcceleratorConfig() else value.to_dict()
    return value.value if isinstance(value, Enum) else value
