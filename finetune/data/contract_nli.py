"""What non-disclosure agreements say, from a file of ContractNLI (Koreeda and Manning 2021, arXiv 2110.01799), for
finetune/classification.py: one reading of a contract answers all 17 hypotheses.

python finetune/data/contract_nli.py FILE.json OUT.jsonl

A contract's labels are the hypotheses that it entails or contradicts, as "nda-1 Entailment"; of those that it does not
mention it has none. `evidence` has for each label the characters at which its first span begins and its last one ends.
"""

import json
import sys
from pathlib import Path
from typing import Any


NOT_MENTIONED = "NotMentioned"


def contract(document: dict[str, Any]) -> dict[str, Any]:
    """One line: id, text, labels, evidence."""
    judged = document["annotation_sets"][0]["annotations"]
    evidence = {}
    for hypothesis, judgement in sorted(judged.items()):
        if judgement["choice"] != NOT_MENTIONED:
            spans = [document["spans"][number] for number in judgement["spans"]]
            place = [min(start for start, _ in spans), max(end for _, end in spans)]
            evidence[f"{hypothesis} {judgement['choice']}"] = place
    return {"id": document["id"], "text": document["text"], "labels": list(evidence), "evidence": evidence}


def main(file: str, out: str) -> None:
    contracts = [contract(document) for document in json.loads(Path(file).read_text("utf-8"))["documents"]]
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text("".join(json.dumps(line) + "\n" for line in contracts), "utf-8")
    print(f"{len(contracts)} contracts, {sum(len(line['labels']) for line in contracts)} labels")


if __name__ == "__main__":
    main(*sys.argv[1:])
