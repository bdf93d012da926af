"""Figures are those of SQuAD's own script, seqeval, scikit-learn, scipy and trec_eval, on random predictions with all
that is odd in them."""

import collections
import itertools
import re
import string
import warnings

import numpy as np
import pytest
import pytrec_eval
import seqeval.metrics
import torch
from scipy import stats
from sklearn import metrics as sklearn

from longbert.finetuning.results.metrics import (
    ChoiceMetric,
    EntityMetric,
    MultiLabelMetric,
    RegressionMetric,
    RetrievalMetric,
    SingleLabelMetric,
    SpanMetric,
    WordMetric,
)
from longbert.finetuning.retrieval.collection import Document, Query, Retrieval


hundreds_of_times = pytest.mark.parametrize("tries", [30, pytest.param(300, marks=pytest.mark.slow)])


# SQuAD: its official evaluation script, version 2.0


def official_normalize(answer):
    def remove_articles(text):
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(answer.lower())))


def official_f1(gold, predicted):
    gold_tokens, predicted_tokens = official_normalize(gold).split(), official_normalize(predicted).split()
    common = collections.Counter(gold_tokens) & collections.Counter(predicted_tokens)
    number = sum(common.values())
    if len(gold_tokens) == 0 or len(predicted_tokens) == 0:
        return int(gold_tokens == predicted_tokens)
    if number == 0:
        return 0
    precision, recall = number / len(predicted_tokens), number / len(gold_tokens)
    return (2 * precision * recall) / (precision + recall)


def official_scores(predictions, references):
    exact, f1 = [], []
    for predicted, answers in zip(predictions, references, strict=True):
        golds = [answer for answer in answers if official_normalize(answer)] or [""]
        exact.append(max(int(official_normalize(gold) == official_normalize(predicted)) for gold in golds))
        f1.append(max(official_f1(gold, predicted) for gold in golds))
    return {"exact_match": sum(exact) / len(exact), "f1": sum(f1) / len(f1)}


WORDS = [
    "the",
    "a",
    "An",
    "cat",
    "Cat's",
    "cats",
    "U.S.",
    "—",
    "«cat»",
    "猫",
    "ÉCOLE",
    "école",
    "İ",
    "ß",
    "1,000",
    "1000",
]
WORDS += ["", " ", "\u00a0", "-", "...", "in", "theatre", "a.n", "naïve", "nai\u0308ve", "２０"]


def text_of(draw):
    glue = str(draw.choice([" ", "  ", "-", "\n", ""]))
    return glue.join(draw.choice(WORDS, draw.integers(0, 5)).tolist())


@hundreds_of_times
def test_answers_are_scored_as_squads_own_script_does(tries):
    draw = np.random.default_rng(0)
    for _ in range(tries):
        number = int(draw.integers(1, 6))
        references = [[text_of(draw) for _ in range(draw.integers(0, 4))] for _ in range(number)]
        for answers in references:
            answers += answers[: draw.integers(0, 2)]  # some are there twice
        predictions = [answers[0] if answers and draw.random() < 0.3 else text_of(draw) for answers in references]
        found = SpanMetric().compute(predictions=predictions, references=references)
        assert found == pytest.approx(official_scores(predictions, references)), (predictions, references)


# seqeval


def broken_tags(draw, number, scheme):
    marks = {"IOB": "BI", "BIOES": "BIES", "I alone": "I"}[scheme]
    tags = ["O", *(f"{mark}-{kind}" for mark in marks for kind in ("PER", "LOC", "X-Y"))]
    return draw.choice(tags, number).tolist() if draw.random() < 0.9 else ["O"] * number


@pytest.mark.parametrize("scheme", ["IOB", "BIOES", "I alone"])
@hundreds_of_times
def test_entities_are_scored_as_seqeval_does(scheme, tries):
    draw = np.random.default_rng(1)
    for _ in range(tries):
        lengths = draw.integers(1, 12, draw.integers(1, 6))
        truth = [broken_tags(draw, number, scheme) for number in lengths]
        copied = draw.random() < 0.5  # with a few errors, or nothing in common
        found = [
            [tag if copied and draw.random() < 0.8 else other for tag, other in zip(tags, others, strict=True)]
            for tags, others in ((tags, broken_tags(draw, len(tags), scheme)) for tags in truth)
        ]
        ours = EntityMetric().compute(predictions=found, references=truth)
        theirs = {
            "f1": seqeval.metrics.f1_score(truth, found, zero_division=0),
            "precision": seqeval.metrics.precision_score(truth, found, zero_division=0),
            "recall": seqeval.metrics.recall_score(truth, found, zero_division=0),
            "accuracy": seqeval.metrics.accuracy_score(truth, found),
        }
        assert ours == pytest.approx(theirs), (found, truth)
        measured = EntityMetric().measured(found, truth, range(len(truth)))
        assert measured["f1"].value == pytest.approx(theirs["f1"])


# scikit-learn and scipy


@hundreds_of_times
def test_labels_are_scored_as_scikit_learn_does(tries):
    draw = np.random.default_rng(2)
    for number in range(tries):
        classes, others = draw.integers(1, 6, 2)  # one class alone, classes never true, classes never predicted
        size = int(draw.integers(1, 30))
        truth, found = draw.integers(0, classes, size).tolist(), draw.integers(0, others, size).tolist()
        if number % 10 == 0:
            found = list(truth)
        with warnings.catch_warnings(action="ignore"):
            ours = SingleLabelMetric().compute(predictions=found, references=truth)
            by_class = sklearn.f1_score(truth, found, average=None, zero_division=0)
            theirs = {
                "accuracy": np.mean(np.array(truth) == np.array(found)),
                "macro_f1": by_class.mean(),
                "micro_f1": sklearn.f1_score(truth, found, average="micro", zero_division=0),
                "mcc": sklearn.matthews_corrcoef(truth, found),
            }
        assert ours == pytest.approx(theirs)
        assert ChoiceMetric().compute(predictions=found, references=truth) == {"accuracy": ours["accuracy"]}
        measured = SingleLabelMetric().measured(found, truth, range(size))
        assert {name: each.value for name, each in measured.items()} == pytest.approx(
            {name: theirs[name] for name in measured}
        )


@hundreds_of_times
def test_several_labels_are_scored_as_scikit_learn_does(tries):
    draw = np.random.default_rng(3)
    for _ in range(tries):
        shape = tuple(draw.integers(1, (20, 5)))
        truth, found = ((draw.random(shape) < draw.random()).astype(int) for _ in range(2))
        ours = MultiLabelMetric().compute(predictions=found.tolist(), references=truth.tolist())
        if shape[1] == 1:  # scikit-learn takes one column for two classes
            continue
        theirs = {
            "micro_f1": sklearn.f1_score(truth, found, average="micro", zero_division=0),
            "macro_f1": sklearn.f1_score(truth, found, average="macro", zero_division=0),
            "accuracy": sklearn.accuracy_score(truth, found),
        }
        assert ours == pytest.approx(theirs)
        measured = MultiLabelMetric().measured(found.tolist(), truth.tolist(), range(len(truth)))
        assert measured["micro_f1"].value == pytest.approx(theirs["micro_f1"])


@hundreds_of_times
def test_words_are_scored_as_scikit_learn_does(tries):
    draw = np.random.default_rng(4)
    for _ in range(tries):
        truth, found = [], []
        for length in draw.integers(1, 8, draw.integers(1, 5)):
            truth.append(draw.choice(["N", "V", "é"], length).tolist())
            found.append(draw.choice(["N", "V", "?"], length).tolist())
        flat = sum(truth, []), sum(found, [])
        ours = WordMetric().compute(predictions=found, references=truth)
        assert ours == pytest.approx(
            {
                "accuracy": sklearn.accuracy_score(*flat),
                "macro_f1": sklearn.f1_score(*flat, average="macro", zero_division=0),
            }
        )


@hundreds_of_times
def test_numbers_are_scored_as_scipy_does(tries):
    draw = np.random.default_rng(5)
    for _ in range(tries):
        size = int(draw.integers(2, 30))
        truth = (draw.normal(size=size) * 10.0 ** draw.integers(-3, 7) + 10.0 ** draw.integers(0, 7)).tolist()
        found = draw.choice(truth, size).tolist() if draw.random() < 0.5 else draw.integers(0, 3, size).astype(float)
        with warnings.catch_warnings(action="ignore"):  # predictions that are all the same
            ours = RegressionMetric().compute(predictions=[*found], references=truth)
            theirs = {
                "pearson": np.corrcoef(found, truth)[0, 1],
                "spearman": np.corrcoef(stats.rankdata(found), stats.rankdata(truth))[0, 1],
                "rmse": np.sqrt(np.mean((np.array(found) - truth) ** 2)),
            }
        assert ours == pytest.approx(theirs, nan_ok=True, rel=1e-6, abs=1e-7)
        measured = RegressionMetric().measured(found, truth, range(size))["pearson"].value
        assert measured == pytest.approx(theirs["pearson"], nan_ok=True, rel=1e-6, abs=1e-6)


# trec_eval


def trec(ranked, relevant):
    """trec_eval's figures of one query whose documents do not tie."""
    measures = {"ndcg_cut.10", "recall.1,10"}
    scores = {name: float(len(ranked) - place) for place, name in enumerate(ranked)}
    wanted = {"query": dict.fromkeys(relevant, 1) or {"none of them": 0}}
    found = pytrec_eval.RelevanceEvaluator(wanted, measures).evaluate({"query": scores})["query"]
    return {"ndcg_at_10": found["ndcg_cut_10"], "recall_at_1": found["recall_1"], "recall_at_10": found["recall_10"]}


def mean(figures):
    return {name: float(np.mean([each[name] for each in figures])) for name in figures[0]}


@hundreds_of_times
def test_rankings_are_scored_as_trec_eval_does(tries):
    draw = np.random.default_rng(6)
    names = [f"d{number}" for number in range(30)]
    for _ in range(tries):
        queries = range(draw.integers(1, 5))
        ranked = [draw.permutation(names)[: draw.integers(1, 15)].tolist() for _ in queries]
        relevant = [draw.choice(names, draw.integers(0, 14), replace=False).tolist() for _ in queries]
        twice = [each + each[:2] for each in relevant]  # a right document that is named twice is one
        ours = RetrievalMetric().compute(predictions=ranked, references=twice)
        assert ours == pytest.approx(mean([trec(*pair) for pair in zip(ranked, relevant, strict=True)]))


def similarities_with_ties(draw, documents):
    """Similarities of one query to documents, of which few are different."""
    return draw.choice(np.linspace(0, 1, 5), documents, p=[0.5, 0.2, 0.15, 0.1, 0.05]).astype(np.float32)


def orders(scores):
    """All rankings in which documents that tie stand in any order."""
    best_first = sorted({*scores.values()}, reverse=True)
    groups = [[name for name, score in scores.items() if score == value] for value in best_first]
    for parts in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield [*itertools.chain(*parts)]


def ranking_of(scores, relevant, groups=None):
    documents = {name: Document([1], groups and groups[name]) for name in scores}
    retrieval = Retrieval(documents, [Query("q", [1], relevant, None, "all")], ["all"])
    (line,) = retrieval.lines(torch.tensor([[*scores.values()]]))
    return line


@hundreds_of_times
def test_documents_that_tie_have_the_mean_of_all_orders_wherever_they_stand_in_the_file(tries):
    draw = np.random.default_rng(7)
    tried = 0
    while tried < tries:
        names = [f"d{number}" for number in range(draw.integers(2, 8))]
        scores = dict(zip(names, similarities_with_ties(draw, len(names)).tolist(), strict=True))
        rankings = [*itertools.islice(orders(scores), 800)]
        if len(rankings) == 800:
            continue
        tried += 1
        relevant = draw.choice(names, draw.integers(1, len(names) + 1), replace=False).tolist()
        expected = mean([trec(ranking, relevant) for ranking in rankings])
        for order in (names, names[::-1], draw.permutation(names).tolist()):
            line = ranking_of({name: scores[name] for name in order}, relevant)
            figures = RetrievalMetric().compute(predictions=[line["prediction"]], references=[line["reference"]])
            assert figures == pytest.approx(expected, abs=1e-6), (scores, relevant)


def test_ties_past_the_tenth_rank_share_what_is_left_of_it():
    scores = {
        f"d{number:02}": 0.9 - 0.01 * min(number, 8) for number in range(20)
    }  # twelve tie for the last two ranks
    line = ranking_of(scores, ["d15"])
    assert line["prediction"][:8] == [f"d{number:02}" for number in range(8)]
    assert line["prediction"][8:] == [[f"d{number:02}" for number in range(8, 20)]]
    figures = RetrievalMetric().compute(predictions=[line["prediction"]], references=[["d15"]])
    assert figures["recall_at_10"] == pytest.approx(2 / 12)
    assert figures["ndcg_at_10"] == pytest.approx((1 / np.log2(10) + 1 / np.log2(11)) / 12)
