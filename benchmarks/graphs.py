"""Time and memory of a window in a graph, by length: eager, torch.compile, jit.trace, torch.export, ONNX Runtime.

    python benchmarks/graphs.py [--lengths 64 512 4096 8192 16384] [--ways eager compile jit export onnx] [--threads 1]

One layer of a BERT-base with a window of 512 reads one text, fp32, without gradients. Every way has a process of its
own, in which one graph is made on a short text and serves every length. Times are medians of processor seconds, which
other work on the machine disturbs least; memory is a pass's peak above what the process held before it (Linux alone).
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BertTokenizer


MEASURED = "measured "  # a child's lines begin so; exporters print others
SHOWN = 64  # tokens of the two texts that a graph is made on
# freed memory goes back at once, so that a peak is a pass's own; and is kept, so that a time is not page faults'
ENVIRONMENTS = {
    "memory": {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"},
    "seconds": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"},
}
Reads = Callable[[torch.Tensor], torch.Tensor]


def build() -> torch.nn.Module:
    from longbert import LongBertConfig, LongBertModel

    torch.manual_seed(0)
    config = LongBertConfig(
        num_hidden_layers=1, position_type="hierarchical", max_position_embeddings=32768, attention_window=512
    )
    return LongBertModel(config, add_pooling_layer=False).eval()


def eager(model: torch.nn.Module, sample: torch.Tensor) -> Reads:
    return lambda input_ids: model(input_ids).last_hidden_state


def compiled(model: torch.nn.Module, sample: torch.Tensor) -> Reads:
    return eager(torch.compile(model, fullgraph=True, dynamic=True), sample)


def traced(model: torch.nn.Module, sample: torch.Tensor) -> Reads:
    graph = torch.jit.trace(model, sample, strict=False, check_trace=False)
    return lambda input_ids: graph(input_ids)["last_hidden_state"]


def exported(model: torch.nn.Module, sample: torch.Tensor) -> Reads:
    sizes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("length", min=3, max=32768)}
    program = torch.export.export(model, (), {"input_ids": sample}, dynamic_shapes={"input_ids": sizes})
    graph = program.module()
    return lambda input_ids: graph(input_ids=input_ids).last_hidden_state


def in_onnxruntime(model: torch.nn.Module, sample: torch.Tensor) -> Reads:
    """As `longbert export` writes it."""
    import onnxruntime

    from longbert.exporting import Graph, save_graph, to_onnx

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_cpu_mem_arena = False  # else it keeps the peak of the longest text
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "onnx", "model.onnx")
        save_graph(to_onnx(Graph(model, BertTokenizer(vocab={"[PAD]": 0}))), file)
        session = onnxruntime.InferenceSession(file, options)

    def reads(input_ids: torch.Tensor) -> torch.Tensor:
        tensors = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        tensors["token_type_ids"] = torch.zeros_like(input_ids)
        inputs = {name: tensor.numpy() for name, tensor in tensors.items()}
        return torch.from_numpy(session.run(["last_hidden_state"], inputs)[0])

    return reads


WAYS = {"eager": eager, "compile": compiled, "jit": traced, "export": exported, "onnx": in_onnxruntime}


def measure(way: str, quantity: str, lengths: list[int], repeats: int) -> None:
    """Print a line of JSON for every length: seconds or bytes, and how far the states are from eager's."""
    model = build()
    with torch.no_grad():
        reads = WAYS[way](model, torch.randint(1000, 30000, (2, SHOWN)))
        for length in lengths:
            tokens = torch.randint(1000, 30000, (1, length))
            states = reads(tokens)  # compiles, where this length needs it
            difference = float((states - eager(model, tokens)(tokens)).abs().max())
            del states
            found = peak(reads, tokens) if quantity == "memory" else seconds(reads, tokens, repeats)
            print(MEASURED + json.dumps([length, found, difference]), flush=True)


def seconds(reads: Reads, tokens: torch.Tensor, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        reads(tokens)
        times.append(time.process_time() - begun)
    return statistics.median(times)


def peak(reads: Reads, tokens: torch.Tensor) -> int:
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # resets VmHWM to what is resident now
    before = status_bytes("VmRSS")
    reads(tokens)
    return status_bytes("VmHWM") - before


def status_bytes(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 512, 4096, 8192, 16384])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # a way and a quantity, in a child
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        measure(*arguments.measure, arguments.lengths, arguments.repeats)
        return
    print(f"torch {torch.__version__}, {arguments.threads} threads, {time.strftime('%Y-%m-%d')}")
    print("| way | " + " | ".join(f"{length:,}" for length in arguments.lengths) + " | furthest from eager |")
    print("|---" * (len(arguments.lengths) + 2) + "|", flush=True)
    for way in arguments.ways:
        found = {}
        for quantity, allocator in ENVIRONMENTS.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", way, quantity]
            child = subprocess.run(command, env=os.environ | allocator, stdout=subprocess.PIPE, text=True, check=True)
            found[quantity] = [
                json.loads(line.removeprefix(MEASURED))
                for line in child.stdout.splitlines()
                if line.startswith(MEASURED)
            ]
        cells = [
            f"{taken:.2f} s, {held / 1e6:,.0f} MB"
            for (_, taken, _), (_, held, _) in zip(found["seconds"], found["memory"], strict=True)
        ]
        furthest = max(difference for _, _, difference in found["seconds"])
        print(f"| {way} | " + " | ".join(cells) + f" | {furthest:.0e} |", flush=True)


if __name__ == "__main__":
    main()
