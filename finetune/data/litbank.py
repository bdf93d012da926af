"""People and places in pieces of 100 novels, from LitBank's entities (Bamman et al. 2019), into one jsonl file for
finetune/token_classification.py: book, words, labels in IOB2.

python finetune/data/litbank.py entities/tsv OUT.jsonl

Entities are nested there, up to four deep; the outermost ones, of the first column of labels, are taken.
"""

import json
import sys
from collections import Counter
from pathlib import Path


def main(folder: str, out: str) -> None:
    lines, kinds = [], Counter()
    for file in sorted(Path(folder).glob("*.tsv")):
        rows = [line.split("\t") for line in file.read_text("utf-8").splitlines() if line.strip()]
        words, labels = [row[0] for row in rows], [row[1] for row in rows]
        kinds.update(label[2:] for label in labels if label.startswith("B-"))
        lines.append(json.dumps({"book": file.stem.removesuffix("_brat"), "words": words, "labels": labels}))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{len(lines)} pieces", *(f"{number} {kind}" for kind, number in kinds.most_common()), sep=", ")


if __name__ == "__main__":
    main(*sys.argv[1:])
