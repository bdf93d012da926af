"""The other side of extension_study.py's LSG cells: the LSG converter's model of a source, run by a venv of its own.

    python -m venv lsg && lsg/bin/pip install torch==2.13.0 transformers==4.40.2 lsg-converter==0.1.9
    python benchmarks/extension_study.py STUDY.jsonl SOURCE --data books/ --lsg-python lsg/bin/python \\
        --recipes "LSG's own" --attention "LSG, blocks of 256, no sparse tokens"

Reads the task that the study wrote: texts, and the very batches that the study's own recipes train on. Writes each
masked token's loss beside it, and whether it was predicted, after each number of steps.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from lsg_converter import LSGConverter
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import get_constant_schedule_with_warmup, set_seed


# as its authors ship it, and as they set it beside a Longformer of window 512
SETTINGS = {
    "LSG, blocks of 128, sparse by norm": {},
    "LSG, blocks of 256, no sparse tokens": {"block_size": 256, "sparsity_type": "none", "sparsity_factor": 0},
}
Texts = list[dict[str, torch.Tensor]]


@torch.no_grad()
def measure(model: nn.Module, texts: Texts) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Loss of each masked token of each text, and whether it was predicted."""
    model.eval()
    results = []
    for text in texts:
        input_ids = text["input_ids"][None]
        logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits[0]
        labelled = text["labels"] != -100
        logits, targets = logits[labelled], text["labels"][labelled]
        results.append((cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets))
    return results


def optimizer_of(model: nn.Module, task: dict[str, Any]) -> torch.optim.Optimizer:
    """As Trainer's: biases and LayerNorms do not decay."""
    decays = {True: [], False: []}
    for name, parameter in model.named_parameters():
        decays["bias" not in name and "LayerNorm" not in name].append(parameter)
    groups = [{"params": each, "weight_decay": task["weight_decay"] * decay} for decay, each in decays.items()]
    return torch.optim.AdamW(groups, lr=task["learning_rate"])


def train(model: nn.Module, task: dict[str, Any]) -> dict[int, list]:
    """Train on the task's batches, one a step, and measure."""
    set_seed(task["seed"])
    optimizer = optimizer_of(model, task)
    schedule = get_constant_schedule_with_warmup(optimizer, task["warmup_steps"])
    results = {}
    for step, batch in enumerate(task["batches"], start=1):
        model.train()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), task["max_grad_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f}", flush=True)
        if step in task["measure_after"]:
            results[step] = measure(model, task["texts"])
    return results


def main(file: str) -> None:
    task = torch.load(file)
    converter = LSGConverter(max_sequence_length=task["max_sequence_length"])
    model, _ = converter.convert_from_pretrained(task["source"], num_global_tokens=1, **SETTINGS[task["settings"]])
    results = train(model, task) if task["batches"] else {0: measure(model, task["texts"])}
    torch.save(results, Path(file).with_suffix(".results"))


if __name__ == "__main__":
    main(*sys.argv[1:])
