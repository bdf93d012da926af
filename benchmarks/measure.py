"""Measure both sides of a comparison, each in a process of its own, and keep the record. Needs only torch.

Time: both processes are built and warmed, then asked in turn, A B A B ..., so that slow drifts of the machine fall on
both. A sample is as many whole steps as fill a second. Taking turns does not make a busy machine harmless: beside
one other busy core a step of 0.24 s took 2.4 s, as even in every pair as on a quiet machine. So each sample also says
how many cores others used, and the report marks times that were disturbed.

Memory: other processes, one at a time, because the allocator settings that make peaks comparable make steps slower.
"""

import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn


THREADS = 2
SAMPLE_SECONDS = 1.0
QUIET_CORES = 0.1  # what others may use of the machine before a time is called disturbed
# glibc raises its mmap threshold as it goes, up to 32 MB, and then keeps freed blocks: one step "peaked" at 2745 MB
# by default and at 896 MB with these. They cost page faults, so no time is measured under them.
MEMORY_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
# Blocks past 32 MB are otherwise given back and faulted in anew at every operation: at twice the length GELU, copies
# and LayerNorm then took 7 to 11 times as long. These keep them, as CUDA's allocator does, for both sides.
TIME_ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
SIZE = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


# ---- what a side does


@dataclass
class Work:
    """One side of a case, built.

    Args:
        parameters: what gradients are kept for.
        step: runs over the first so many tokens of the input and returns what the other side must return too.
        length: tokens of the whole input.
        scrap: tokens of the step that only makes the gradients exist before memory is measured.
    """

    parameters: list[nn.Parameter]
    step: Callable[[int], torch.Tensor]
    length: int
    scrap: int = 64

    def clear(self) -> None:
        """Zero the gradients, keeping their memory."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def draw_weights(model: nn.Module) -> nn.Module:
    """Draw all but LayerNorm's weights by their names, so that models of two classes in two processes get the same."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or name.endswith("bias"):
            drawn = torch.empty(parameter.shape).normal_(std=0.02, generator=generator(zlib.crc32(name.encode())))
            parameter.copy_(drawn)
    return model


def draw_tokens(batch_size: int, length: int) -> torch.Tensor:
    """Token ids `[batch_size, length]`, none of them special in any model."""
    return torch.randint(1000, SIZE["vocab_size"], (batch_size, length), generator=generator())


def encoder_work(
    model: nn.Module, length: int, device: str, *, batch_size: int = 1, backward: bool = True, scrap: int = 64
) -> Work:
    """Forward through an encoder and, with `backward`, back from a random gradient: a constant one would vanish in the
    last LayerNorm."""
    model = draw_weights(model).to(device).train(backward)
    tokens = draw_tokens(batch_size, length).to(device)
    gradient = torch.randn(batch_size, length, SIZE["hidden_size"], generator=generator()).to(device, model.dtype)

    def step(length: int) -> torch.Tensor:
        with torch.set_grad_enabled(backward):
            hidden_states = model(tokens[:, :length]).last_hidden_state
        if backward:
            hidden_states.backward(gradient[:, :length])
        return hidden_states.detach()

    return Work(list(model.parameters()), step, length, scrap)


# ---- the child process


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_steps(work: Work, device: str) -> dict[str, float]:
    """Seconds of one step, over as many as fill `SAMPLE_SECONDS`."""
    work.clear()
    synchronize(device)
    machine, processor, wall, steps, seconds = busy_seconds(), time.process_time(), time.perf_counter(), 0, 0.0
    while seconds < SAMPLE_SECONDS:
        work.step(work.length)
        synchronize(device)
        steps, seconds = steps + 1, time.perf_counter() - wall
    ours, all_processes = time.process_time() - processor, busy_seconds() - machine
    return {
        "seconds": seconds / steps,
        "cpu_seconds": ours / steps,
        "steps": steps,
        "cores_of_others": max(0.0, all_processes - ours) / seconds,
    }


def busy_seconds() -> float:
    """Processor time that the machine has spent on anything, the host's other guests included."""
    user, nice, system, _idle, _iowait, *interrupts_and_steal = map(
        int, Path("/proc/stat").read_text("utf-8").split("\n")[0].split()[1:9]
    )
    return (user + nice + system + sum(interrupts_and_steal)) / os.sysconf("SC_CLK_TCK")


def peak_memory(work: Work, device: str) -> dict[str, float]:
    """High-water mark of one step above the model and its gradients."""
    work.step(min(work.scrap, work.length))
    work.clear()
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work.step(work.length)
        return {"bytes": torch.cuda.max_memory_allocated() - before, "bytes_before": before}
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # resets VmHWM to what is resident now
    before = status_bytes("VmRSS")
    work.step(work.length)
    return {"bytes": status_bytes("VmHWM") - before, "bytes_before": before}


def status_bytes(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))[1])


def keep_result(work: Work, device: str, path: str) -> dict[str, float]:
    """Leave what one step returns in a file, for the parent to compare."""
    work.clear()
    torch.save(work.step(work.length).float().cpu(), path)
    return {}


REQUESTS = {"time": time_steps, "memory": peak_memory, "keep": keep_result}


def serve(build: Callable[[], Work], device: str) -> None:
    """Build, then answer each line of standard input with a line of JSON until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not look like an answer
    torch.set_num_threads(THREADS)
    work = None
    try:
        work = build()
        print("{}", file=answers)
        for line in sys.stdin:
            name, *arguments = line.split()
            print(json.dumps(REQUESTS[name](work, device, *arguments)), file=answers)
    except Exception as error:
        missing = work is None and isinstance(error, ValueError)
        message = without_paths(str(error).strip().partition("\n")[0])[:200]
        reason = f"not available: {message}" if missing else f"failed: {type(error).__name__}: {message}"
        print(json.dumps({"error": reason}), file=answers)
        raise


# ---- the parent


class NotMeasured(Exception):
    """A side could not be built or run; the message says why."""


class Side:
    """A child process that holds one side of a case, built."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *error: Any) -> None:
        self.process.kill()
        self.process.communicate()

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"failed: ended with status {self.process.wait()}"}
        if "error" in answer:
            raise NotMeasured(answer["error"])
        return answer

    def ask(self, request: str) -> dict[str, Any]:
        print(request, file=self.process.stdin, flush=True)
        return self.answer()


def compare_times(commands: list[list[str]], repeats: int, check: bool) -> tuple[list[list[dict]], float | None]:
    """Samples of each side, taken in turn, and with `check` how far apart the sides' results are."""
    with ExitStack() as stack:
        sides = [stack.enter_context(Side(command, TIME_ENVIRONMENT)) for command in commands]
        for side in sides:
            side.answer()
        difference = result_difference(sides) if check else None
        _warm_up, *rounds = [[side.ask("time") for side in sides] for _ in range(1 + repeats)]
    return [list(samples) for samples in zip(*rounds, strict=True)], difference


def result_difference(sides: list[Side]) -> float:
    """Largest difference between two sides' results, relative to the largest value."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, str(number))) for number in range(len(sides))]
        for side, path in zip(sides, paths, strict=True):
            side.ask(f"keep {path}")
        ours, theirs = map(torch.load, paths)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def compare_memory(commands: list[list[str]]) -> list[list[dict]]:
    samples = []
    for command in commands:
        with Side(command, MEMORY_ENVIRONMENT) as side:
            side.answer()
            samples.append([side.ask("memory")])
    return samples


@dataclass(frozen=True)
class Goal:
    """What a measurement is to show; without a limit it is only measured.

    Args:
        kind: `gain`, how many times as much the other side needs (at least `limit`); `cost`, how many times as much
            ours needs (at most `limit`); `amount`, the seconds or bytes that ours needs (at most `limit`).
        limit: the target.
    """

    kind: str
    limit: float | None = None

    def value(self, ours: float, against: float | None) -> float:
        return {"gain": lambda: against / ours, "cost": lambda: ours / against, "amount": lambda: ours}[self.kind]()

    def judge(self, quantity: str, samples: list[list[dict]]) -> dict[str, Any]:
        """The record of one quantity, `seconds` or `bytes`: medians, their ratio, that of each pair, every sample."""
        columns = [[sample[quantity] for sample in side] for side in samples]
        medians = [statistics.median(column) for column in columns]
        value = self.value(medians[0], medians[1] if len(medians) > 1 else None)
        pairs = [self.value(pair[0], pair[-1]) for pair in zip(*columns, strict=True)]
        reached = None if self.limit is None else value >= self.limit if self.kind == "gain" else value <= self.limit
        return {
            "kind": self.kind,
            "target": self.limit,
            "value": value,
            "reached": reached,
            "lowest_pair": min(pairs),
            "highest_pair": max(pairs),
            "medians": medians,
            "samples": samples,
        }


# ---- the record


def without_paths(text: str) -> str:
    """Each absolute path cut down to its last part: they say nothing on another machine."""
    return re.sub(r"(^|[\s='\"(])/\S*/", r"\1", text)


def environment(device: str) -> dict[str, Any]:
    """What the numbers depend on and the reader cannot see."""

    def git(*arguments: str) -> str:
        answer = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
        return answer.stdout.strip()

    processor = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": git("rev-parse", "HEAD") or "unknown",
        "uncommitted_changes": bool(git("status", "--porcelain", "--", ":/modeling", ":/benchmarks/*.py")),
        "command": without_paths(" ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])),
        "hardware": {
            "processor": processor[1] if processor else platform.machine(),
            "cores": os.cpu_count(),
            "memory_gb": round(memory / 1e9, 1),
            "accelerator": torch.cuda.get_device_name() if device == "cuda" else None,
        },
        "threads": THREADS,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "longbert")},
        },
    }


def amount_text(quantity: str, value: float) -> str:
    if quantity == "time":
        return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def value_text(quantity: str, judged: dict[str, Any], value: float) -> str:
    return amount_text(quantity, value) if judged["kind"] == "amount" else f"{value:.2f}x"


def cells(quantity: str, judged: dict[str, Any] | None) -> list[str]:
    """A quantity's cells in the table: what the sides need, what that shows, the target."""
    if judged is None:
        return ["", "", ""]
    text = partial(value_text, quantity, judged)
    needs = " : ".join(amount_text(quantity, median) for median in judged["medians"])
    shows = text(judged["value"])
    if quantity == "time":
        shows += f" ({text(judged['lowest_pair'])} to {text(judged['highest_pair'])})"
    if judged["target"] is None:
        return [needs, shows, ""]
    bound = "at least" if judged["kind"] == "gain" else "at most"
    return [needs, shows, f"{bound} {text(judged['target'])}: {'yes' if judged['reached'] else 'NO'}"]


LEGEND = f"""
Both sides ran with {THREADS} threads, interleaved, each in its own process; times are medians of the samples.
A ratio with a target of "at least" is theirs / ours (larger is better), with "at most" ours / theirs (smaller is
better); in brackets the lowest and the highest pair of samples. Memory is the peak above the model and its gradients.
Times marked DISTURBED are no result: something else used the machine meanwhile.
"""


class Report:
    """A run's record: rows are printed and the JSON is rewritten as cases finish, the picture is drawn at the end."""

    def __init__(self, folder: Path, device: str, note: str = ""):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"attention-{device}-{time.strftime('%Y-%m-%d-%H%M%S')}.json"
        self.content = {"environment": environment(device), "note": note, "cases": []}
        quantities = ["time, ours : theirs", "ratio (pairs)", "target", "memory, ours : theirs", "ratio", "target"]
        self.print_row(["case", *quantities, "remarks"])
        self.print_row(["---"] * (len(quantities) + 2))

    @property
    def failed(self) -> bool:
        return any(record.get("problem", "").startswith("failed") for record in self.content["cases"])

    def print_row(self, row: list[str]) -> None:
        print("| " + " | ".join(row) + " |", flush=True)

    def add(self, record: dict[str, Any]) -> None:
        self.content["cases"].append(record)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n", "utf-8")
        remarks = [record["problem"]] if "problem" in record else []
        if record.get("difference") is not None and not remarks:
            remarks.append(f"equal to {record['difference']:.0e}")
        if record.get("cores_of_others", 0) > QUIET_CORES:
            remarks.append(f"DISTURBED: others used {record['cores_of_others']:.1f} cores")
        quantities = [cell for quantity in ("time", "memory") for cell in cells(quantity, record.get(quantity))]
        self.print_row([record["case"], *quantities, "; ".join(remarks)])

    def close(self) -> None:
        print(LEGEND + f"{self.content['note']}\n".lstrip("\n"))
        for record in self.content["cases"]:
            print(f"- {record['case']}: {record['what']}")
        self.draw(self.path.with_suffix(".png"))
        print(f"\nWritten: {self.path.stem}.json and .png")

    def draw(self, path: Path) -> None:
        """Bars of what each case shows, a tick at its target."""
        from matplotlib import pyplot  # here: a peer's venv imports this module too

        bars = [
            (f"{record['case']}, {quantity}", quantity, record[quantity])
            for record in self.content["cases"]
            for quantity in ("time", "memory")
            if quantity in record
        ]
        gains = [bar for bar in bars if bar[2]["kind"] == "gain"]
        bounded = [bar for bar in bars if bar[2]["kind"] != "gain" and bar[2]["target"] is not None]
        parts = {"times as much that the other side needs": gains, "share of what is allowed": bounded}
        parts = {label: part[::-1] for label, part in parts.items() if part}
        if not parts:
            return
        heights = [len(part) + 2 for part in parts.values()]
        size = (9, 0.8 + 0.3 * sum(heights))
        figure, axes = pyplot.subplots(
            len(parts), figsize=size, height_ratios=heights, layout="constrained", squeeze=False
        )
        environment = self.content["environment"]
        hardware = environment["hardware"]
        figure.suptitle(
            f"{hardware['accelerator'] or hardware['processor']}, {environment['date'][:10]}, "
            f"commit {environment['commit'][:9]}; tick: target{self.content['note'] and '; ' + self.content['note']}"
        )
        for axis, (label, part) in zip(axes.flat, parts.items(), strict=True):
            draw_bars(axis, part)
            axis.set_xlabel(label)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def draw_bars(axis: Any, bars: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Gains as they are, costs and amounts as shares of their targets."""
    for position, (_, quantity, judged) in enumerate(bars):
        scale = 1 if judged["kind"] == "gain" else judged["target"]
        length = judged["value"] / scale
        axis.barh(position, length, color={"time": "tab:blue", "memory": "tab:orange"}[quantity])
        if judged["target"] is not None:
            axis.vlines(judged["target"] / scale, position - 0.45, position + 0.45, color="black", linewidth=2)
        text = value_text(quantity, judged, judged["value"])
        axis.annotate(text, (length, position), (6, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axis.margins(x=0.12)
