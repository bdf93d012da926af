"""Laws 4 and 5 for attention: every way agrees, texts see only themselves, and nothing n x n is ever held."""

import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from conftest import N, assert_close, batch, every_dtype, extended, gradients, long_class, table, tiny_config
from pretend_cuda import Card, on_card
from torch.utils._python_dispatch import TorchDispatchMode

from longbert import LongBertForMaskedLM, LongBertModel, attention
from longbert.kernels import CPU, FLASH, QUERIES_PER_CHUNK
from longbert.modeling_longbert import mean_of_texts
from longbert.text_attention import TextAttention, make_plan
from longbert.text_layout import Flattening, TextLayout, Window
from longbert.texts import whole_rows
from longbert.training.memory import checkpoint_activations, is_attention


REACH = 256
LENGTHS = [200, 120, 16, 5]  # two texts past the source's 16 positions, two within
WINDOWS = {
    "full": {},
    "window": {"attention_window": 8},
    "window-no-global": {"attention_window": 8, "global_tokens": 0},
    "window-three-globals": {"attention_window": 64, "global_tokens": 3},
    "window-last-layer-full": {"attention_window": 8, "full_attention_layers": [1]},
    "window-closed": {"attention_window": 8, "closed_attention_layers": [0, 1], "closed_attention_start": -0.5},
}
every_window = table("window", WINDOWS)
PLAIN = ["sdpa", "eager"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """So that a text of 200 tokens crosses many chunks."""
    monkeypatch.setitem(QUERIES_PER_CHUNK, CPU, 32)


def build(model_class=LongBertModel, **settings):
    undropped = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return model_class(tiny_config(max_position_embeddings=REACH, **undropped, **settings))


def padded(side: str = "right") -> dict[str, torch.Tensor]:
    """Texts of `LENGTHS` tokens in one batch, with a global token in the middle of the long ones."""
    inputs = batch(max(LENGTHS), batch_size=len(LENGTHS))
    index = torch.arange(max(LENGTHS))
    lengths = torch.tensor(LENGTHS)[:, None]
    real = index < lengths if side == "right" else index >= max(LENGTHS) - lengths
    marked = torch.zeros_like(real)
    marked[:2, 150] = True
    return {**inputs, "attention_mask": real.long(), "global_attention_mask": (marked & real).long()}


def alone(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One text of a padded batch, without its padding."""
    real = inputs["attention_mask"][row].bool()
    return {name: tensor[row][real][None] for name, tensor in inputs.items() if name != "attention_mask"}


@every_window
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("implementation", [attention.NAME, *PLAIN])
def test_a_text_in_a_batch_is_the_text_alone(implementation, side, window):
    model, inputs = build(**window).eval(), padded(side)
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        together = model(**inputs).last_hidden_state
        for row, length in enumerate(LENGTHS):
            text = together[row][inputs["attention_mask"][row].bool()]
            assert_close(text, model(**alone(inputs, row)).last_hidden_state[0], rtol=1e-5, atol=2e-6, msg=f"{length}")


@every_window
@pytest.mark.parametrize("plain", PLAIN)
def test_fast_equals_plain_with_gradients(plain, window):
    model, inputs = build(LongBertForMaskedLM, **window).train(), padded()
    chosen = (torch.rand(inputs["input_ids"].shape) < 0.3) & inputs["attention_mask"].bool()
    labels = inputs["input_ids"].where(chosen, -100)
    results = []
    for implementation in (attention.NAME, plain):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        results.append((loss.detach(), {name: gradient.clone() for name, gradient in gradients(model).items()}))
    assert_close(*results, rtol=1e-5, atol=1e-6)


@every_window
@every_dtype
def test_fast_equals_plain_in_every_dtype(dtype, window):
    model, inputs = build(**window).eval().to(dtype), padded()
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        fast = model(**inputs).last_hidden_state[real]
        model.set_attn_implementation("eager")
        assert_close(fast, model(**inputs).last_hidden_state[real], rtol=0, atol=32 * torch.finfo(dtype).eps)


@every_window
@pytest.mark.parametrize("implementation", [attention.NAME, *PLAIN])
def test_packed_documents_do_not_see_each_other(implementation, window):
    model = build(**window).eval()
    model.set_attn_implementation(implementation)
    inputs = batch(sum(LENGTHS[1:]), batch_size=1)
    position_ids = torch.cat([torch.arange(length) for length in LENGTHS[1:]])[None]
    with torch.no_grad():
        packed = model(**inputs, position_ids=position_ids).last_hidden_state
        start = 0
        for length in LENGTHS[1:]:
            document = {name: tensor[:, start : start + length] for name, tensor in inputs.items()}
            assert_close(packed[:, start : start + length], model(**document).last_hidden_state, rtol=1e-5, atol=2e-6)
            start += length


def test_the_window_hides_what_is_far_and_global_tokens_see_it():
    model = build(attention_window=8, num_hidden_layers=1).eval()
    inputs = batch(200, batch_size=1)
    changed = inputs["input_ids"].clone()
    changed[0, 100] = (changed[0, 100] + 1) % 100
    with torch.no_grad():
        before = model(**inputs).last_hidden_state
        after = model(**{**inputs, "input_ids": changed}).last_hidden_state
    moved = (before != after).any(-1)[0].nonzero().flatten().tolist()
    assert moved == [0, *range(96, 105)]


def test_outputs_have_the_shapes_transformers_promises():
    model, inputs = build().eval(), padded()
    result = model(**inputs, output_hidden_states=True)
    shape = (len(LENGTHS), max(LENGTHS), 32)
    assert result.last_hidden_state.shape == shape
    assert [tensor.shape for tensor in result.hidden_states] == [shape] * 3
    assert_close(result.pooler_output, model.pooler(result.last_hidden_state))
    as_tuple = model(**inputs, return_dict=False)
    assert_close(as_tuple[:2], (result.last_hidden_state, result.pooler_output))


def test_hidden_states_of_chosen_layers():
    model, inputs = build().eval(), padded()
    (chosen,) = filter(torch.is_tensor, model(**inputs, output_hidden_states=[0]).hidden_states)
    # transformers 5.17 counted from the first layer, 5.24 counts from the embeddings
    every = model(**inputs, output_hidden_states=True).hidden_states
    assert any(torch.equal(chosen, states) for states in every)


def test_attention_probabilities_on_request():
    model, inputs = build(attention_window=8).eval(), padded()
    result = model(**inputs, output_attentions=True)
    heads = (len(LENGTHS), 2, max(LENGTHS), max(LENGTHS))
    assert [probabilities.shape for probabilities in result.attentions] == [heads] * 2
    real = inputs["attention_mask"].bool()
    assert_close(result.last_hidden_state[real], model(**inputs).last_hidden_state[real], rtol=1e-5, atol=2e-6)


@table("case", {"selective": (None, 200), "window": (8, 200), "short": (None, 100)})
def test_gradient_checkpointing_changes_nothing(case):
    window, length = case
    model, inputs = build(LongBertForMaskedLM, attention_window=window).train(), padded()
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            # 6 x the hidden size of 32 is where attention begins to dominate
            assert ("selective" in checkpoint_activations(model, length)) == (window is None and length > 192)
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        found.append({name: gradient.clone() for name, gradient in gradients(model).items()})
    assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model_class", [LongBertModel, LongBertForMaskedLM])
def test_an_old_configs_gradient_checkpointing_is_heeded(model_class):
    config = tiny_config()
    config.gradient_checkpointing = True
    assert all(layer.gradient_checkpointing for layer in model_class(config).base_model.encoder.layer)


@table(
    "window",
    {
        "full": {},
        "one full layer": {"attention_window": 8, "full_attention_layers": [1]},
        "one closed layer": {"attention_window": 8, "closed_attention_layers": [1]},
    },
)
def test_selective_checkpointing_computes_attention_once(window):
    model, inputs = build(LongBertForMaskedLM, **window).train(), padded()
    counts = []
    for length in (None, 100, 200):  # without, all recomputed, attention kept
        said = "" if length is None else checkpoint_activations(model, length)
        with CountAttention() as counted:
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        counts.append(counted.forwards)
        assert ("attention is kept" in said) == (length == 200)
    assert counts == [counts[0], 2 * counts[0], counts[0]]


@pytest.mark.parametrize("window", [None, 16])
def test_selective_checkpointing_keeps_what_a_card_computes(window, monkeypatch):
    """The flash kernel is launched once a layer and part, forwards, whether or not activations are checkpointed."""
    monkeypatch.setattr(attention, "kernel_of", lambda query: FLASH if query.is_cuda else CPU)
    full_layers = None if window is None else [1]
    model = build(LongBertForMaskedLM, attention_window=window, full_attention_layers=full_layers).bfloat16().train()
    inputs, counts = padded(), []
    with Card():
        model, inputs = on_card(model), on_card({**inputs, "labels": inputs["input_ids"]})
    for length in (None, 100, 200):
        if length is not None:
            checkpoint_activations(model, length)
        with Card() as card:
            model(**inputs).loss.backward()
        counts.append(card.counts["launches"]["_flash_attention_forward"])
    assert counts == [counts[0], 2 * counts[0], counts[0]]
    assert counts[0] > 0


KEPT = """aten._scaled_dot_product_flash_attention_for_cpu.default aten._scaled_dot_product_flash_attention.default
aten._scaled_dot_product_efficient_attention.default aten._scaled_dot_product_cudnn_attention.default
aten._flash_attention_forward.default aten._efficient_attention_forward.default torch_attn._varlen_attn.default
flash_attn._flash_attn_varlen_forward.default"""
RECOMPUTED = """aten._scaled_dot_product_flash_attention_for_cpu_backward.default aten.bmm.default aten.gelu.default
aten._flash_attention_backward.default torch_attn._varlen_attn_backward.default aten.native_layer_norm.default"""


def test_every_kernel_of_attention_is_kept():
    assert all(map(is_attention, KEPT.split()))
    assert not any(map(is_attention, RECOMPUTED.split()))


def test_attention_dropout_is_never_applied_and_says_so(logged):
    attention.logger.warning_once.cache_clear()
    config = tiny_config(max_position_embeddings=REACH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    model = LongBertModel(config).train()
    for inputs in (padded(), batch(10), batch(100)):
        assert_close(model(**inputs).last_hidden_state, model(**inputs).last_hidden_state, rtol=0, atol=0)
    assert "attention_probs_dropout_prob=0.5 is not applied" in logged


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor, of a dtype if one is named, that any operation made, forwards or backwards."""

    numel = 0

    def __init__(self, dtype: torch.dtype | None = None):
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and self.dtype in (None, tensor.dtype):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


class CountAttention(TorchDispatchMode):
    """Counts how often attention is computed forwards."""

    forwards = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.forwards += is_attention(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("length", [4096, 16384])
@table("window", {"full": {}, "window": {"attention_window": 512}})
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("form", ["2D", "4D, one query"])
def test_nothing_n_by_n_is_ever_held(form, training, window, length, monkeypatch):
    monkeypatch.undo()
    config = tiny_config(
        max_position_embeddings=length, hidden_size=16, num_attention_heads=1, num_hidden_layers=1, **window
    )
    assert config.attention_probs_dropout_prob == config.hidden_dropout_prob == 0.1
    model = LongBertForMaskedLM(config).train(training)
    inputs = batch(length)
    real = torch.ones_like(inputs["input_ids"])
    real[1, length // 2 :] = 0
    real[0, 7::100] = 0
    mask = real if form == "2D" else real[:, None, None].bool()
    labels = inputs["input_ids"].where(torch.rand(real.shape) < 0.15, -100)
    with LargestTensor() as largest, torch.set_grad_enabled(training):
        loss = model(**inputs, attention_mask=mask, labels=labels, output_logits=False).loss
        if training:
            loss.backward()
    assert largest.numel < length**2 / 4


def test_the_dispatch_test_can_fail():
    with LargestTensor() as largest:
        query = torch.randn(1, 1, 64, 8, requires_grad=True)
        torch.nn.functional.scaled_dot_product_attention(query, query, query, dropout_p=0.5).sum().backward()
    assert largest.numel >= 64**2


def test_other_implementations_refuse_a_window_they_cannot_have(bert):
    config = {"max_position_embeddings": 40, "attention_window": 8}
    model = extended(bert(), "Model", config, attn_implementation="flex_attention")
    with pytest.raises(ValueError, match="'longbert', 'sdpa' or 'eager'"):
        model(**batch(40))


def test_choice_decides_by_its_own_global_tokens():
    model = long_class("ForMultipleChoice")(tiny_config(max_position_embeddings=64, attention_window=8)).eval()
    inputs = batch(40, "ForMultipleChoice")
    marked = torch.zeros_like(inputs["input_ids"])
    marked[:, 1, 20] = 1
    with torch.no_grad():
        without, with_one = model(**inputs).logits, model(**inputs, global_attention_mask=marked).logits
    assert (without != with_one).any(0).tolist() == [False, True, False]


def test_only_a_zero_inside_a_row_starts_a_document():
    model, inputs = build().eval(), batch(10)
    for position_ids in (torch.arange(10).clamp(max=5)[None], torch.arange(3, 13)[None]):
        whole = model(**inputs, position_ids=position_ids, attention_mask=torch.ones(2, 10)).last_hidden_state
        assert_close(model(**inputs, position_ids=position_ids).last_hidden_state, whole)


# Numbers


def coherent(length: int, dtype: torch.dtype, head_dim: int = 8) -> tuple[torch.Tensor, ...]:
    """Queries, keys, values and a gradient that is the same for every query, as mean pooling's is."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, length, head_dim, generator=generator) for _ in range(3)]
    return *(tensor.to(dtype) for tensor in inputs), torch.full((1, 2, length, head_dim), 0.7).to(dtype)


def window_layout(places: torch.Tensor, global_ranks: list[int], radius: int, part: slice | None = None) -> TextLayout:
    """Of one text that is read through a window, of which a part of the queries may be computed."""
    numbers = torch.zeros_like(places)
    return TextLayout(
        lengths=[len(places)],
        spans=[int(places[-1]) + 1],
        bounds=torch.tensor([0, len(places)]),
        places=places,
        window=Window(radius, longer_than=0),
        global_ranks=global_ranks,
        on_device=(places, numbers, torch.tensor(global_ranks)),
        shard=part and SimpleNamespace(start=part.start, stop=part.stop),
    )


def window_gradients(inputs: tuple, global_ranks: list[int], radius: int) -> list[torch.Tensor]:
    *leaves, gradient = inputs
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    plan = make_plan(window_layout(torch.arange(leaves[0].shape[2]), global_ranks, radius), CPU, windowed=True)
    output = TextAttention.apply(*leaves, plan, leaves[0].shape[-1] ** -0.5)
    return list(torch.autograd.grad(output, leaves, gradient))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_global_tokens_are_summed_precisely(dtype, monkeypatch):
    """Each of 16,384 queries adds to a global key: summed in bf16 the last ones would be rounded away."""
    monkeypatch.undo()
    inputs, global_ranks = coherent(16384, dtype), [0, 9000]
    found = window_gradients(inputs, global_ranks, 64)
    exact = window_gradients(tuple(tensor.double() for tensor in inputs), global_ranks, 64)
    for gradient, right in zip(found, exact, strict=True):
        assert gradient.dtype == dtype
        assert (gradient.double() - right).norm() <= 2 * torch.finfo(dtype).eps * right.norm()
    # values' are sums of probabilities: nothing cancels, and each one is right
    for index in (0, 9000):
        assert_close(found[2][:, :, index].double(), exact[2][:, :, index], rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_precise_sums_hold_no_second_gradient_in_fp32(monkeypatch):
    monkeypatch.undo()
    inputs = coherent(16384, torch.bfloat16)
    with LargestTensor(torch.float32) as largest:
        window_gradients(inputs, [0], 64)
    assert largest.numel < inputs[0].numel() / 4


LAYOUTS = {
    "whole": (range(40), (0, 40)),
    "holes": ([0, 1, 2, 7, 8, 20, 21, 22, 23, 24, 40, 41, 42, 60, 61, 62, 63, 64, 65, 66], (0, 20)),
    "some queries": (range(40), (13, 31)),
    "some queries, holes": ([0, 3, 4, 5, 6, 9, 10, 11, 30, 31, 32, 33, 34, 35, 50, 51, 52, 53, 54, 55], (7, 18)),
}
every_layout = table("layout", LAYOUTS)


def windowed(layout: tuple) -> tuple[list[torch.Tensor], torch.Tensor, Callable]:
    """Inputs of the window in fp64, what is seen, and the window's attention."""
    places, (start, stop) = torch.tensor(list(layout[0])), layout[1]
    is_global = torch.zeros(len(places), dtype=torch.bool)
    is_global[[0, 11]] = True
    seen = ((places[:, None] - places).abs() <= 3) | is_global | is_global[:, None]
    inputs = [torch.randn(1, 2, length, 4, dtype=torch.float64) for length in (stop - start, *[len(places)] * 2)]
    plan = make_plan(window_layout(places, [0, 11], 3, slice(start, stop)), CPU, windowed=True)

    def attend(*each: torch.Tensor) -> torch.Tensor:
        return TextAttention.apply(*each, plan, 0.5)

    return [tensor.requires_grad_() for tensor in inputs], seen[start:stop], attend


@every_layout
def test_a_windows_gradients_are_those_of_what_it_computes(layout, monkeypatch):
    monkeypatch.setitem(QUERIES_PER_CHUNK, CPU, 5)
    inputs, seen, attend = windowed(layout)
    dense = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=seen, scale=0.5)
    assert_close(attend(*inputs), dense)
    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_layout
def test_gradients_are_the_dense_ones_in_every_layout(layout, dtype, monkeypatch):
    monkeypatch.setitem(QUERIES_PER_CHUNK, CPU, 5)
    inputs, seen, attend = windowed(layout)
    dense = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=seen, scale=0.5)
    expected = torch.autograd.grad(dense.sum(), inputs)
    rounded = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    found = torch.autograd.grad(attend(*rounded).sum(), rounded)
    plain = torch.nn.functional.scaled_dot_product_attention(*rounded, attn_mask=seen, scale=0.5)
    own = torch.autograd.grad(plain.sum(), rounded)
    for gradient, right, masked in zip(found, expected, own, strict=True):
        # masked attention itself misses by up to 4 epsilons here; three parts are merged
        allowed = max(3 * (masked.double() - right).norm(), 4 * torch.finfo(dtype).eps * right.norm())
        assert (gradient.double() - right).norm() <= allowed


def test_a_second_derivative_through_the_window_is_refused():
    model = build(attention_window=8).eval()
    embeds = torch.randn(1, 40, 32, requires_grad=True)
    for length in (N + 1, 40):
        states = model(inputs_embeds=embeds[:, :length]).last_hidden_state
        (gradient,) = torch.autograd.grad(states.square().sum(), embeds, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_mean_of_many_tokens_is_precise(dtype):
    """32,768 tokens of 3 sum to more than fp16 holds."""
    states = torch.full((2, 32768, 2), 3.0, dtype=dtype)
    real = torch.arange(32768) < torch.tensor([[32768], [30001]])
    for mask in (None, real):
        mean = mean_of_texts(states, mask)
        assert mean.dtype == dtype
        assert_close(mean, torch.full((2, 2), 3.0, dtype=dtype))


def test_padding_that_is_not_a_number_is_no_part_of_a_mean():
    states = torch.tensor([[[1.0], [3.0], [torch.nan]]])
    assert mean_of_texts(states, torch.tensor([[True, True, False]])) == 2


@pytest.mark.parametrize("implementation", [attention.NAME, *PLAIN])
@every_window
def test_doubles_stay_doubles(window, implementation):
    """Rounded once to fp32 on the way, they would agree to seven digits."""
    model, inputs = build(classifier_pooling="mean", **window).eval().double(), padded()
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        model.set_attn_implementation("eager")
        judge = model(**inputs)
        model.set_attn_implementation(implementation)
        result = model(**inputs)
    assert result.pooler_output.dtype == torch.float64
    assert_close(result.last_hidden_state[real], judge.last_hidden_state[real], rtol=1e-12, atol=1e-13)
    assert_close(result.pooler_output, judge.pooler_output, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("head_dim", [8, 20])
@pytest.mark.parametrize("window", [None, Window(4, 16)])
def test_scaling_is_heeded(window, head_dim):
    layout = Flattening(whole_rows((2, 30), torch.device("cpu")), window, 0).layout
    query, key, value = torch.randn(3, 1, 2, 60, head_dim).unbind()
    halved = attention.attend(query / 2, key, value, layout, 1.0, windowed=True)
    assert_close(attention.attend(query, key, value, layout, 0.5, windowed=True), halved)


ONE_TOKEN_FOR_THREE = """
import sys, torch, torch.distributed as dist
from longbert import LongBertConfig, LongBertModel
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
sizes |= {"vocab_size": 100, "pretrained_positions": 16, "max_position_embeddings": 64}
config = LongBertConfig(attention_window=8, hidden_dropout_prob=0.0, **sizes)
model = LongBertModel(config).eval()
for tokens in (2, 40):
    inputs = {"input_ids": torch.arange(tokens)[None], "attention_mask": torch.ones(1, tokens)}
    model.sequence_group = None
    alone = model(**inputs).last_hidden_state
    model.sequence_group = dist.group.WORLD
    shared = model(**inputs).last_hidden_state
    shared.sum().backward()
    torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow
def test_a_process_may_have_no_token_of_a_short_text(tmp_path):
    command = [sys.executable, "-c", ONE_TOKEN_FOR_THREE]
    runs = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=os.environ | {"OMP_NUM_THREADS": "1"})
        for rank in range(3)
    ]
    assert [run.wait(timeout=240) for run in runs] == [0, 0, 0]
