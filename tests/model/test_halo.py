"""What processes that share texts send each other: enough, whatever the batch, and no more than the window needs."""

import os
import subprocess
import sys

import pytest
import torch

from longbert.halo import make_halo
from longbert.text_layout import Flattening, Shard, Window
from longbert.texts import Texts, whole_rows


RADIUS = 8


def halos(texts: Texts, processes: int, in_full: bool = False, global_tokens: int = 2) -> list:
    """Of every process."""
    found = []
    for rank in range(processes):
        layout = Flattening(texts, Window(RADIUS, 16), global_tokens).layout
        layout.shard = Shard(sum(layout.lengths), rank, processes)
        found.append(make_halo(layout, in_full))
    return found


@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("texts", [1, 3])
def test_what_a_window_needs_does_not_grow_with_the_texts(texts, processes):
    received = [
        [sum(halo.receive) for halo in halos(whole_rows((texts, length), torch.device("cpu")), processes)]
        for length in (400, 1600, 6400)
    ]
    for counts in received:
        assert max(counts) <= 2 * RADIUS + 2 * texts
    assert received[1] == received[2]


@pytest.mark.parametrize("in_full", [False, True])
def test_who_sends_and_who_receives_agree(in_full):
    texts = whole_rows((3, 70), torch.device("cpu"))
    found = halos(texts, 5, in_full)
    for one in range(5):
        assert [halo.send[one] for halo in found] == found[one].receive
        assert len(found[one].sent) == sum(found[one].send)


def test_a_text_read_in_full_goes_to_those_who_share_it_only():
    """Rows of 60 tokens, of which processes have 45 each: the second has 15 of the first row and 30 of the second."""
    found = halos(whole_rows((3, 60), torch.device("cpu")), 4, in_full=True)
    assert [halo.receive for halo in found] == [[0, 15, 0, 0], [45, 0, 30, 0], [0, 30, 0, 45], [0, 0, 15, 0]]


SHARED = """
import sys, torch, torch.distributed as dist
from longbert import LongBertConfig, LongBertModel

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
sizes |= {"vocab_size": 100, "pretrained_positions": 16, "max_position_embeddings": 1024}
none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
closed = {"closed_attention_layers": [0], "closed_attention_start": -1.0}
MODELS = {
    "window": {"attention_window": 16},
    "no global token": {"attention_window": 16, "global_tokens": 0},
    "three": {"attention_window": 8, "global_tokens": 3},
    "full": {"attention_window": None},
    "a full layer": {"attention_window": 16, "full_attention_layers": [1]},
    "a closed layer": {"attention_window": 16, **closed},
}
draw = torch.Generator().manual_seed(1)
ids = torch.randint(5, 100, (3, 200), generator=draw)
whole = torch.ones(3, 200, dtype=torch.long)
padded, marks = whole.clone(), torch.zeros_like(whole)
padded[0, 120:] = padded[1, 10:] = 0
marks[:, ::37] = 1
packed = torch.cat([torch.arange(n) for n in (90, 60, 7, 3, 40)])[None].expand(3, -1)
BATCHES = {
    "whole": {"attention_mask": whole},
    "padded": {"attention_mask": padded},
    "gaps": {"attention_mask": (torch.rand(3, 200, generator=draw) < 0.8).long()},
    "packed": {"position_ids": packed},
    "marks": {"attention_mask": whole, "global_attention_mask": marks},
}


def step(model, group, inputs):
    model.sequence_group = group
    model.zero_grad()
    states = model(**inputs).last_hidden_state
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2)).to(states.dtype)
    real = inputs.get("attention_mask", whole).bool()
    (states * weights)[real].double().sum().backward()
    gradients = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None and "key.bias" not in n}
    if group is not None:
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
    return {"output": states.detach()[real].double(), **gradients}


def off(found, right):
    return {what: ((each - right[what]).norm() / right[what].norm()).item() for what, each in found.items()}


for name, settings in MODELS.items():
    torch.manual_seed(0)
    half = LongBertModel(LongBertConfig(**sizes, **none, **settings)).to(torch.bfloat16).train()
    exact = LongBertModel(LongBertConfig(**sizes, **none, **settings)).double().train()
    exact.load_state_dict(half.state_dict())
    for kind, batch in BATCHES.items():
        if kind == "marks" and name == "full":
            continue
        inputs = {"input_ids": ids, **batch}
        right = step(exact, None, inputs)
        for what, error in off(step(exact, dist.group.WORLD, inputs), right).items():
            assert error <= 1e-11, f"{name}, {kind}, {what}: {error}"
        # in bf16 as near to what is right as one process is
        alone, shared = (off(step(half, group, inputs), right) for group in (None, dist.group.WORLD))
        for what, error in shared.items():
            assert error <= 1.5 * alone[what] + 2**-8, f"{name}, bf16, {kind}, {what}: {error}, alone {alone[what]}"

# elements that a process is sent in a step, but for the gathering of what the last layer gives
received = {}
exchange, reduce = dist.all_to_all_single, dist.all_reduce


def counted_exchange(output, *arguments, **options):
    received[length] += output.numel()
    return exchange(output, *arguments, **options)


def counted_reduce(tensor, *arguments, **options):
    received[length] += tensor.numel()
    return reduce(tensor, *arguments, **options)


dist.all_to_all_single, dist.all_reduce = counted_exchange, counted_reduce
model = LongBertModel(LongBertConfig(**sizes, **none, **MODELS["window"]))
model.sequence_group = dist.group.WORLD
for length in (256, 512, 1024):
    received[length] = 0
    with torch.no_grad():
        model(torch.randint(5, 100, (1, length)))
assert received[256] == received[512] == received[1024], received
# two layers: keys and values of 8 tokens on either side and [CLS], and [CLS]'s query, output, and sums
assert received[256] <= 2 * 32 * (2 * (2 * 8 + 1) + 4), received
"""


@pytest.mark.slow
def test_processes_that_share_texts_compute_what_one_does(tmp_path):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, str(rank), str(tmp_path)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    said = [run.communicate(timeout=400)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], "\n".join(each[-1500:] for each in said)
