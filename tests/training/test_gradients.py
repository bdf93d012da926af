"""Every weight that trains gets a gradient, in every head and strategy: DDP waits for each, and is not told to look.
What is frozen gets none."""

import pytest
import torch
from conftest import HEADS, LONG, TYPES, N, assert_equal, batch, extended, gradients, long_class, tiny_config
from transformers import PreTrainedModel

from longbert.finetuning.tasks.classification import ChunkPoolForSequenceClassification
from longbert.finetuning.tasks.multiple_choice import ChunkPoolForMultipleChoice
from longbert.training.freezing import freeze_pooler, select_parameters


LABELS = {
    "ForPreTraining": {"labels": torch.full((2, LONG), 7), "next_sentence_label": torch.tensor([0, 1])},
    "ForMaskedLM": {"labels": torch.full((2, LONG), 7)},
    "ForNextSentencePrediction": {"labels": torch.tensor([0, 1])},
    "ForSequenceClassification": {"labels": torch.tensor([0, 1])},
    "ForTokenClassification": {"labels": torch.zeros(2, LONG, dtype=torch.long)},
    "ForQuestionAnswering": {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])},
    "ForMultipleChoice": {"labels": torch.tensor([0, 1])},
}


def backward(model: PreTrainedModel, **inputs: torch.Tensor) -> None:
    """The gradient of the loss, or of the sum of what is read where there is none."""
    outputs = model.train()(**inputs)
    outputs["loss" if "loss" in outputs else next(iter(outputs))].sum().backward()


def without_gradient(model: PreTrainedModel) -> list[str]:
    return [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("settings", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("head", HEADS)
def test_every_weight_that_trains_gets_a_gradient(head, settings, pooling):
    model = long_class(head)(tiny_config(**settings, classifier_pooling=pooling))
    if head == "Model":  # a sentence encoder, whose token vectors alone are read
        freeze_pooler(model)
    length = min(LONG, model.config.max_position_embeddings)
    labels = LABELS.get(head, {})
    labels = {name: each[:, :length].clone() if each.dim() == 2 else each for name, each in labels.items()}
    backward(model, **batch(length, head), **labels)
    assert not without_gradient(model)


@pytest.mark.parametrize("model_class", [ChunkPoolForSequenceClassification, ChunkPoolForMultipleChoice])
def test_so_does_every_weight_of_a_model_that_pools_pieces(model_class):
    model = model_class(tiny_config(position_type="learned"))
    backward(model, **batch(N, model_class.__name__.removeprefix("ChunkPool"), batch_size=6), owner=torch.arange(6))
    assert not without_gradient(model)


# rows past the source's n, which `train_only: positions` trains
WITH_NEW_ROWS = {
    "learned-extended": TYPES["learned-extended"],
    "hierarchical": {**TYPES["hierarchical"], "hierarchical_rows": N + 4},
}


@pytest.mark.parametrize("settings", WITH_NEW_ROWS.values(), ids=WITH_NEW_ROWS)
def test_frozen_rows_get_no_gradient_and_the_others_theirs(settings, bert):
    model, other = (extended(bert(), "ForMaskedLM", TYPES["learned-extended"]) for _ in range(2))
    if settings["position_type"] == "hierarchical":
        model, other = (long_class("ForMaskedLM")(tiny_config(**settings)) for _ in range(2))
        other.load_state_dict(model.state_dict())
    inputs = {**batch(LONG), "labels": batch(LONG)["input_ids"]}
    model.eval(), other.eval()
    select_parameters(model, ["positions"])
    loss, expected_loss = model(**inputs).loss, other(**inputs).loss
    assert_equal(loss, expected_loss)
    loss.backward()
    expected_loss.backward()
    name = "bert.embeddings.position_embeddings.weight"
    found, expected = gradients(model), gradients(other)[name]
    assert not found[name][:N].any() and expected[:N].any()
    assert_equal(found[name][N:], expected[N:])
    assert [each for each, gradient in found.items() if gradient is not None] == [name]
    assert_equal(model.state_dict(), other.state_dict())
