"""A long activation is computed again in the backward pass: the same numbers, for less memory and no product more."""

from collections import Counter

import pytest
import torch
from conftest import assert_close, batch, gradients, tiny_config
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel

from longbert import LongBertModel, feed_forward
from longbert.training.memory import checkpoint_activations


WAYS = {
    "plain": lambda model: None,
    "layers checkpointed": lambda model: checkpoint_activations(model, 1),
    "attention kept": lambda model: checkpoint_activations(model, 10**6),
}


class Watch(TorchDispatchMode):
    """Counts operations, and knows which of their results of so many numbers are still held."""

    def __init__(self, numbers: int):
        super().__init__()
        self.numbers, self.counts = numbers, Counter()
        self.results: list[StorageWeakRef] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.counts[str(function).split(".")[1]] += 1
        found = function(*arguments, **(options or {}))
        if isinstance(found, torch.Tensor) and found.numel() == self.numbers:
            self.results.append(StorageWeakRef(found.untyped_storage()))
        return found

    def held(self) -> int:
        return len({result.cdata for result in self.results if not result.expired()})


@pytest.fixture(params=[0, 2**60], ids=["recomputed", "kept"])
def recomputed(request, monkeypatch):
    monkeypatch.setattr(feed_forward, "RECOMPUTED_FROM", request.param)
    return request.param == 0


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("act", ["gelu", "relu", "gelu_new"])
@pytest.mark.usefixtures("recomputed")
def test_gradients_are_plain_berts(act, way):
    torch.manual_seed(0)
    config = tiny_config(hidden_act=act, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.1)
    long = LongBertModel(config, add_pooling_layer=False).train()
    fields = {name: value for name, value in config.to_dict().items() if name in BertConfig().to_dict()}
    stock = BertConfig(**{**fields, "model_type": "bert"}, attn_implementation="sdpa")
    plain = BertModel(stock, add_pooling_layer=False).train()
    plain.load_state_dict(long.state_dict(), strict=False)
    way(long)
    inputs = batch(16, batch_size=2)
    found = []
    for model in (long, plain):
        torch.manual_seed(1)  # the same dropout
        states = model(**inputs).last_hidden_state
        states.pow(3).sum().backward()
        found.append((states, gradients(model)))
    (ours, our_gradients), (theirs, their_gradients) = found
    assert torch.equal(ours, theirs)
    for name, gradient in their_gradients.items():
        if gradient is not None:
            assert_close(our_gradients[name], gradient, rtol=1e-5, atol=1e-5)


def test_nothing_is_computed_again_but_the_activation_which_is_not_held(recomputed):
    model = LongBertModel(
        tiny_config(hidden_act="gelu", intermediate_size=96, max_position_embeddings=32), add_pooling_layer=False
    ).train()
    layers = model.config.num_hidden_layers
    with Watch(numbers=2 * 17 * 96) as watch:
        states = model(**batch(17)).last_hidden_state
        held, products = watch.held(), watch.counts["addmm"]
        states.pow(3).sum().backward()
    assert held == layers * (1 if recomputed else 2)
    assert watch.counts["gelu"] == layers * (2 if recomputed else 1)
    assert watch.counts["addmm"] == products
