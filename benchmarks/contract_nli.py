"""Where the evidence lies: a run of finetune/classification.py on the contracts of finetune/data/contract_nli.py, by
pairs of a contract and a hypothesis.

python benchmarks/contract_nli.py RUN TRAIN.jsonl TEST.jsonl --tokenizer SOURCE

A pair is right if its choice of Entailment, Contradiction and NotMentioned is the annotator's: the likelier of the
two labels, where that is likelier than not, else NotMentioned. "Unread" takes for likely what is frequent in training.
Brackets are 95 % intervals over contracts.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from longbert.finetuning.strategies import STRATEGIES
from longbert.intervals import difference_interval, measure, share_interval
from longbert.source import find_source


SOURCE_READS = 510  # tokens of a text
PLACES = ("all", "not mentioned", "evidence in the first 510 tokens", "begins past them", "spread over more than 510")


def places_of(evidence: list[int] | None, ends: np.ndarray) -> list[str]:
    """The columns of `PLACES` that a pair counts in.

    Args:
        evidence: the first and the last character of what judges it.
        ends: the character at which each token ends.
    """
    if evidence is None:
        return ["all", "not mentioned"]
    first, last = np.searchsorted(ends, evidence)
    found = ["all"]
    if last < SOURCE_READS:
        found.append("evidence in the first 510 tokens")
    if first >= SOURCE_READS:
        found.append("begins past them")
    if last - first > SOURCE_READS:
        found.append("spread over more than 510")
    return found


def judge(line: dict[str, Any], contract: dict[str, Any], ends: np.ndarray) -> np.ndarray:
    """`[places, 2]`: pairs of a contract that are right, and all."""
    sums = np.zeros((len(PLACES), 2))
    for hypothesis in {label.split()[0] for label in line["scores"]}:
        choices = {label: score for label, score in line["scores"].items() if label.split()[0] == hypothesis}
        likeliest = max(choices, key=choices.__getitem__)
        found = likeliest if choices[likeliest] > 0.5 else None
        truth = next((label for label in contract["labels"] if label.split()[0] == hypothesis), None)
        for place in places_of(contract["evidence"].get(truth), ends):
            sums[PLACES.index(place)] += [found == truth, 1]
    return sums


def read(files: Iterable[Path], contracts: dict[str, dict], ends: dict[str, np.ndarray]) -> np.ndarray:
    """`[contracts, places, 2]`, summed over the predictions of several seeds."""
    sums = {name: np.zeros((len(PLACES), 2)) for name in contracts}
    for file in files:
        for line in read_lines(file):
            sums[line["id"]] += judge(line, contracts[line["id"]], ends[line["id"]])
    return np.stack(list(sums.values()))


def unread(train: list[dict[str, Any]], contracts: dict[str, dict], ends: dict[str, np.ndarray]) -> np.ndarray:
    """`[contracts, places, 2]`, of the share of training contracts that has a label, whatever a contract says."""
    counts = Counter(label for contract in train for label in contract["labels"])
    line = {"scores": {label: count / len(train) for label, count in counts.items()}}
    return np.stack([judge(line, contract, ends[name]) for name, contract in contracts.items()])


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def token_ends(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return np.array([end for _, end in offsets])


def share(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--tokenizer", required=True)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(find_source(arguments.tokenizer))
    contracts = {str(line["id"]): line for line in read_lines(arguments.test)}
    ends = {name: token_ends(tokenizer, contract["text"]) for name, contract in contracts.items()}
    of_strategy = {
        name: read(files, contracts, ends)
        for name in STRATEGIES
        if (files := sorted(arguments.run.glob(f"{name}/*/predictions/test.jsonl")))
    }
    long = of_strategy["long"]
    of_strategy["unread"] = unread(read_lines(arguments.train), contracts, ends)
    pairs = long[..., 1].sum(axis=0) / len(sorted(arguments.run.glob("long/*/predictions/test.jsonl")))
    print("| pairs judged right |", *(f"{place} |" for place in PLACES))
    print("|---|" + "---|" * len(PLACES))
    print("| pairs |", *(f"{number:,.0f} |" for number in pairs))
    for name, sums in of_strategy.items():
        cells = []
        for place in range(len(PLACES)):
            ours, theirs = (measure(each[:, place], share) for each in (long, sums))
            low, high = share_interval(theirs)
            cell = f"{theirs.value:.3f} ({low:.3f} to {high:.3f})"
            if name != "long":
                low, high = difference_interval(ours, theirs, share_interval)
                cell += f"; long {ours.value - theirs.value:+.3f} ({low:+.3f} to {high:+.3f})"
            cells.append(f"{cell} |")
        print(f"| {name} |", *cells)


if __name__ == "__main__":
    main()
