"""Laws 4 to 6 for losses: they are the dense ones, mean the same for any split, and no padding enters them."""

from types import SimpleNamespace

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
from longbert.finetuning.tasks.question_answering import QuestionAnswering
from longbert.finetuning.tasks.token_classification import TokenClassification


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


# What no number of items, no padding and no dtype may spoil


@pytest.mark.parametrize("as_type", [int, torch.tensor])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_of_no_items_nothing_is_learnt(dtype, as_type, pairs):
    model, examples = pairs
    unlabelled = {name: torch.full_like(examples[name], -100) for name in ("labels", "next_sentence_label")}
    model.to(dtype)
    numbers = {"num_items_in_batch": as_type(0), "num_pairs_in_batch": as_type(0)}
    for labels in (unlabelled, {}):
        loss = model(**examples | labels, **numbers).loss
        assert loss == 0
        assert all((gradient == 0).all() for gradient in learnt(model, loss).values())


def test_of_no_items_the_fine_tuning_losses_are_0_too():
    logits, labels = torch.randn(2, 3, requires_grad=True), torch.zeros(2, dtype=torch.long)
    for number in (0, torch.tensor(0)):
        assert losses.per_item(torch.nn.functional.cross_entropy(logits, labels), number) == 0
    unlabelled = SimpleNamespace(logits=torch.randn(2, 3, 4))
    assert TokenClassification.loss(None, unlabelled, torch.full((2, 3), -100)) == 0


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("head", ["ForPreTraining", "ForMaskedLM", "ForTokenClassification"])
def test_labels_at_padding_are_not_learnt(head, side, bert):
    model = extended(bert(head), head, TYPES["hierarchical"])
    inputs = batch(LENGTH)
    real = torch.arange(LENGTH) < torch.tensor([[LENGTH], [7]])
    inputs["attention_mask"] = real.long() if side == "right" else real.flip(-1).long()
    labels = torch.randint(0, 2, real.shape)
    right = labels.masked_fill(inputs["attention_mask"] == 0, losses.IGNORE_INDEX)
    for implementation in ("longbert", "eager"):
        model.set_attn_implementation(implementation)
        assert_equal(model.eval()(**inputs, labels=labels).loss, model(**inputs, labels=right).loss)


# Question answering


@pytest.fixture
def answers(bert):
    """Three texts of unequal length with an answer each, padded on both sides, and the model."""
    model = extended(bert("ForQuestionAnswering"), "ForQuestionAnswering", TYPES["hierarchical"]).eval()
    lengths, before = torch.tensor([[16], [9], [5]]), torch.tensor([[8], [0], [11]])
    index = torch.arange(LENGTH)
    mask = ((index >= before) & (index < before + lengths)).long()
    spans = {"start_positions": torch.tensor([10, 0, 12]), "end_positions": torch.tensor([23, 4, 15])}
    return model, batch(LENGTH, batch_size=3) | {"attention_mask": mask}, spans


def alone(inputs: dict, spans: dict, row: int) -> tuple[dict, dict]:
    real = inputs["attention_mask"][row].bool()
    first = int(real.long().argmax())
    text = {name: tensor[row : row + 1, real] for name, tensor in inputs.items() if name != "attention_mask"}
    return text, {name: positions[row : row + 1] - first for name, positions in spans.items()}


@pytest.mark.parametrize("implementation", ["longbert", "sdpa", "eager"])
def test_an_answers_loss_is_its_texts_own(implementation, answers, bert):
    model, inputs, spans = answers
    stock = bert_class("ForQuestionAnswering").from_pretrained(bert("ForQuestionAnswering"))
    model.set_attn_implementation(implementation)
    expected = []
    for row in range(3):
        text, span = alone(inputs, spans, row)
        expected.append(stock(**text, **span).loss)
        assert_close(model(**text, **span).loss, expected[-1], rtol=1e-5, atol=0)
    assert_close(model(**inputs, **spans).loss, torch.stack(expected).mean(), rtol=1e-5, atol=0)
    together = learnt(model, model(**inputs, **spans).loss)
    assert_close(together, learnt(model, *own_losses(answers)), rtol=1e-4, atol=1e-6)


def own_losses(answers: tuple) -> list[torch.Tensor]:
    model, inputs, spans = answers
    texts = [alone(inputs, spans, row) for row in range(3)]
    return [model(**text, **span).loss / 3 for text, span in texts]


def test_the_fine_tuning_loss_of_an_answer_is_its_texts_own(answers):
    model, inputs, spans = answers
    labels = torch.stack(list(spans.values()), dim=-1)
    together = QuestionAnswering.loss(None, model(**inputs), labels)
    assert_close(together, sum(own_losses(answers)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_no_softmax_of_an_answer_sees_padding(dtype, answers):
    model, inputs, _ = answers
    result = model.to(dtype)(**inputs)
    for logits in (result.start_logits, result.end_logits):
        assert logits.dtype == dtype
        assert (logits.softmax(-1)[inputs["attention_mask"] == 0] == 0).all()


UNKNOWN = {
    "past the end": [LENGTH, 3, 4],
    "far past it": [1000, 3, 4],
    "all past it": [LENGTH, LENGTH + 1, 99],
    "before the start": [-5, 3, 4],
    "a dimension more": [[2], [3], [4]],
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_positions_outside_a_text_are_taken_as_bert_takes_them(case, answers, bert):
    model, inputs, _ = answers
    stock = bert_class("ForQuestionAnswering").from_pretrained(bert("ForQuestionAnswering"))
    short = {name: tensor[:, :16].contiguous() for name, tensor in inputs.items() if name != "attention_mask"}
    starts = torch.tensor(UNKNOWN[case])
    starts = starts.where(starts < LENGTH, starts - LENGTH + 16)
    spans = {"start_positions": starts, "end_positions": torch.tensor([5, 6, 7])}
    expected = stock(**short, **spans).loss
    if case == "all past it":  # BERT's mean of nothing is NaN
        ends = [
            stock(**{name: tensor[row : row + 1] for name, tensor in short.items()}).end_logits.log_softmax(-1)[0, at]
            for row, at in enumerate((5, 6, 7))
        ]
        expected = -torch.stack(ends).mean() / 2
    assert_close(model(**short, **spans).loss, expected, rtol=1e-5, atol=0)


def test_positions_at_padding_are_ignored(answers):
    model, inputs, spans = answers
    only_first = {name: positions.where(torch.tensor([True, False, False]), 99) for name, positions in spans.items()}
    at_padding = {name: torch.stack((positions[0], *torch.tensor([20, 0]))) for name, positions in spans.items()}
    assert_equal(model(**inputs, **at_padding).loss, model(**inputs, **only_first).loss)
    nowhere = {name: torch.full_like(positions, 99) for name, positions in spans.items()}
    assert model(**inputs, **nowhere).loss == 0


def test_answers_as_a_tuple(answers):
    model, inputs, spans = answers
    loss, start_logits, end_logits = model(**inputs, **spans, return_dict=False)
    result = model(**inputs, **spans)
    assert_equal((loss, start_logits, end_logits), (result.loss, result.start_logits, result.end_logits))
    assert len(model(**inputs, return_dict=False)) == 2


# fp64


@pytest.mark.parametrize("head", ["ForPreTraining", "ForMaskedLM", "ForQuestionAnswering"])
def test_a_loss_of_doubles_is_one(head, bert, monkeypatch):
    """By central differences, whose error fp32 would not hide."""
    monkeypatch.setattr(losses, "ROWS_PER_CHUNK", 7)
    model = extended(bert(head), head, {"position_type": "learned"}, dtype=torch.float64).eval()
    inputs = batch(16)
    labels = {
        "ForPreTraining": {"labels": inputs["input_ids"], "next_sentence_label": torch.tensor([0, 1])},
        "ForMaskedLM": {"labels": inputs["input_ids"]},
        "ForQuestionAnswering": {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])},
    }[head]
    loss = model(**inputs, **labels).loss
    assert loss.dtype == torch.float64
    weight = model.base_model.encoder.layer[0].output.dense.weight
    slope = learnt(model, loss)["bert.encoder.layer.0.output.dense.weight"][0, 0]
    found = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            weight[0, 0] += step
            found.append(model(**inputs, **labels).loss)
    assert_close((found[0] - found[1]) / 2e-5, slope, rtol=1e-6, atol=1e-10)
