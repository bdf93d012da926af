"""The report of a comparison: figures with intervals, by position where the task knows what decides, and by class."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...intervals import Interval
from ...proof import position_buckets
from ...tables import strict_json, table, with_interval
from .classes import FIGURES, folded, shown_classes, summed_up
from .costs import TITLES, TITLES_OF_A_DOCUMENT, Cost, cost_rows
from .metrics import Figures, interval_of_difference


Lines = list[dict[str, Any]]
Within = Callable[[Lines, int, int | None], Lines]


def score(metric: Figures, lines: Lines) -> dict[str, float]:
    """A metric of predictions as `Task.predict` gives them."""
    return metric.compute(predictions=column(lines, "prediction"), references=column(lines, "reference"))


def column(lines: Lines, key: str) -> list:
    """One field of every prediction."""
    return [line[key] for line in lines]


def decided_within(lines: Lines, start: int, stop: int | None) -> Lines:
    """The predictions whose `evidence` begins at token `start` to `stop - 1`."""
    return [
        line
        for line in lines
        if line["evidence"] is not None and start <= line["evidence"] and (stop is None or line["evidence"] < stop)
    ]


@dataclass
class Report:
    """Predictions of several strategies on the same examples, strategy by strategy.

    Args:
        within: (predictions, start, stop) -> those that are decided by tokens `start` to `stop - 1`.
        source_length: tokens that the source reads.
        reach: tokens that are read at most.
        groups: values of the predictions' `group`, in the order in which a table of them is wanted.
        costs: of each strategy, all its runs together; none of those that were not measured.
        extended: the strategies in which the long model reads, not the source.
        lengths: of all texts, in tokens.
        drawn_with: what an example was drawn with, by its id, such as the article that several questions are on;
            nothing of those that were drawn alone.
    """

    metric: Figures
    within: Within
    results: dict[str, Lines]
    source_length: int
    reach: int
    groups: Sequence[str] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)
    extended: Collection[str] = ()
    lengths: Sequence[int] = ()
    drawn_with: Mapping[str, str] = field(default_factory=dict)
    differences: dict[tuple[str, str], tuple[float, Interval]] = field(default_factory=dict, init=False)

    @property
    def first(self) -> str:
        """The strategy that the others are compared with."""
        return next(iter(self.results))

    @cached_property
    def figures(self) -> dict[str, dict[str, Any]]:
        """For every strategy, all figures of the tables."""
        return {name: self._figures(name, lines) for name, lines in self.results.items()}

    def difference(self, name: str, other: str) -> tuple[float, Interval]:
        """What one strategy is better by than another, and its interval; computed once."""
        if (name, other) not in self.differences:
            self.differences[name, other] = self.difference_of(self.results[name], self.results[other])
        return self.differences[name, other]

    def difference_of(self, lines: Lines, others: Lines) -> tuple[float, Interval]:
        """What `lines` are better by than `others`, predictions of the same examples in the same order, and its 95 %
        interval."""
        metric = self.metric
        ours, theirs = (score(metric, each)[metric.primary] for each in (lines, others))
        found, other = column(lines, "prediction"), column(others, "prediction")
        interval = interval_of_difference(metric, found, other, column(others, "reference"), self.units(lines))
        return (ours - theirs) * (1 if metric.greater_is_better else -1), interval

    def units(self, lines: Lines) -> list[str]:
        """What each prediction belongs to of what was drawn independently."""
        return [self.drawn_with.get(line["id"], line["id"]) for line in lines]

    def by_run(self, name: str) -> dict[str, float]:
        """The primary figure of each of a strategy's seeds, all folds together; none where there are not several."""
        runs: dict[str, Lines] = {}
        for line in self.results[name]:
            runs.setdefault(line.get("run", ""), []).append(line)
        if len(runs) == 1:
            return {}
        return {run: score(self.metric, lines)[self.metric.primary] for run, lines in runs.items()}

    def _figures(self, name: str, lines: Lines) -> dict[str, Any]:
        found, truth = column(lines, "prediction"), column(lines, "reference")
        measured = self.metric.measured(found, truth, self.units(lines))
        intervals = {figure: self.metric.interval(each) for figure, each in measured.items()}
        figures: dict[str, Any] = {
            **score(self.metric, lines),
            "interval": intervals[self.metric.primary],
            "intervals": intervals,
            "predictions": len(lines),
            "by_position": self._by_position(
                lines, position_buckets(max(self.reach, self.source_length + 1), self.source_length)
            ),
        }
        if self.groups:
            parts = {group: [line for line in lines if line["group"] == group] for group in self.groups}
            figures["by_group"] = self._parts(parts)
        if by_run := self.by_run(name):
            figures["by_run"] = by_run
        if name != self.first:
            figures["first_is_better_by"] = self.difference(self.first, name)[1]
        if by_class := self.metric.by_class(found, truth, class_names(lines)):
            figures["by_class"] = by_class
        if confusion := self.metric.confusion(found, truth, class_names(lines)):
            figures["confusion"] = confusion
        if name in self.costs:
            figures["cost"] = vars(self.costs[name])
        return figures

    def _by_position(self, lines: Lines, edges: list[tuple[int, int]]) -> dict[str, dict[str, Any]]:
        parts = {f"{start}-{stop - 1}": self.within(lines, start, stop) for start, stop in edges}
        if len(edges) > 1:
            parts[f"≥ {self.source_length}"] = self.within(lines, self.source_length, None)
        return self._parts(parts)

    def _parts(self, parts: dict[str, Lines]) -> dict[str, dict[str, Any]]:
        return {
            title: {self.metric.primary: score(self.metric, part)[self.metric.primary], "predictions": len(part)}
            for title, part in parts.items()
            if part
        }

    def to_markdown(self, in_words: str = "") -> str:
        """A row for each strategy, over all folds and seeds, and below it `in_words`; then what it cost, and tables
        by group, by position where it is known what decides, and by class."""
        parts = [self._overview(), in_words, self._costs(), *self._by_part(), *self._by_class()]
        return "\n\n".join(part for part in parts if part)

    def _overview(self) -> str:
        figures, primary, first = self.figures, self.metric.primary, self.first
        others = [name for name in self.metric.figures if name != primary]
        shown = figures[first]["intervals"]
        titles = [f"{each} (95 % interval)" if each in shown else each for each in (primary, *others)]
        titles.append("predictions")
        indexed = any(cost.stored_bytes for cost in self.costs.values())
        titles += TITLES_OF_A_DOCUMENT if indexed else ()
        several = "by_run" in figures[first]
        if several:
            titles.append(f"{primary} by seed")
        if len(figures) > 1:
            titles.append(f"{first} is better by (95 % interval, paired)")
        sign = 1 if self.metric.greater_is_better else -1
        rows = {}
        for name, row in figures.items():
            intervals = row["intervals"]
            cells = [
                with_interval(row[each], intervals[each]) if each in intervals else f"{row[each]:.3f}"
                for each in (primary, *others)
            ]
            cells.append(str(row["predictions"]))
            cells += self.costs[name].of_a_document() if indexed else []
            if several:
                cells.append(f"{min(row['by_run'].values()):.3f} to {max(row['by_run'].values()):.3f}")
            if len(figures) > 1:
                better = sign * (figures[first][primary] - row[primary])
                cells.append("" if name == first else with_interval(better, row["first_is_better_by"], "+"))
            rows[name] = cells
        return table(titles, rows)

    def _costs(self) -> str:
        return "What it cost:\n\n" + table(TITLES, cost_rows(self.costs)) if self.costs else ""

    def _by_part(self) -> list[str]:
        figures, primary = self.figures, self.metric.primary
        tables = []
        for key, what in (
            ("by_group", "group"),
            ("by_position", "the token that decides, question or [CLS] counted"),
        ):
            parts = figures[self.first].get(key)
            if parts:
                titles = [f"{title} ({part['predictions']})" for title, part in parts.items()]
                rows = {name: [f"{part[primary]:.3f}" for part in row[key].values()] for name, row in figures.items()}
                tables += [f"{primary} by {what} (predictions in brackets):", table(titles, rows)]
        return tables

    def _by_class(self) -> list[str]:
        """Precision, recall and F1 of the most frequent classes, and the first strategy's confusion matrix."""
        first = self.figures[self.first]
        if "by_class" not in first:
            return []
        shown = shown_classes(first["by_class"])
        of = {name: row["by_class"] for name, row in self.figures.items()}
        rows = {label: [_by_class_cell(each.get(label)) for each in of.values()] for label in shown}
        rest = {name: [label for label in each if label not in shown] for name, each in of.items()}
        said = ""
        if any(rest.values()):
            said = f"; the {len(shown)} most frequent classes and the others together, all of them in results.json"
            rows[f"{max(map(len, rest.values()))} others"] = [
                _by_class_cell(summed_up(each, rest[name])) for name, each in of.items()
            ]
        support = [str(first["by_class"][label]["support"]) for label in shown]
        support += [str(summed_up(first["by_class"], rest[self.first])["support"])] if any(rest.values()) else []
        rows = {label: [count, *cells] for (label, cells), count in zip(rows.items(), support, strict=True)}
        titles = [f"Precision, recall and F1 by class{said}:", table(["support", *of], rows)]
        if "confusion" in first:
            matrix = folded(first["confusion"], shown)
            counts = {label: [*map(str, row)] for label, row in zip(matrix["labels"], matrix["matrix"], strict=True)}
            titles += [
                f"What {self.first} takes for what (true classes down, predicted ones across):",
                table(matrix["labels"], counts),
            ]
        return titles

    def save(self, folder: str | Path, in_words: str = "") -> None:
        """Write results.md, results.json and the pictures into `folder`: lengths.png and, where it is known what
        decides, by_position.png."""
        figures = {name: dict(row) for name, row in self.figures.items()}
        if in_words:
            figures[self.first]["verdict"] = in_words
        Path(folder, "results.md").write_text(self.to_markdown(in_words) + "\n", "utf-8")
        Path(folder, "results.json").write_text(strict_json(figures), "utf-8")
        self._draw_by_position(Path(folder, "by_position.png"))
        if self.lengths:
            from ...plots import plot_lengths

            plot_lengths(self.lengths, self.source_length, self.reach, Path(folder, "lengths.png"))

    def _draw_by_position(self, file: Path) -> None:
        step = max(64, self.reach // 16)
        bins = [(start, start + step) for start in range(0, self.reach, step)]
        drawn = {}
        for name, lines in self.results.items():
            parts = {(start + stop) / 2: self.within(lines, start, stop) for start, stop in bins}
            points = [
                (centre, score(self.metric, part)[self.metric.primary]) for centre, part in parts.items() if part
            ]
            if points:
                drawn[name] = np.array(points).T
        if drawn:
            from ...plots import plot_by_position

            title = f"{self.metric.primary} by the token that decides, over {step} tokens"
            plot_by_position(drawn, self.source_length, self.reach, title, file)


def class_names(lines: Lines) -> list[str]:
    """The labels in the order of their numbers, as a classifier's `scores` name them; none where they do not."""
    scores = lines[0].get("scores") if lines else None
    return [*scores] if isinstance(scores, dict) else []


def _by_class_cell(row: dict[str, Any] | None) -> str:
    return " / ".join(f"{row[name]:.3f}" for name in FIGURES[:3]) if row else ""


def length_histogram(lengths: list[int], source_length: int) -> str:
    """How many texts have up to `source_length` tokens, up to twice as many, four times, ..."""
    edges = [0, source_length]
    while edges[-1] < max(lengths):
        edges.append(2 * edges[-1])
    counts, _ = np.histogram(lengths, bins=[edge + 1 if edge else 0 for edge in edges])
    lines = [
        f"{low + 1:>7,} - {high:<7,} {count:>6,}"
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return "tokens            texts\n" + "\n".join(lines)
