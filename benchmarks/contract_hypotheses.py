"""ContractNLI with all 17 hypotheses before the contract, each judged at a token of its own.

python benchmarks/contract_hypotheses.py SOURCE TRAIN.json TEST.json OUT [--strategies long ...]

A row is [CLS] hypothesis [SEP] ... hypothesis [SEP] text [SEP]; the vector of each [SEP] after a hypothesis says
whether the text entails it, contradicts it or does not mention it. `long` reads the whole contract at once, to 4,096
tokens, and these [SEP] are global. The others are the source itself, which has room for the 17 hypotheses and 233
tokens more: the contract's first, its first and last, or all of them in chunks, whose vectors' mean and maximum are
read.

Predictions are written as finetune/classification.py writes them, so that benchmarks/contract_nli.py compares them by
where the evidence lies.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, BertModel, get_linear_schedule_with_warmup

from longbert import LongBertConfig, LongBertModel
from longbert.finetuning.strategies import STRATEGIES
from longbert.source import find_source


CHOICES = ("NotMentioned", "Entailment", "Contradiction")
REACH = 4096


class Reader(nn.Module):
    """A BERT and a linear head for the vectors of the hypotheses.

    Args:
        source: the checkpoint's folder.
        strategy: a name in `STRATEGIES`.
        prefix: the tokens of [CLS] and the hypotheses.
        judges: where in `prefix` the [SEP] of each hypothesis stands.
    """

    def __init__(self, source: str, strategy: str, prefix: list[int], judges: list[int]) -> None:
        super().__init__()
        self.strategy = STRATEGIES[strategy]
        if self.strategy.extended:
            config = LongBertConfig.from_pretrained(source, max_position_embeddings=REACH)
            self.bert = LongBertModel.from_pretrained(source, config=config, add_pooling_layer=False)
        else:
            self.bert = BertModel.from_pretrained(source, add_pooling_layer=False)
        self.prefix, self.judges = prefix, judges
        self.sep, self.pad = prefix[judges[0]], self.bert.config.pad_token_id
        self.reach = self.bert.config.max_position_embeddings
        parts = 2 if self.strategy.pooled else 1
        self.head = nn.Linear(parts * self.bert.config.hidden_size, len(CHOICES))

    def forward(self, text: list[int]) -> torch.Tensor:
        """The logits `[hypotheses, choices]` of one contract, given its tokens."""
        rows = [[*self.prefix, *piece, self.sep] for piece in self.pieces(text)]
        width = max(map(len, rows))
        input_ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows])
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        marks = {}
        if self.strategy.extended:
            marks["global_attention_mask"] = torch.zeros_like(real)
            marks["global_attention_mask"][:, [0, *self.judges]] = 1
        states = self.bert(input_ids=input_ids, attention_mask=real, **marks).last_hidden_state[:, self.judges]
        if not self.strategy.pooled:
            return self.head(states[0])
        return self.head(torch.cat([states.mean(dim=0), states.amax(dim=0)], dim=-1))

    def pieces(self, text: list[int]) -> list[list[int]]:
        """What is read of a text, a row each."""
        return self.strategy.read(text, self.reach - len(self.prefix) - 1)


def train(reader: Reader, contracts: list[dict[str, Any]], arguments: argparse.Namespace) -> Iterator[float]:
    """The mean loss of each epoch, when it ends.

    Two contracts a step; the rate rises for a tenth of the steps and then falls to zero.
    """
    optimizer = torch.optim.AdamW(reader.parameters(), lr=arguments.learning_rate, weight_decay=0.01)
    steps = arguments.epochs * (len(contracts) // 2)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for _ in range(arguments.epochs):
        reader.train()
        order = random.sample(contracts, len(contracts) // 2 * 2)
        losses = []
        for number, contract in enumerate(order):
            loss = nn.functional.cross_entropy(reader(contract["text"]), contract["choices"])
            (loss / 2).backward()
            losses.append(loss.item())
            if number % 2:
                nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        yield sum(losses) / len(losses)


def predict(reader: Reader, contracts: list[dict[str, Any]], hypotheses: list[str], out: Path) -> float:
    """Writes a line of json for each contract, and returns the share of pairs judged right."""
    reader.eval()
    lines, right = [], 0
    with torch.no_grad():
        for contract in contracts:
            shares = reader(contract["text"]).softmax(dim=-1)
            right += int((shares.argmax(dim=-1) == contract["choices"]).sum())
            scores = {
                f"{hypothesis} {choice}": share.item()
                for hypothesis, row in zip(hypotheses, shares, strict=True)
                for choice, share in zip(CHOICES[1:], row[1:], strict=True)
            }
            lines.append(json.dumps({"id": str(contract["id"]), "scores": scores}) + "\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(lines), "utf-8")
    return right / (len(contracts) * len(hypotheses))


def read_contracts(file: Path, hypotheses: list[str], encode: Callable[[str], list[int]]) -> list[dict[str, Any]]:
    contracts = []
    for document in json.loads(file.read_text("utf-8"))["documents"]:
        judged = document["annotation_sets"][0]["annotations"]
        choices = torch.tensor([CHOICES.index(judged[hypothesis]["choice"]) for hypothesis in hypotheses])
        contracts.append({"id": document["id"], "text": encode(document["text"]), "choices": choices})
    return contracts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    source = find_source(arguments.source)
    tokenizer = AutoTokenizer.from_pretrained(source)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    described = json.loads(arguments.train.read_text("utf-8"))["labels"]
    hypotheses = sorted(described)
    prefix, judges = [tokenizer.cls_token_id], []
    for hypothesis in hypotheses:
        prefix += [*encode(described[hypothesis]["hypothesis"]), tokenizer.sep_token_id]
        judges.append(len(prefix) - 1)
    contracts = read_contracts(arguments.train, hypotheses, encode)
    tests = read_contracts(arguments.test, hypotheses, encode)
    files = {
        strategy: arguments.out / strategy / f"seed-{arguments.seed}" / "predictions" / "test.jsonl"
        for strategy in arguments.strategies
    }
    if there := [str(file) for file in files.values() if file.exists()]:
        parser.error(f"{there[0]} is there already: name another folder, seed or strategies")
    for strategy, file in files.items():
        torch.manual_seed(arguments.seed)
        random.seed(arguments.seed)
        reader, began = Reader(source, strategy, prefix, judges), time.monotonic()
        for loss in train(reader, contracts, arguments):
            right = predict(reader, tests, hypotheses, file)
            seconds = time.monotonic() - began
            print(f"{strategy}: loss {loss:.3f}, {right:.3f} right in the test, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
