"""One default: Python, a YAML file and the command line extend a source alike."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import LONG, N, assert_equal, batch, extended, outputs, table, tiny_config
from transformers import AutoModelForMaskedLM
from transformers.utils.logging import warning_once

import longbert
from longbert import LongBertConfig, LongBertForMaskedLM
from longbert.arguments import ModelArguments
from longbert.cli import main
from longbert.extending import RECIPES
from longbert.source import Source


COST = "full attention over rows that are filled from 16 on costs 75 %"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(95))]
# what is asked for; the type and the window that come out
ASKED = {
    "nothing": ({}, ("learned-extended", N)),
    "an init": ({"position_init": "tile"}, ("learned-extended", N)),
    "noise": ({"position_init": "random"}, ("learned-extended", N)),
    "hierarchical": ({"position_type": "hierarchical"}, ("hierarchical", None)),
    "an alpha": ({"position_type": "hierarchical", "hierarchical_alpha": 0.2}, ("hierarchical", None)),
    "sinusoids": ({"position_type": "sinusoidal"}, ("sinusoidal", None)),
    "a window": ({"attention_window": 8}, ("learned-extended", 8)),
    "a window and a type": ({"attention_window": 8, "position_type": "hierarchical"}, ("hierarchical", 8)),
    "full attention": ({"attention_window": None}, ("learned-extended", None)),
}
FLAGS = {"hierarchical_alpha": "--alpha"}


@pytest.fixture(scope="module")
def source(bert, tmp_path_factory) -> Path:
    """A tiny BERT with a tokenizer."""
    folder = tmp_path_factory.mktemp("source") / "bert"
    shutil.copytree(bert("ForMaskedLM"), folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS), "utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', "utf-8")
    return folder


def in_words(settings: dict) -> dict:
    """What a YAML file or a command line says for full attention."""
    return {name: "full" if value is None else value for name, value in settings.items()}


def config_and_model(source: Path, asked: dict, out: Path):
    config = LongBertConfig.from_pretrained(source, max_position_embeddings=LONG, **asked)
    return AutoModelForMaskedLM.from_pretrained(source, config=config)


def model_alone(source: Path, asked: dict, out: Path):
    return LongBertForMaskedLM.from_pretrained(source, max_position_embeddings=LONG, **asked)


def api(source: Path, asked: dict, out: Path):
    return longbert.extend(str(source), out, max_positions=LONG, **asked)


def command_line(source: Path, asked: dict, out: Path):
    flags = [(FLAGS.get(name, f"--{name.replace('_', '-')}"), str(value)) for name, value in in_words(asked).items()]
    arguments = ["extend", str(source), str(out), "--max-positions", str(LONG)]
    assert main([*arguments, *(word for flag in flags for word in flag)]) == 0
    return AutoModelForMaskedLM.from_pretrained(out)


def yaml_file(source: Path, asked: dict, out: Path):
    read = Source.of(ModelArguments(model=str(source), max_position_embeddings=LONG, **in_words(asked)))
    return read.load(read.config)


WAYS: list[Callable] = [config_and_model, model_alone, api, command_line, yaml_file]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@table("case", ASKED)
def test_every_way_extends_alike_and_says_what_full_attention_costs(case, way, source, tmp_path, logged):
    asked, expected = case
    warning_once.cache_clear()
    model = way(source, asked, tmp_path / "out")
    assert (model.config.position_type, model.config.attention_window) == expected
    assert model.config.pretrained_positions == N
    assert (COST in logged) == (expected == ("learned-extended", None))
    if "random" not in asked.values():
        same = extended(source, "ForMaskedLM", asked | {"max_position_embeddings": LONG})
        assert_equal(outputs(model.eval(), **batch(LONG))["logits"], outputs(same, **batch(LONG))["logits"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_the_same_on_the_command_line_and_in_python(recipe, source, tmp_path, capsys):
    of_python = longbert.extend(str(source), tmp_path / "python", max_positions=LONG, recipe=recipe).config
    assert main(["extend", str(source), str(tmp_path / "cli"), "--max-positions", str(LONG), "--recipe", recipe]) == 0
    assert f"expect: {RECIPES[recipe].expect}" in capsys.readouterr().out
    of_command = LongBertConfig.from_pretrained(tmp_path / "cli")
    for name in ("position_type", "position_init", "hierarchical_alpha", "attention_window", "pretrained_positions"):
        assert getattr(of_python, name) == getattr(of_command, name)
    assert of_python.attention_window == (N if RECIPES[recipe].windowed else None)


def test_an_unknown_recipe_is_told_which_there_are(source, tmp_path):
    with pytest.raises(ValueError, match="recipe must be one of untrained, .* got 'quick'"):
        longbert.extend(str(source), tmp_path / "out", max_positions=LONG, recipe="quick")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rows", "window"), [(15, 14), (16, 16), (3, 2)])
def test_a_window_is_as_long_as_its_source_and_even(rows, window, bert):
    folder = bert("ForMaskedLM", max_position_embeddings=rows)
    assert LongBertConfig.from_pretrained(folder, max_position_embeddings=LONG).attention_window == window


def test_a_model_as_long_as_its_source_has_no_window_until_it_is_taken_further(source, tmp_path):
    model = LongBertForMaskedLM.from_pretrained(source)
    assert model.config.attention_window is None
    model.save_pretrained(tmp_path)
    assert LongBertConfig.from_pretrained(tmp_path, max_position_embeddings=LONG).attention_window == N
    model.resize_position_embeddings(LONG)
    assert model.config.attention_window == N


def test_a_decoder_has_no_window(bert):
    folder = bert("Model", is_decoder=True)
    assert LongBertConfig.from_pretrained(folder, max_position_embeddings=LONG).attention_window is None


def test_from_scratch_attention_is_full_unless_asked():
    assert LongBertConfig(max_position_embeddings=4096).attention_window is None


def test_a_long_model_under_full_attention_is_not_warned_about(tmp_path, logged):
    warning_once.cache_clear()
    LongBertForMaskedLM(tiny_config(max_position_embeddings=LONG)).save_pretrained(tmp_path)
    assert LongBertForMaskedLM.from_pretrained(tmp_path).config.attention_window is None
    assert COST not in logged
