"""Law 9 for graphs: an exported graph says what the model says, at every length, in every runtime that is here."""

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import (
    LONG,
    TYPES,
    N,
    assert_close,
    auto_class,
    batch,
    every_head,
    every_type,
    extended,
    long_class,
    real,
    table,
    tiny_config,
)
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertForMaskedLM, BertLMHeadModel

from longbert import exporting
from longbert.cli import main
from longbert.exporting import GRAPH, INT8_GRAPH, Graph, save_graph, to_onnx, write_exported
from longbert.extending import extend


WINDOW = {"attention_window": 8}
ATTENTION = {"full": {}, "window": WINDOW}
NAMES = {"Model": ["last_hidden_state"], "ForQuestionAnswering": ["start_logits", "end_logits"]}
SEPARATOR = 3


class Tokens:
    """What a graph asks of a tokenizer."""

    sep_token_id = SEPARATOR
    model_input_names = ("input_ids", "token_type_ids", "attention_mask")


def arrays(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def session_of(model, folder: Path, tokenizer=Tokens) -> onnxruntime.InferenceSession:
    save_graph(to_onnx(Graph(model, tokenizer)), folder / "model.onnx")
    return onnxruntime.InferenceSession(folder / "model.onnx")


def pairs(length: int, batch_size: int, head: str) -> dict[str, torch.Tensor]:
    """Two texts with [SEP] between them, of which the last row is half padding."""
    inputs = batch(length, head, batch_size)
    inputs["input_ids"][inputs["input_ids"] == SEPARATOR] = SEPARATOR + 1
    inputs["input_ids"][..., length // 3] = SEPARATOR
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if batch_size > 1:
        inputs["attention_mask"][-1, ..., length // 2 + 1 :] = 0
    return inputs


def said_by_pytorch(model, head: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the model says; of a question's tokens, up to [SEP], it is told that they are global, as in training."""
    if head in ("ForQuestionAnswering", "ForMultipleChoice"):
        length = inputs["input_ids"].shape[-1]
        inputs = {**inputs, "global_attention_mask": (torch.arange(length) <= length // 3).expand_as(inputs["input_ids"])}
    with torch.no_grad():
        said = dict(model(**inputs))
    said["logits"] = said.get("logits", said.get("prediction_logits"))
    return said


def assert_says_the_same(session, model, head: str, sizes, rtol=1e-4, atol=1e-4) -> None:
    names = NAMES.get(head, ["logits"])
    assert [each.name for each in session.get_outputs()] == names
    for length, batch_size in sizes:
        inputs = pairs(length, batch_size, head)
        expected, own = said_by_pytorch(model, head, inputs), inputs["attention_mask"].bool()
        for name, said in zip(names, session.run(names, arrays(inputs)), strict=True):
            chosen = own if expected[name].shape[: own.dim()] == own.shape else slice(None)
            assert_close(torch.from_numpy(said)[chosen], expected[name][chosen], rtol=rtol, atol=atol)


@every_head
@table("attention", ATTENTION)
def test_a_graph_says_what_its_model_says(attention, head, tmp_path):
    settings = {"max_position_embeddings": LONG, "num_hidden_layers": 1}
    model = long_class(head)(tiny_config(**settings, **attention)).eval()
    sizes = [(length, batch_size) for length in (5, N, N + 1, LONG) for batch_size in (1, 3)]
    assert_says_the_same(session_of(model, tmp_path), model, head, sizes)
