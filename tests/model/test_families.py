"""Laws 1 to 4 for checkpoints that are BERT under other names, against transformers' own classes of each."""

import json

import pytest
import torch
import transformers
from conftest import (
    KEEPING,
    LONG,
    TINY,
    TYPES,
    N,
    assert_close,
    assert_equal,
    batch,
    every_keeping,
    long_class,
    outputs,
)
from processes import train, write_settings
from transformers import AutoModelForMaskedLM, AutoTokenizer

from longbert import LongBertConfig, LongBertForMaskedLM, LongBertModel
from longbert.baking import bake
from longbert.extending import extend
from longbert.source import load_long, load_tokenizer


RESERVED = 2
FAIRSEQ = {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": N + RESERVED}
FAMILIES = {
    "Roberta": FAIRSEQ,
    "XLMRoberta": FAIRSEQ,
    "Camembert": FAIRSEQ,
    "Data2VecText": FAIRSEQ,
    "Electra": {"embedding_size": TINY["hidden_size"]},
    "Ernie": {},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
}
ONE_SEGMENT = ("Roberta", "XLMRoberta", "Camembert", "Data2VecText", "DistilBert")
EVERY_HEAD = ["Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
EVERY_HEAD += ["ForMultipleChoice"]
HEADS = dict.fromkeys(FAMILIES, EVERY_HEAD)
HEADS["Electra"] = ["Model", "ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering"]
HEADS["DistilBert"] = HEADS["Electra"]
HEADS["Ernie"] = [*EVERY_HEAD, "ForPreTraining", "ForNextSentencePrediction"]
CASES = [(family, head) for family, heads in HEADS.items() for head in heads]
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """`original(family, head)` is a tiny model of transformers' own class, every parameter random, and its folder."""
    made = {}

    def make(family: str, head: str = "ForMaskedLM"):
        if (family, head) not in made:
            path = tmp_path_factory.mktemp(family + head)
            config = getattr(transformers, f"{family}Config")(**{**TINY, **FAMILIES[family]})
            model_class = getattr(transformers, family + head)
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(0)
                model = model_class(config)
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            model.save_pretrained(path)
            # loaded as ours is: how a weight lies in memory decides the last bit of a product with it
            made[family, head] = model_class.from_pretrained(path), path
        return made[family, head]

    return make


def positions_of(model) -> torch.Tensor:
    table = model.base_model.embeddings.position_embeddings.weight.detach()
    return table[len(table) - N :]


def inputs_for(family: str, length: int, head: str) -> dict[str, torch.Tensor]:
    """Token ids, none of them padding; segments where the family has more than one."""
    inputs = batch(length, head)
    inputs["input_ids"].clamp_(min=2)
    if family in ONE_SEGMENT:
        del inputs["token_type_ids"]
    return inputs


def load(path, head: str, settings: dict, **kwargs):
    config = LongBertConfig.from_pretrained(path, **settings)
    model_class = long_class(head)
    return model_class.from_pretrained(path, config=config, output_loading_info=True, **kwargs)


# the fast tests take every head with two ways to fill rows and every way with one head, the slow ones all pairs; what
# the rows are is held for every way below
ALIKE = [
    pytest.param(
        settings,
        family,
        head,
        id=f"{family}-{head}-{name}",
        marks=[] if head == "ForMaskedLM" or name in ("learned-extended-tile", "hierarchical") else pytest.mark.slow,
    )
    for name, settings in KEEPING.items()
    for family, head in CASES
]


@pytest.mark.parametrize(("settings", "family", "head"), ALIKE)
def test_up_to_the_sources_length_it_says_what_the_source_says(settings, family, head, original):
    source, path = original(family, head)
    model, info = load(path, head, settings)
    # an ELECTRA has no pooler, and neither have the fairseq families' heads that read every token
    assert {key.removeprefix("bert.") for key in info["missing_keys"]} <= {"pooler.dense.weight", "pooler.dense.bias"}
    assert not info["unexpected_keys"]
    for length in (1, N - 3, N):
        inputs = inputs_for(family, length, head)
        ours, theirs = outputs(model.eval(), **inputs), outputs(source, **inputs)
        assert_equal(ours["hidden_states"][0], theirs["hidden_states"][0])
        for name in set(ours) & set(theirs) - {"hidden_states", "pooler_output"}:
            assert_equal(ours[name], theirs[name])


@every_family
def test_padding_changes_nothing(family, original):
    source, path = original(family)
    model, _ = load(path, "ForMaskedLM", TYPES["learned-extended"])
    inputs = inputs_for(family, N, "Model")
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][0, N - 5 :] = 0
    inputs["input_ids"][0, N - 5 :] = source.config.pad_token_id
    ours, theirs = outputs(model.eval(), **inputs)["logits"], outputs(source, **inputs)["logits"]
    real = inputs["attention_mask"].bool()
    assert_close(ours[real], theirs[real])


@every_family
@every_keeping
def test_rows_are_the_sources_and_what_is_saved_is_what_is_loaded(settings, family, original, tmp_path):
    source, path = original(family)
    model, _ = load(path, "ForMaskedLM", settings)
    assert_equal(model.position_table(N), positions_of(source))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "longbert"
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(again) is LongBertForMaskedLM
    for name, tensor in model.state_dict().items():
        assert_equal(again.state_dict()[name], tensor)
    inputs = inputs_for(family, model.config.max_position_embeddings, "Model")
    assert_equal(outputs(again, **inputs)["logits"], outputs(model.eval(), **inputs)["logits"])


@every_family
def test_a_reach_of_exactly_the_sources_rows_still_leaves_the_reserved_out(family, original):
    source, path = original(family)
    model, _ = load(path, "ForMaskedLM", {"max_position_embeddings": N + RESERVED})
    assert_equal(model.position_table(N), positions_of(source))


@every_family
def test_every_way_in(family, original):
    source, path = original(family)
    config = LongBertConfig.from_pretrained(path, max_position_embeddings=LONG)
    by_auto = AutoModelForMaskedLM.from_pretrained(path, config=config)
    assert type(by_auto) is LongBertForMaskedLM
    for model in (
        by_auto,
        LongBertModel.from_pretrained(path, config=config, dtype=torch.bfloat16),
        LongBertModel.from_pretrained(path, config=config, device_map="cpu"),
        LongBertModel.from_pretrained(path),
        load_long(str(path), max_position_embeddings=LONG).model,
    ):
        assert_equal(model.position_table(N), positions_of(source).to(model.dtype))
    assert type(model) is LongBertForMaskedLM


@every_family
def test_its_extension_can_be_baked_into_an_ordinary_bert(family, original):
    _, path = original(family)
    model, _ = load(path, "ForMaskedLM", TYPES["hierarchical"])
    inputs = inputs_for(family, LONG, "Model")
    plain = bake(model.eval())
    assert type(plain) is transformers.BertForMaskedLM
    assert_close(outputs(plain, **inputs)["logits"], outputs(model, **inputs)["logits"])


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("Electra", {"embedding_size": 16}, "embedding_size=16 is not hidden_size=32"),
        ("Ernie", {"use_task_id": True}, "use_task_id=True adds what longbert's BERT does not have"),
        ("Bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' adds"),
        ("Albert", {}, "model_type bert, longbert, roberta"),
    ],
)
def test_what_is_not_bert_is_refused_by_name(family, settings, message, tmp_path):
    config = getattr(transformers, f"{family}Config")(**settings, hidden_size=32)
    config.save_pretrained(tmp_path)
    for load_it in (LongBertConfig.from_pretrained, LongBertModel.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load_it(tmp_path)


def test_a_head_that_bert_does_not_have_is_refused_and_its_encoder_is_not(original):
    source, path = original("Electra", "ForSequenceClassification")
    with pytest.raises(ValueError, match="ElectraForSequenceClassification has a head that is not BERT.s"):
        long_class("ForSequenceClassification").from_pretrained(path)
    assert_equal(LongBertModel.from_pretrained(path).position_table(N), positions_of(source))


def roberta_tokenizer(folder):
    """A byte-level BPE of a handful of merges, as RoBERTa's."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(["the state of the union is strong"] * 4, vocab_size=300, special_tokens=special)
    trained.save_model(str(folder))
    return transformers.RobertaTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A tiny RoBERTa with its tokenizer."""
    folder = tmp_path_factory.mktemp("roberta")
    tokenizer = roberta_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    config = transformers.RobertaConfig(**{**TINY, **FAIRSEQ, "vocab_size": len(tokenizer)})
    transformers.RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


def test_its_own_tokenizer_comes_along(roberta, tmp_path):
    source, tokenizer = roberta, AutoTokenizer.from_pretrained(roberta)
    extend(str(source), tmp_path / "long", max_positions=LONG)
    for found in (
        load_tokenizer(str(source), LongBertConfig(**TINY | {"vocab_size": len(tokenizer)})),
        AutoTokenizer.from_pretrained(tmp_path / "long"),
    ):
        assert found("the state of the union")["input_ids"] == tokenizer("the state of the union")["input_ids"]
        assert found.cls_token == "<s>"
    assert found.model_max_length == LONG


@pytest.mark.slow
def test_sentence_pairs_are_trained_where_there_is_one_segment(roberta, tmp_path):
    settings = {"objective": "mlm+nsp", "max_position_embeddings": LONG, "max_seq_length": LONG, "max_steps": 2}
    file = write_settings(tmp_path, roberta, **settings)
    status, printed = train(file)
    assert status == 0, printed
    model = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "run")
    assert type(model) is long_class("ForPreTraining")
