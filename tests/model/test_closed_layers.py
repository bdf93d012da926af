"""Closed layers: full attention that begins nearly as the window, and opens by training."""

import re

import pytest
import torch
from conftest import N, assert_close, batch, tiny_config
from huggingface_hub.errors import StrictDataclassError
from transformers import BertConfig, BertForMaskedLM, BertModel, TrainingArguments

from longbert import LongBertConfig, LongBertForMaskedLM, LongBertModel
from longbert.baking import bake
from longbert.training.meter import visible_tokens
from longbert.training.safety import SafeTrainer


CLOSED = {"max_position_embeddings": 128, "attention_window": 8, "closed_attention_layers": [1]}


def model_of(start=-4.0, model_class=LongBertModel, **settings):
    torch.manual_seed(0)
    return model_class(tiny_config(**CLOSED | {"closed_attention_start": start} | settings)).eval()


def states(model, length=100):
    with torch.no_grad():
        return model(**batch(length)).last_hidden_state


@pytest.mark.parametrize(
    ("start", "same_as", "tolerance"),
    [
        (-30.0, {"closed_attention_layers": None}, 1e-6),
        (30.0, {"closed_attention_layers": None, "full_attention_layers": [1]}, 1e-6),
        (-4.0, {"closed_attention_layers": None}, 0.1),
    ],
)
def test_closed_it_is_the_window_and_open_it_is_full(start, same_as, tolerance):
    model, other = model_of(start), model_of(**same_as)
    missing, unexpected = other.load_state_dict(model.state_dict(), strict=False)
    assert (missing, unexpected) == ([], ["encoder.layer.1.attention.self.far_gate"])
    assert_close(states(model), states(other), rtol=0, atol=tolerance)


def test_what_is_outside_counts_by_the_sigmoid_of_a_heads_weight():
    """By softmax in fp64, with a mask written by hand."""
    model = model_of(num_hidden_layers=1, closed_attention_layers=[0]).double()
    attention = model.encoder.layer[0].attention.self
    attention.far_gate.data = torch.tensor([-3.0, 0.5], dtype=torch.float64)
    inputs = batch(60, batch_size=1)
    index = torch.arange(60)
    near = ((index[:, None] - index).abs() <= 4) | (index[:, None] == 0) | (index == 0)
    with torch.no_grad():
        found = model(**inputs).last_hidden_state
        embedded = model.embeddings(**inputs)
        heads = [
            project(embedded)[0].view(60, 2, 16).transpose(0, 1)
            for project in (attention.query, attention.key, attention.value)
        ]
        weights = (heads[0] @ heads[1].mT / 4).exp()
        counted = torch.where(near, 1.0, torch.sigmoid(attention.far_gate)[:, None, None])
        mixed = (weights * counted / (weights * counted).sum(-1, keepdim=True)) @ heads[2]
        layer = model.encoder.layer[0]
        after = layer.attention.output(mixed.transpose(0, 1).reshape(1, 60, 32), embedded)
        expected = layer.output(layer.intermediate(after), after)
    assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_short_texts_are_the_sources_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    plain = BertModel(BertConfig(**tiny_bert())).eval()
    plain.save_pretrained(tmp_path)
    model, info = LongBertModel.from_pretrained(
        tmp_path, config=LongBertConfig.from_pretrained(tmp_path, **CLOSED), output_loading_info=True
    )
    assert sorted(info["missing_keys"]) == ["encoder.layer.1.attention.self.far_gate"]
    assert model.encoder.layer[1].attention.self.far_gate.tolist() == [-4.0, -4.0]
    assert torch.equal(states(model.eval(), N), states(plain, N))


def tiny_bert() -> dict:
    config = tiny_config()
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return {"max_position_embeddings": N, **{name: getattr(config, name) for name in names}}


def test_saved_and_loaded_its_heads_are_as_open_as_they_were(tmp_path):
    model = model_of()
    model.encoder.layer[1].attention.self.far_gate.data = torch.tensor([-1.0, 2.0])
    model.save_pretrained(tmp_path)
    again, info = LongBertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(states(again.eval()), states(model))


def test_baked_to_the_sources_length_it_says_the_same():
    model = model_of(model_class=LongBertForMaskedLM)
    plain = bake(model, N)
    assert isinstance(plain, BertForMaskedLM)
    with torch.no_grad():
        assert_close(plain(**batch(N)).logits, model(**batch(N)).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"closed_attention_layers": [2]}, "closed_attention_layers must lie in 0-1, got 2"),
        ({"attention_window": None}, "closed to what is outside of a window: set attention_window"),
        ({"full_attention_layers": [1]}, r"layers \[1\] are in full_attention_layers and in closed_attention_layers"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(StrictDataclassError) as refused:
        tiny_config(**CLOSED | settings)
    assert re.search(message, str(refused.value.__cause__))


def test_gates_have_a_rate_of_their_own_and_no_decay(tmp_path):
    model = model_of(model_class=LongBertForMaskedLM)
    args = TrainingArguments(
        str(tmp_path), learning_rate=1e-4, weight_decay=0.1, report_to="none", use_cpu=True, max_steps=10
    )
    trainer = SafeTrainer(model, args, closed_attention_learning_rate=0.03)
    trainer.create_optimizer_and_scheduler(10)
    (own,) = [group for group in trainer.optimizer.param_groups if group["initial_lr"] == 0.03]
    assert own["params"] == [model.bert.encoder.layer[1].attention.self.far_gate] and own["weight_decay"] == 0
    everything = [weight for group in trainer.optimizer.param_groups for weight in group["params"]]
    assert len(everything) == len({*map(id, everything)}) == len([*model.parameters()])


def test_the_meter_counts_both_ways_that_a_closed_layer_reads():
    config = tiny_config(**CLOSED)
    assert visible_tokens(config, 100) == 100 + 2 * (8 + 1 + 1)


def test_memory_is_linear():
    """No tensor of n² scores is held, forwards or backwards."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            for tensor in found if isinstance(found, tuple | list) else [found]:
                if isinstance(tensor, torch.Tensor):
                    Largest.size = max(Largest.size, tensor.numel())
            return found

    length = 4096
    model = model_of(max_position_embeddings=length, attention_window=64).train()
    with Largest():
        model(**batch(length, batch_size=1)).last_hidden_state.sum().backward()
    assert Largest.size < length**2 / 8
