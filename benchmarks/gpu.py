"""What only a GPU can tell: is every path on the card exact, how fast is it, and against whom. Under 4 minutes.

    python benchmarks/gpu.py                       # checks, then the tables
    python benchmarks/gpu.py --parts checks        # half a minute

Checks come first and fail loudly: every kernel that the card has against softmax attention in fp64 with an explicit
mask, models against plain BERT and against themselves text by text, how often a forward pass waits for the card. Then
BERT-base with random weights, in bf16, beside BertModel (sdpa), Longformer and ModernBERT; fifty batches of different
lengths; attention alone beside the floor that FlashAttention-3's published speed sets. Writes a JSON and a markdown
table. Needs torch, transformers and longbert, nothing from the network. Ends with an error if a check fails.
"""

import argparse
import dataclasses
import functools
import gc
import json
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from models import bert, longbert, longformer, modernbert
from records import RESULTS, environment, write
from sides import NO_DROPOUT
from torch import nn
from transformers import BertConfig, BertModel

from longbert import LongBertConfig, LongBertForMaskedLM, LongBertModel
from longbert.attention import attend
from longbert.kernels import EFFICIENT, PLAIN, kernel_for
from longbert.text_attention import TextAttention, make_plan
from longbert.text_layout import Flattening, TextLayout, Window
from longbert.texts import Texts, whole_rows


PEAK_FLOPS = 989e12  # H100 and H200, bf16, dense
# FlashAttention-3, head dimension 64, no causal mask, at 16k tokens (arXiv 2407.08608): what attention can reach
FA3 = {"forward": 497e12, "backward": 474e12}
HEADS, HEAD_DIM, LAYERS, HIDDEN, WINDOW = 12, 64, 12, 768, 512
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
DEVICE = torch.device("cuda")


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- checks


@dataclass
class Check:
    """What one check found: the error, relative to the norm of what is right, and what is allowed."""

    name: str
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed  # NaN does not


@dataclass
class Report:
    """All that a run found."""

    environment: dict[str, Any]
    checks: list[Check] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    attention: list[dict[str, Any]] = field(default_factory=list)
    batches: dict[str, Any] = field(default_factory=dict)

    def check(self, name: str, error: float, allowed: float) -> None:
        self.checks.append(Check(name, error, allowed))
        if not self.checks[-1].holds:
            print(f"FAILED  {name}: {error:.2e}, at most {allowed:.0e} is allowed", flush=True)

    def attempt(self, name: str, work: Callable[[], Iterator[tuple[str, float, float]]]) -> None:
        try:
            for detail, error, allowed in work():
                self.check(f"{name}: {detail}", error, allowed)
        except Exception as problem:  # one check must not hide the others
            print(f"FAILED  {name}: {type(problem).__name__}: {str(problem)[:600]}", flush=True)
            self.checks.append(Check(f"{name}: {type(problem).__name__}: {str(problem)[:300]}", float("nan"), 0))


def relative(found: torch.Tensor, right: torch.Tensor) -> float:
    return ((found.double() - right.double()).norm() / right.double().norm()).item()


def draw_texts(generator: random.Random, rows: int, length: int, gaps: bool) -> Texts:
    """Rows of packed texts, with tokens left out if asked."""
    real = torch.ones(rows, length, dtype=torch.bool)
    starts = torch.zeros(rows, length, dtype=torch.long)
    for row in range(rows):
        if gaps:
            real[row] = torch.tensor([generator.random() < 0.9 for _ in range(length)])
        for start in sorted({0, *(generator.randrange(length) for _ in range(generator.randint(0, 2)))}):
            starts[row, start:], real[row, start] = start, True
    return Texts(real.to(DEVICE), starts.to(DEVICE), packed=True)


def who_sees_whom(flattening: Flattening, texts: Texts, window: Window | None, marked: set[int]) -> torch.Tensor:
    """`[tokens, tokens]` bool, by the rule's words alone."""
    index = flattening.index
    text = (torch.arange(texts.real.shape[0], device=DEVICE)[:, None] * 10**6 + texts.starts).flatten()[index]
    place = (torch.arange(texts.real.shape[1], device=DEVICE) - texts.starts).flatten()[index]
    same = text[:, None] == text
    if window is None:
        return same
    span = (place * same).amax(1) + 1
    is_global = torch.zeros_like(text, dtype=torch.bool)
    is_global[list(marked)] = True
    near = (place[:, None] - place).abs() <= window.radius
    return same & (near | (span <= window.longer_than)[:, None] | is_global | is_global[:, None])


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
    scores = (query @ key.mT * HEAD_DIM**-0.5).masked_fill(~sees, -torch.inf)
    return scores.softmax(-1) @ value


def with_gradients(work: Callable, inputs: list[torch.Tensor], gradient: torch.Tensor) -> list[torch.Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = work(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient.to(output.dtype))]


def draw(tokens: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Query, key, value and a gradient, `[1, heads, tokens, head_dim]`, laid out as in BERT."""
    drawn = [torch.randn(1, tokens, HEADS, HEAD_DIM, device=DEVICE).to(dtype).transpose(1, 2) for _ in range(4)]
    return drawn[:3], drawn[3]


def check_kernels(dtype: torch.dtype, seed: int, gaps: bool) -> Iterator[tuple[str, float, float]]:
    """Attention of random packed texts by every kernel for this dtype, whole and in three shards."""
    torch.manual_seed(seed)
    generator = random.Random(seed)
    texts = draw_texts(generator, rows=generator.randint(1, 3), length=generator.randint(150, 700), gaps=gaps)
    radius, count = generator.choice([1, 17, 64, 128]), generator.choice([0, 1, 3])
    window = Window(radius, longer_than=generator.choice([1, 100, 300]))
    marks = torch.rand(texts.real.shape, device=DEVICE) < generator.choice([0.0, 0.01, 0.05])
    flattening = Flattening(texts, window, count, marks)
    layout, tokens = flattening.layout, len(flattening.index)
    inputs, gradient = draw(tokens, dtype)
    for windowed in (True, False):
        sees = who_sees_whom(flattening, texts, window if windowed else None, {*layout.global_ranks})
        right = with_gradients(
            functools.partial(dense, sees=sees), [tensor.double() for tensor in inputs], gradient.double()
        )
        chosen = kernel_for("cuda", dtype, torch.cuda.get_device_capability(), HEAD_DIM)
        for kernel in dict.fromkeys([chosen, EFFICIENT, PLAIN]):
            plan = make_plan(layout, kernel, windowed)
            found = with_gradients(
                lambda q, k, v, plan=plan: TextAttention.apply(q, k, v, plan, HEAD_DIM**-0.5), inputs, gradient
            )
            for what, one, other in zip(("output", "query", "key", "value"), found, right, strict=True):
                name = f"{kernel}, {'window' if windowed else 'full'}, {what}"
                yield name, relative(one, other), TOLERANCE[dtype]
        attended = attend(*inputs, layout, HEAD_DIM**-0.5, windowed)
        yield "as attend chooses", relative(attended, right[0]), TOLERANCE[dtype]
        worst = in_shards(layout, chosen, windowed, inputs, gradient, right)
        yield f"{chosen}, {'window' if windowed else 'full'}, three shards", worst, TOLERANCE[dtype]


def in_shards(
    layout: TextLayout, kernel: str, windowed: bool, inputs: list, gradient: torch.Tensor, right: list
) -> float:
    """The worst of the output and of the summed gradients, where three processes would compute a third each."""
    tokens = inputs[0].shape[2]
    sums = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in right]
    for part in range(3):
        start, stop = tokens * part // 3, tokens * (part + 1) // 3
        sharded = dataclasses.replace(layout, shard=SimpleNamespace(start=start, stop=stop), plans={})
        plan = make_plan(sharded, kernel, windowed)
        query, key, value = inputs
        found = with_gradients(
            lambda q, k, v, plan=plan: TextAttention.apply(q, k, v, plan, HEAD_DIM**-0.5),
            [query[:, :, start:stop], key, value],
            gradient[:, :, start:stop],
        )
        for total, each in zip(sums, found, strict=True):
            (total[:, :, start:stop] if each.shape[2] == stop - start else total).add_(each)
    return max(relative(one, other) for one, other in zip(sums, right, strict=True))


def check_long(tokens: int) -> Iterator[tuple[str, float, float]]:
    """A long text through the window: the flash kernel beside the one for fp32, which share no code."""
    torch.manual_seed(0)
    inputs, gradient = draw(tokens, torch.bfloat16)
    flattening = Flattening(whole_rows((1, tokens), DEVICE), Window(256, 512), 1)
    right, found = (
        with_gradients(
            lambda *each: attend(*each, flattening.layout, HEAD_DIM**-0.5, windowed=True),
            [tensor.to(dtype) for tensor in inputs],
            gradient,
        )
        for dtype in (torch.float32, torch.bfloat16)
    )
    for what, one, other in zip(("output", "query", "key", "value"), found, right, strict=True):
        yield what, relative(one, other), TOLERANCE[torch.bfloat16]
    yield "the global value's gradient", relative(found[3][:, :, 0], right[3][:, :, 0]), TOLERANCE[torch.bfloat16]


def build_long(dtype: torch.dtype, head: type = LongBertModel, layers: int = 2, **settings: Any) -> nn.Module:
    fields = {"max_position_embeddings": 4096, "num_hidden_layers": layers, **NO_DROPOUT, **settings}
    torch.manual_seed(0)
    return head(LongBertConfig(pretrained_positions=512, **fields)).to(DEVICE, dtype)


def padded_batch(lengths: list[int]) -> dict[str, torch.Tensor]:
    index = torch.arange(max(lengths), device=DEVICE)
    return {
        "input_ids": torch.randint(1000, 30000, (len(lengths), max(lengths)), device=DEVICE),
        "attention_mask": (index < torch.tensor(lengths, device=DEVICE)[:, None]).long(),
    }


WINDOWS = {
    "full": {},
    "window": {"attention_window": 256},
    "window, 3 globals": {"attention_window": 128, "global_tokens": 3},
    "window, a full layer": {"attention_window": 256, "full_attention_layers": [1]},
}


def check_model(dtype: torch.dtype, settings: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Law 4, texts alone and in a batch; law 5, longbert beside sdpa with masks; gradients of all weights."""
    lengths, allowed = [1500, 900, 512, 37], 2 * TOLERANCE[dtype]
    model, inputs = build_long(dtype, **settings).train(), padded_batch(lengths)
    real = inputs["attention_mask"].bool()
    together = model(**inputs).last_hidden_state
    with torch.no_grad():
        for row, length in enumerate(lengths):
            alone = model(inputs["input_ids"][row : row + 1, :length]).last_hidden_state[0]
            yield f"law 4, {length} tokens", relative(together[row, :length], alone), allowed
        packed = inputs["input_ids"][real][None]
        position_ids = torch.cat([torch.arange(length, device=DEVICE) for length in lengths])[None]
        yield "law 4, packed", relative(model(packed, position_ids=position_ids)[0][0], together[real]), allowed
    if dtype == torch.float32:
        return
    target = torch.randn_like(together)
    grads = []
    for kind, implementation in ((dtype, "longbert"), (torch.float32, "sdpa")):
        model = model.to(kind)
        model.set_attn_implementation(implementation)
        model.zero_grad()
        states = model(**inputs).last_hidden_state
        (states * target)[real].float().sum().backward()
        grads.append(
            (
                states.detach()[real],
                {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
            )
        )
    (found, ours), (right, theirs) = grads
    yield "law 5, against fp32 sdpa", relative(found, right), 2 * allowed
    worst = max(relative(ours[name], theirs[name]) for name in ours if "key.bias" not in name)
    yield "law 5, gradients of all weights", worst, 6 * allowed


def check_fp32_gradients(settings: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Law 5 in fp32, where rounding hides nothing."""
    model, inputs = build_long(torch.float32, LongBertForMaskedLM, **settings).train(), padded_batch([1300, 700, 90])
    labels = inputs["input_ids"].masked_fill(torch.rand(inputs["input_ids"].shape, device=DEVICE) > 0.2, -100)
    labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    found = []
    for implementation in ("longbert", "sdpa"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    yield "law 5, gradients", relative(*found), 1e-5


def check_no_harm(dtype: torch.dtype) -> Iterator[tuple[str, float, float]]:
    """Law 1: up to 512 tokens, unpadded, the outputs are plain BERT's, bit for bit."""
    long = build_long(dtype, attention_window=512).eval()
    plain = BertModel(BertConfig(num_hidden_layers=2, **NO_DROPOUT, attn_implementation="sdpa"))
    state = long.state_dict()
    state["embeddings.position_embeddings.weight"] = state["embeddings.position_embeddings.weight"][:512]
    plain.load_state_dict(state, strict=False)
    plain = plain.to(DEVICE, dtype).eval()
    with torch.no_grad():
        for length in (1, 128, 512):
            ids = torch.randint(1000, 30000, (2, length), device=DEVICE)
            same = torch.equal(long(ids).last_hidden_state, plain(ids).last_hidden_state)
            yield f"{length} tokens, torch.equal", 0.0 if same else 1.0, 0


def count_waits(work: Callable[[], Any]) -> int:
    """How often the host waits for the card, by torch's own count."""
    work()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)


def check_waits(dtype: torch.dtype) -> Iterator[tuple[str, float, float]]:
    """At most 2 synchronisations and 2 blocking copies, for 2 layers as for 12."""
    for name, settings in WINDOWS.items():
        for layers in (2, 12):
            settings = {**settings, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256}
            model, inputs = build_long(dtype, layers=layers, **settings).eval(), padded_batch([900, 700, 40])
            ids = inputs["input_ids"][:1]
            position_ids = torch.cat([torch.arange(n, device=DEVICE) for n in (800, 100)])[None]
            with torch.no_grad():
                yield f"{name}, padded, {layers} layers", count_waits(lambda: model(**inputs)), 4  # noqa: B023
                waits = count_waits(lambda: model(ids, position_ids=position_ids))  # noqa: B023
                yield f"{name}, packed, {layers} layers", waits, 4


def run_checks(report: Report) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = name_of(dtype)
        for seed in range(10):
            gaps = seed % 3 == 2
            title = f"kernels, {name}, case {seed}{', gaps' if gaps else ''}"
            report.attempt(title, functools.partial(check_kernels, dtype, seed, gaps))
        for title, settings in WINDOWS.items():
            report.attempt(f"model, {name}, {title}", functools.partial(check_model, dtype, settings))
        report.attempt(f"law 1, {name}", functools.partial(check_no_harm, dtype))
    for title, settings in WINDOWS.items():
        report.attempt(f"model, float32, {title}", functools.partial(check_fp32_gradients, settings))
    for tokens in (4096, 32768):
        report.attempt(f"{tokens} tokens, bf16 beside fp32", functools.partial(check_long, tokens))
    for dtype in (torch.bfloat16, torch.float32):
        report.attempt(f"waits, {name_of(dtype)}", functools.partial(check_waits, dtype))
    failed = [check for check in report.checks if not check.holds]
    print(f"\n{len(report.checks)} checks, {len(failed)} FAILED" if failed else f"\n{len(report.checks)} checks hold")
    for kind in ("kernels, float32", "kernels, bfloat16", "kernels, float16", "model", "law 1", "waits"):
        errors = [check.error for check in report.checks if check.name.startswith(kind)]
        if errors:
            print(f"  {kind}: largest {max(errors):.2e}")


# ---- models


def linear_flops(model: nn.Module, tokens: int) -> float:
    """Of the matrix products with weights, forwards."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return 2.0 * tokens * sum(layer.weight.numel() for layer in layers)


def pairs_seen(length: int, window: int | None) -> float:
    """Of a query and a key that it sees, in one text with one global token."""
    if window is None or length <= 512:
        return float(length) ** 2
    radius = window // 2
    return length * (2 * radius + 1) - radius * (radius + 1) + 2.0 * (length - radius - 1)


BASE = {"num_hidden_layers": LAYERS}
windowed = functools.partial(longbert, attention_window=WINDOW, **BASE)
MODELS: dict[str, tuple[Callable[[int], nn.Module], int | None, bool]] = {
    # who: builds it, its window, whether activations are checkpointed
    "longbert, window 512": (windowed, WINDOW, False),
    "longbert, window 512, checkpointed": (windowed, WINDOW, True),
    "longbert, full attention": (functools.partial(longbert, **BASE), None, False),
    "BertModel, sdpa": (functools.partial(bert, **BASE), None, False),
    "Longformer, window 512": (functools.partial(longformer, **BASE), WINDOW, False),
    "ModernBERT, sdpa": (modernbert, None, False),  # 22 layers of its own design, as it was released
}
TOKENS = 65_536  # of a batch, but for one text of 262,144


def measure_model(who: str, length: int, backward: bool, seconds: float) -> dict[str, Any]:
    """Tokens a second, peak memory and MFU of one model at one length, in bf16."""
    build, window, checkpointed = MODELS[who]
    texts = max(1, TOKENS // length)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = build(length)
    model = model.to(DEVICE, torch.bfloat16).train(backward)
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(1000, 30000, (texts, length), device=DEVICE)
    gradient = torch.randn(texts, length, HIDDEN, device=DEVICE, dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    def step() -> float:
        start = time.perf_counter()
        with torch.set_grad_enabled(backward):
            states = model(ids).last_hidden_state
        if backward:
            states.backward(gradient)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    step()  # which chooses kernels, for some a second long
    step()
    second = step()
    times = [second, *(step() for _ in range(min(9, int(seconds / second))))]
    took = statistics.median(times)
    row = {
        "model": who,
        "length": length,
        "texts": texts,
        "backward": backward,
        "seconds": took,
        "steps": len(times),
        "tokens_per_second": texts * length / took,
        "peak_bytes": torch.cuda.max_memory_allocated() - before,
    }
    if "BERT, sdpa" not in who and "Longformer" not in who:  # whose arithmetic is not BERT's
        flops = linear_flops(model, texts * length) + 4 * HIDDEN * LAYERS * texts * pairs_seen(length, window)
        row["mfu"] = flops * (3 if backward else 1) / took / PEAK_FLOPS
    return row


def run_models(report: Report, deadline: float) -> None:
    print_row(["model", "texts x tokens", "", "tokens/s", "ms", "peak memory", "MFU"])
    print_row(["---"] * 7)
    for length in (4096, 16384, 65536, 262144):
        for who in MODELS:
            for backward in (False, True):
                if ("checkpointed" in who) and not (backward and length >= 65536):
                    continue
                report.models.append(try_model(who, length, backward, deadline))
                print_model(report.models[-1])


def try_model(who: str, length: int, backward: bool, deadline: float) -> dict[str, Any]:
    row = {"model": who, "length": length, "texts": max(1, TOKENS // length), "backward": backward}
    quadratic = MODELS[who][1] is None
    if quadratic and length > 65536 and (backward or "full attention" in who):
        return row | {"problem": "not run: half a minute a step"}
    if time.monotonic() > deadline:
        return row | {"problem": "not run: out of time"}
    try:
        return measure_model(who, length, backward, seconds=0.5)
    except torch.OutOfMemoryError:
        return row | {"problem": "out of memory"}
    except Exception as problem:
        return row | {"problem": f"{type(problem).__name__}: {str(problem)[:120]}"}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def print_row(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def model_cells(row: dict[str, Any]) -> list[str]:
    start = [
        row["model"],
        f"{row['texts']} x {row['length']:,}",
        "forward + backward" if row["backward"] else "forward",
    ]
    if "problem" in row:
        return [*start, row["problem"], "", "", ""]
    mfu = f"{row['mfu']:.1%}" if "mfu" in row else ""
    figures = [
        f"{row['tokens_per_second']:,.0f}",
        f"{row['seconds'] * 1000:,.1f}",
        f"{row['peak_bytes'] / 1e9:.2f} GB",
    ]
    return [*start, *figures, mfu]


def print_model(row: dict[str, Any]) -> None:
    print_row(model_cells(row))


# ---- attention alone


def milliseconds(work: Callable[[], Any], repeats: int = 10) -> float:
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def measure_attention(length: int, window: int | None) -> dict[str, Any]:
    """Forward, and forward and backward, of one layer's attention over 65,536 tokens; as a share of FA3's floor."""
    texts = max(1, TOKENS // length)
    inputs, gradient = draw(texts * length, torch.bfloat16)
    layout = Flattening(whole_rows((texts, length), DEVICE), window and Window(window // 2, 512), 1).layout
    flops = 4 * HIDDEN * texts * pairs_seen(length, window)
    floor = {"forward": flops / FA3["forward"], "backward": 2.5 * flops / FA3["backward"]}

    def forward(*each: torch.Tensor) -> torch.Tensor:
        return attend(*each, layout, HEAD_DIM**-0.5, windowed=window is not None)

    repeats = 3 if window is None and length > 65536 else 10
    with torch.no_grad():
        ahead = milliseconds(lambda: forward(*inputs), repeats)
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    both = milliseconds(lambda: torch.autograd.grad(forward(*leaves), leaves, gradient), repeats)
    return {
        "length": length,
        "texts": texts,
        "window": window,
        "forward_ms": ahead,
        "both_ms": both,
        "forward_share": floor["forward"] / ahead * 1000,
        "both_share": sum(floor.values()) / both * 1000,
    }


def attention_cells(row: dict[str, Any]) -> list[str]:
    shares = [f"{row[f'{part}_ms']:.2f} ms, {row[f'{part}_share']:.0%}" for part in ("forward", "both")]
    return [f"{row['texts']} x {row['length']:,}", f"window {row['window']}" if row["window"] else "full", *shares]


ATTENTION_HEADER = ["texts x tokens", "attention", "forward, share of the floor", "with backward, share of the floor"]


def run_attention(report: Report, deadline: float) -> None:
    print_row(ATTENTION_HEADER)
    print_row(["---"] * 4)
    for window in (WINDOW, None):
        for length in (4096, 16384, 65536) + ((262144,) if window else ()):
            if time.monotonic() < deadline:
                report.attention.append(measure_attention(length, window))
                print_row(attention_cells(report.attention[-1]))
                torch.cuda.empty_cache()


# ---- batches of different lengths


def run_batches(report: Report) -> None:
    """Fifty padded batches, no two alike: how much is compiled, and what a batch costs beside one that is repeated."""
    model = LongBertModel(
        LongBertConfig(max_position_embeddings=8192, pretrained_positions=512, attention_window=WINDOW)
    )
    model = model.to(DEVICE, torch.bfloat16).eval()
    generator = random.Random(0)
    batches = [padded_batch([generator.randint(100, 8000) for _ in range(8)]) for _ in range(50)]
    counters = torch._dynamo.utils.counters
    counters.clear()

    def seconds(these: list[dict[str, torch.Tensor]]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.no_grad():
            for inputs in these:
                model(**inputs)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds(batches[:1])
    anew, again = seconds(batches), seconds(batches)
    compiled = counters["stats"]["unique_graphs"]
    tokens = sum(int(inputs["attention_mask"].sum()) for inputs in batches)
    report.batches = {"compiled": compiled, "first_seconds": anew, "second_seconds": again, "real_tokens": tokens}
    print(
        f"50 padded batches of different lengths, forward: {compiled} compilations, {anew:.2f} s, the same again "
        f"{again:.2f} s; {tokens / again:,.0f} real tokens/s"
    )
    report.check("50 batches of different lengths: compilations", compiled, 3)


# ---- a run


def markdown(report: Report) -> str:
    about = report.environment
    failed = [check.name for check in report.checks if not check.holds]
    lines = [
        f"{about['date'][:10]}, {about['accelerator']['name']}, "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        f"`{about['command']}`",
        "",
        f"{len(report.checks)} checks, {len(failed)} failed. {'; '.join(failed)}",
    ]

    def table(header: list[str], rows: list[list[str]]) -> None:
        lines.extend(["", *("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])])

    table(["model", "texts x tokens", "", "tokens/s", "ms", "peak memory", "MFU"], [*map(model_cells, report.models)])
    table(ATTENTION_HEADER, [*map(attention_cells, report.attention)])
    return "\n".join(lines) + f"\n\n{report.batches}\n"


PARTS = ("checks", "batches", "attention", "models")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=220, help="after which no new figure is begun")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this needs a CUDA device; benchmarks/bench.py measures on a CPU")
    deadline = time.monotonic() + arguments.seconds
    report = Report(environment())
    print(json.dumps(report.environment, indent=1), flush=True)
    if "checks" in arguments.parts:
        run_checks(report)
    for name, run in (("batches", run_batches), ("attention", run_attention), ("models", run_models)):
        if name in arguments.parts:
            print(f"\n{name}, {time.strftime('%H:%M:%S')}", flush=True)
            run(report) if run is run_batches else run(report, deadline)
    file = arguments.out / f"gpu-{time.strftime('%Y-%m-%d-%H%M%S')}.json"
    write(file, asdict(report))
    file.with_suffix(".md").write_text(markdown(report), "utf-8")
    print(f"\nWritten: {file.name} and {file.with_suffix('.md').name}")
    failed = [check for check in report.checks if not check.holds]
    for check in failed:
        print(f"FAILED  {check.name}: {check.error:.2e}, at most {check.allowed:.0e} is allowed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
