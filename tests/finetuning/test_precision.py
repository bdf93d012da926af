"""bf16 and fp16 are refused, before anything is read, where the device has none."""

import pytest
import torch
import yaml
from transformers import TrainingArguments

from longbert import arguments
from longbert.arguments import ModelArguments, parse_config


def config(folder, **settings):
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump({"model": "nowhere", "output_dir": str(folder / "run"), **settings}), "utf-8")
    return [str(file)]


def parsed(argv):
    return parse_config(argv, ModelArguments, TrainingArguments)[1]


@pytest.fixture
def cpu_alone(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(arguments, "is_torch_bf16_gpu_available", lambda: False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bf16": True}, "bf16=true, but there is no GPU here: set bf16=false, for fp32, or use_cpu=true beside it"),
        ({"bf16_full_eval": True}, "bf16_full_eval=true, but there is no GPU here: set bf16_full_eval=false"),
        ({"fp16": True}, "fp16=true, but the CPU does not train in fp16: set fp16=false, for fp32, or bf16=true with"),
        ({"fp16": True, "use_cpu": True}, "fp16=true, but the CPU does not train in fp16"),
        ({"fp16_full_eval": True}, "fp16_full_eval=true, but the CPU"),
    ],
)
def test_what_to_set_is_said_on_a_cpu(cpu_alone, tmp_path, settings, said):
    with pytest.raises(ValueError) as error:
        parsed(config(tmp_path, **settings))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_it_advises_is_accepted(cpu_alone, tmp_path):
    assert parsed([*config(tmp_path, bf16=True), "use_cpu=true"]).bf16
    assert not parsed([*config(tmp_path, bf16=True), "bf16=false"]).bf16
    assert not parsed([*config(tmp_path, fp16=True), "fp16=false"]).fp16
    assert parsed([*config(tmp_path, fp16=True), "fp16=false", "bf16=true", "use_cpu=true"]).bf16


def test_an_old_gpu_is_offered_fp16(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(arguments, "is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(
        ValueError, match="this cuda device has no bf16: set bf16=false, for fp32, or fp16=true instead"
    ):
        parsed(config(tmp_path, bf16=True))


@pytest.mark.parametrize("script", ["train.py", "finetune/classification.py", "finetune/embedding.py"])
@pytest.mark.skipif(torch.accelerator.is_available(), reason="of a machine without an accelerator")
def test_every_script_says_it_in_one_line(script, tmp_path):
    from processes import run

    data = {"data": ["nowhere"]} if script == "train.py" else {"train_file": "nowhere.csv"}
    data |= {"test_folder": "nowhere"} if "embedding" in script else {}
    status, printed = run(script, *config(tmp_path, bf16=True, **data))
    assert status != 0
    (line,) = (line for line in printed.splitlines() if "bf16" in line)
    assert "bf16=true, but there is no GPU here" in line and "Traceback" not in printed
