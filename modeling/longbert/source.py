"""A checkpoint as it is: config, tokenizer, head, the modules of a sentence encoder, and what did not arrive."""

import hashlib
import json
import os.path
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file, logging

from . import modeling_longbert
from .arguments import ModelArguments, PretrainingArguments, parse_schedule
from .configuration_longbert import LongBertConfig, says_something
from .families import Family, architectures_in, family_of
from .folders import read_json, resolve_path, sha256_of
from .modeling_longbert import (
    LongBertForMaskedLM,
    LongBertForPreTraining,
    LongBertPreTrainedModel,
)
from .source_weights import SourceWeights, find_file, read_shapes, some


logger = logging.get_logger(__name__)

# vocabularies are padded to multiples of 8 to 128; more vectors than that without a token are another tokenizer's
PADDED_VOCABULARY = 128
WEIGHTS_AND_CONFIGS = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*")
MODULES = "modules.json"
# beside a SentenceTransformer's modules: its settings, and those of its transformer under the names that they have had
MODULE_SETTINGS = ("config_sentence_transformers.json", "sentence_*_config.json")


def find_source(source: str | Path) -> str:
    """A checkpoint as transformers finds it: a folder, or a Hub id; `package://name/folder` is one inside a package.

    Raises:
        FileNotFoundError: there is no such folder; transformers would take the path for a repository's name.
    """
    path = os.path.expanduser(resolve_path(str(source)))
    if not Path(path).exists() and (path.startswith((".", "/")) or path.count("/") > 1):
        raise FileNotFoundError(f"no such folder: {path}")
    return path


def stated_config(path: str) -> dict[str, Any]:
    """What a checkpoint's config.json says.

    Raises:
        OSError: there is none.
        ValueError: it is not a config.
    """
    try:
        stated, _ = PreTrainedConfig.get_config_dict(path)
    except (TypeError, RecursionError):  # TypeError: of transformers before 5.24
        stated = None
    if not isinstance(stated, dict):
        raise ValueError(f"{path}: config.json is not a mapping of settings to values")
    if not says_something(stated):
        raise OSError(f"{path} has no config.json: a folder of a model needs one")
    return stated


@dataclass(frozen=True)
class Arrived:
    """A long model loaded from a source, and the weights that did not match.

    Args:
        new: weights of the model that the source does not have, such as a head's: they begin at random.
        unused: weights of the source that the model has no place for.
    """

    model: LongBertPreTrainedModel
    new: list[str]
    unused: list[str]

    def in_words(self) -> list[str]:
        """A line for each, where there is anything to say."""
        lines = [f"new, untrained: {some(self.new, at_most=8)}"] if self.new else []
        return lines + ([f"unused, left out: {some(self.unused, at_most=8)}"] if self.unused else [])


def load_long(source: str | Path, encoder_only: bool = False, **config_overrides: Any) -> Arrived:
    """Load a source, with the head it was saved with, as a long model.

    Args:
        source: a folder, a Hub id, or `package://name/folder`.
        encoder_only: leave its head out.
        config_overrides: fields of `LongBertConfig`.

    Raises:
        ValueError: it is an adapter, another architecture, has a head that BERT lacks, or did not arrive whole.
    """
    path = find_source(source)
    refuse_what_is_no_model(path)
    stated = stated_config(path)
    shapes = read_shapes(path)
    if not shapes:
        raise OSError(f"{source} has no weights: there is no model.safetensors or pytorch_model.bin, nor parts of one")
    weights = SourceWeights.of(shapes, stated)
    if len(weights.prefixes) > 1:
        raise ValueError(f"{source} holds several encoders: save the one to be extended in a folder of its own")
    names = weights.bert_names()
    name = "LongBertModel" if encoder_only else head_of(source, weights.family, stated, names)
    config = LongBertConfig.from_pretrained(path, **config_overrides)
    has_pooler = "bert.pooler.dense.weight" in names
    settings = {"add_pooling_layer": has_pooler} if name == "LongBertModel" else {}
    model, info = getattr(modeling_longbert, name).from_pretrained(
        path, config=config, output_loading_info=True, **settings
    )
    return Arrived(model, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]))


def refuse_what_is_no_model(path: str) -> None:
    """Raise `ValueError` for a folder that holds something else than a whole model, and say what to do with it."""
    if find_adapter_config_file(path) is not None:
        raise ValueError(
            f"{path} is an adapter, not a model: merge it into its base first, "
            "AutoPeftModel.from_pretrained(adapter).merge_and_unload().save_pretrained(folder), and extend that folder"
        )
    modules = _read_modules(path) or []
    for module in modules:
        if not isinstance(module, dict) or not all(isinstance(module.get(name), str) for name in ("path", "type")):
            raise ValueError(f"{path}: {MODULES} lists a module without path or type: save it anew, in its library")
        if not Path(path, module["path"]).resolve().is_relative_to(Path(path).resolve()):
            raise ValueError(f"{path}: {MODULES} names {module['path']}, which is outside of the folder")
    if modules and modules[0]["path"]:
        raise ValueError(
            f"{path} is a SentenceTransformer of an old layout, whose transformer lies in {modules[0]['path']}: save "
            "it anew, SentenceTransformer(source).save_pretrained(folder), and extend that folder"
        )
    if modules and modules[0]["type"].endswith(".Router"):
        raise ValueError(
            f"{path} is a SentenceTransformer whose first module is a Router over several transformers: extend each "
            "of their folders by itself"
        )


def head_of(source: str | Path, family: Family, stated: dict[str, Any], names: dict[str, Any]) -> str:
    """The LongBert class with a source's head: as its config says, or, where it does not, as its weights do.

    Args:
        names: of its weights, in BERT's words.

    Raises:
        ValueError: BERT has no such head.
    """
    architectures = architectures_in(stated)
    known = [family.long_class(architecture) for architecture in architectures]
    for name in known:
        if name is not None and hasattr(modeling_longbert, name):
            return name
    marked = [
        architecture for architecture, mark in family.own_heads.items() if mark and any(mark in n for n in names)
    ]
    if architectures or marked:
        raise ValueError(
            f"{source} is a {(architectures or marked)[0]}, whose head is not BERT's: take its encoder alone "
            "(`longbert extend --encoder-only`, or load it as LongBertModel)"
        )
    return _head_by_weights(names, stated)


def saved_head(path: str) -> str | None:
    """The LongBert class with a checkpoint's head; None where BERT has no such head."""
    stated = stated_config(path)
    weights = SourceWeights.of(read_shapes(path) or {}, stated)
    try:
        return head_of(path, weights.family, stated, weights.bert_names())
    except ValueError:
        return None


def _head_by_weights(names: dict[str, tuple[int, ...]], stated: dict[str, Any]) -> str:
    starts = {start for start in ("cls.predictions.", "cls.seq_relationship.", "qa_outputs.") if _any(names, start)}
    if "cls.predictions." in starts:
        return "LongBertForPreTraining" if "cls.seq_relationship." in starts else "LongBertForMaskedLM"
    if "cls.seq_relationship." in starts:
        return "LongBertForNextSentencePrediction"
    if "qa_outputs." in starts:
        return "LongBertForQuestionAnswering"
    if "classifier.weight" not in names:
        return "LongBertModel"
    labels = list((stated.get("id2label") or {}).values())
    # BERT's token classifiers have no pooler; those saved before 2020 do, and their labels say what they are
    if not _any(names, "bert.pooler.") or any(str(label).startswith(("B-", "I-")) for label in labels):
        return "LongBertForTokenClassification"
    one_score = names["classifier.weight"][0] == 1 and len(labels) != 1
    return "LongBertForMultipleChoice" if one_score else "LongBertForSequenceClassification"


def _any(names: dict[str, Any], start: str) -> bool:
    return any(name.startswith(start) for name in names)


def load_tokenizer(source: str, config: LongBertConfig) -> PreTrainedTokenizerBase:
    """The source's tokenizer, with the model's reach as its `model_max_length`.

    Raises:
        ValueError: it has no vocabulary of its own, or one that the model has too few word vectors for.
    """
    # BERTs older than `model_type` are not known by their folder; other families are, and have tokenizers of their own
    try:
        of_bert = family_of(stated_config(source)).key_prefix == "bert"
    except OSError:  # a tokenizer's folder
        of_bert = True
    tokenizer = _read_tokenizer(source, config if of_bert else None)
    if set(tokenizer.get_vocab()) <= {*tokenizer.all_special_tokens}:
        raise ValueError(
            f"{source} has no tokenizer files, such as tokenizer.json or vocab.txt: put them beside the model, or "
            "name a folder or Hub id that has them as tokenizer"
        )
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer of {source} has {len(tokenizer)} tokens, the model vectors for {config.vocab_size}: name "
            "the tokenizer that it was trained with, or make room with model.resize_token_embeddings"
        )
    if is_too_small(tokenizer, config):
        logger.warning(
            f"the tokenizer of {source} has {len(tokenizer)} tokens, the model vectors for {config.vocab_size}: is it "
            "the one that the model was trained with?"
        )
    if config.type_vocab_size == 1:
        _leave_out_segments(tokenizer)
    tokenizer.model_max_length = config.max_position_embeddings
    return tokenizer


def _read_tokenizer(source: str, config: LongBertConfig | None) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source, config=config)
    except OSError:
        raise
    except Exception as error:  # of the files' contents the libraries raise whatever comes
        raise ValueError(
            f"the tokenizer of {source} cannot be read ({type(error).__name__}: {error}): one of tokenizer.json, "
            "tokenizer_config.json and vocab.txt is damaged, or not what its name says"
        ) from error


def _leave_out_segments(tokenizer: PreTrainedTokenizerBase) -> None:
    """Stop a tokenizer from giving token types: a model of one segment has no vector for a pair's second text."""
    names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names  # what it does, and what it saves


def is_too_small(tokenizer: PreTrainedTokenizerBase, config: LongBertConfig) -> bool:
    """Whether the tokenizer has so many fewer tokens than the model has word vectors that it may be another
    model's."""
    return len(tokenizer) + PADDED_VOCABULARY <= config.vocab_size


def load_whole(path: str) -> tuple[LongBertPreTrainedModel, PreTrainedTokenizerBase]:
    """A long model with the head it was saved with, and its tokenizer as saved.

    Raises:
        ValueError: weights of it are missing, so that part of it would be random.
    """
    arrived = load_long(path)
    if arrived.new:
        raise ValueError(f"{path} is not whole: {some(arrived.new)} are not in it, and would be random")
    return arrived.model.eval(), saved_tokenizer(path, arrived.model)


def saved_tokenizer(path: str, model: LongBertPreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer of a long model's folder, as it was saved."""
    return _read_tokenizer(find_source(path), model.config)


def copy_sentence_modules(source: str, folder: Path, max_seq_length: int) -> None:
    """If a source is a SentenceTransformer, copy its modules and settings beside the model, with the model's reach in
    them.

    Args:
        source: a folder or a Hub id.
    """
    modules = _read_modules(source)
    if modules is None:
        return
    paths = [module["path"] for module in modules if module["path"]]
    root = Path(source)
    if not root.is_dir():
        root = Path(snapshot_download(source, allow_patterns=[MODULES, *MODULE_SETTINGS, *(f"{p}/*" for p in paths)]))
    shutil.copy(root / MODULES, folder / MODULES)
    for file in (file for pattern in MODULE_SETTINGS for file in root.glob(pattern)):
        settings = read_json(file, object)
        if isinstance(settings, dict) and "max_seq_length" in settings:
            settings["max_seq_length"] = max_seq_length
        (folder / file.name).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
    for path in paths:
        if (root / path).is_dir():  # one without settings has no folder where git keeps none that is empty
            shutil.copytree(root / path, folder / path, dirs_exist_ok=True)


def _read_modules(source: str) -> list[dict[str, Any]] | None:
    """The modules of a SentenceTransformer, in order; None for another checkpoint."""
    file = find_file(source, MODULES)
    return None if file is None else read_json(file, list)


def digest_of_files(source: str) -> str:
    """Of a checkpoint's weights, configs and modules; of a Hub id the commit."""
    root = Path(source)
    if not root.is_dir():
        return Path(find_file(source, "config.json") or source).parent.name
    modules = [module["path"] for module in _read_modules(source) or [] if module["path"]]
    files = {file for pattern in (*WEIGHTS_AND_CONFIGS, MODULES, *MODULE_SETTINGS) for file in root.glob(pattern)}
    files |= {file for module in modules for file in root.glob(f"{module}/*") if file.is_file()}
    return " ".join(f"{file.relative_to(root)} {sha256_of(file)}" for file in sorted(files))


PretrainingModel = LongBertForMaskedLM | LongBertForPreTraining


@dataclass
class Source:
    """Where a run starts: a checkpoint as it is (`native`) and as it will be (`config`), or a config alone.

    Args:
        path: the checkpoint; None from scratch.
    """

    path: str | None
    native: LongBertConfig
    config: LongBertConfig
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, arguments: ModelArguments) -> "Source":
        """Read configs and tokenizer; weights are read later."""
        if arguments.from_scratch:
            config = LongBertConfig.from_pretrained(arguments.model)
            return cls(None, config, config, load_tokenizer(find_source(str(arguments.tokenizer)), config))
        path = find_source(arguments.model)
        config = LongBertConfig.from_pretrained(path, **arguments.config_overrides())
        tokenizer = load_tokenizer(find_source(arguments.tokenizer or arguments.model), config)
        return cls(path, LongBertConfig.from_pretrained(path), config, tokenizer)

    def labels(self, model_class: type[LongBertPreTrainedModel]) -> list[str] | None:
        """The labels of a finished head, in the order of their numbers; None where the source has no such head."""
        if self.path is None or saved_head(self.path) != model_class.__name__:
            return None
        return [str(self.native.id2label[number]) for number in range(self.native.num_labels)]

    def digest(self) -> str:
        """Of what a run starts from, wherever it lies: weights, configs and modules, and what the tokenizer does."""
        files = self.config.to_json_string() if self.path is None else digest_of_files(self.path)
        return hashlib.sha256(f"{files} {self.tokenizer.backend_tokenizer.to_str()}".encode()).hexdigest()

    def refuse_longer(self, run_args: PretrainingArguments) -> None:
        """Raise `ValueError` if rows would be longer than the model reaches, before or after it is extended."""
        max_seq_length = run_args.max_seq_length
        if max_seq_length > self.config.max_position_embeddings:
            raise ValueError(
                f"max_seq_length={max_seq_length} is more than the model's {self.config.max_position_embeddings} "
                "positions: set max_position_embeddings"
            )
        if run_args.native_steps:
            schedule = run_args.native_length_schedule
            parse_schedule("native_length_schedule", schedule, self.native.max_position_embeddings)

    def chunk_length(self, max_seq_length: int) -> int:
        """How long the proof's chunks are: the source length; from scratch 512, or half of what is read."""
        return self.native.pretrained_positions if self.path else min(512, max_seq_length // 2)

    def load(self, config: LongBertConfig, objective: str = "mlm") -> PretrainingModel:
        """The model to pretrain."""
        if self.path is None:
            return (LongBertForMaskedLM if objective == "mlm" else LongBertForPreTraining)(config)
        return load_for_pretraining(self.path, config, objective)


def load_for_pretraining(source: str, config: LongBertConfig, objective: str = "mlm") -> PretrainingModel:
    """A source with the heads of an objective; a missing MLM head begins as the identity, and a warning says so."""
    model_class = LongBertForMaskedLM if objective == "mlm" else LongBertForPreTraining
    model, info = model_class.from_pretrained(source, config=config, output_loading_info=True)
    if any(key.startswith("cls.predictions.transform") for key in info["missing_keys"]):
        # a token's vector then predicts the words nearest to it, which is far better than noise
        nn.init.eye_(model.cls.predictions.transform.dense.weight)
        logger.warning(
            f"{source} has no MLM head: a new one is added, which predicts poorly until it is trained. Set "
            "native_steps to train it at the source's own length first, or the proof compares with a source "
            "that cannot predict"
        )
    if any(key.startswith("cls.seq_relationship") for key in info["missing_keys"]):
        logger.warning(f"{source} has no next-sentence head: a new one is added, untrained")
    return model
