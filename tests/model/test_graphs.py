"""Laws 5 and 15 for graphs: compiled, traced or exported once, a window is the window at every length, and linear.

Texts are written as strings, and judged by plain BERT, as in test_masks.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import LONG, N, assert_close, batch, first_then_slow, table, tiny_config
from test_attention import LargestTensor
from test_masks import ATTENTION, ROWS, WINDOW, added, all_sight, as_given, models, positions, real_tokens, tokens

from longbert import LongBertModel


WINDOWS = {name: settings for name, settings in ATTENTION.items() if settings}
PADDED = ["right", "left", "both sides", "holes", "holes, left", "all padding", "short"]
PACKED = ["whole", "packed", "packed, of one token"]
SHOWN = ["A" * 10, "A" * 7 + "..."]  # what a graph is made on: nothing in it is read through the window
REACH = 300
States = Callable[..., torch.Tensor]


# --- a graph of a model, made on one batch, as a function from other batches to their states


def compiled(model: LongBertModel, sample: dict[str, torch.Tensor]) -> States:
    torch.compiler.reset()
    graph = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    return lambda **inputs: graph(**inputs).last_hidden_state


def traced(model: LongBertModel, sample: dict[str, torch.Tensor]) -> States:
    class ByPlace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return self.model(**dict(zip(sample, tensors, strict=True))).last_hidden_state

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of checks of the sample's sizes
        graph = torch.jit.trace(ByPlace(), tuple(sample.values()), check_trace=False)
    return lambda **inputs: graph(*inputs.values())


def exported(model: LongBertModel, sample: dict[str, torch.Tensor]) -> States:
    reach = model.config.max_position_embeddings
    sizes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("length", min=3, max=reach)}
    # sizes of packed documents' global tokens are compared with others when the graph runs, not when it is made
    deferred = {"prefer_deferred_runtime_asserts_over_guards": True}
    program = torch.export.export(model, (), sample, dynamic_shapes=dict.fromkeys(sample, sizes), **deferred)
    graph = program.module()
    return lambda **inputs: graph(**inputs).last_hidden_state


def in_onnxruntime(model: LongBertModel, sample: dict[str, torch.Tensor], folder: Path) -> States:
    import onnxruntime
    from transformers.exporters import OnnxConfig, OnnxExporter

    OnnxExporter().export(model, sample, OnnxConfig(dynamic=True)).save_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")

    def states(**inputs: torch.Tensor) -> torch.Tensor:
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        return torch.from_numpy(session.run(["last_hidden_state"], arrays)[0])

    return states


WAYS = {"jit": traced, "compile": compiled, "export": exported, "onnx": in_onnxruntime}
every_way = pytest.mark.parametrize("way", first_then_slow(WAYS, 1))
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch's own


@pytest.fixture
def graph_of(tmp_path):
    def make(way: str, model: LongBertModel, sample: dict[str, torch.Tensor]) -> States:
        model.set_attn_implementation("longbert")
        folder = (tmp_path,) if way == "onnx" else ()
        with torch.no_grad():
            graph = WAYS[way](model, sample, *folder)

        def states(**inputs: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return graph(**inputs)

        return states

    return make


# --- what rows mean


def told(rows: list[str], form: str, marked: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    if form == "packed":
        return tokens(rows) | {"position_ids": positions(rows, True)}
    inputs = tokens(rows) | {"attention_mask": as_given(rows).long()}
    if form == "marked":
        inputs["global_attention_mask"] = torch.zeros_like(inputs["attention_mask"])
        inputs["global_attention_mask"][:, [place for place in marked if place < len(rows[0])]] = 1
    return inputs


def plain_states(rows: list[str], packed: bool, marked: tuple[int, ...] = (), **settings) -> torch.Tensor:
    _, theirs = models()
    mask = added(all_sight(rows, **settings, marked=marked))
    with torch.no_grad():
        return theirs(**tokens(rows), position_ids=positions(rows, packed), attention_mask=mask).last_hidden_state


@every_way
@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("attention", WINDOWS)
def test_one_graph_reads_whatever_rows_hold(attention, form, way, graph_of):
    graph = graph_of(way, models(**WINDOWS[attention])[0], told(SHOWN, form))
    for name in PADDED if form == "padded" else PACKED:
        rows = ROWS[name]
        states, real = graph(**told(rows, form)), real_tokens(rows)
        plain = plain_states(rows, form == "packed", **WINDOWS[attention])
        assert_close(states[real], plain[real], rtol=1e-5, atol=1e-5, msg=name)
        assert states.isfinite().all()


@every_way
def test_one_graph_takes_any_number_of_marks(way, graph_of):
    graph = graph_of(way, models(attention_window=WINDOW)[0], told(SHOWN, "marked", (3,)))
    for marked in ((), (12,), (12, 20, 25, 33), tuple(range(LONG))):
        for name in ("right", "holes, left"):
            rows = ROWS[name]
            states, real = graph(**told(rows, "marked", marked)), real_tokens(rows)
            plain = plain_states(rows, False, marked, attention_window=WINDOW)
            assert_close(states[real], plain[real], rtol=1e-5, atol=1e-5, msg=f"{name}, {marked}")


# --- layers that read otherwise, and more blocks, beside explicit masks

LAYERS = {
    "window": {},
    "full": {"full_attention_layers": [1]},
    "closed": {"closed_attention_layers": [0, 1], "closed_attention_start": -0.5},
}


def model_of(**settings) -> LongBertModel:
    undropped = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return LongBertModel(tiny_config(max_position_embeddings=REACH, **undropped, **settings))


def long_batch(length: int, form: str) -> dict[str, torch.Tensor]:
    """Three rows: whole, padded on the left, of few tokens; or documents of many lengths."""
    inputs = batch(length, batch_size=3)
    index = torch.arange(length).expand(3, -1)
    if form == "packed":
        starts = torch.where(index % 97 < 40, index // 97 * 97, index // 97 * 97 + 40)
        return inputs | {"position_ids": index - starts}
    kept = torch.tensor([[0, length], [length // 3, length], [2, min(length, N - 2)]])
    inputs["attention_mask"] = ((index >= kept[:, :1]) & (index < kept[:, 1:])).long()
    if form == "marked":
        inputs["global_attention_mask"] = (index % 50 == 7).long()
    return inputs


def explicit_states(model: LongBertModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    model.set_attn_implementation("eager")
    states = model(**inputs).last_hidden_state
    model.set_attn_implementation("longbert")
    return states


@every_way
@pytest.mark.parametrize("form", ["padded", "packed", "marked"])
@table("layers", LAYERS)
def test_layers_of_every_kind_agree_with_explicit_masks(layers, form, way, graph_of):
    model = model_of(attention_window=8, global_tokens=2, **layers).eval()
    graph = graph_of(way, model, long_batch(12, form))
    for length in (5, N, N + 1, 100, REACH):
        inputs = long_batch(length, form)
        real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        with torch.no_grad():
            assert_close(graph(**inputs)[real], explicit_states(model, inputs)[real], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["padded", "packed"])
@table("layers", LAYERS)
def test_a_compiled_model_trains_as_with_explicit_masks(layers, form):
    torch.compiler.reset()
    model, inputs, found = model_of(attention_window=8, **layers).train(), long_batch(100, form), []
    graph = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    for states_of in (lambda: graph(**inputs).last_hidden_state, lambda: explicit_states(model, inputs)):
        model.zero_grad()
        states_of()[real].square().sum().backward()
        named = model.named_parameters()
        found.append({name: each.grad for name, each in named if "pooler" not in name})
    assert all(gradient is not None for gradient in found[0].values())
    assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision_and_under_autocast(dtype, graph_of):
    inputs = long_batch(100, "padded")
    real = inputs["attention_mask"].bool()
    model = model_of(attention_window=8, closed_attention_layers=[1]).eval()
    expected = explicit_states(model, inputs)[real]
    graph = graph_of("compile", model, inputs)
    tolerance = 32 * torch.finfo(dtype).eps
    with torch.autocast("cpu", dtype):
        assert_close(graph(**inputs)[real].float(), expected, rtol=0, atol=tolerance)
    graph = graph_of("compile", model.to(dtype), inputs)
    assert_close(graph(**inputs)[real].float(), expected, rtol=0, atol=tolerance)


# --- law 15


LINEAR = [
    (layers, form, training)
    for layers in LAYERS
    for form in ("padded", "packed", "marked")
    for training in (False, True)
    if layers == "window" or form != "packed"  # read in full, packed documents need an explicit mask in a graph
]


@pytest.mark.parametrize("case", first_then_slow(LINEAR, 1), ids=lambda case: "-".join(map(str, case)))
def test_no_graph_holds_anything_n_by_n(case):
    """Every operation of the compiled graph is watched, forwards and backwards."""
    torch.compiler.reset()
    (layers, form, training), length = case, 4096
    narrow = {"hidden_size": 16, "num_attention_heads": 1, "num_hidden_layers": 2, "intermediate_size": 32}
    config = tiny_config(max_position_embeddings=length, attention_window=8, **narrow, **LAYERS[layers])
    model, inputs = LongBertModel(config).train(training), long_batch(length, form)
    largest = LargestTensor()

    def watched(graph: torch.fx.GraphModule, sample: list[torch.Tensor]) -> Callable:
        def run(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with largest:
                return graph(*args)

        return run

    compiled = torch.compile(model, backend=watched, fullgraph=True, dynamic=True)
    with torch.set_grad_enabled(training):
        states = compiled(**inputs).last_hidden_state
        if training:
            with largest:
                states.sum().backward()
    assert 0 < largest.numel < length**2 / 4
