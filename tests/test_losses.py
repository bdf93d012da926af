"""Laws 5 and 6 for the masked-language-modelling loss: it is the dense one, and means the same for any split."""

import pytest
import torch
from conftest import (
    TINY,
    TYPES,
    assert_close,
    assert_equal,
    batch,
    bert_class,
    every_dtype,
    extended,
    gradients,
)
from torch import nn

from longbert import losses


BATCH_SIZE, LENGTH = 8, 24


@pytest.fixture
def model(bert):
    return extended(bert(), "ForMaskedLM", TYPES["hierarchical"])


@pytest.fixture
def examples() -> dict[str, torch.Tensor]:
    """Eight texts with unequal numbers of labels, two of them with none."""
    inputs = batch(LENGTH, batch_size=BATCH_SIZE)
    chance = torch.tensor([0.1, 0.0, 0.9, 0.3, 0.5, 0.0, 0.2, 0.7])[:, None]
    labelled = torch.rand(BATCH_SIZE, LENGTH) < chance
    return inputs | {"labels": torch.where(labelled, inputs["input_ids"], losses.IGNORE_INDEX)}


def dense_loss(model, examples: dict) -> torch.Tensor:
    """The textbook's: logits everywhere, then the mean over labelled positions."""
    inputs = {name: tensor for name, tensor in examples.items() if name != "labels"}
    logits = model(**inputs).logits.float()
    return nn.CrossEntropyLoss()(logits.flatten(0, 1), examples["labels"].flatten())


def learnt(model, *losses: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradients of every parameter, summed over the losses."""
    model.zero_grad()
    for loss in losses:
        loss.backward()
    return {name: gradient.clone() for name, gradient in gradients(model).items()}


def assert_same_gradients(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal to 1e-6 of each parameter's gradient as a whole."""
    assert actual.keys() == expected.keys()
    for name in expected:
        # Softmax does not see a key's bias: its true gradient is 0, and what is there is noise
        if not name.endswith("key.bias"):
            assert (actual[name] - expected[name]).norm() <= 1e-6 * expected[name].norm(), name


@pytest.mark.parametrize("rows_per_chunk", [1, 7, "all-but-one", "all", 1024])
def test_it_is_the_dense_loss(rows_per_chunk, model, examples, monkeypatch):
    number = int((examples["labels"] >= 0).sum())
    rows = {"all-but-one": number - 1, "all": number}.get(rows_per_chunk, rows_per_chunk)
    monkeypatch.setattr(losses, "ROWS_PER_CHUNK", rows)
    loss, dense = model(**examples).loss, dense_loss(model, examples)
    assert_close(loss, dense, rtol=1e-6, atol=0)
    assert_same_gradients(learnt(model, loss), learnt(model, dense))


def test_every_position_labelled(model, examples):
    examples["labels"] = examples["input_ids"]
    assert_close(model(**examples).loss, dense_loss(model, examples), rtol=1e-6, atol=0)


def test_padding_is_not_predicted(model, examples):
    examples["attention_mask"] = (torch.arange(LENGTH) < torch.arange(1, BATCH_SIZE + 1)[:, None] * 3).long()
    examples["labels"] = examples["labels"].masked_fill(examples["attention_mask"] == 0, losses.IGNORE_INDEX)
    loss, dense = model(**examples).loss, dense_loss(model, examples)
    assert_close(loss, dense, rtol=1e-6, atol=0)
    assert_same_gradients(learnt(model, loss), learnt(model, dense))


@every_dtype
def test_the_loss_is_fp32_whatever_the_model(dtype, model, examples):
    model.to(dtype)
    loss = model(**examples).loss
    assert loss.dtype == torch.float32
    assert_close(loss, dense_loss(model, examples), rtol=1e-6, atol=0)
    assert all(gradient.dtype == dtype for gradient in learnt(model, loss).values())


def test_a_batch_with_nothing_to_predict_costs_nothing(model, examples):
    examples["labels"] = torch.full_like(examples["labels"], losses.IGNORE_INDEX)
    for number in (None, 5):
        loss = model(**examples, num_items_in_batch=number).loss
        assert loss == 0
        # Zero and not None, which would leave other processes waiting
        for name, gradient in learnt(model, loss).items():
            assert_equal(gradient, torch.zeros_like(model.get_parameter(name)))


@pytest.mark.parametrize("rows_per_chunk", [3, 1024])
@pytest.mark.parametrize("as_type", [int, torch.tensor])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_loss_means_the_same_for_any_split(size, as_type, rows_per_chunk, model, examples, monkeypatch):
    monkeypatch.setattr(losses, "ROWS_PER_CHUNK", rows_per_chunk)
    number = as_type(int((examples["labels"] >= 0).sum()))
    whole = model(**examples).loss
    expected = learnt(model, whole)
    parts = [
        model(
            **{name: tensor[start : start + size] for name, tensor in examples.items()}, num_items_in_batch=number
        ).loss
        for start in range(0, BATCH_SIZE, size)
    ]
    assert_close(sum(parts), whole, rtol=1e-6, atol=0)
    assert_same_gradients(learnt(model, *parts), expected)


# Sentence pairs


@pytest.fixture
def pairs(bert, examples):
    """A model with both heads, and the examples with sentence labels."""
    model = extended(bert(), "ForPreTraining", TYPES["hierarchical"])
    return model, examples | {"next_sentence_label": torch.tensor([0, 1, 1, 0, 0, 1, 0, 1])}


def test_both_losses_are_berts(pairs, bert):
    model, examples = pairs
    stock = bert_class("ForPreTraining").from_pretrained(bert())
    short = {name: tensor[:, :16].contiguous() if tensor.dim() > 1 else tensor for name, tensor in examples.items()}
    for mode in (True, False):
        result, expected = model.train(mode), stock.train(mode)
        for module in [*model.modules(), *stock.modules()]:
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        result, expected = result(**short), expected(**short)
        assert_close(result.loss, expected.loss, rtol=1e-6, atol=0)
        assert_close(result.seq_relationship_logits, expected.seq_relationship_logits)
        assert (result.prediction_logits is None) == mode


def test_either_label_alone_gives_its_loss(pairs):
    model, examples = pairs
    both = model(**examples).loss
    words = model(**{name: tensor for name, tensor in examples.items() if name != "next_sentence_label"}).loss
    sentences = model(**{name: tensor for name, tensor in examples.items() if name != "labels"}).loss
    assert_close(words + sentences, both, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_both_losses_mean_the_same_for_any_split(size, pairs):
    model, examples = pairs
    whole = model(**examples).loss
    expected = learnt(model, whole)
    numbers = {"num_items_in_batch": int((examples["labels"] >= 0).sum()), "num_pairs_in_batch": BATCH_SIZE}
    parts = [
        model(**{name: tensor[start : start + size] for name, tensor in examples.items()}, **numbers).loss
        for start in range(0, BATCH_SIZE, size)
    ]
    assert_close(sum(parts), whole, rtol=1e-6, atol=0)
    assert_same_gradients(learnt(model, *parts), expected)


# Which logits are given


def test_without_labels_there_are_logits_and_no_loss(model, examples):
    labels = examples.pop("labels")
    for mode in (model.eval(), model.train()):
        results = mode(**examples)
        assert results.loss is None
        assert results.logits.shape == (*labels.shape, TINY["vocab_size"])


def test_training_gives_logits_only_when_asked(model, examples):
    in_evaluation = model.eval()(**examples)
    assert_equal(
        in_evaluation.logits, model(**{name: examples[name] for name in ("input_ids", "token_type_ids")}).logits
    )
    assert model(**examples, output_logits=False).logits is None
    model.train()
    assert model(**examples).logits is None
    assert model(**examples, output_logits=True).logits.shape == in_evaluation.logits.shape


def test_tuples(model, examples):
    loss, logits = model(**examples, return_dict=False)
    results = model(**examples)
    assert_equal((loss, logits), (results.loss, results.logits))
    (loss,) = model.train()(**examples, return_dict=False)
    assert loss.shape == ()
    loss, hidden_states = model(**examples, return_dict=False, output_hidden_states=True)
    assert len(hidden_states) == TINY["num_hidden_layers"] + 1
    examples.pop("labels")
    (logits,) = model.eval()(**examples, return_dict=False)
    assert_equal(logits, results.logits)
    model.config.return_dict = False
    (logits,) = model(**examples)
    assert_equal(logits, results.logits)
