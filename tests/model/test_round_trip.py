"""Laws 3, 4, 9, 10 past n: saved is loaded, a text is itself, baked is custom, too long is an error."""

import inspect

import pytest
import torch
from conftest import (
    EVERYTHING,
    HEADS,
    INITS,
    LONG,
    TINY,
    TYPES,
    N,
    assert_close,
    assert_equal,
    auto_class,
    batch,
    every_head,
    every_setting,
    every_type,
    extended,
    gradients,
    long_class,
    outputs,
    table,
    tiny_config,
)
from huggingface_hub.errors import StrictDataclassError
from transformers import BertConfig, BertForMaskedLM, BertModel

from longbert import LongBertForMaskedLM, LongBertModel, extend_table


REACHING_FURTHER = {name: settings for name, settings in TYPES.items() if name != "learned"}
every_growing = table("settings", REACHING_FURTHER)


def reach(model) -> int:
    return model.config.max_position_embeddings


def everything(model) -> dict:
    """All that a model holds, in its file or not."""
    embeddings = model.base_model.embeddings
    return {
        **model.state_dict(),
        "positions": model.position_table(),
        "position_ids": embeddings.position_ids,
        "token_type_ids": embeddings.token_type_ids,
    }


# Law 3: what is saved is what is loaded


FAST = ("learned", "learned-extended-tile-skip-special", "hierarchical", "sinusoidal")


# the fast tests take every head with every position type, and every way to fill rows with one head
SAVED = [
    pytest.param(
        settings, head, id=f"{name}-{head}", marks=[] if name in FAST or head == "ForMaskedLM" else pytest.mark.slow
    )
    for name, settings in EVERYTHING.items()
    for head in HEADS
]


@pytest.mark.parametrize(("settings", "head"), SAVED)
def test_what_is_saved_is_what_is_loaded(settings, head, bert, tmp_path):
    model = extended(bert(), head, settings)
    model.save_pretrained(tmp_path)
    inputs = batch(reach(model), head)
    for loader in (long_class(head), auto_class(head)):
        again, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert_equal(everything(again), everything(model))
        assert_close(outputs(again, **inputs), outputs(model, **inputs))


@every_type
def test_a_model_from_scratch_is_saved_too(settings, tmp_path):
    model = LongBertForMaskedLM(tiny_config(**settings)).eval()
    model.save_pretrained(tmp_path)
    again = LongBertForMaskedLM.from_pretrained(tmp_path)
    assert_equal(everything(again), everything(model))
    assert_equal(again.base_model.embeddings.position_ids, torch.arange(reach(model))[None])
    assert_equal(again.base_model.embeddings.token_type_ids, torch.zeros(1, reach(model), dtype=torch.long))


# Resizing


@every_growing
@pytest.mark.parametrize("length", [LONG + 25, LONG - 5, N], ids=["grow", "shrink", "to-the-source"])
def test_resizing_keeps_every_row_that_stays(length, settings, bert, tmp_path):
    model = extended(bert(), "ForMaskedLM", settings)
    model.get_position_embeddings().weight.requires_grad_(False)
    before = model.position_table()
    model.resize_position_embeddings(length)
    stays = min(length, LONG)
    assert_equal(model.position_table()[:stays], before[:stays])
    assert len(model.position_table()) == reach(model) == reach(model.bert) == length
    assert not model.get_position_embeddings().weight.requires_grad
    assert outputs(model, **batch(length))["logits"].isfinite().all()
    with pytest.raises(ValueError, match=f"has {length + 1} tokens, this model reaches {length}"):
        model(**batch(length + 1))
    model.save_pretrained(tmp_path)
    assert_equal(everything(LongBertForMaskedLM.from_pretrained(tmp_path)), everything(model))


GROWING = {name: settings for name, settings in INITS.items() if "random" not in name and "interpolate" not in name}


@table("settings", GROWING)
def test_growing_fills_new_rows_from_all_rows_there_are(settings, bert):
    model = extended(bert(), "Model", settings)
    before = model.position_table()
    model.resize_position_embeddings(70)
    assert_equal(model.position_table(), extend_table(before, 70, model.config))


IMPOSSIBLE_LENGTHS = {
    "learned-longer": ("learned", N + 1, "exactly the source's 16"),
    "hierarchical-past-n-squared": ("hierarchical", N * N + 1, "16² = 256"),
    **{f"{name}-below-the-source": (name, N - 1, "fewer than the source's 16") for name in TYPES},
}


@table("impossible", IMPOSSIBLE_LENGTHS)
def test_an_impossible_length_is_refused_and_changes_nothing(impossible, bert):
    position_type, length, message = impossible
    model = extended(bert(), "ForMaskedLM", TYPES[position_type])
    before, config = everything(model), model.config.to_dict()
    with pytest.raises(StrictDataclassError, match=message):
        model.resize_position_embeddings(length)
    assert_equal(everything(model), before)
    assert model.config.to_dict() == config


# Law 4: a text's output depends on that text alone


@pytest.mark.parametrize("side", ["right", "left"])
@table("settings", EVERYTHING | {"zero-padding": TYPES["sinusoidal"] | {"zero_padding_positions": True}})
def test_a_text_does_not_depend_on_its_batch_nor_its_padding(settings, side, bert):
    model = extended(bert(), "ForMaskedLM", settings)
    longest = reach(model)
    lengths = [longest, N // 2, 1, N - 3]
    texts = [slice(0, length) if side == "right" else slice(longest - length, longest) for length in lengths]
    inputs = batch(longest, batch_size=len(lengths))
    mask = torch.zeros_like(inputs["input_ids"])
    for row, text in enumerate(texts):
        mask[row, text] = 1
    together = outputs(model, **inputs, attention_mask=mask)["logits"]
    for row, text in enumerate(texts):
        alone = outputs(model, **{name: ids[row : row + 1, text] for name, ids in inputs.items()})["logits"]
        assert_close(together[row : row + 1, text], alone)


@pytest.mark.parametrize("attention", ["longbert", "sdpa", "eager"])
def test_a_classifier_reads_the_mean_of_a_texts_own_tokens(attention, bert):
    settings = INITS["learned-extended-tile"] | {"classifier_pooling": "mean"}
    model = extended(bert(), "ForSequenceClassification", settings, attn_implementation=attention)
    inputs = batch(LONG) | {"attention_mask": (torch.arange(LONG) < torch.tensor([[LONG], [N]])).long()}
    states = outputs(model.bert, **inputs)["last_hidden_state"]
    means = torch.stack((states[0].mean(0), states[1, :N].mean(0)))
    pooled = torch.tanh(means @ model.bert.pooler.dense.weight.T + model.bert.pooler.dense.bias)
    expected = (pooled @ model.classifier.weight.T + model.classifier.bias).detach()
    assert_close(outputs(model, **inputs)["logits"], expected)
    assert_close(model(**inputs, return_dict=False)[0], expected)


@every_type
def test_a_text_does_not_depend_on_what_it_is_packed_with(settings, bert):
    model = extended(bert(), "ForMaskedLM", settings)
    texts = batch(N // 2, batch_size=2)
    packed = {name: ids.reshape(1, N) for name, ids in texts.items()}
    logits = outputs(model, **packed, position_ids=torch.arange(N // 2).repeat(2)[None])["logits"]
    assert_close(logits.reshape(2, N // 2, -1), outputs(model, **texts)["logits"])


@every_type
def test_nothing_is_remembered_between_forwards(settings, bert):
    model = extended(bert(), "ForMaskedLM", settings)
    held = {name: tensor.clone() for name, tensor in everything(model).items()}
    first = outputs(model, **batch(7))
    outputs(model, **batch(reach(model)))
    assert_equal(outputs(model, **batch(7)), first)
    assert_equal(everything(model), held)


@every_type
def test_inputs_may_come_as_embeddings_or_with_their_own_positions(settings, bert):
    model = extended(bert(), "ForMaskedLM", settings)
    inputs = batch(reach(model))
    expected = outputs(model, **inputs)
    positions = torch.arange(reach(model))[None]
    assert_equal(outputs(model, **inputs, position_ids=positions), expected)
    vectors = model.get_input_embeddings()(inputs["input_ids"])
    assert_equal(outputs(model, inputs_embeds=vectors, token_type_ids=inputs["token_type_ids"]), expected)
    # Order is only in the positions: shuffling both leaves every token's output where the token went
    order = torch.randperm(reach(model))
    shuffled = {name: ids[:, order] for name, ids in inputs.items()}
    everywhere = torch.ones_like(inputs["input_ids"])  # else positions that start over mean packed documents
    logits = outputs(model, **shuffled, position_ids=positions[:, order], attention_mask=everywhere)["logits"]
    assert_close(logits, expected["logits"][:, order])


@every_type
def test_attention_implementations_agree(settings, bert):
    inputs = batch(N) | {"attention_mask": (torch.arange(N) < torch.tensor([[N], [N // 2]])).long()}
    eager, *others = (
        outputs(extended(bert(), "ForMaskedLM", settings, attn_implementation=name), **inputs)["logits"]
        for name in ("eager", "sdpa", "longbert")
    )
    attended = inputs["attention_mask"].bool()
    for other in others:
        assert_close(other[attended], eager[attended])


# Law 9: every type is some learned table


@every_setting
def test_a_plain_bert_with_the_position_table_is_the_same_model(settings, bert):
    model = extended(bert(), "ForMaskedLM", settings)
    plain = BertForMaskedLM(BertConfig(**TINY | {"max_position_embeddings": reach(model)})).eval()
    weights = model.state_dict() | {"bert.embeddings.position_embeddings.weight": model.position_table()}
    plain.load_state_dict(weights)
    for length in sorted({1, N, N + 1, reach(model)} & set(range(reach(model) + 1))):
        assert_equal(outputs(plain, **batch(length)), outputs(model, **batch(length)))


# Law 10: too long is an error


@every_head
@every_type
def test_too_long_an_input_is_refused_with_both_lengths(settings, head, bert):
    model = extended(bert(), head, settings)
    longest = reach(model)
    message = f"has {longest + 1} tokens, this model reaches {longest}.*max_length={longest}"
    vectors = torch.zeros(*batch(longest + 1, head)["input_ids"].shape, TINY["hidden_size"])
    outputs(model, **batch(longest, head))
    for inputs in (batch(longest + 1, head), {"inputs_embeds": vectors}):
        with pytest.raises(ValueError, match=message):
            model(**inputs)


# A decoder


@every_type
def test_a_decoders_past_counts_and_its_positions_go_on(settings):
    model = LongBertModel(tiny_config(**settings, is_decoder=True)).eval()
    longest = reach(model)
    inputs = batch(longest)["input_ids"]
    name = "cache" if "cache" in inspect.signature(BertModel.forward).parameters else "past_key_values"  # since 5.24
    past = {name: model(inputs[:, :-3], use_cache=True)[name]}
    whole = model(inputs).last_hidden_state[:, -3:]
    assert_close(model(inputs[:, -3:], **past).last_hidden_state, whole)
    with pytest.raises(ValueError, match=f"has {longest + 1} tokens"):
        model(inputs[:, :1], **past)


# Training


@every_head
@every_type
def test_every_parameter_learns(settings, head, bert):
    model = extended(bert(), head, settings).train()
    results = model(**batch(reach(model), head))
    sum(result.square().mean() for result in results.values()).backward()
    for name, gradient in gradients(model).items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
    # Every stored row is used by some position
    assert (model.get_position_embeddings().weight.grad.abs().sum(-1) > 0).all()
