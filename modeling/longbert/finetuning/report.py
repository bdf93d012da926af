"""The report of a comparison: figures with intervals, and by position where the task knows what decides."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..proof import position_buckets
from .metrics import Figures, interval_of, interval_of_difference


Lines = list[dict[str, Any]]
Within = Callable[[Lines, int, int | None], Lines]


def score(metric: Figures, lines: Lines) -> dict[str, float]:
    """A metric of predictions as `Task.predict` gives them."""
    found, truth = ([line[key] for line in lines] for key in ("prediction", "reference"))
    return metric.compute(predictions=found, references=truth)


def decided_within(lines: Lines, start: int, stop: int | None) -> Lines:
    """The predictions whose `evidence` begins at token `start` to `stop - 1`."""
    return [
        line
        for line in lines
        if line["evidence"] is not None and start <= line["evidence"] and (stop is None or line["evidence"] < stop)
    ]


class Report:
    """Predictions of several strategies on the same examples, strategy by strategy.

    Args:
        within: (predictions, start, stop) -> those that are decided by tokens `start` to `stop - 1`.
        source_length: tokens that the source reads.
        reach: tokens that are read at most.
        groups: values of the predictions' `group`, in the order in which a table of them is wanted.
    """

    def __init__(
        self,
        metric: Figures,
        within: Within,
        results: dict[str, Lines],
        source_length: int,
        reach: int,
        groups: Sequence[str] = (),
    ):
        self.metric, self.within, self.results, self.source_length, self.reach = (
            metric,
            within,
            results,
            source_length,
            reach,
        )
        self.groups = groups

    @cached_property
    def figures(self) -> dict[str, dict[str, Any]]:
        """For every strategy, all figures of the tables."""
        return {name: self._figures(lines) for name, lines in self.results.items()}

    def _figures(self, lines: Lines) -> dict[str, Any]:
        first = next(iter(self.results.values()))
        found, truth = ([line[key] for line in lines] for key in ("prediction", "reference"))
        figures: dict[str, Any] = {
            **score(self.metric, lines),
            "interval": interval_of(self.metric, found, truth),
            "predictions": len(lines),
            "by_position": self._by_position(
                lines, position_buckets(max(self.reach, self.source_length + 1), self.source_length)
            ),
        }
        if self.groups:
            parts = {group: [line for line in lines if line["group"] == group] for group in self.groups}
            figures["by_group"] = self._parts(parts)
        if lines is not first:
            ours = [line["prediction"] for line in first]
            figures["first_is_better_by"] = interval_of_difference(self.metric, ours, found, truth)
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

    def to_markdown(self) -> str:
        """A row for each strategy, over all folds and seeds; a second table where it is known what decides."""
        figures, primary = self.figures, self.metric.primary
        first = next(iter(figures))
        others = [name for name in self.metric.figures if name != primary]
        titles = [f"{primary} (95 % interval)", *others, "predictions"]
        if len(figures) > 1:
            titles.append(f"{first} is better by (95 % interval, paired)")
        rows = {}
        for name, row in figures.items():
            cells = [_with_interval(row[primary], row["interval"])]
            cells += [*(f"{row[other]:.3f}" for other in others), str(row["predictions"])]
            if len(figures) > 1:
                better = figures[first][primary] - row[primary]
                cells.append("" if name == first else _with_interval(better, row["first_is_better_by"], "+"))
            rows[name] = cells
        tables = [_table(titles, rows)]
        for key, what in (
            ("by_group", "group"),
            ("by_position", "the token that decides, question or [CLS] counted"),
        ):
            parts = figures[first].get(key)
            if parts:
                titles = [f"{title} ({part['predictions']})" for title, part in parts.items()]
                rows = {name: [f"{part[primary]:.3f}" for part in row[key].values()] for name, row in figures.items()}
                tables += [f"{primary} by {what} (predictions in brackets):", _table(titles, rows)]
        return "\n\n".join(tables)

    def save(self, folder: str | Path) -> None:
        """Write results.md, results.json and, where it is known what decides, by_position.png into `folder`."""
        Path(folder, "results.md").write_text(self.to_markdown() + "\n", "utf-8")
        Path(folder, "results.json").write_text(json.dumps(self.figures, indent=2) + "\n", "utf-8")
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
            from ..plots import plot_by_position

            title = f"{self.metric.primary} by the token that decides, over {step} tokens"
            plot_by_position(drawn, self.source_length, self.reach, title, Path(folder, "by_position.png"))


def _with_interval(value: float, interval: tuple[float, float], sign: str = "") -> str:
    low, high = interval
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def _table(titles: list[str], rows: dict[str, list[str]]) -> str:
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())])


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
