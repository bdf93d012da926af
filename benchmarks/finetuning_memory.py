"""What fine-tuning a BERT-base on long documents takes on a CPU: 4,096 tokens in under 4 GB, 16,384 in under 8 GB.

    python benchmarks/finetuning_memory.py                             # every case, about 40 minutes on one core
    python benchmarks/finetuning_memory.py --cases 4096-window 4096-full

Each case is finetune/classification.py itself, in a process of its own: two optimizer steps (AdamW, fp32, one document
at a time) and a prediction, with every default that a user gets. The peak is the whole process's, as the kernel counts
it (`ru_maxrss`): Python, torch, weights, gradients, AdamW's two moments, activations. The second step is the one that
counts, for only then are there moments beside activations. Weights are random. The allocator's settings are those of
bench.py, without which (--default-allocator) the peak has some memory in it that is kept free: 1 GB at 4,096 tokens.

Beside it stands transformers' own BERT with a table as long, sdpa and no checkpointing, under transformers' Trainer:
with BERT's attention dropout, which keeps sdpa from its linear-memory kernel, and without, as longbert always is. No
case may have more than --most.

Prints a markdown table and leaves a record in benchmarks/results.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from bench import FOR_MEMORY, NotMeasured
from records import RESULTS, environment, write
from sides import SIZE
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    Trainer,
    TrainingArguments,
)


SCRIPT = Path(__file__).parents[1] / "finetune" / "classification.py"
BASE = SIZE | {"num_hidden_layers": 12}
STEPS = 2


@dataclass(frozen=True)
class Case:
    """One length and one way to attend.

    Args:
        window: `attention_window`; None for full attention.
        limit: bytes of the whole process that are claimed to be enough; None for transformers' own BERT.
        attention_dropout: of transformers' own BERT.
    """

    name: str
    tokens: int
    window: int | None = None
    limit: float | None = None
    attention_dropout: float = 0.1

    @property
    def attention(self) -> str:
        """What the table says of it."""
        if self.limit is None:
            return f"BertForSequenceClassification (sdpa), attention dropout {self.attention_dropout}"
        return f"window {self.window} + [CLS]" if self.window else "full"


CASES = [
    Case("4096-window", 4096, 512, 4e9),
    Case("4096-full", 4096, None, 4e9),
    Case("4096-bert", 4096),
    Case("4096-bert-undropped", 4096, attention_dropout=0.0),
    Case("16384-window", 16384, 512, 8e9),
    Case("16384-full", 16384, None, 8e9),
]


def save_source(folder: Path) -> Path:
    """A random BERT-base of 512 positions, and a tokenizer whose words are `w5` to `w30521`."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(f"w{number}" for number in range(len(special), BASE["vocab_size"]))]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    BertModel(BertConfig(**BASE)).save_pretrained(folder)
    return folder


def save_documents(file: Path, tokens: int, number: int) -> Path:
    """Documents of a little more than `tokens` tokens, of two labels in turn."""
    draw = random.Random(0)
    documents = [" ".join(f"w{draw.randrange(5, BASE['vocab_size'])}" for _ in range(tokens)) for _ in range(number)]
    lines = (json.dumps({"text": text, "label": "ab"[index % 2]}) for index, text in enumerate(documents))
    file.write_text("\n".join(lines), "utf-8")
    return file


def command(case: Case, source: Path, folder: Path) -> list[str]:
    """What trains a case."""
    if case.limit is None:
        return [sys.executable, __file__, "--train-bert", case.name, "--out", str(folder)]
    settings = {
        "model": str(source),
        "max_position_embeddings": case.tokens,
        "attention_window": case.window or "full",
        "train_file": str(save_documents(folder / "train.jsonl", case.tokens, STEPS)),
        "validation_file": str(save_documents(folder / "validation.jsonl", case.tokens, 1)),
        "output_dir": str(folder / "run"),
        "max_steps": STEPS,
        "per_device_train_batch_size": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(settings), "utf-8")
    return [sys.executable, str(SCRIPT), str(file)]


def train_bert(case: Case, folder: Path) -> None:
    """The opponent's two steps."""
    fields = {"max_position_embeddings": case.tokens, "attention_probs_dropout_prob": case.attention_dropout}
    model = BertForSequenceClassification(BertConfig(**BASE, **fields))
    drawn = torch.randint(5, BASE["vocab_size"], (STEPS, case.tokens))
    examples = [{"input_ids": input_ids, "labels": 0} for input_ids in drawn]
    arguments = TrainingArguments(
        str(folder / "run"),
        max_steps=STEPS,
        per_device_train_batch_size=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    Trainer(model, arguments, train_dataset=examples).train()


def state_bytes(tokens: int) -> int:
    """Weights, gradients and AdamW's two moments in fp32, of a table of so many rows."""
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(**BASE, max_position_embeddings=tokens))
    return 4 * 4 * sum(parameter.numel() for parameter in model.parameters())


def peak_of(line: list[str], arguments: argparse.Namespace) -> dict[str, float]:
    """The high-water mark of a process from its birth to its end.

    Raises:
        NotMeasured: it failed, or needed more than it may have.
    """
    start = time.perf_counter()
    variables = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    if not arguments.default_allocator:
        variables |= FOR_MEMORY
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=errors, env=variables)
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (int(arguments.most),) * 2)
        # waits for this child alone, where RUSAGE_CHILDREN would give the largest of all so far
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            said = errors.read()
            if "can't allocate memory" in said:
                raise NotMeasured(f"more than {arguments.most / 1e9:.0f} GB")
            raise NotMeasured(f"failed with status {process.returncode}: {said[-500:].strip()}")
    return {"bytes": 1024 * usage.ru_maxrss, "seconds": time.perf_counter() - start}


def measure(case: Case, source: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case's record."""
    record: dict[str, Any] = {"case": case.name, "tokens": case.tokens, "attention": case.attention}
    record |= {"checkpointing": case.limit is not None, "limit": case.limit, "state_bytes": state_bytes(case.tokens)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            record |= peak_of(command(case, source, Path(folder)), arguments)
        except NotMeasured as reason:
            return record | {"problem": str(reason)}
    return record if case.limit is None else record | {"met": record["bytes"] < case.limit}


def row(record: dict[str, Any]) -> str:
    """A record in the table."""
    peak = record.get("problem") or f"{record['bytes'] / 1e9:.2f} GB"
    limit = "" if record["limit"] is None else f"{record['limit'] / 1e9:.0f} GB"
    cells = [f"{record['tokens']:,}", record["attention"], "yes" if record["checkpointing"] else "no", peak]
    cells += [f"{record['state_bytes'] / 1e9:.2f} GB", limit, {True: "yes", False: "NO"}.get(record.get("met"), "")]
    return f"| {' | '.join(cells)} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--most", type=float, default=20e9, help="bytes that a case may have")
    parser.add_argument("--default-allocator", action="store_true", help="glibc's own settings")
    parser.add_argument("--train-bert", metavar="NAME", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.train_bert:
        (case,) = (case for case in CASES if case.name == arguments.train_bert)
        train_bert(case, arguments.out)
        return 0
    file = arguments.out / f"finetuning-memory-cpu-{time.strftime('%Y-%m-%d-%H%M%S')}.json"
    settings = {"threads": arguments.threads, "allocator": {} if arguments.default_allocator else FOR_MEMORY}
    content = {"environment": environment() | settings, "cases": []}
    print(
        "| tokens | attention | checkpointing | peak, whole process | of it weights, gradients, AdamW | limit | met |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        source = save_source(Path(folder))
        for case in CASES:
            if case.name in arguments.cases:
                content["cases"].append(measure(case, source, arguments))
                print(row(content["cases"][-1]), flush=True)
                write(file, content)
    print(f"\nWritten: {file.name}")
    return int(any("problem" in record for record in content["cases"]))


if __name__ == "__main__":
    sys.exit(main())
