"""The verdict says what is so: each sentence's numbers are computed here again, by other code."""

import json
import re

import numpy as np
import pytest
import seqeval.metrics
from sklearn.metrics import f1_score

from longbert.finetuning.results.costs import Cost
from longbert.finetuning.results.metrics import (
    ChoiceMetric,
    EntityMetric,
    MultiLabelMetric,
    RegressionMetric,
    RetrievalMetric,
    SingleLabelMetric,
    SpanMetric,
)
from longbert.finetuning.results.report import Report, decided_within
from longbert.finetuning.results.verdict import verdict
from longbert.intervals import measure, plain_interval, sums_by_unit


def nothing_within(lines, start, stop):
    return []


def lines_of(predictions, references, evidence=None, ids=None, names=()):
    lines = []
    for number, (found, truth) in enumerate(zip(predictions, references, strict=True)):
        line = {"id": str(ids[number] if ids else number), "prediction": found, "reference": truth}
        line["scores"] = dict.fromkeys(names, 0.0)
        line["evidence"] = evidence[number] if evidence else None
        lines.append(line)
    return lines


def labelled(share_right, number=400, seed=0, ids=None, evidence=None, truth=None):
    """Predictions of two labels, of which a share is right."""
    draw = np.random.default_rng(seed)
    truth = [each % 2 for each in range(number)] if truth is None else truth
    right = draw.random(number) < share_right
    return lines_of(
        [t if hit else 1 - t for t, hit in zip(truth, right, strict=True)], truth, evidence, ids, ["no", "yes"]
    )


def report(results, metric=None, within=nothing_within, lengths=(), extended=("long",), costs=None):
    metric = SingleLabelMetric() if metric is None else metric  # it has a length, which is 0
    return Report(metric, within, results, 512, 4096, (), costs or {}, extended, lengths)


def accuracy(lines):
    return np.mean([line["prediction"] == line["reference"] for line in lines])


def interval(lines, others, statistic=accuracy, draws=1000, sign=1):
    """An interval of the difference, drawn by example, in plain loops and other random numbers."""
    draw = np.random.default_rng(12345)
    ids = sorted({line["id"] for line in lines})
    ours = {name: [line for line in lines if line["id"] == name] for name in ids}
    theirs = {name: [line for line in others if line["id"] == name] for name in ids}
    found = []
    for _ in range(draws):
        chosen = [ids[place] for place in draw.integers(0, len(ids), len(ids))]
        first, second = ([line for name in chosen for line in of[name]] for of in (ours, theirs))
        found.append(sign * (statistic(first) - statistic(second)))
    return np.percentile(found, [2.5, 97.5])


NUMBER = r"(-?\d+\.\d+)"


def told(text, other):
    """(by, low, high) of what the best is better by than another strategy, and whether it is told apart."""
    by = re.search(rf"{re.escape(other)} \(by {NUMBER}, {NUMBER} to {NUMBER}\)", text)
    sentence = next(each for each in re.split(r"\. (?=\D)", text) if by.group(0) in each)
    assert ("is better than" in sentence) != ("is not told apart from" in sentence)
    return [float(each) for each in by.groups()], "is better than" in sentence


def check_lead(text, lines, others, other, statistic=accuracy, sign=1, draws=1000):
    (by, low, high), apart = told(text, other)
    assert by == pytest.approx(sign * (statistic(lines) - statistic(others)), abs=6e-4)
    expected = interval(lines, others, statistic, draws, sign)
    # figures of few examples move in steps of one example
    near = 0.012 + 2 / len({line["id"] for line in lines})
    assert (low, high) == (pytest.approx(expected[0], abs=near), pytest.approx(expected[1], abs=near))
    assert apart == (low > 0)


def test_a_clear_win():
    results = {"long": labelled(0.9), "truncate": labelled(0.7, seed=1), "chunk-pool": labelled(0.8, seed=2)}
    text = verdict(report(results))
    figure = accuracy(results["long"])
    assert text.startswith(f"long has the highest accuracy, {figure:.3f} (95 % interval ")
    assert "on 400 test examples." in text
    for name in ("truncate", "chunk-pool"):
        check_lead(text, results["long"], results[name], name)
        assert told(text, name)[1]
    assert "not told apart" not in text
    assert text.endswith("Next: use long.")
    assert "Always answering" not in text


def test_a_clear_loss():
    results = {"long": labelled(0.7), "truncate": labelled(0.72, seed=1), "chunk-pool": labelled(0.9, seed=2)}
    text = verdict(report(results))
    assert text.startswith("chunk-pool has the highest accuracy, ")
    check_lead(text, results["chunk-pool"], results["long"], "long")
    assert text.endswith("Next: use chunk-pool; the long model loses here.")


def test_a_tie():
    lines = labelled(0.8)
    text = verdict(report({"long": lines, "truncate": lines}))
    assert text.startswith(f"long and truncate have the same highest accuracy, {accuracy(lines):.3f}")
    (by, low, high), apart = told(text, "truncate")
    # it is not known that they never differ: of 400 examples at most 3 in 400 could be missed so, about
    assert by == 0 and low == -high and 0 < high < 0.01 and not apart
    assert "Next: take long and truncate for equally good" in text


def test_too_few_examples_to_say():
    results = {"long": labelled(0.85, number=60), "truncate": labelled(0.8, number=60, seed=1)}
    costs = {"long": Cost(prediction_seconds=30, documents=60), "truncate": Cost(prediction_seconds=6, documents=60)}
    text = verdict(report(results, costs=costs))
    best, other = sorted(results, key=lambda name: -accuracy(results[name]))
    check_lead(text, results[best], results[other], other)
    (by, low, high), apart = told(text, other)
    assert not apart
    needed = int(re.search(r"test on about ([\d,]+) examples", text).group(1).replace(",", ""))
    # half the interval's width, which shrinks as 1 / sqrt(n), would then be the difference
    assert (high - low) / 2 * np.sqrt(60 / needed) == pytest.approx(by, rel=0.1)
    assert "truncate is the cheaper to run (0.1 s a document for 0.5 s)" in text


def test_one_strategy_alone():
    text = verdict(report({"long": labelled(0.8)}))
    assert text.startswith(f"long reaches accuracy {accuracy(labelled(0.8)):.3f} (95 % interval")
    assert "told apart" not in text and "better" not in text
    assert "Next: add truncate and chunks to strategies" in text
    text = verdict(report({"truncate": labelled(0.8)}))
    assert "Next: add long to strategies; no long model is in this comparison." in text


@pytest.mark.parametrize(("long", "number"), [(12, 500), (49, 500), (51, 500), (500, 500), (1, 30)])
def test_how_many_texts_are_long(long, number):
    lengths = [600] * long + [512] * (number - long)
    results = {"long": labelled(0.8), "truncate": labelled(0.79, seed=1)}
    text = verdict(report(results, lengths=lengths))
    are = "is" if long == 1 else "are"
    share = f"{long:,} of {number:,} texts ({100 * long / number:.1f}%) {are} longer than the 512 tokens that the "
    share += "source reads"
    assert share in text
    few = long / number < 0.1
    assert (f"Only {share}, so little can be gained." in text) == few
    assert ("stay with truncate, unless longer texts will come" in text) == few


def test_few_long_texts_are_no_excuse_for_a_win():
    text = verdict(report({"long": labelled(0.95), "truncate": labelled(0.7, seed=1)}, lengths=[600] + [100] * 99))
    assert "little can be gained" not in text and "1 of 100 texts" in text


def test_intervals_of_several_seeds_draw_examples():
    """Three seeds that err on the same examples are no more evidence than one."""
    one, other = labelled(0.82, number=150), labelled(0.78, number=150, seed=1)
    once = verdict(report({"long": one, "truncate": other}))
    thrice = verdict(report({"long": one * 3, "truncate": other * 3}))
    assert "on 150 test examples, each predicted by 3 runs (intervals keep all predictions of an example " in thrice
    best, worse = sorted((("long", one), ("truncate", other)), key=lambda pair: -accuracy(pair[1]))
    assert told(once, worse[0]) == told(thrice, worse[0])
    check_lead(thrice, best[1] * 3, worse[1] * 3, worse[0])


def test_seeds_that_do_not_agree_are_said():
    runs = {"seed-1": (0.9, 0.8), "seed-2": (0.7, 0.8), "seed-3": (0.95, 0.6)}
    results = {"long": [], "truncate": []}
    for number, (run, shares) in enumerate(runs.items()):
        for name, share in zip(results, shares, strict=True):
            results[name] += [{**line, "run": run} for line in labelled(share, 150, 10 * number + len(name))]
    made = report(results)
    by_seed = {
        name: [accuracy([line for line in lines if line["run"] == run]) for run in runs]
        for name, lines in results.items()
    }
    assert [*made.figures["long"]["by_run"].values()] == pytest.approx(by_seed["long"])
    span = f"{min(by_seed['long']):.3f} to {max(by_seed['long']):.3f}"
    wins = sum(ours > theirs for ours, theirs in zip(*by_seed.values(), strict=True))
    assert wins == 2
    said = f"By seed long reaches {span}, and is better than truncate with 2 of 3 seeds; intervals are for these seeds"
    assert said in verdict(made)
    assert f"| {span} |" in made.to_markdown()
    alone = {name: lines[:150] for name, lines in results.items()}
    assert "by seed" not in verdict(report(alone)).lower() + report(alone).to_markdown()


def test_examples_that_were_drawn_together_are_one():
    """Twenty questions on each of 30 articles, in which all of an article's are right or wrong together."""
    draw = np.random.default_rng(0)
    right = {name: np.repeat(draw.random(30) < share, 20) for name, share in (("long", 0.8), ("truncate", 0.7))}
    results = {name: lines_of(found.astype(int).tolist(), [1] * 600) for name, found in right.items()}
    groups = {str(number): f"article {number // 20}" for number in range(600)}
    made = Report(SingleLabelMetric(), nothing_within, results, 512, 4096, drawn_with=groups)
    one_each = {name: lines_of(found[::20].astype(int).tolist(), [1] * 30) for name, found in right.items()}
    alone = report(one_each)
    for name in results:
        assert made.figures[name]["interval"] == pytest.approx(alone.figures[name]["interval"])
    assert made.difference("long", "truncate")[1] == pytest.approx(alone.difference("long", "truncate")[1])
    text = verdict(made)
    assert "on 600 test examples in 30 groups (intervals keep all predictions of a group together)" in text
    few = Report(SingleLabelMetric(), nothing_within, {"long": results["long"][:160]}, 512, 4096, drawn_with=groups)
    assert "So few test examples (160 in 8 groups) show nothing" in verdict(few)


class ErrorMetric(RegressionMetric):
    """The squared error, of which less is better."""

    primary = "error"
    interval = staticmethod(plain_interval)
    figures = {"error": lambda truth, found: float(np.mean((np.array(truth) - np.array(found)) ** 2))}
    lower_is_better = frozenset({"error"})

    def measured(self, predictions, references, units):
        errors = (np.array(predictions) - np.array(references)) ** 2
        sums = sums_by_unit(np.stack([errors, np.ones(len(errors))], axis=-1), units)
        return {"error": measure(sums, lambda each: each[..., 0] / each[..., 1])}


def noisy(noise, number=300, seed=0):
    truth = np.random.default_rng(99).normal(size=number)
    found = truth + noise * np.random.default_rng(seed).normal(size=number)
    return lines_of(found.tolist(), truth.tolist())


def pearson(lines):
    found, truth = (np.array([line[key] for line in lines]) for key in ("prediction", "reference"))
    found, truth = found - found.mean(), truth - truth.mean()
    return (found * truth).sum() / np.sqrt((found**2).sum() * (truth**2).sum())


def test_regression_where_higher_is_better():
    results = {"long": noisy(0.3), "truncate": noisy(0.8, seed=1)}
    text = verdict(report(results, RegressionMetric()))
    assert text.startswith("long has the highest pearson, ")
    check_lead(text, results["long"], results["truncate"], "truncate", pearson)
    assert text.endswith("Next: use long.")


def test_regression_where_lower_is_better():
    results = {"long": noisy(0.8), "truncate": noisy(0.3, seed=1)}

    def error(lines):
        return np.mean([(line["prediction"] - line["reference"]) ** 2 for line in lines])

    made = report(results, ErrorMetric())
    text = verdict(made)
    assert text.startswith(f"truncate has the lowest error, {error(results['truncate']):.3f}")
    (by, low, high), apart = told(text, "long")
    assert apart and low < by < high
    assert by == pytest.approx(error(results["long"]) - error(results["truncate"]), abs=6e-4)
    expected = interval(results["truncate"], results["long"], error, sign=-1)
    assert (low, high) == (pytest.approx(expected[0], abs=0.03), pytest.approx(expected[1], abs=0.03))
    assert text.endswith("Next: use truncate; the long model loses here.")
    # and in the table the first, which is worse, is better by less than nothing
    low, high = made.figures["truncate"]["first_is_better_by"]
    assert low < high < 0
    assert f"| {-by:+.3f} ({low:+.3f} to {high:+.3f}) |" in made.to_markdown()


def test_predictions_that_are_all_the_same_have_no_correlation(tmp_path):
    constant = lines_of([1.0] * 50, np.arange(50.0).tolist())
    results = {"long": constant, "truncate": lines_of((np.arange(50.0) ** 2).tolist(), np.arange(50.0).tolist())}
    with pytest.warns(Warning):
        made = report(results, RegressionMetric())
        text = verdict(made)
        made.save(tmp_path, text)
    assert "long has no pearson that is a number" in text
    assert "truncate reaches pearson 0.9" in text

    def refuse(constant):
        raise ValueError(constant)

    read = json.loads((tmp_path / "results.json").read_text("utf-8"), parse_constant=refuse)
    assert read["long"]["pearson"] is None
    assert read["long"]["verdict"] == text
    assert text in (tmp_path / "results.md").read_text("utf-8")


def test_what_has_no_interval_is_not_told_apart():
    """A correlation that rests on one example: without it there is none."""
    truth = [0.0, 0.0, 0.0, 1.0]
    results = {"long": lines_of([0.1, 0.2, 0.1, 0.9], truth), "truncate": lines_of([0.3, 0.1, 0.2, 0.2], truth)}
    made = report(results, RegressionMetric())
    text = verdict(made)
    assert "nan" not in text + made.to_markdown()
    assert "long has the highest pearson, 0.993, on 4 test examples." in text
    assert "long is not told apart from truncate (by 0.993): these examples give no interval." in text
    assert text.endswith("Next: to tell long and truncate apart, test on more examples.")


def ranked(share_first, number=200, seed=0):
    draw = np.random.default_rng(seed)
    found = [["right", "wrong"] if draw.random() < share_first else ["wrong", "right"] for _ in range(number)]
    evidence = [int(place) for place in np.random.default_rng(7).integers(0, 2000, number)]
    return lines_of(found, [["right"]] * number, evidence)


def gain(lines):
    """nDCG of a right document that stands first or second."""
    return np.mean([1 / np.log2(2 + line["prediction"].index("right")) for line in lines])


def test_retrieval_and_what_lies_past_the_source():
    results = {"long, untrained": ranked(0.9), "truncate": ranked(0.6, seed=1), "chunk-max": ranked(0.85, seed=2)}
    made = report(results, RetrievalMetric(), decided_within, extended=("long, untrained",))
    text = verdict(made)
    order = sorted(results, key=lambda name: -gain(results[name]))
    assert text.startswith(f"{order[0]} has the highest ndcg_at_10, {gain(results[order[0]]):.3f}")
    for name in order[1:]:
        check_lead(text, results[order[0]], results[name], name, gain)
    said = re.search(
        rf"past token 512 \((\d+) of 200 predictions\), (.+?) is better than (.+?) by {NUMBER} "
        rf"\({NUMBER} to {NUMBER}, which (leaves out|holds) 0\)",
        text,
    )
    past = {name: [line for line in lines if line["evidence"] >= 512] for name, lines in results.items()}
    assert int(said[1]) == len(past["truncate"])
    assert {said[2], said[3]} == {"long, untrained", next(name for name in order if name != "long, untrained")}
    by, low, high = map(float, said.group(4, 5, 6))
    assert by == pytest.approx(gain(past[said[2]]) - gain(past[said[3]]), abs=6e-4) and by >= 0
    expected = interval(past[said[2]], past[said[3]], gain)
    assert (low, high) == (pytest.approx(expected[0], abs=0.012), pytest.approx(expected[1], abs=0.012))
    assert (said[7] == "leaves out") == (low > 0 or high < 0)


def test_a_long_model_that_loses_but_wins_past_the_source():
    number = 400
    truth = [each % 2 for each in range(number)]
    evidence = [100 if each < 300 else 900 for each in range(number)]
    long = labelled(0.6, 300, truth=truth[:300]) + labelled(0.95, 100, truth=truth[300:])
    short = labelled(0.95, 300, 1, truth=truth[:300]) + labelled(0.5, 100, 1, truth=truth[300:])
    for place, (ours, theirs) in enumerate(zip(long, short, strict=True)):
        for line in (ours, theirs):
            line |= {"id": str(place), "evidence": evidence[place]}
    text = verdict(report({"long": long, "truncate": short}, within=decided_within))
    assert text.startswith("truncate has the highest accuracy")
    assert "past token 512 (100 of 400 predictions), long is better than truncate by" in text
    assert text.endswith("Next: use truncate, and long where what decides mostly stands past token 512.")


def test_nothing_learned():
    truth = [0] * 80 + [1] * 20
    results = {
        "long": lines_of([0] * 100, truth, names=["no", "yes"]),
        "truncate": lines_of([0] * 99 + [1], truth, names=["no", "yes"]),
    }
    text = verdict(report(results))
    assert "Always answering the most frequent label would reach 0.800, so nothing is shown to be learned." in text
    assert "Next: train longer, or start from a larger model" in text


def words(share, seed):
    draw = np.random.default_rng(seed)
    truth = [["B-PER", "I-PER", "O", "B-LOC", "O"]] * 60
    found = [["B-PER", "I-PER" if draw.random() < share else "O", "O", "B-LOC", "O"] for _ in truth]
    return lines_of(found, truth)


def entity_f1(lines):
    return seqeval.metrics.f1_score(
        [line["reference"] for line in lines], [line["prediction"] for line in lines], zero_division=0
    )


def vectors(noise, seed):
    draw = np.random.default_rng(seed)
    truth = np.random.default_rng(5).integers(0, 2, (80, 4))
    found = np.where(draw.random(truth.shape) < noise, 1 - truth, truth)
    return lines_of(found.tolist(), truth.tolist(), names="abcd")


def micro_f1(lines):
    return f1_score(
        np.array([line["reference"] for line in lines]),
        np.array([line["prediction"] for line in lines]),
        average="micro",
    )


def answers(share, seed):
    draw = np.random.default_rng(seed)
    return lines_of(["gold" if draw.random() < share else "iron" for _ in range(120)], [["gold"]] * 120)


def choices(share, seed):
    draw = np.random.default_rng(seed)
    return lines_of([int(draw.random() >= share) for _ in range(120)], [0] * 120)


@pytest.mark.parametrize(
    ("metric", "make", "shares", "statistic"),
    [
        (EntityMetric, words, (0.9, 0.4), entity_f1),
        (MultiLabelMetric, vectors, (0.1, 0.3), micro_f1),
        (SpanMetric, answers, (0.9, 0.5), lambda lines: np.mean([line["prediction"] == "gold" for line in lines])),
        (ChoiceMetric, choices, (0.9, 0.5), accuracy),
    ],
)
def test_every_task(metric, make, shares, statistic):
    results = {"long": make(shares[0], 0), "truncate": make(shares[1], 1)}
    text = verdict(report(results, metric()))
    assert text.startswith(f"long has the highest {metric.primary}, {statistic(results['long']):.3f} (95 % interval")
    check_lead(text, results["long"], results["truncate"], "truncate", statistic, draws=300)
    assert "Always answering" not in text


def test_what_it_cost():
    costs = {
        "long": Cost(
            training_seconds=744.04,
            training_tokens=2_100_000,
            prediction_seconds=84.0,
            prediction_tokens=1_524_800,
            documents=400,
            peak_memory=2_584_000_000,
        ),
        "truncate": Cost(
            prediction_seconds=8, prediction_tokens=204_800, documents=400, peak_memory=10**9, memory_of="H200"
        ),
    }
    made = report({"long": labelled(0.9), "truncate": labelled(0.7, seed=1)}, costs=costs)
    text = verdict(made)
    assert (
        "What it cost: long 744.0 s of training on 2,100,000 tokens, 0.21 s and 3,812 tokens a test document, at most "
        "2.58 GB (process); truncate no training, 0.02 s and 512 tokens a test document, at most 1.00 GB (H200)."
        in text
    )
    markdown = made.to_markdown(text)
    assert "| long | 744.0 | 2,100,000 | 0.21 | 3,812 | 2.58 (process) |" in markdown
    assert "| truncate |  |  | 0.02 | 512 | 1.00 (H200) |" in markdown
    assert made.figures["long"]["cost"]["training_tokens"] == 2_100_000
    del costs["truncate"]
    assert "What it cost (of truncate it was not measured): long 744.0 s" in verdict(
        report({"long": labelled(0.9), "truncate": labelled(0.7, seed=1)}, costs=costs)
    )


def test_tables_by_class_have_room_for_twenty():
    draw = np.random.default_rng(0)
    names = [f"label {place}" for place in range(30)] + ["a|b"]
    truth, found = (draw.integers(0, len(names), 900).tolist() for _ in range(2))
    made = report({"long": lines_of(found, truth, names=names)})
    markdown = made.to_markdown("In words.")
    assert "the 19 most frequent classes and the others together, all of them in results.json" in markdown
    assert f"| 12 others | {900 - sum(sorted(map(truth.count, range(31)))[::-1][:19])} |" in markdown
    table = markdown.split("What long takes for what")[1].strip().splitlines()[2:]
    cells = [row.strip("|").split(" | ")[1:] for row in table[2:]]
    assert len(cells) == 20 and all(len(row) == 20 for row in cells)
    assert sum(int(cell.strip(" |")) for row in cells for cell in row) == 900
    assert len(made.figures["long"]["by_class"]) == len(made.figures["long"]["confusion"]["labels"]) == 31
    assert markdown.index("| long |") < markdown.index("In words.") < markdown.index("F1 by class")
