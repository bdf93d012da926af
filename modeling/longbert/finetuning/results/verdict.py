"""The verdict: what a comparison came to, in sentences that can be pasted into a report."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .costs import Cost
from .metrics import ChoiceMetric, SingleLabelMetric
from .report import Lines, Report, column


FEW = 0.1  # of the texts; if no more are longer than the source reads, little can be gained
TOO_FEW = 10  # test examples, or groups of them; of fewer nothing is known of how they vary
OUT_OF_REACH = 100  # times as many examples: a difference that small is none


@dataclass(frozen=True)
class Lead:
    """What one strategy is better by than another.

    Args:
        interval: 95 %, of the difference, example by example; NaN where the examples give none.
    """

    better: str
    other: str
    by: float
    interval: tuple[float, float]

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval[0] > 0 or self.interval[1] < 0

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return all(map(math.isfinite, self.interval))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.other} (by {self.by:.3f}" + (f", {low:.3f} to {high:.3f})" if self.is_known else ")")


def verdict(report: Report) -> str:
    """One paragraph: who wins, by how much, whether the intervals allow to say so, what it cost, and what to do."""
    ranked = ranking(report)
    sentences = [*_unscored(report, ranked), *_standing(report, ranked), *_too_few(report)]
    sentences += [*_guessing(report, ranked), *_past_the_source(report, ranked), *_long_texts(report, ranked)]
    sentences += [*_costs(report), _next(report, ranked)]
    return " ".join(sentences)


def ranking(report: Report) -> list[str]:
    """The strategies from the best on; those whose figure is not a number are left out."""
    figures = {name: row[report.metric.primary] for name, row in report.figures.items()}
    sign = -1 if report.metric.greater_is_better else 1
    return sorted((name for name in figures if math.isfinite(figures[name])), key=lambda name: sign * figures[name])


def lead(report: Report, name: str, other: str) -> Lead:
    """What `name` is better by than `other`; less than 0 if it is worse."""
    return Lead(name, other, *report.difference(name, other))


def _unscored(report: Report, ranked: list[str]) -> list[str]:
    names = [name for name in report.results if name not in ranked]
    if not names:
        return []
    has = "has" if len(names) == 1 else "have"
    return [f"{_and(names)} {has} no {report.metric.primary} that is a number, as where all predictions are the same."]


def _standing(report: Report, ranked: list[str]) -> list[str]:
    """The best, on how many examples, and from which others it is told apart."""
    if not ranked:
        return []
    best, primary = ranked[0], report.metric.primary
    figure, (low, high) = report.figures[best][primary], report.figures[best]["interval"]
    tied = [name for name in ranked if report.figures[name][primary] == figure]
    highest = "highest" if report.metric.greater_is_better else "lowest"
    has = f"{_and(tied)} {'has the' if len(tied) == 1 else 'have the same'} {highest} {primary}," * (len(ranked) > 1)
    has = has or f"{best} reaches {primary}"
    of = f" of {best}" * (len(tied) > 1)
    examples = _on_examples(report, report.results[best])
    within = f" (95 % interval{of} {low:.3f} to {high:.3f})" if math.isfinite(low) else ""
    sentences = [f"{has} {figure:.3f}{within}, {examples}."]
    leads = [lead(report, best, other) for other in ranked[1:]]
    known = [each for each in leads if each.is_known]
    apart, close = ([each for each in known if each.told_apart is apart] for apart in (True, False))
    if apart:
        sentences.append(
            f"{best} is better than {_and(map(str, apart))}: the 95 % interval of "
            f"{'the difference leaves' if len(apart) == 1 else 'each difference leaves'} out 0, so this test says so."
        )
    if close:
        sentences.append(
            f"{best} is not told apart from {_and(map(str, close))}: the 95 % interval of "
            f"{'the difference holds' if len(close) == 1 else 'each difference holds'} 0."
        )
    if unknown := [str(each) for each in leads if not each.is_known]:
        sentences.append(f"{best} is not told apart from {_and(unknown)}: these examples give no interval.")
    return [*sentences, *_by_seed(report, ranked)]


def _by_seed(report: Report, ranked: list[str]) -> list[str]:
    """How far apart the seeds of the best are, and in how many of them it is better than the next."""
    best, *others = ranked
    ours = report.by_run(best)
    if not ours:
        return []
    said = f"By seed {best} reaches {min(ours.values()):.3f} to {max(ours.values()):.3f}"
    if others:
        theirs, sign = report.by_run(others[0]), 1 if report.metric.greater_is_better else -1
        wins = sum(sign * (ours[run] - theirs[run]) > 0 for run in ours)
        said += f", and is better than {others[0]} with {wins} of {len(ours)} seeds"
    return [f"{said}; intervals are for these seeds, and others may differ as much."]


def _too_few(report: Report) -> list[str]:
    lines = report.results[report.first]
    examples, groups = _counts(report, lines)
    if groups >= TOO_FEW:
        return []
    counted = f"{examples:,}" + f" in {groups:,} groups" * (groups < examples)
    return [f"So few test examples ({counted}) show nothing, whatever their intervals say: name a larger test_file."]


def _counts(report: Report, lines: Lines) -> tuple[int, int]:
    """Examples, and groups of them that were drawn together."""
    return len({*column(lines, "id")}), len({*report.units(lines)})


def _on_examples(report: Report, lines: Lines) -> str:
    examples, groups = _counts(report, lines)
    said = f"on {examples:,} test example{'s' * (examples != 1)}"
    if groups < examples:
        said += f" in {groups:,} group{'s' * (groups != 1)}"
    if len(lines) > examples:
        said += f", each predicted by {len(lines) / examples:g} runs"
    if groups == len(lines):
        return said
    return f"{said} (intervals keep all predictions of {'an example' if groups == examples else 'a group'} together)"


def _guessing(report: Report, ranked: list[str]) -> list[str]:
    """What the most frequent label would reach, where the best is not told apart from it."""
    if not ranked or not _has_labels(report):
        return []
    share = _most_frequent(report, ranked)
    if report.figures[ranked[0]]["interval"][0] > share:
        return []
    return [f"Always answering the most frequent label would reach {share:.3f}, so nothing is shown to be learned."]


def _has_labels(report: Report) -> bool:
    return (
        isinstance(report.metric, SingleLabelMetric)
        and not isinstance(report.metric, ChoiceMetric)
        and report.metric.primary == "accuracy"
    )


def _most_frequent(report: Report, ranked: list[str]) -> float:
    truth = column(report.results[ranked[0]], "reference")
    return max(map(truth.count, {*truth})) / len(truth)


def _rivals(report: Report, ranked: list[str]) -> tuple[str | None, str | None]:
    """The best strategy in which the long model reads, and the best in which the source does."""
    long = [name for name in ranked if name in report.extended]
    source = [name for name in ranked if name not in report.extended]
    return next(iter(long), None), next(iter(source), None)


def _lead_past(report: Report, ranked: list[str]) -> Lead | None:
    """The lead of the long model over the source where what decides stands past what the source reads."""
    long, source = _rivals(report, ranked)
    if long is None or source is None:
        return None
    ours, theirs = (report.within(report.results[name], report.source_length, None) for name in (long, source))
    if not ours or column(ours, "id") != column(theirs, "id"):
        return None
    past = Lead(long, source, *report.difference_of(ours, theirs))
    return past if math.isfinite(past.by) and past.is_known else None


def _past_the_source(report: Report, ranked: list[str]) -> list[str]:
    past = _lead_past(report, ranked)
    if past is None:
        return []
    lines = report.results[past.better]
    number = len(report.within(lines, report.source_length, None))
    better, other, by = (past.better, past.other, past.by) if past.by >= 0 else (past.other, past.better, -past.by)
    low, high = past.interval if past.by >= 0 else (-past.interval[1], -past.interval[0])
    says = "leaves out 0" if past.told_apart else "holds 0"
    return [
        f"Where what decides stands past token {report.source_length:,} ({number:,} of {len(lines):,} predictions), "
        f"{better} is better than {other} by {by:.3f} ({low:.3f} to {high:.3f}, which {says})."
    ]


def _few_long(report: Report) -> bool:
    return bool(report.lengths) and _number_long(report) < FEW * len(report.lengths)


def _number_long(report: Report) -> int:
    return sum(length > report.source_length for length in report.lengths)


def _long_texts(report: Report, ranked: list[str]) -> list[str]:
    if not report.lengths:
        return []
    few = _few_long(report) and not _long_wins(report, ranked)
    number, of = _number_long(report), len(report.lengths)
    are = "is" if number == 1 else "are"
    said = f"{number:,} of {of:,} texts ({number / of:.1%}) {are} longer than the {report.source_length:,} tokens"
    return [f"{'Only ' * few}{said} that the source reads{', so little can be gained' * few}."]


def _long_wins(report: Report, ranked: list[str]) -> bool:
    long, source = _rivals(report, ranked)
    return long is not None and source is not None and lead(report, long, source).interval[0] > 0


def _costs(report: Report) -> list[str]:
    """What every strategy took."""
    if not report.costs:
        return []
    missing = [name for name in report.results if name not in report.costs]
    unknown = f" (of {_and(missing)} it was not measured)" if missing else ""
    return [f"What it cost{unknown}: {'; '.join(_cost(name, cost) for name, cost in report.costs.items())}."]


def _cost(name: str, cost: Cost) -> str:
    trained = "no training"
    if cost.training_tokens:
        trained = f"{cost.training_seconds:,.1f} s of training on {cost.training_tokens:,} tokens"
    return (
        f"{name} {trained}, {cost.seconds_a_document:.3g} s and {cost.tokens_a_document:,.0f} tokens a test document, "
        f"at most {cost.peak_memory / 1e9:.2f} GB ({cost.memory_of})"
    )


def _next(report: Report, ranked: list[str]) -> str:
    """What to do with that."""
    if not ranked:
        return "Next: train longer or at another learning_rate, until predictions differ."
    if _has_labels(report) and report.figures[ranked[0]]["interval"][0] <= _most_frequent(report, ranked):
        return "Next: train longer, or start from a larger model, before ways of reading are compared."
    long, source = _rivals(report, ranked)
    if long is None:
        return "Next: add long to strategies; no long model is in this comparison."
    if source is None:
        return (
            "Next: add truncate and chunks to strategies; nothing that reads no more than the source at once stands "
            "beside the long model."
        )
    between = lead(report, long, source)
    if between.told_apart:
        return _decided(report, ranked, between)
    return _undecided(report, between)


def _decided(report: Report, ranked: list[str], between: Lead) -> str:
    """The long model and the source are told apart."""
    if between.by > 0:
        return f"Next: use {between.better}."
    past = _lead_past(report, ranked)
    if past is not None and past.told_apart and past.by > 0:
        return (
            f"Next: use {between.other}, and {between.better} where what decides mostly stands past token "
            f"{report.source_length:,}."
        )
    return f"Next: use {between.other}; the long model loses here."


def _undecided(report: Report, between: Lead) -> str:
    """They are not; how many examples it would take, if the difference stays and intervals shrink as 1 / sqrt(n)."""
    if _few_long(report):
        return f"Next: stay with {between.other}, unless longer texts will come."
    examples = len({*column(report.results[between.better], "id")})
    half = (between.interval[1] - between.interval[0]) / 2
    times = (half / abs(between.by)) ** 2 if between.by else math.inf
    names = f"{between.better} and {between.other}"
    if not between.is_known:
        return f"Next: to tell {names} apart, test on more examples."
    if not times <= OUT_OF_REACH:
        said = f"Next: take {names} for equally good; no test of a practical size would tell them apart"
    else:
        needed = _rounded_up(examples * max(times, 1))
        said = f"Next: to tell {names} apart, test on about {needed:,} examples, if the difference stays, or add seeds"
    return f"{said}{_cheaper(report, between)}."


def _cheaper(report: Report, between: Lead) -> str:
    names = [name for name in (between.better, between.other) if name in report.costs]
    if len(names) < 2:
        return ""
    cheap, dear = sorted(names, key=lambda name: report.costs[name].seconds_a_document)
    seconds = [f"{report.costs[name].seconds_a_document:.3g} s" for name in (cheap, dear)]
    return f"; {cheap} is the cheaper to run ({seconds[0]} a document for {seconds[1]})"


def _rounded_up(number: float) -> int:
    """To two digits."""
    step = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / step) * step


def _and(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
