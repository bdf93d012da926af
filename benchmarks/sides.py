"""One side of a comparison: the work, and the process that measures it when asked. Needs only torch.

A process is built, then answers each line of standard input with a line of JSON: the seconds of a step, the peak
memory of one, or what it returned. A sample of time is as many whole steps as fill a second. Each also says how many
cores others used meanwhile: beside one other busy core a step of two threads took 2.4 s for 0.24 s, as even in every
pair as on a quiet machine.
"""

import ctypes
import gc
import json
import os
import re
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from records import version
from torch import nn


SAMPLE_SECONDS = 1.0
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
    model: nn.Module, length: int, *, batch_size: int = 1, backward: bool = True, scrap: int = 64
) -> Work:
    """Forward through an encoder and, with `backward`, back from a random gradient: a constant one would vanish in the
    last LayerNorm."""
    model = draw_weights(model).train(backward)
    tokens = draw_tokens(batch_size, length)
    gradient = torch.randn(batch_size, length, SIZE["hidden_size"], generator=generator()).to(model.dtype)

    def step(length: int) -> torch.Tensor:
        with torch.set_grad_enabled(backward):
            hidden_states = model(tokens[:, :length]).last_hidden_state
        if backward:
            hidden_states.backward(gradient[:, :length])
        return hidden_states.detach()

    return Work(list(model.parameters()), step, length, scrap)


# ---- what is asked of it


def time_steps(work: Work) -> dict[str, float]:
    """Seconds of one step, over as many as fill `SAMPLE_SECONDS`."""
    work.clear()
    machine, processor, wall, steps, seconds = busy_seconds(), time.process_time(), time.perf_counter(), 0, 0.0
    while seconds < SAMPLE_SECONDS:
        work.step(work.length)
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


def peak_memory(work: Work) -> dict[str, float]:
    """High-water mark of one step above the model and its gradients."""
    work.step(min(work.scrap, work.length))
    work.clear()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # resets VmHWM to what is resident now
    before = status_bytes("VmRSS")
    work.step(work.length)
    return {"bytes": status_bytes("VmHWM") - before, "bytes_before": before}


def status_bytes(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))[1])


def keep_result(work: Work, path: str) -> dict[str, float]:
    """Leave what one step returns in a file, for the parent to compare."""
    work.clear()
    torch.save(work.step(work.length).float(), path)
    return {}


REQUESTS = {"time": time_steps, "memory": peak_memory, "keep": keep_result}


def serve(build: Callable[[], Work], threads: int) -> None:
    """Build, then answer each line of standard input with a line of JSON until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not look like an answer
    torch.set_num_threads(threads)
    try:
        work = build()
        print(json.dumps({name: version(name) for name in ("torch", "transformers")}), file=answers)
        for line in sys.stdin:
            name, *arguments = line.split()
            print(json.dumps(REQUESTS[name](work, *arguments)), file=answers)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {str(error).strip()[:200]}"}), file=answers)
        raise
