"""Token classification: words are labelled once and in their place, whatever they are read in."""

import collections
import json
import random
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
import seqeval.metrics
import torch
import yaml
from conftest import assert_close
from processes import ROOT, run
from seqeval.metrics.sequence_labeling import get_entities
from torch import nn
from transformers import AutoModelForTokenClassification, AutoTokenizer, TrainingArguments
from transformers.modeling_outputs import TokenClassifierOutput

from longbert.arguments import ModelArguments
from longbert.data.batches import Phase, TrainingPlan
from longbert.data.features import FRAME, IGNORE_INDEX
from longbert.finetuning.examples.entities import beginning_within
from longbert.finetuning.examples.splits import Split
from longbert.finetuning.pieces import decided_tokens, overlapping
from longbert.finetuning.results.metrics import EntityMetric, WordMetric
from longbert.finetuning.strategies import STRATEGIES, Reader
from longbert.finetuning.tasks.token_classification import (
    TokenClassification,
    TokenClassificationArguments,
    read_words,
)
from longbert.source import Source
from longbert.training.trainer import LongTrainer


IOB2 = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]


@pytest.fixture(scope="module")
def tokenizer(tiny_source):
    return AutoTokenizer.from_pretrained(tiny_source)


def examples(*documents: tuple[list[str], list[str]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [{"id": str(number), "words": words, "labels": labels} for number, (words, labels) in enumerate(documents)]
    )


def some_entities(draw: random.Random, words: int) -> list[str]:
    """Well-formed labels of so many words."""
    labels: list[str] = []
    while len(labels) < words:
        kind, length = draw.choice(["PER", "LOC"]), draw.randint(1, 4)
        labels += ["O"] * draw.randint(0, 3) + [f"B-{kind}"] + [f"I-{kind}"] * (length - 1)
    return labels[:words]


def some_documents(tokenizer, *lengths: int) -> datasets.Dataset:
    """Documents with words of no piece, one and three, no two of them the same."""
    draw = random.Random(0)
    names = sorted(piece for piece in tokenizer.get_vocab() if piece.isalpha() and piece.isascii())
    draw.shuffle(names)
    kinds = [lambda: "\x07", names.pop, lambda: f"{names.pop()}-{names.pop()}"]
    words = (draw.choice(kinds)() for _ in iter(int, 1))
    return examples(*(([next(words) for _ in range(length)], some_entities(draw, length)) for length in lengths))


class Oracle(nn.Module):
    """Answers with the label that `pieces` hold for a token, and with `wrong` where it has none to decide."""

    def __init__(self, pieces: datasets.Dataset, wrong: int):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.known = {tuple(row["input_ids"]): row["labels"] for row in pieces}
        self.wrong = wrong

    @property
    def device(self) -> torch.device:
        return self.anchor.device

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> TokenClassifierOutput:
        logits = torch.zeros(*input_ids.shape, len(IOB2))
        for row, ids in enumerate(input_ids):
            labels = self.known[tuple(ids[attention_mask[row].bool()].tolist())]
            for place, label in enumerate(labels):
                logits[row, place, self.wrong if label == IGNORE_INDEX else label] = 9
        return TokenClassifierOutput(logits=logits)


# alignment


def test_a_label_stands_on_the_first_piece_of_its_word(tokenizer):
    words = ["\x07", "state", "unbelievableness", "", "inter-state", "war", "\x07"]
    labels = ["O", "B-PER", "I-PER", "B-LOC", "O", "B-LOC", "O"]
    (row,) = TokenClassification(tokenizer, IOB2, "O").tokenize(examples((words, labels)), 64)
    pieces = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert [len(pieces[first:end]) for first, end in pairwise(row["bounds"])] == [0, 1, 2, 0, 3, 1, 0]
    labelled = [(piece, IOB2[label]) for piece, label in zip(pieces, row["targets"], strict=True) if label >= 0]
    assert labelled == [("state", "B-PER"), ("unbelievable", "I-PER"), ("inter", "O"), ("war", "B-LOC")]
    assert row["length"] == len(pieces) + FRAME


def test_a_word_of_which_nothing_is_left_gets_the_label_of_what_is_not_read(tokenizer):
    words = ["\x07", "state", "", "war", "\x07"]
    task = TokenClassification(tokenizer, IOB2, "O", stride=8)
    encoded = task.tokenize(examples((words, ["B-LOC", "B-PER", "I-PER", "B-LOC", "O"])), 64)
    reader = Reader(STRATEGIES["long"], 64, 64)
    (line,) = task.predict(Oracle(task.rows(encoded, reader), 0), encoded, reader)
    assert line["prediction"] == ["O", "B-PER", "O", "B-LOC", "O"]
    assert line["reference"] == ["B-LOC", "B-PER", "I-PER", "B-LOC", "O"]
    assert line["positions"] == [1, 1, 2, 2, 3]
    assert [score is None for score in line["scores"]] == [True, False, True, False, True]
    assert line["scores"][1] == round(line["scores"][1], 4) > 0.99


@pytest.mark.parametrize("stride", [0, 1, 7, 8, 13])
def test_a_token_is_decided_once_where_it_is_furthest_from_the_edges(stride):
    size = 14
    for length in range(1, 60):
        starts = overlapping(length, size, stride)
        decided = decided_tokens(starts, length, size, stride)
        assert [token for first, end in decided for token in range(first, end)] == list(range(length))
        for start, (first, end) in zip(starts, decided, strict=True):
            assert first < end
            for token in range(first, end):
                depths = [min(token - other, min(other + size, length) - 1 - token) for other in starts]
                ours = min(token - start, min(start + size, length) - 1 - token)
                # the text's own ends are no edges: nothing is missing beyond them
                at_an_end = start == 0 or start + size >= length
                assert ours == max(depths) or at_an_end
                assert start <= token < start + size


@pytest.mark.parametrize(("strategy", "stride"), [("long", 8), ("chunk-pool", 0), ("chunk-pool", 5), ("truncate", 8)])
def test_every_word_is_labelled_once_in_training_and_prediction(strategy, stride, tokenizer):
    """Over lengths around the windows' edges; were labels out of place, the oracle's answers would be wrong."""
    task = TokenClassification(tokenizer, IOB2, "O", stride)
    encoded = task.tokenize(some_documents(tokenizer, *range(5, 45)), 64)
    reader = Reader(STRATEGIES[strategy], 20, 20)
    pieces, training = task.rows(encoded, reader), task.rows(encoded, reader, train=True)
    assert max(pieces["length"]) == 20
    given = collections.defaultdict(list)
    for row in training:
        given[row["id"]] += [label for label in row["labels"] if label != IGNORE_INDEX]
    for example in encoded:
        seen = len(example["input_ids"]) if strategy != "truncate" else 20 - FRAME
        assert given[example["id"]] == [label for label in example["targets"][:seen] if label != IGNORE_INDEX]
    wrong = IOB2.index("I-LOC")
    for line, example in zip(task.predict(Oracle(pieces, wrong), encoded, reader), encoded, strict=True):
        for found, truth, score, (first, end) in zip(
            line["prediction"], line["reference"], line["scores"], pairwise(example["bounds"]), strict=True
        ):
            read = first < end and (strategy != "truncate" or first < 20 - FRAME)
            assert found == (truth if read else "O")
            assert (score is not None) == read


def test_a_window_that_decides_no_word_is_not_trained_on(tokenizer):
    task = TokenClassification(tokenizer, IOB2, "O", stride=2)
    long_word = "-".join(["state"] * 20)
    encoded = task.tokenize(examples((["war", long_word, "peace"], ["O", "B-LOC", "O"])), 64)
    reader = Reader(STRATEGIES["chunk-pool"], 12, 12)
    assert len(task.rows(encoded, reader)) == 5
    assert len(task.rows(encoded, reader, train=True)) == 2


# errors


def refused(tmp_path: Path, words: object, labels: object) -> str:
    file = tmp_path / "bad.jsonl"
    good = {"words": ["war", "peace"], "labels": ["O", "B-LOC"]}
    file.write_text("\n".join(json.dumps(line) for line in (good, {"words": words, "labels": labels})))
    with pytest.raises(ValueError) as error:
        read_words(str(file), TokenClassificationArguments(train_file=str(file)))
    return str(error.value)


def test_documents_that_cannot_be_used_are_refused(tmp_path):
    assert "line 2: 3 words and 2 labels" in refused(tmp_path, ["a", "b", "c"], ["O", "O"])
    assert "1 rows have no words, or a null among them" in refused(tmp_path, [], [])
    assert "1 rows have no words" in refused(tmp_path, None, ["O"])
    assert "words must be a list, got 7" in refused(tmp_path, 7, ["O"])


@pytest.mark.parametrize(
    ("words", "labels", "message"),
    [
        (["war", "peace"], ["O", "B-ORG"], "example 0 has the label 'B-ORG', which the training set does not have"),
        (["war", "peace"], ["O", "I-LOC"], "example 0: word 1, 'peace', has the label I-LOC and continues no entity"),
        (["war", "peace"], ["B-PER", "I-LOC"], "In IOB2 the first word of an entity is B-LOC"),
        (["\x07", ""], ["O", "O"], "example 0 has no word that the tokenizer can read"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(words, labels, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        TokenClassification(tokenizer, IOB2, "O").tokenize(examples((words, labels)), 64)


def test_strategies_and_strides_that_leave_gaps_are_refused(tokenizer):
    task = TokenClassification(tokenizer, IOB2, "O", stride=62)
    with pytest.raises(ValueError, match="long, truncate, chunk-pool"):
        task.accept({"head-tail": Reader(STRATEGIES["head-tail"], 64, 64)})
    with pytest.raises(ValueError, match="pieces of 62 tokens cannot share 62"):
        task.accept({"chunk-pool": Reader(STRATEGIES["chunk-pool"], 64, 64)})
    with pytest.raises(ValueError, match="cannot share -1"):
        TokenClassification(tokenizer, IOB2, "O", stride=-1).accept({"long": Reader(STRATEGIES["long"], 64, 64)})


# labels and metrics


def task_of(source: Source, *documents) -> TokenClassification:
    dataset = examples(*documents)
    return TokenClassification.of(source, [Split("", dataset, dataset, dataset)], stride=8, batch_size=2)


def test_labels_say_what_is_scored(tiny_source):
    source = Source.of(ModelArguments(model=str(tiny_source)))
    names = task_of(source, (["a", "b", "c"], ["O", "B-PER", "I-PER"]))
    assert (names.labels, names.unread) == (["B-PER", "I-PER", "O"], "O")
    assert isinstance(names.metric, EntityMetric)
    tags = task_of(source, (["a", "b", "c"], ["DT", "NN", "NN"]))
    assert (tags.labels, tags.unread) == (["DT", "NN"], "NN")
    assert isinstance(tags.metric, WordMetric)
    # no IOB2, so that I-PER may stand anywhere
    mixed = task_of(source, (["a", "b"], ["I-PER", "X"]))
    assert len(mixed.tokenize(examples((["a"], ["I-PER"])), 64)) == 1


def test_the_model_knows_its_labels(tiny_source, tokenizer):
    source = Source.of(ModelArguments(model=str(tiny_source), max_position_embeddings=128))
    task = TokenClassification(tokenizer, IOB2, "O")
    for strategy, reach in (("long", 128), ("chunk-pool", 64)):
        config = task.build(source, STRATEGIES[strategy]).config
        assert config.max_position_embeddings == reach
        assert config.id2label == dict(enumerate(IOB2))
        assert config.label2id == {label: number for number, label in enumerate(IOB2)}


def test_word_figures():
    truth, found = [["DT", "NN"], ["NN", "VB"]], [["DT", "NN"], ["VB", "VB"]]
    figures = WordMetric().compute(predictions=found, references=truth)
    # by hand: DT 1, NN precision 1 and recall 1/2, VB precision 1/2 and recall 1
    assert figures == {"accuracy": 0.75, "macro_f1": pytest.approx((1 + 2 / 3 + 2 / 3) / 3)}


# by position


def lines(seed: int) -> list[dict]:
    """Predictions with malformed labels in them, as a model's may be, and words without tokens."""
    draw = random.Random(seed)
    made = []
    for number in range(20):
        words = draw.randint(1, 60)
        positions = np.cumsum([1, *draw.choices([0, 1, 2, 3], k=words - 1)]).tolist()
        found, truth = draw.choices(IOB2, k=words), some_entities(draw, words)
        scores = [0.5] * words
        made.append(
            {"id": str(number), "prediction": found, "reference": truth, "positions": positions, "scores": scores}
        )
    return made


def entities(some: list[dict], name: str) -> set:
    return {(line["id"], *entity) for line in some for entity in get_entities(line[name])}


def test_an_entity_is_whole_and_where_it_begins():
    labels = ["B-PER", "I-PER", "I-PER", "B-LOC", "O", "B-LOC", "I-LOC"]
    assert beginning_within(labels, 0, 2) == ["B-PER", "I-PER", "I-PER"]
    assert beginning_within(labels, 1, 3) == ["O", "O"]
    assert beginning_within(labels, 2, 4) == ["O", "B-LOC"]
    assert beginning_within(labels, 3, 6) == ["B-LOC", "O", "B-LOC", "I-LOC"]
    assert beginning_within(labels, 6, 7) == ["O"]


@pytest.mark.parametrize("edges", [[0, 8, 16, 32, None], [0, 1, 2, 3, 5, 60, None], [0, None]], ids=str)
def test_buckets_sum_to_the_whole(edges, tokenizer):
    whole = lines(0)
    parts = [TokenClassification(tokenizer, IOB2, "O").within(whole, *pair) for pair in pairwise(edges)]
    for name in ("prediction", "reference"):
        assert sum(len(entities(part, name)) for part in parts) == len(entities(whole, name))
    right = sum(len(entities(part, "prediction") & entities(part, "reference")) for part in parts)
    assert right == len(entities(whole, "prediction") & entities(whole, "reference")) > 0
    assert all(len(line["prediction"]) == len(line["reference"]) > 0 for part in parts for line in part)


def test_an_entity_is_what_seqeval_takes_for_one(tokenizer):
    part = TokenClassification(tokenizer, IOB2, "O").within(lines(0), 8, 16)
    truth, found = ([line[name] for line in part] for name in ("reference", "prediction"))
    right, both = (len(entities(part, "prediction") & entities(part, "reference")), len(entities(part, "prediction")))
    both += len(entities(part, "reference"))
    assert seqeval.metrics.f1_score(truth, found) == pytest.approx(2 * right / both)


def test_buckets_of_tags_hold_every_word_once(tokenizer):
    whole, task = lines(1), TokenClassification(tokenizer, ["NN", "VB"], "NN")
    parts = [task.within(whole, *pair) for pair in pairwise([0, 8, 16, 32, None])]
    assert sum(len(line["reference"]) for part in parts for line in part) == sum(
        len(line["reference"]) for line in whole
    )


# the loss


def test_the_loss_means_the_same_for_any_split(tiny_source, tokenizer):
    source = Source.of(ModelArguments(model=str(tiny_source), max_position_embeddings=128))
    task = TokenClassification(tokenizer, IOB2, "O", stride=8)
    model = task.build(source, STRATEGIES["long"]).eval()
    reader = Reader(STRATEGIES["long"], 24, 24)
    rows = list(task.rows(task.tokenize(some_documents(tokenizer, 7, 40, 3, 25), 24), reader, train=True))
    collator = task.collator(reader)
    words = sum(label != IGNORE_INDEX for row in rows for label in row["labels"])

    def gradient(*parts: list[dict], items: int | None) -> torch.Tensor:
        model.zero_grad()
        for part in parts:
            batch = collator.batch(part)
            outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            task.loss(outputs, batch["labels"], items).backward()
        return model.classifier.weight.grad.clone()

    whole = gradient(rows, items=None)
    assert_close(gradient(rows, items=words), whole)
    assert_close(gradient(rows[:1], rows[1:4], rows[4:], items=words), whole)
    assert_close(gradient(*([row] for row in rows), items=words), whole)


def test_a_step_is_the_same_for_any_accumulation(tiny_source, tokenizer, tmp_path):
    """Trainer counts the labels that are not ignored, over all micro-batches of a step."""
    settings = {"max_position_embeddings": 128, "hidden_dropout_prob": 0.0, "attention_window": 16}
    source = Source.of(ModelArguments(model=str(tiny_source), **settings))
    task = TokenClassification(tokenizer, IOB2, "O", stride=8)
    reader = Reader(STRATEGIES["long"], 100, 128)
    documents = task.tokenize(some_documents(tokenizer, 60, 5, 33, 12, 50, 8, 21, 40), 100)
    rows, collator = task.rows(documents, reader, train=True), task.collator(reader)
    weights = []
    for batch_size in (4, 1):
        torch.manual_seed(0)
        model = task.build(source, STRATEGIES["long"])
        args = TrainingArguments(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=4 // batch_size,
            learning_rate=1e-2,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
        )
        plan = TrainingPlan([Phase(2, 100, batch_size, rows, collator)], 4 // batch_size, seed=0)
        trainer = LongTrainer(model, args, train_dataset=plan, compute_loss_func=task.loss, evaluator=lambda model: {})
        trainer.train()
        weights.append(model.classifier.weight.detach())
    assert_close(*weights, rtol=1e-4, atol=1e-5)


# the whole


def spies(draw: random.Random) -> dict:
    """Names of which what stands past the source's 64 tokens says whether they are persons or places."""
    names, kind = draw.randint(48, 60), draw.choice(["PER", "LOC"])
    words = ["gold"] * names + ["state"] * (64 - names) + [{"PER": "war", "LOC": "peace"}[kind]] * 50
    return {"text": words, "tags": [f"B-{kind}"] * names + ["O"] * (len(words) - names)}


def test_who_reads_on_can_tell_and_who_does_not_cannot(tiny_source, tmp_path):
    draw = random.Random(0)
    for split, number in (("train", 160), ("test", 30)):
        documents = [json.dumps(spies(draw)) for _ in range(number)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(documents))
    settings = {
        "model": str(tiny_source),
        "max_position_embeddings": 128,
        "attention_window": "full",
        "hidden_dropout_prob": 0.0,
        "train_file": str(tmp_path / "train.jsonl"),
        "test_file": str(tmp_path / "test.jsonl"),
        "words_column": "text",
        "labels_column": "tags",
        "stride": 16,
        "strategies": ["long", "truncate"],
        "output_dir": str(tmp_path / "run"),
        "num_train_epochs": 6,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    status, printed = run("finetune/token_classification.py", file)
    assert status == 0, printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["long"]["f1"] > 0.95
    assert results["truncate"]["f1"] < 0.75
    assert results["long"]["by_position"]["0-63"]["f1"] == results["long"]["f1"]
    assert (tmp_path / "run" / "results.md").read_text() in printed
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "run" / "long" / "seed-42")
    assert model.config.label2id == {"B-LOC": 0, "B-PER": 1, "O": 2}
    predicted = (tmp_path / "run" / "truncate" / "seed-42" / "predictions" / "test.jsonl").read_text().splitlines()
    line = json.loads(predicted[0])
    assert {len(line[name]) for name in ("prediction", "reference", "scores", "positions")} == {len(line["positions"])}
    assert [place for place, score in enumerate(line["scores"]) if score is None] == list(range(62, 114))


# Brown's names


def test_browns_tags_become_entities(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "finetune" / "data"))
    import brown_names

    tagged = "in/in New/jj-tl York/np-tl and/cc Cuba's/np$ Fidel/np Castro/np nine/cd hundred/cd et/fw-cc al/fw-rb ./."
    labels = brown_names.label([token.rpartition("/")[2] for token in tagged.split()])
    names = ["B-NAME", "I-NAME", "O", "B-NAME", "B-NAME", "I-NAME"]
    assert labels == ["O", *names, "B-NUMBER", "I-NUMBER", "B-FOREIGN", "I-FOREIGN", "O"]
