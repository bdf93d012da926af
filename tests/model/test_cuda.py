"""What can be known of CUDA without a card: which kernel a card gets, what a forward pass waits for, and that plans
made for CUDA's kernels compute what their masks say. `benchmarks/gpu.py` checks the rest on a card."""

import dataclasses
import random
from types import SimpleNamespace

import pretend_cuda
import pytest
import torch
from conftest import assert_close, first_then_slow, table, tiny_config
from pretend_cuda import Card, on_card

from longbert import LongBertForMaskedLM, LongBertModel, attention, text_attention
from longbert.kernels import CPU, EFFICIENT, FLASH, PLAIN, kernel_for
from longbert.text_attention import TextAttention, make_plan
from longbert.text_layout import Flattening, TextLayout, Window
from longbert.texts import Texts, whole_rows


HALVES = (torch.float16, torch.bfloat16)
DEVICES = {
    # device, capability: the kernels for fp32, fp16, bf16, fp64
    "CPU": ("cpu", None, [CPU, CPU, CPU, CPU]),
    "V100": ("cuda", (7, 0), [EFFICIENT, EFFICIENT, PLAIN, PLAIN]),
    "T4": ("cuda", (7, 5), [EFFICIENT, EFFICIENT, PLAIN, PLAIN]),
    "A100": ("cuda", (8, 0), [EFFICIENT, FLASH, FLASH, PLAIN]),
    "A10, A6000, 3090": ("cuda", (8, 6), [EFFICIENT, FLASH, FLASH, PLAIN]),
    "L4, L40, 4090": ("cuda", (8, 9), [EFFICIENT, FLASH, FLASH, PLAIN]),
    "H100, H200": ("cuda", (9, 0), [EFFICIENT, FLASH, FLASH, PLAIN]),
    "B200": ("cuda", (10, 0), [EFFICIENT, FLASH, FLASH, PLAIN]),
    "5090": ("cuda", (12, 0), [EFFICIENT, FLASH, FLASH, PLAIN]),
    "ROCm": ("cuda", None, [PLAIN] * 4),
    "Apple": ("mps", None, [PLAIN] * 4),
    "Intel": ("xpu", None, [PLAIN] * 4),
}


@table("case", DEVICES)
def test_every_device_and_dtype_has_a_kernel(case):
    device, capability, expected = case
    dtypes = (torch.float32, *HALVES, torch.float64)
    assert [kernel_for(device, dtype, capability, head_dim=64) for dtype in dtypes] == expected


def test_heads_too_wide_for_the_flash_kernel_have_another():
    assert kernel_for("cuda", torch.bfloat16, (9, 0), head_dim=256) == FLASH
    assert kernel_for("cuda", torch.bfloat16, (9, 0), head_dim=264) == EFFICIENT


@pytest.fixture
def hopper(monkeypatch):
    """Attention chooses for the pretended card as it would on an H100."""

    def chosen(query: torch.Tensor) -> str:
        return kernel_for("cuda", query.dtype, (9, 0), query.shape[-1]) if query.is_cuda else CPU

    monkeypatch.setattr(attention, "kernel_of", chosen)


# --- waiting


MODELS = {
    "full": {},
    "window": {"attention_window": 16},
    "window, 3 globals, a full layer": {"attention_window": 16, "global_tokens": 3, "full_attention_layers": [1]},
    "window, a closed layer": {"attention_window": 16, "closed_attention_layers": [1]},
    "sinusoidal": {"attention_window": 16, "position_type": "sinusoidal", "zero_padding_positions": True},
}
every_model = table("settings", MODELS)


def build(model_class, layers: int, dtype: torch.dtype, **settings):
    undropped = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = tiny_config(max_position_embeddings=256, num_hidden_layers=layers, **undropped, **settings)
    return model_class(config).to(dtype).eval()


def inputs_of(form: str) -> dict[str, torch.Tensor]:
    shape = (1 if form == "packed" else 3, 120)
    inputs = {"input_ids": torch.randint(5, 100, shape)}
    if form == "packed":
        inputs["position_ids"] = torch.cat([torch.arange(70), torch.arange(10), torch.arange(40)])[None]
    if form in ("padded", "holes", "left"):
        mask = torch.ones(shape, dtype=torch.long)
        mask[1, 60:] = mask[2, 10:] = 0
        mask[0, 30:33] = 0 if form == "holes" else 1
        inputs["attention_mask"] = mask.flip(1) if form == "left" else mask
    return inputs


@every_model
@pytest.mark.parametrize("dtype", first_then_slow([torch.bfloat16, torch.float32], 1), ids=str)
@pytest.mark.parametrize("form", ["whole", "all ones", "padded", "left", "holes", "packed"])
def test_a_forward_pass_waits_for_the_card_twice_at_most(form, dtype, settings, hopper):
    counts = []
    for layers in (2, 12):
        model, inputs = build(LongBertModel, layers, dtype, **settings), inputs_of(form)
        if form == "all ones":
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            right = model(**inputs).last_hidden_state
            with Card() as card:
                found = on_card(model)(**on_card(inputs)).last_hidden_state.numbers
        real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        assert_close(found[real], right[real], rtol=0, atol=64 * torch.finfo(dtype).eps)
        assert not card.counts["mixed"]
        assert card.total("waits") <= 2, card.counts["waits"]
        assert card.total("copies") <= 2, card.counts["copies"]
        counts.append((card.counts["waits"], card.counts["copies"]))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("form", ["padded", "packed"])
def test_a_loss_waits_once_more_at_most(form, hopper):
    model, inputs = build(LongBertForMaskedLM, 2, torch.bfloat16, attention_window=16), inputs_of(form)
    labels = inputs["input_ids"].masked_fill(torch.rand(inputs["input_ids"].shape) < 0.8, -100)
    with torch.no_grad(), Card() as card:
        on_card(model)(**on_card({**inputs, "labels": labels}))
    # a packed batch is asked whether it is one, and where its texts are
    assert card.total("waits") <= (3 if form == "packed" else 2), card.counts["waits"]
    assert card.total("copies") <= 2


def test_the_counting_can_fail():
    with Card() as card:
        tensor = on_card(torch.arange(4))
        bool(tensor.any())
        tensor[tensor > 1]
        tensor.cpu()
        torch.ones(3).to(pretend_cuda.DEVICE)
        with pytest.raises(AssertionError):
            assert not card.total("waits")
        tensor + torch.arange(4)
    assert (card.total("waits"), card.total("copies"), card.total("mixed")) == (3, 1, 1)


# --- plans


def draw_texts(generator: random.Random) -> tuple[Texts, Window, int, torch.Tensor, list]:
    """Packed rows with holes, a window and global tokens; who sees whom, in loops over the tokens."""
    rows, length, globals_ = generator.randint(1, 3), generator.randint(5, 130), generator.choice([0, 1, 3])
    radius, longer_than = generator.choice([1, 4, 16]), generator.choice([1, 16, 40])
    holes, share = generator.choice([0, 0, 0.2]), generator.choice([0, 0.03, 0.2])
    real, starts = torch.ones(rows, length, dtype=torch.bool), torch.zeros(rows, length, dtype=torch.long)
    marks = torch.tensor([[generator.random() < share for _ in range(length)] for _ in range(rows)])
    tokens = []  # row and start, place, whether it is global
    for row in range(rows):
        cuts = sorted({0, *(generator.randrange(length) for _ in range(generator.randint(0, 3)))})
        for start, stop in zip(cuts, [*cuts[1:], length], strict=True):
            starts[row, start:stop] = start
            count = 0
            for column in range(start, stop):
                real[row, column] = column == start or generator.random() >= holes
                if real[row, column]:
                    marked = count < globals_ or bool(marks[row, column])
                    tokens.append(((row, start), column - start, marked))
                    count += 1
    return Texts(real, starts, packed=True), Window(radius, longer_than), globals_, marks, tokens


def sight(tokens: list, window: Window | None) -> torch.Tensor:
    spans: dict = {}
    for text, place, _ in tokens:
        spans[text] = max(spans.get(text, 0), place + 1)

    def sees(query: tuple, key: tuple) -> bool:
        if query[0] != key[0]:
            return False
        near = window is None or spans[query[0]] <= window.longer_than or abs(query[1] - key[1]) <= window.radius
        return near or query[2] or key[2]

    return torch.tensor([[sees(query, key) for key in tokens] for query in tokens])


def gradients_of(work, inputs: list[torch.Tensor], gradient: torch.Tensor) -> list[torch.Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = work(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


def assert_near(found: list[torch.Tensor], right: list[torch.Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(found, right, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).norm() <= 4 * torch.finfo(dtype).eps * other.norm() + 1e-12


def chunked(monkeypatch, size: int = 24) -> None:
    """Small enough that texts cross many chunks and segments."""
    monkeypatch.setattr(text_attention, "QUERIES_PER_CHUNK", dict.fromkeys((EFFICIENT, CPU, PLAIN), size))
    monkeypatch.setattr(text_attention, "QUERIES_PER_SEGMENT", 2 * size)


def drawn(tokens: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn(1, tokens, 2, 8, dtype=torch.float64).to(dtype).transpose(1, 2) for _ in range(4)]


KERNELS = [
    (CPU, torch.float64),
    (CPU, torch.float32),
    (CPU, torch.bfloat16),
    (CPU, torch.float16),
    (PLAIN, torch.float64),
    (PLAIN, torch.bfloat16),
    (EFFICIENT, torch.float32),
    (EFFICIENT, torch.float16),
    (FLASH, torch.bfloat16),
    (FLASH, torch.float16),
]


@pytest.mark.parametrize("seed", first_then_slow(range(12), 2))
@pytest.mark.parametrize(("kernel", "dtype"), KERNELS, ids=lambda each: str(each).removeprefix("torch."))
def test_every_kernel_computes_what_the_mask_says(kernel, dtype, seed, monkeypatch):
    """Forwards and backwards, whole and where a process computes a part of the row."""
    chunked(monkeypatch)
    texts, window, globals_, marks, tokens = draw_texts(random.Random(seed))
    *inputs, gradient = drawn(len(tokens), dtype)
    with Card():
        there = (lambda each: each) if kernel in (CPU, PLAIN) else on_card
        here = (lambda each: each) if kernel in (CPU, PLAIN) else (lambda each: [tensor.numbers for tensor in each])
        texts = Texts(there(texts.real), there(texts.starts), packed=True)
        layout = Flattening(texts, window, globals_, there(marks)).layout
        for windowed in (True, False):
            mask = sight(tokens, window if windowed else None)

            def masked(*each: torch.Tensor, mask: torch.Tensor = mask) -> torch.Tensor:
                return torch.nn.functional.scaled_dot_product_attention(*each, attn_mask=mask, scale=0.4)

            right = gradients_of(masked, [tensor.double() for tensor in inputs], gradient.double())
            plan = make_plan(layout, kernel, windowed)
            found = gradients_of(
                lambda *each, plan=plan: TextAttention.apply(*each, plan, 0.4), there(inputs), there(gradient)
            )
            assert_near(here(found), right, dtype)
            total = [torch.zeros_like(tensor) for tensor in right]
            for part in range(3):
                add_shard(total, layout, kernel, windowed, part, there(inputs), there(gradient), here)
            assert_near([tensor.to(dtype) for tensor in total], right, dtype)


def add_shard(total: list, layout: TextLayout, kernel: str, windowed: bool, part: int, inputs, gradient, here) -> None:
    tokens = inputs[0].shape[2]
    start, stop = tokens * part // 3, tokens * (part + 1) // 3
    sharded = dataclasses.replace(layout, shard=SimpleNamespace(start=start, stop=stop), plans={})
    plan = make_plan(sharded, kernel, windowed)
    query, key, value = inputs
    found = gradients_of(
        lambda *each: TextAttention.apply(*each, plan, 0.4),
        [query[:, :, start:stop], key, value],
        gradient[:, :, start:stop],
    )
    output, of_query, *of_keys = here(found)
    total[0][:, :, start:stop] += output
    total[1][:, :, start:stop] += of_query
    for each, addend in zip(total[2:], of_keys, strict=True):
        each += addend


@pytest.mark.parametrize("scaling", [0.1, 1.0])
@every_model
def test_models_on_a_card_train_as_on_the_cpu(settings, scaling, hopper):
    """bf16 through the flash kernel's plans, gradients of all weights included, heads of 16."""
    model, inputs = build(LongBertModel, 2, torch.bfloat16, **settings), inputs_of("padded")
    real = inputs["attention_mask"].bool()
    direction = torch.randn(*real.shape, 32).bfloat16() * scaling * real[..., None]
    found = []
    for there in (lambda each: each, on_card):
        with Card():
            model = there(model)
            states = model(**there(inputs)).last_hidden_state
            (states * there(direction)).sum().backward()
            grads = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
            found.append({name: getattr(each, "numbers", each) for name, each in grads.items()})
            model.zero_grad()
    for name, right in found[0].items():
        if "key.bias" not in name:  # which is 0 but for rounding
            assert (found[1][name].double() - right.double()).norm() <= 0.1 * right.double().norm(), name


@pytest.mark.parametrize("drawn_to_it", [0.0, 12.0])
@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_shares_near_one_leave_the_rest_its_part(size, drawn_to_it, monkeypatch):
    """A far key that has nearly all of the attention and a value of nearly nothing, as [CLS] often is, or the reverse:
    a share in bf16 would round the other part away."""
    texts = whole_rows((1, 600), torch.device("cpu"))
    query, key, value, _ = drawn(600, torch.bfloat16)
    key[:, :, 0] = query.double().mean(2).bfloat16() * 8 + drawn_to_it
    query, value[:, :, 0] = query.abs(), size
    mask = torch.ones(600, 600).triu(-100).tril(100).bool()
    mask[0] = mask[:, 0] = True
    doubles = [tensor.double() for tensor in (query, key, value)]
    right = torch.nn.functional.scaled_dot_product_attention(*doubles, attn_mask=mask, scale=0.4)
    with Card():
        there = Texts(*on_card([texts.real, texts.starts]))
        plan = make_plan(Flattening(there, Window(100, 10), 1).layout, FLASH, windowed=True)
        found = TextAttention.apply(*on_card([query, key, value]), plan, 0.4).numbers
    far, error = slice(101, None), (found.double() - right).norm(dim=-1) / right.norm(dim=-1)
    assert error[:, :, far].max() <= 4 * torch.finfo(torch.bfloat16).eps


def test_a_launch_skips_texts_without_far_keys():
    """A text all of whose tokens are near its one global token has nothing to merge."""
    texts = whole_rows((1, 20), torch.device("cpu"))
    layout = Flattening(texts, Window(19, 10), 1).layout
    assert [type(cross).__name__ for cross in make_plan(layout, FLASH, True).crosses] == ["GlobalQueries"]
