"""Probes that any masked language model can answer: is a word found again that was said once, so many tokens before?

A text of other documents' words says something once, such as "the pass key is 7 4 9 .", and says it again at a known
distance with the answer masked. Nothing else tells the answer, so what is right was looked up. Every text is longer
than the source reads, so that a long model reads it as it reads long texts, also where the distance is short. The
opponent is the same model in chunks, which past their length can but guess. The pass key is Mohtashami and Jaggi's
(2023, arXiv 2305.16300, section 4.2), for a model that fills masks; a guess at a digit is right once in ten. Names are
drawn from the whole vocabulary, so that guessing gives nothing, and stand nowhere else in the text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .data.features import FRAME, IGNORE_INDEX
from .scoring import Cutter, MaskedDocument, Scores, cutter, score
from .source import PretrainingModel
from .tables import percent, strict_json, table, with_interval


AROUND = 64  # tokens that a text has besides the distance, at least
NEAREST = 32
TRIES = 1000
SHORTEST_NAME = 4  # letters


@dataclass(frozen=True)
class Probe:
    """What is said and asked.

    Args:
        draw: the words of an answer, from a tokenizer and a generator.
        alone: whether they may stand nowhere else in the text.
    """

    said: str
    draw: Callable[[PreTrainedTokenizerBase, np.random.Generator], list[str]]
    alone: bool


def _digits(tokenizer: PreTrainedTokenizerBase, generator: np.random.Generator) -> list[str]:
    return [str(digit) for digit in generator.integers(0, 10, 3)]


def _name(tokenizer: PreTrainedTokenizerBase, generator: np.random.Generator) -> list[str]:
    """A word of the vocabulary that is one token."""
    for _ in range(TRIES):
        word = tokenizer.decode([int(generator.integers(len(tokenizer)))]).strip()
        if len(word) >= SHORTEST_NAME and word.isascii() and word.isalpha():
            return [word]
    raise ValueError(f"no word of {SHORTEST_NAME} letters and more was found in the vocabulary of this tokenizer")


PROBES = {"pass key": Probe("the pass key is", _digits, alone=False), "name": Probe("my name is", _name, alone=True)}


@dataclass
class ProbeText:
    """A text to read: its tokens, some masked, and how far before each mask the answer stands."""

    document: MaskedDocument
    distance: int


def probe_distances(max_seq_length: int) -> list[int]:
    """32, 64, 128, ... as far as a text holds them, with what is said, asked and around."""
    distances: list[int] = []
    farthest = max_seq_length - AROUND
    while (distance := NEAREST * 2 ** len(distances)) <= farthest:
        distances.append(distance)
    return distances


def make_texts(
    probe: Probe,
    rows: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    lengths: dict[int, int],
    count: int,
    seed: int,
) -> list[ProbeText]:
    """`count` texts for each distance, the same for the same seed.

    Args:
        rows: tokens of documents, `[tokens]` each, that fill the texts.
        lengths: for each distance tokens of a text, without special ones.

    Raises:
        ValueError: the tokenizer cannot say what is asked, or does not read an answer as one token a word.
    """
    made = []
    for distance, length in lengths.items():
        for number in range(count):
            generator = np.random.default_rng([seed, distance, number])
            filler = _filler(rows, length, generator)
            statement, places = _statement(probe, tokenizer, generator, filler)
            start = int(generator.integers(length - distance - len(statement) + 1))
            made.append(_text(statement, places, filler, start, distance, tokenizer))
    return made


def _statement(
    probe: Probe, tokenizer: PreTrainedTokenizerBase, generator: np.random.Generator, filler: np.ndarray
) -> tuple[np.ndarray, slice]:
    """The tokens of what is said, and where among them the answer is."""
    start = len(_encode(tokenizer, probe.said))
    for _ in range(TRIES):
        answer = probe.draw(tokenizer, generator)
        tokens = _encode(tokenizer, f"{probe.said} {' '.join(answer)}")
        if len(tokens) != start + len(answer) or tokenizer.unk_token_id in tokens:
            continue
        whole = np.array(_encode(tokenizer, f"{probe.said} {' '.join(answer)} ."))
        if len(whole) <= NEAREST and not (probe.alone and np.isin(tokens[start:], filler).any()):
            return whole, slice(start, start + len(answer))
    raise ValueError(
        f"this tokenizer cannot say {probe.said!r} with an answer of a token a word that is not in the text, as the "
        "probes need: they are in English; leave --probes out"
    )


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _filler(rows: Sequence[np.ndarray], wanted: int, generator: np.random.Generator) -> np.ndarray:
    """Tokens of the documents from a place on, one document after the other."""
    first = int(generator.integers(len(rows)))
    start = int(generator.integers(len(rows[first])))
    found = [rows[first][start:]]
    while sum(map(len, found)) < wanted:
        first = (first + 1) % len(rows)
        found.append(rows[first])
    return np.concatenate(found)[:wanted]


def _text(
    statement: np.ndarray,
    places: slice,
    filler: np.ndarray,
    start: int,
    distance: int,
    tokenizer: PreTrainedTokenizerBase,
) -> ProbeText:
    """As long as the filler: what is said begins at `start`, and what is asked `distance` tokens after it."""
    between = distance - len(statement)
    asked, labels = statement.copy(), np.full(len(statement), IGNORE_INDEX)
    asked[places], labels[places] = tokenizer.mask_token_id, statement[places]
    parts = [filler[:start], statement, filler[start : start + between], asked, filler[start + between :]]
    tokens = np.concatenate(parts)[: len(filler)]
    answers = np.full(len(tokens), IGNORE_INDEX)
    answers[start + distance : start + distance + len(statement)] = labels
    return ProbeText(MaskedDocument(torch.from_numpy(tokens), torch.from_numpy(answers)), distance)


def asked_alone(cut: Cutter) -> Cutter:
    """Of the pieces of a text only those that hold something masked, for nothing is read in the others."""

    def cut_asked(document: MaskedDocument) -> list[Any]:
        return [piece for piece in cut(document) if (piece.features["labels"] != IGNORE_INDEX).any()]

    return cut_asked


@dataclass
class Asked:
    """One probe: the distance of each of its texts, `[texts]`, and the scores of both readings."""

    distances: np.ndarray
    whole: Scores
    chunks: Scores

    def at(self, distance: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The figures of whole texts and of chunks at a distance; those of whole texts say how far below the loss of
        chunks they are."""
        chosen = self.distances[self.whole.document] == distance
        whole, chunks = self.whole.of(chosen), self.chunks.of(chosen)
        cells = [{**each.summary(), "accuracy_interval": each.accuracy_interval()} for each in (whole, chunks)]
        return cells[0] | whole.change_from(chunks), cells[1]


@dataclass
class Probed:
    """How each probe is answered, by distance, read whole and in chunks.

    Args:
        count: texts for each distance.
    """

    source_length: int
    count: int
    found: dict[str, Asked]

    def to_dict(self) -> dict[str, Any]:
        """Accuracy and loss by distance, with 95 % intervals over texts, as a text's words are not independent."""
        rows: dict[str, dict[str, Any]] = {}
        for name, asked in self.found.items():
            for distance in np.unique(asked.distances).tolist():
                for reading, cell in zip(
                    ("whole", f"in chunks of {self.source_length}"), asked.at(distance), strict=True
                ):
                    rows.setdefault(f"{name}, {reading}", {})[str(distance)] = cell
        return {"source_length": self.source_length, "texts": self.count, "rows": rows}

    def to_markdown(self) -> str:
        """A row for every probe and reading, and one for what reading texts whole is worth."""
        rows, shown = self.to_dict()["rows"], {}
        for name, row in rows.items():
            shown[name] = [
                f"{with_interval(cell['accuracy'], cell['accuracy_interval'], digits=2)}, {cell['loss']:.2f}"
                for cell in row.values()
            ]
        for name in self.found:
            shown[f"{name}, whole: loss beside chunks"] = [
                percent(cell["change"], cell["change_interval"], " %") for cell in rows[f"{name}, whole"].values()
            ]
        return (
            f"What was said once and is asked so many tokens later, {self.count} texts for each distance: share of "
            "masked words that are right, and their loss (nats), with 95 % intervals over texts. To guess one of ten "
            "digits is to be right in 0.10, with a loss of 2.30:\n\n"
            f"{table([*next(iter(rows.values()))], shown)}"
        )

    def save(self, folder: str | Path) -> None:
        """Write probes.md, probes.json and probes.png into `folder`."""
        from .plots import plot_by_distance

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "probes.md").write_text(self.to_markdown() + "\n", "utf-8")
        (folder / "probes.json").write_text(strict_json(self.to_dict()), "utf-8")
        rows = self.to_dict()["rows"]
        lines = {
            name: [(cell["accuracy"], cell["accuracy_interval"]) for cell in row.values()]
            for name, row in rows.items()
        }
        distances = [*next(iter(rows.values()))]
        plot_by_distance(lines, distances, "Said once, asked so many tokens later", folder / "probes.png")


class Prober:
    """The texts of both probes, made before any model is loaded, so that a tokenizer is refused at once.

    Args:
        fillers: documents whose tokens fill the texts.
        count: texts for each distance.

    Raises:
        ValueError: as `make_texts`, or no distance fits `max_seq_length`.
    """

    def __init__(
        self,
        fillers: Sequence[MaskedDocument],
        tokenizer: PreTrainedTokenizerBase,
        *,
        source_length: int,
        max_seq_length: int,
        count: int,
        seed: int,
    ):
        distances = probe_distances(max_seq_length)
        if not distances:
            raise ValueError(f"the probes need texts of {NEAREST + AROUND} tokens, got {max_seq_length}")
        longest = {each: max(2 * source_length, each + AROUND) for each in distances}
        lengths = {each: min(max_seq_length, length) - FRAME for each, length in longest.items()}
        rows = [document.tokens.numpy() for document in fillers]
        self.tokenizer, self.source_length, self.count = tokenizer, source_length, count
        self.texts = {name: make_texts(probe, rows, tokenizer, lengths, count, seed) for name, probe in PROBES.items()}

    def ask(self, model: PretrainingModel) -> Probed:
        """What a model answers that reads the texts whole, and in chunks of the source's length."""
        found = {}
        for name, texts in self.texts.items():
            documents, distances = [text.document for text in texts], np.array([text.distance for text in texts])
            scores = [
                score(
                    model, documents, asked_alone(cutter(self.tokenizer, length)), self.tokenizer, f"{name}, {reading}"
                )
                for reading, length in (("whole", None), ("in chunks", self.source_length))
            ]
            found[name] = Asked(distances, *scores)
        return Probed(self.source_length, self.count, found)
