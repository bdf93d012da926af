"""Law 12: what arrives is accounted for. A source comes in whole, under whatever names a tool gave its weights, or is
refused in one line before anything is written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from conftest import (
    LONG,
    TINY,
    N,
    assert_close,
    assert_equal,
    batch,
    bert_class,
    extended,
    long_class,
    outputs,
    real,
    table,
    tiny_config,
)
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

import longbert
from longbert import LongBertConfig, LongBertForMaskedLM, LongBertForSequenceClassification, LongBertModel
from longbert.cli import main
from longbert.source import load_long


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(95))]
REACH = {"max_position_embeddings": LONG}


@pytest.fixture(scope="session")
def checkpoint(bert, tmp_path_factory):
    """`checkpoint(head, **config)` is the folder of a tiny BERT with a tokenizer of its words; a copy each time."""

    def make(head: str = "ForMaskedLM", **changes) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint") / "source"
        shutil.copytree(bert(head, **changes), folder)
        (folder / "vocab.txt").write_text("\n".join(WORDS), "utf-8")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', "utf-8")
        return folder

    return make


def rewrite_weights(folder: Path, change: Callable[[dict], dict]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def rewrite_config(folder: Path, **changes) -> None:
    """Set fields of a config.json; None leaves one out."""
    file = folder / "config.json"
    settings = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


# Names that other tools leave

PREFIXES = ["module.", "_orig_mod.", "_orig_mod.module.", "model.", "net.student.", "lightning_module.model."]
RENAMED = {
    **{f"all under {prefix}": (lambda name, prefix=prefix: prefix + name) for prefix in PREFIXES},
    "the encoder compiled": lambda name: re.sub(r"^bert\.", "bert._orig_mod.", name),
    "the encoder under DDP": lambda name: re.sub(r"^bert\.", "bert.module.", name),
    "layers compiled": lambda name: re.sub(r"(layer\.\d+)\.", r"\1._orig_mod.", name),
    "layers checkpointed": lambda name: re.sub(r"(layer\.\d+)\.", r"\1._checkpoint_wrapped_module.", name),
    "the words alone wrapped": lambda name: name.replace("word_embeddings.", "word_embeddings.module."),
    "all wrapped, layers compiled": lambda name: "module." + re.sub(r"(layer\.\d+)\.", r"\1._orig_mod.", name),
    "gamma and beta": lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    ),
}


def as_safetensors(weights: dict, folder: Path) -> dict:
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return {}


def as_bin(weights: dict, folder: Path) -> dict:
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return {}


def as_state_dict(weights: dict, folder: Path) -> dict:
    return {"state_dict": weights}


@pytest.mark.parametrize("write", [as_safetensors, as_bin, as_state_dict])
@pytest.mark.parametrize("head", ["ForMaskedLM", "Model"])
@table("rename", RENAMED)
def test_what_a_tool_put_before_the_names_is_taken_off(rename, head, write, checkpoint):
    folder = checkpoint(head)
    plain = bert_class(head).from_pretrained(folder)
    named = rename if head == "ForMaskedLM" else lambda name: rename(f"bert.{name}").replace("bert.", "", 1)
    weights = {named(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    config = LongBertConfig.from_pretrained(folder, **REACH)
    arguments = write(weights, folder)
    model, info = long_class(head).from_pretrained(
        None if arguments else folder, config=config, output_loading_info=True, **arguments
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_equal(outputs(model.eval(), **batch(N)), outputs(plain.eval(), **batch(N)))


def test_a_callers_own_renaming_is_read_first(checkpoint):
    folder = checkpoint()
    plain = BertForMaskedLM.from_pretrained(folder)
    rewrite_weights(folder, lambda weights: {n.replace("word_embeddings", "wte"): w for n, w in weights.items()})
    model = LongBertForMaskedLM.from_pretrained(folder, **REACH, key_mapping={"wte": "word_embeddings"})
    assert_equal(outputs(model, **batch(N))["logits"], outputs(plain, **batch(N))["logits"])


FAMILY_WEIGHTS = ["Roberta", "Electra", "Ernie", "DistilBert"]


@pytest.mark.parametrize("family", FAMILY_WEIGHTS)
@pytest.mark.parametrize("way", ["state_dict", "module.", "without model_type", "without a config"])
def test_a_family_is_known_by_its_names_or_its_architectures(way, family, tmp_path):
    source = random_of(family, "ForMaskedLM")
    source.save_pretrained(tmp_path)
    inputs = {"input_ids": torch.randint(5, 100, (2, N))}
    config = LongBertConfig.from_pretrained(tmp_path, **REACH)
    weights = source.state_dict()
    if way == "state_dict":
        model = LongBertForMaskedLM.from_pretrained(None, config=config, state_dict=weights)
    elif way == "module.":
        rewrite_weights(tmp_path, lambda weights: {f"module.{name}": weight for name, weight in weights.items()})
        model = LongBertForMaskedLM.from_pretrained(tmp_path, config=config)
    elif way == "without model_type":
        rewrite_config(tmp_path, model_type=None)
        model = LongBertForMaskedLM.from_pretrained(tmp_path, **REACH)
    else:
        (tmp_path / "config.json").unlink()
        model = LongBertForMaskedLM.from_pretrained(tmp_path, config=config)
    assert_equal(outputs(model.eval(), **inputs)["logits"], outputs(source, **inputs)["logits"])


def sizes_of(family: str) -> dict:
    """A tiny model's settings in a family's own words."""
    own = {
        "Roberta": {"max_position_embeddings": N + 2, "pad_token_id": 1, "type_vocab_size": 1},
        "Electra": {"embedding_size": 32},
        "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    }
    return {**TINY, **own.get(family, {})}


def random_of(family: str, head: str, **settings):
    """A tiny model of transformers' own class, every parameter random."""
    config = getattr(transformers, f"{family}Config")(**sizes_of(family), **settings)
    model = getattr(transformers, family + head)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("family", ["Bert", *FAMILY_WEIGHTS])
def test_a_decoder_that_is_not_the_word_vectors_keeps_its_bias(family, tmp_path):
    source = random_of(family, "ForMaskedLM", tie_word_embeddings=False)
    source.save_pretrained(tmp_path)
    inputs = {"input_ids": torch.randint(5, 100, (2, N))}
    model = LongBertForMaskedLM.from_pretrained(tmp_path, **REACH)
    assert_equal(outputs(model, **inputs)["logits"], outputs(source, **inputs)["logits"])


@pytest.mark.parametrize("family", FAMILY_WEIGHTS)
def test_a_config_of_the_familys_own_class_is_read_as_the_sources(family, tmp_path):
    source = random_of(family, "ForMaskedLM")
    source.save_pretrained(tmp_path)
    inputs = {"input_ids": torch.randint(5, 100, (2, N))}
    model = LongBertForMaskedLM.from_pretrained(tmp_path, config=source.config)
    assert_equal(outputs(model, **inputs)["logits"], outputs(source, **inputs)["logits"])


@pytest.mark.parametrize("said", [{}, {"model_type": "bert", "architectures": ["BertModel"]}], ids=["nothing", "bert"])
def test_a_nameless_roberta_is_not_taken_for_a_bert(said, tmp_path):
    random_of("Roberta", "Model").save_pretrained(tmp_path)
    rewrite_config(tmp_path, **{"model_type": None, "architectures": None} | said)
    with pytest.raises(ValueError, match="are a RoBERTa's, and the config is read as a BERT's: set model_type"):
        load_long(str(tmp_path), **REACH)


def test_a_state_dict_that_may_be_a_robertas_is_refused(tmp_path):
    source = random_of("Roberta", "Model")
    source.save_pretrained(tmp_path)
    config = LongBertConfig.from_pretrained(tmp_path, max_position_embeddings=N + 2)
    with pytest.raises(ValueError, match="weights without a config do not say which: load them from their folder"):
        LongBertModel.from_pretrained(None, config=config, state_dict=source.state_dict())


def test_a_tokenizer_gives_no_segments_that_the_model_has_none_of(tmp_path, capsys):
    random_of("DistilBert", "ForQuestionAnswering").save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "vocab.txt").write_text("\n".join(WORDS), "utf-8")
    (tmp_path / "source" / "tokenizer_config.json").write_text('{"do_lower_case": true}', "utf-8")
    longbert.extend(tmp_path / "source", tmp_path / "long", max_positions=LONG)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "long")
    pair = tokenizer("w1 w2", "w3 w4", return_tensors="pt")
    assert "token_type_ids" not in pair
    longbert.LongBertForQuestionAnswering.from_pretrained(tmp_path / "long")(**pair)
    assert main(["inspect", str(tmp_path / "long")]) == 0


# A head that the config does not name

HEADLESS_CONFIG = {
    "ForPreTraining": {},
    "ForMaskedLM": {},
    "ForNextSentencePrediction": {},
    "ForSequenceClassification": {"num_labels": 3},
    "ForTokenClassification": {"num_labels": 5},
    "ForQuestionAnswering": {},
    "ForMultipleChoice": {},
    "Model": {},
}


@pytest.mark.parametrize("head", HEADLESS_CONFIG)
@pytest.mark.parametrize("without", [("architectures",), ("architectures", "model_type")], ids=str)
def test_a_head_is_known_by_its_weights_where_the_config_does_not_name_it(without, head, checkpoint):
    folder = checkpoint(head, **HEADLESS_CONFIG[head])
    plain = bert_class(head).from_pretrained(folder)
    rewrite_config(folder, **dict.fromkeys(without))
    arrived = load_long(str(folder), **REACH)
    assert type(arrived.model) is long_class(head)
    assert not arrived.new and not arrived.unused
    assert_equal(outputs(arrived.model.eval(), **batch(N, head)), outputs(plain.eval(), **batch(N, head)))


def test_what_is_new_and_what_is_unused_is_named(checkpoint, tmp_path, logged):
    folder = checkpoint("ForPreTraining")
    rewrite_config(folder, architectures=["BertForSequenceClassification"])
    longbert.extend(str(folder), tmp_path / "out", max_positions=LONG)
    assert "new, untrained: classifier.bias, classifier.weight" in logged
    assert "unused, left out: cls.predictions.bias" in logged


def test_what_fsdp_puts_before_a_class_is_taken_off(checkpoint):
    folder = checkpoint("ForSequenceClassification")
    rewrite_config(folder, architectures=["FSDPBertForSequenceClassification"])
    assert type(load_long(str(folder), **REACH).model) is LongBertForSequenceClassification


@pytest.mark.parametrize("head", ["ForPreTraining", "ForSequenceClassification"])
def test_the_encoder_alone(head, checkpoint, tmp_path):
    folder = checkpoint(head)
    assert main(["extend", str(folder), str(tmp_path / "out"), "--max-positions", str(LONG), "--encoder-only"]) == 0
    plain, long = BertModel.from_pretrained(folder), LongBertModel.from_pretrained(tmp_path / "out")
    assert long.config.architectures == ["LongBertModel"]
    assert_equal(outputs(long, **batch(N)), outputs(plain, **batch(N)))


# What is refused: in one line, with exit status 2, and nothing is written


def without_model_type(folder: Path) -> None:
    rewrite_weights(folder, lambda weights: {re.sub(r"^bert\.", "roberta.", name): w for name, w in weights.items()})
    rewrite_config(folder, model_type=None, architectures=None)


def relative(folder: Path) -> None:
    rewrite_config(folder, position_embedding_type="relative_key_query")


def other_prefix(folder: Path) -> None:
    rewrite_weights(
        folder, lambda weights: {re.sub(r"embeddings\.word", "embed.word", n): w for n, w in weights.items()}
    )


def a_layer_short(folder: Path) -> None:
    rewrite_weights(folder, lambda weights: {n: w for n, w in weights.items() if "layer.1.output" not in n})


def config_of_more_layers(folder: Path) -> None:
    rewrite_config(folder, num_hidden_layers=3)


def config_of_more_positions(folder: Path) -> None:
    rewrite_config(folder, max_position_embeddings=2 * N)


def config_of_more_words(folder: Path) -> None:
    rewrite_config(folder, vocab_size=200)


def no_table(folder: Path) -> None:
    rewrite_weights(folder, lambda weights: {n: w for n, w in weights.items() if "position_embeddings" not in n})


def two_encoders(folder: Path) -> None:
    rewrite_weights(folder, lambda weights: {f"{side}.{n}": w.clone() for side in "ab" for n, w in weights.items()})


def an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "bert-base-uncased", "peft_type": "LORA"}'
    )


def no_tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").unlink()


def larger_tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join([*WORDS, "one", "more"]))


def another_head(folder: Path) -> None:
    rewrite_config(folder, architectures=["BertForSpanRanking"])


def a_decoders_head(folder: Path) -> None:
    rewrite_config(folder, architectures=["BertLMHeadModel"], is_decoder=True)


def a_training_frameworks(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": {"bert.x": torch.zeros(1)}, "epoch": 3}, folder / "pytorch_model.bin")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def an_empty_config(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def a_config_that_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


def relative_weights(folder: Path) -> None:
    stray = {"bert.encoder.layer.0.attention.self.distance_embedding.weight": torch.zeros(3, 16)}
    rewrite_weights(folder, lambda weights: weights | stray)


def modules_outside(folder: Path) -> None:
    modules = [{"idx": 0, "path": "", "type": "x.Transformer"}, {"idx": 1, "path": "../loot", "type": "x.Dense"}]
    (folder / "modules.json").write_text(json.dumps(modules))


def modules_of_another_kind(folder: Path) -> None:
    (folder / "modules.json").write_text('[{"idx": 0}]')


def another_architecture(folder: Path) -> None:
    rewrite_config(folder, model_type="albert")


def old_sentence_layout(folder: Path) -> None:
    modules = [{"idx": 0, "name": "0", "path": "0_BERT", "type": "sentence_transformers.models.BERT"}]
    (folder / "modules.json").write_text(json.dumps(modules))


def a_router(folder: Path) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.Router"}]
    (folder / "modules.json").write_text(json.dumps(modules))


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def broken_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


REFUSED = {
    without_model_type: "set model_type in config.json",
    relative: "position_embedding_type='relative_key_query' adds what longbert's BERT does not have",
    other_prefix: "no weight is called *embeddings.word_embeddings.weight",
    a_layer_short: "did not arrive (bert.encoder.layer.1.output",
    config_of_more_layers: "did not arrive (bert.encoder.layer.2",
    config_of_more_positions: "stores position vectors of shape (16, 32), the config expects",
    config_of_more_words: "does not fit",
    no_table: "its positions cannot be extended",
    two_encoders: "holds several encoders",
    an_adapter: "is an adapter, not a model: merge it",
    no_tokenizer: "has no tokenizer files",
    larger_tokenizer: "has 102 tokens, the model vectors for 100",
    another_head: "is a BertForSpanRanking, whose head is not BERT's",
    a_decoders_head: "is a BertLMHeadModel, whose head is not BERT's",
    a_training_frameworks: "no weights at its top: save the state_dict alone",
    another_architecture: "got 'albert', whose encoder is not BERT's",
    old_sentence_layout: "whose transformer lies in 0_BERT",
    a_router: "whose first module is a Router",
    no_config: "has no config.json",
    an_empty_config: "has no config.json",
    a_config_that_is_a_list: "config.json is not a mapping",
    relative_weights: "are relative positions",
    modules_outside: "names ../loot, which is outside of the folder",
    modules_of_another_kind: "lists a module without path or type",
    no_weights: "has no weights: there is no model.safetensors",
    broken_weights: "it is damaged or cut off, so fetch it again",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_extended_is_one_line_and_nothing_is_written(spoil, checkpoint, tmp_path, capsys):
    folder = checkpoint()
    spoil(folder)
    assert main(["extend", str(folder), str(tmp_path / "out"), "--max-positions", str(LONG)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("longbert: ") and REFUSED[spoil] in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["/nowhere", "./nowhere", "runs/some/model", "~/nowhere"])
def test_a_path_to_nothing_is_not_taken_for_a_repository(path, tmp_path, capsys):
    assert main(["extend", path, str(tmp_path / "out"), "--max-positions", str(LONG)]) == 2
    assert "longbert: no such folder: " in capsys.readouterr().err


@pytest.mark.parametrize("rows", [1, 2])
def test_a_source_of_one_or_two_rows_is_an_error_of_one_line(rows, checkpoint, tmp_path, capsys):
    folder = checkpoint(max_position_embeddings=rows)
    assert main(["extend", str(folder), str(tmp_path / "out"), "--max-positions", "8"]) == 2
    assert f"needs a source of at least 3 positions, got {rows}: use 'tile'" in capsys.readouterr().err
    tiled = ["--max-positions", "8", "--position-init", "tile"]
    assert main(["extend", str(folder), str(tmp_path / "out"), *tiled]) == 0  # as it advises


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("family", ["Roberta", "Electra"])
def test_a_head_that_computes_with_something_else_than_its_encoder_is_refused(family, activation, tmp_path):
    sizes = {"max_position_embeddings": N + 2, "pad_token_id": 1} if family == "Roberta" else {"embedding_size": 32}
    config = getattr(transformers, f"{family}Config")(**{**TINY, **sizes, "hidden_act": activation})
    source = getattr(transformers, f"{family}ForMaskedLM")(config).eval()
    source.save_pretrained(tmp_path)
    if activation == "relu":
        with pytest.raises(ValueError, match="its MLM head computes with 'gelu'.*hidden_act='relu'"):
            LongBertForMaskedLM.from_pretrained(tmp_path, **REACH)
    else:
        inputs = {"input_ids": torch.randint(5, 100, (2, N))}
        model = LongBertForMaskedLM.from_pretrained(tmp_path, **REACH)
        assert_equal(outputs(model, **inputs)["logits"], outputs(source, **inputs)["logits"])
    LongBertModel.from_pretrained(tmp_path, **REACH)  # the encoder is BERT's with any activation


@pytest.mark.parametrize("family", ["Electra", "DistilBert"])
@pytest.mark.parametrize("named", [True, False])
def test_a_head_that_bert_lacks_is_not_half_taken(named, family, tmp_path):
    sizes = (
        {"embedding_size": 32} if family == "Electra" else {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    )
    config = getattr(transformers, f"{family}Config")(**{**TINY, **sizes})
    getattr(transformers, f"{family}ForSequenceClassification")(config).save_pretrained(tmp_path)
    if not named:
        rewrite_config(tmp_path, architectures=None)
    for refuse in (LongBertForSequenceClassification.from_pretrained, lambda path: load_long(str(path))):
        with pytest.raises(ValueError, match="head.* is not BERT's.*encoder.*--encoder-only"):
            refuse(tmp_path)


# A config of another kind, or edited by hand


def test_a_berts_config_is_read_as_the_sources(checkpoint):
    folder = checkpoint()
    plain = BertForMaskedLM.from_pretrained(folder)
    for config in (BertConfig.from_pretrained(folder), folder, folder / "config.json"):
        model = LongBertForMaskedLM.from_pretrained(folder, config=config)
        assert_equal(outputs(model, **batch(N))["logits"], outputs(plain, **batch(N))["logits"])
    with pytest.raises(ValueError, match="built from a LongBertConfig, got a BertConfig"):
        LongBertForMaskedLM(plain.config)


EDITS = {
    "a longer reach": ({"position_type": "learned-extended"}, {"max_position_embeddings": 2 * LONG}),
    "a longer reach of a BERT's table": (
        {"position_type": "learned", "max_position_embeddings": N},
        {"max_position_embeddings": LONG, "pretrained_positions": LONG},
    ),
    "a longer source": ({"position_type": "hierarchical"}, {"pretrained_positions": 20}),
    "another type": ({"position_type": "hierarchical"}, {"position_type": "learned-extended"}),
}


@table("edit", EDITS)
def test_a_config_edited_in_memory_is_refused_before_it_is_saved(edit, tmp_path):
    settings, changes = edit
    model = LongBertForMaskedLM(tiny_config(**REACH | settings))
    for name, value in changes.items():
        setattr(model.config, name, value)
    with pytest.raises(ValueError, match="the model was built for|resize_position_embeddings"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    with pytest.raises(ValueError, match=f"this model reaches {settings.get('max_position_embeddings', LONG)}"):
        model(**batch(LONG + 1))


@pytest.mark.parametrize("field", ["max_position_embeddings", "pretrained_positions", "hidden_size"])
def test_a_config_edited_on_disk_is_refused(field, bert, tmp_path):
    extended(bert(), "ForMaskedLM", REACH | {"attention_window": 8}).save_pretrained(tmp_path)
    rewrite_config(tmp_path, **{field: 2 * LONG})
    with pytest.raises(
        (ValueError, StrictDataclassError), match="leave config.json as it was|fewer than the source's"
    ):
        LongBertForMaskedLM.from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own
def test_an_adapter_of_a_long_model_still_loads_its_base(bert, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = extended(bert(), "ForMaskedLM", REACH)
    base.save_pretrained(tmp_path / "base")
    model = LongBertForMaskedLM.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(target_modules=["query"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    again = LongBertForMaskedLM.from_pretrained(tmp_path / "adapter")
    assert_equal(outputs(again, **batch(LONG))["logits"], outputs(adapted.eval(), **batch(LONG))["logits"])


# Tokenizers and inspection


def test_a_tokenizer_may_be_named(checkpoint, tmp_path):
    folder, other = checkpoint(), checkpoint()
    no_tokenizer(folder)
    arguments = ["extend", str(folder), str(tmp_path / "out"), "--max-positions", str(LONG)]
    assert main([*arguments, "--tokenizer", str(other)]) == 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(WORDS)


def missing_head(folder: Path) -> None:
    rewrite_weights(folder, lambda weights: {n: w for n, w in weights.items() if "predictions.transform" not in n})


def stray_weight(folder: Path) -> None:
    rewrite_weights(folder, lambda weights: weights | {"adapter.weight": torch.zeros(2)})


def shorter_tokenizer_limit(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": N}))


SPOILT = {
    missing_head: "new, untrained: cls.predictions.transform",
    stray_weight: "unused, left out: adapter.weight",
    shorter_tokenizer_limit: f"tokenizer.model_max_length is {N}",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_inspect_says_what_is_wrong_and_fails(spoil, checkpoint, tmp_path, capsys):
    longbert.extend(str(checkpoint()), tmp_path / "long", max_positions=LONG)
    assert main(["inspect", str(tmp_path / "long")]) == 0
    assert "agree" in capsys.readouterr().out
    spoil(tmp_path / "long")
    assert main(["inspect", str(tmp_path / "long")]) == 1
    assert f"DISAGREES: {SPOILT[spoil]}" in capsys.readouterr().out


# Sentence encoders


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory) -> Path:
    """A sentence encoder of four modules, whose folders are called as nothing expects."""
    folder = tmp_path_factory.mktemp("sentence") / "encoder"
    transformer = Transformer(str(real("minilm")))
    width = transformer.get_embedding_dimension() if hasattr(transformer, "get_embedding_dimension") else 384
    modules = [transformer, Pooling(width), Dense(width, 24), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    listed = json.loads((folder / "modules.json").read_text())
    for module in listed:
        if "Dense" in module["type"]:
            (folder / module["path"]).rename(folder / "projection")
            module["path"] = "projection"
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def test_every_module_of_a_sentence_encoder_comes_along(sentence_encoder, tmp_path):
    longbert.extend(str(sentence_encoder), tmp_path / "long", max_positions=1024)
    source, long = (SentenceTransformer(str(path), device="cpu") for path in (sentence_encoder, tmp_path / "long"))
    assert len(long) == len(source) == 4
    assert long.max_seq_length == 1024
    texts = ["the state of the union", "people " * 200]
    assert_close(long.encode(texts, convert_to_tensor=True), source.encode(texts, convert_to_tensor=True))
