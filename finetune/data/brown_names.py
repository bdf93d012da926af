"""Names, numbers and foreign words in the Brown corpus, in IOB2, into one jsonl file: file, genre, words, labels.

python finetune/data/brown_names.py package brown-names.jsonl

They are gold: the corpus's own tags, corrected by hand, say which words they are (Francis and Kučera 1979).

NAME     words tagged np, proper nouns, or -tl, part of a title: New/jj-tl York/np-tl, Peace/nn-tl Corps/nn-tl. By
         np alone New York would be York.
NUMBER   words tagged cd, cardinals, outside titles: nine/cd hundred/cd, 1960/cd
FOREIGN  words tagged fw-, of another language: sine/fw-in qua/fw-wdt non/fw-*

An entity is a run of such words in a sentence. A possessive outside a title ends it: Cuba's/np$ | Fidel/np Castro/np.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from brown import documents


def kind(tag: str) -> str | None:
    """What a tag is of."""
    if tag.startswith("fw-"):
        return "FOREIGN"
    if tag.startswith("np") or "-tl" in tag:
        return "NAME"
    return "NUMBER" if tag.startswith("cd") else None


def label(tags: list[str]) -> list[str]:
    """The labels of a sentence."""
    labels, open_kind = [], None
    for tag in tags:
        found = kind(tag)
        labels.append("O" if found is None else f"{'I' if found == open_kind else 'B'}-{found}")
        open_kind = None if "$" in tag and "-tl" not in tag else found
    return labels


def main(package: str, out: str) -> None:
    lines, counts = [], Counter()
    for name, genre, sentences in documents(package):
        words = [word for sentence in sentences for word, _ in sentence]
        labels = [found for sentence in sentences for found in label([tag for _, tag in sentence])]
        counts.update(found[2:] for found in labels if found.startswith("B-"))
        lines.append(json.dumps({"file": name, "genre": genre, "words": words, "labels": labels}))
    Path(out).write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{len(lines)} documents", *(f"{number} {found}" for found, number in counts.most_common()), sep=", ")


if __name__ == "__main__":
    main(*sys.argv[1:])
