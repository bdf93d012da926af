"""What the cells of extension_study.py say: tables and pictures.

    python benchmarks/study_report.py STUDY.jsonl --pictures docs/study > docs/study/tables.md

Everything is a loss against that of the source chunked at its own length, on the same tokens and masks, in percent:
below zero is better than chunking. Intervals are 95 %, by bootstrap over texts.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from extension_study import CONSTANT, SEAM, Cell, Study


Result = dict[str, Any]
Place = tuple[str, str, int]
SOURCE_LENGTH = 512  # of every checkpoint in the study, and so the length of a chunk
PAST = f"≥ {SOURCE_LENGTH}"
WINDOWED, FULL = "window + [CLS]", "full"
ATTENTIONS = {WINDOWED: "window of 512 + [CLS]", FULL: "full attention"}
COLORS = {WINDOWED: "C2", FULL: "C0"}
CLOSE = 5  # percent above chunks up to which a recipe is drawn on the finer axis
SCRATCH = "from scratch"  # how the names of such models end
COLUMNS = ("0-511", PAST, "all", "first seam")


def places(study: Study) -> dict[Place, tuple[Result, dict[Cell, Result]]]:
    """The baseline and the other cells for each checkpoint, data and length."""
    found: dict[Place, tuple[Result, dict[Cell, Result]]] = {}
    for place in dict.fromkeys((cell.checkpoint, cell.data, cell.length) for cell in study.results):
        cells = {cell: result for cell, result in study.results.items() if place == dataclasses.astuple(cell)[:3]}
        found[place] = cells.pop(Cell(*place, "chunked")), cells
    return found


def change(result: Result, baseline: Result, column: str, resamples: int = 2000) -> tuple[float, float, float]:
    """Percent by which the loss is above the baseline's on the same tokens, and its interval over texts."""
    ours, theirs = (np.array(each["sums"][column])[:, 0] for each in (result, baseline))
    drawn = np.random.default_rng(0).integers(len(ours), size=(resamples, len(ours)))
    low, high = np.quantile(ours[drawn].sum(1) / theirs[drawn].sum(1), [0.025, 0.975])
    return tuple(100 * (ratio - 1) for ratio in (ours.sum() / theirs.sum(), low, high))


def loss(result: Result, column: str) -> float:
    """Mean over masked tokens, in nats."""
    summed = np.array(result["sums"][column]).sum(0)
    return summed[0] / summed[1]


def accuracy(result: Result) -> float:
    """Share of the masked tokens past the source's end that are predicted."""
    summed = np.array(result["sums"][PAST]).sum(0)
    return summed[2] / summed[1] if len(summed) > 2 else float("nan")


def chunks(cell: Cell) -> bool:
    """Whether it reads in chunks, which is what the others are compared with."""
    return cell.recipe.startswith("chunked")


def rate(cell: Cell) -> str:
    """The learning rate, and its schedule where it is not constant."""
    schedule = "" if cell.lr_scheduler_type == CONSTANT else f" {cell.lr_scheduler_type}"
    return f"{cell.learning_rate:g}{schedule}"


def training(cell: Cell) -> str:
    """What was trained, for how long."""
    if cell.train == "none":
        return "no"
    seed = f", seed {cell.seed}" if cell.seed else ""
    return f"{cell.train}, {cell.steps:,} steps at {rate(cell)}{seed}"


def table(place: Place, baseline: Result, cells: dict[Cell, Result]) -> str:
    """One line for each cell, the lowest loss past the source's end first."""
    checkpoint, data, length = place
    losses = [loss(baseline, column) for column in COLUMNS]
    lines = [
        f"{checkpoint}, {data}, {length:,} tokens, {len(baseline['sums']['all'])} texts:",
        "",
        f"| positions | attention | trained | {' | '.join(COLUMNS)} | accuracy {PAST} |",
        f"|---|---|---|{'---|' * len(COLUMNS)}---|",
        f"| chunked | full | no | {' | '.join(f'{each:.3f}' for each in losses)} | {accuracy(baseline):.3f} |",
    ]
    for cell in sorted(cells, key=lambda cell: change(cells[cell], baseline, PAST, 1)[0]):
        found = [change(cells[cell], baseline, column) for column in COLUMNS]
        shown = " | ".join(f"{value:+.1f} ({low:+.1f} to {high:+.1f})" for value, low, high in found)
        lines.append(
            f"| {cell.recipe} | {cell.attention} | {training(cell)} | {shown} | {accuracy(cells[cell]):.3f} |"
        )
    return "\n".join(lines)


# ---- pictures


OVERVIEW = {
    "tiled rows, window of 512: the default": ("tile-skip-special", WINDOWED),
    "hierarchical, alpha 0.1, window of 512": ("hierarchical 0.1", WINDOWED),
    "tiled rows, full attention": ("tile-skip-special", FULL),
    "random rows, full attention": ("random", FULL),
    "random rows, window of 512": ("random", WINDOWED),
    "last row repeated, full attention": ("repeat-last", FULL),
    "hierarchical, alpha 0.4, full attention": ("hierarchical 0.4", FULL),
}


def draw_overview(place: Place, baseline: Result, cells: dict[Cell, Result], file: Path) -> None:
    """The README's picture: a few untrained extensions on a plain axis."""
    measured = {label: cells.get(Cell(*place, *kind)) for label, kind in OVERVIEW.items()}
    shown = {label: change(result, baseline, PAST) for label, result in measured.items() if result}
    if not shown:
        return
    figure, axis = plt.subplots(figsize=(9.5, 3.6), layout="constrained")
    for height, (value, low, high) in enumerate(shown.values()):
        color = "C2" if height == 0 else "C0"
        axis.barh(height, value, color=color, height=0.6)
        axis.errorbar(value, height, xerr=[[value - low], [high - value]], color="black", capsize=3)
        text = f"{value:+.1f} % ({low:+.1f} to {high:+.1f})"
        axis.annotate(text, (max(high, 0), height), textcoords="offset points", xytext=(6, 0), va="center", size=9)
    axis.set_yticks(range(len(shown)), shown)
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=1)
    axis.set_xlim(-8, 1.6 * max(high for _, _, high in shown.values()))
    axis.set_xlabel(f"MLM loss past token {SOURCE_LENGTH}, percent above chunks of {SOURCE_LENGTH} (95 % interval)")
    axis.set_title(f"Reading {place[2]:,} tokens without any training: 0 is as good as chunks", loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


def interval(axis: Any, at: float, found: tuple[float, float, float], **style: Any) -> None:
    """A point and its interval, upright."""
    value, low, high = found
    axis.errorbar(at, value, yerr=[[value - low], [high - value]], fmt="o", capsize=3, **style)


def draw_untrained(place: Place, baseline: Result, cells: dict[Cell, Result], file: Path) -> None:
    """Every untrained recipe: those close to chunks on an axis of their own, the others by attention."""
    found = {
        (c.recipe, c.attention): change(r, baseline, PAST)
        for c, r in cells.items()
        if c.train == "none" and c.attention in ATTENTIONS and not chunks(c)
    }
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    windowed = {recipe: value for (recipe, attention), value in found.items() if attention == WINDOWED}
    close = {recipe: {WINDOWED: value} for recipe, value in windowed.items() if value[0] < CLOSE}
    far = {
        recipe: {attention: found[recipe, attention] for attention in ATTENTIONS if (recipe, attention) in found}
        for recipe in dict.fromkeys(recipe for (recipe, _), value in found.items() if value[0] >= CLOSE)
    }
    titles = ("as good as chunks, or close", "with and without a window")
    for axis, rows, title in zip(axes, (close, far), titles, strict=True):
        ordered = sorted(rows, key=lambda recipe: -max(value for value, _, _ in rows[recipe].values()))
        for attention, label in ATTENTIONS.items():
            shift = 0 if rows is close else 0.16 if attention == WINDOWED else -0.16
            points = {height: rows[recipe].get(attention) for height, recipe in enumerate(ordered)}
            points = {height + shift: point for height, point in points.items() if point}
            if points:
                value, low, high = np.array(list(points.values())).T
                spread = [value - low, high - value]
                style = {"fmt": "o", "capsize": 3, "color": COLORS[attention], "label": label}
                axis.errorbar(value, list(points), xerr=spread, **style)
        axis.set_yticks(range(len(ordered)), ordered)
        axis.set_ylim(-0.6, max(1, len(ordered)) - 0.4)
        axis.axvline(0, color="black", linewidth=1)
        axis.grid(axis="x", color="0.9")
        axis.set_title(f"Untrained, {place[2]:,} tokens: {title}", loc="left")
        axis.set_xlabel(f"MLM loss past token {SOURCE_LENGTH}, percent above chunks (95 % interval)")
        _legend(axis)
    axes[0].set_ylabel("how new positions are made")
    _save(figure, file)


def draw_positions(place: Place, baseline: Result, cells: dict[Cell, Result], file: Path) -> None:
    """Loss by position against that of chunks: where the seam shows, and what the first tokens pay."""
    shown = {
        WINDOWED: ("tile-skip-special", "tile", "hierarchical 0.1"),
        FULL: ("tile-skip-special", "hierarchical 0.4", "repeat-last"),
    }
    names = {"first seam": f"{SOURCE_LENGTH - SEAM}-{SOURCE_LENGTH + SEAM - 1}\n(the seam)"}
    buckets = [column for column in baseline["sums"] if column[0].isdigit()]
    columns = [*buckets[:1], "first seam", *buckets[1:]]
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for axis, (attention, recipes) in zip(axes, shown.items(), strict=True):
        lines = {recipe: cells.get(Cell(*place, recipe, attention)) for recipe in recipes}
        if attention == WINDOWED:
            lines["chunks that overlap by half"] = cells.get(Cell(*place, "chunked, half overlapping"))
        for index, (label, result) in enumerate(lines.items()):
            for place_of, column in enumerate(columns if result else ()):
                found = change(result, baseline, column)
                label_once = label if place_of == 0 else None
                interval(axis, place_of + 0.16 * (index - 1.5), found, color=f"C{index}", label=label_once)
        axis.set_xticks(range(len(columns)), [names.get(column, column) for column in columns])
        axis.axhline(0, color="black", linewidth=1)
        axis.grid(axis="y", color="0.9")
        axis.set_title(f"Untrained, {ATTENTIONS[attention]}", loc="left")
        axis.set(xlabel="position in the text", ylabel="MLM loss, percent above chunks (95 % interval)")
        _legend(axis)
    _save(figure, file)


STEPS = {  # label: recipe, attention, what is trained
    "tiled rows, window": ("tile-skip-special", WINDOWED, "all"),
    "tiled rows, full attention": ("tile-skip-special", FULL, "all"),
    "tiled rows, full attention, only positions trained": ("tile-skip-special", FULL, "positions"),
    "hierarchical 0.4, full attention": ("hierarchical 0.4", FULL, "all"),
}


def longest_run(cells: dict[Cell, Result], wanted: tuple[str, str, str]) -> dict[Cell, Result]:
    """Of the runs at several rates and seeds the one that was trained longest, at the lowest rate."""
    runs: dict[Cell, dict[Cell, Result]] = {}
    for cell, result in cells.items():
        if (cell.recipe, cell.attention, cell.train, cell.lr_scheduler_type) == (*wanted, CONSTANT):
            runs.setdefault(dataclasses.replace(cell, steps=0), {})[cell] = result
    length = {run: max(cell.steps for cell in measured) for run, measured in runs.items()}
    best = min(runs, key=lambda run: (-length[run], run.learning_rate, run.seed), default=None)
    return runs[best] if best else {}


def draw_steps(places: dict[Place, tuple[Result, dict[Cell, Result]]], file: Path) -> None:
    """What training does, step by step, a panel for each checkpoint, at the length that most was trained at."""
    trained = {place: sum(cell.train != "none" for cell in cells) for place, (_, cells) in places.items()}
    if not any(trained.values()):
        return
    length = max(trained, key=lambda place: trained[place])[2]
    shown = [place for place, count in trained.items() if count and place[2] == length]
    figure, axes = plt.subplots(
        1, len(shown), figsize=(6.5 * len(shown), 5), layout="constrained", squeeze=False, sharey=True
    )
    for axis, place in zip(axes[0], shown, strict=True):
        baseline, cells = places[place]
        for index, (label, wanted) in enumerate(STEPS.items()):
            points = {cell.steps: result for cell, result in longest_run(cells, wanted).items()}
            untrained = cells.get(Cell(*place, *wanted[:2]))
            if not points:
                continue
            points |= {0: untrained} if untrained else {}
            steps = sorted(points)
            found = [change(points[step], baseline, PAST) for step in steps]
            for step, each in zip(steps, found, strict=True):
                interval(axis, step, each, color=f"C{index}")
            axis.plot(steps, [value for value, _, _ in found], color=f"C{index}", label=label)
        axis.axhline(0, color="black", linewidth=1)
        axis.grid(axis="y", color="0.9")
        axis.set_title(f"{place[0]}, {place[2]:,} tokens", loc="left")
        axis.set_xlabel("steps of 4,096 tokens")
    axes[0, 0].set_ylabel(f"MLM loss past token {SOURCE_LENGTH},\npercent above chunks (95 % interval)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    _save(figure, file)


def draw_alpha(place: Place, baseline: Result, cells: dict[Cell, Result], file: Path) -> None:
    """Hierarchical positions by alpha, untrained: what is kept below the source's end and what is gained past it."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    columns = {"0-511": f"first {SOURCE_LENGTH} tokens", PAST: f"past token {SOURCE_LENGTH}"}
    for axis, (column, title) in zip(axes, columns.items(), strict=True):
        for attention, label in ATTENTIONS.items():
            found = {
                float(c.recipe.split()[1]): change(r, baseline, column)
                for c, r in cells.items()
                if (c.attention, c.train) == (attention, "none")
                and c.recipe.startswith("hierarchical")
                and "," not in c.recipe
            }
            alphas = sorted(found)
            for alpha in alphas:
                interval(axis, alpha, found[alpha], color=COLORS[attention])
            axis.plot(alphas, [found[alpha][0] for alpha in alphas], color=COLORS[attention], label=label)
        axis.axhline(0, color="black", linewidth=1)
        axis.grid(axis="y", color="0.9")
        axis.set_title(f"Untrained, {title}", loc="left")
        axis.set_xlabel("hierarchical_alpha")
    axes[0].set_ylabel("MLM loss, percent above chunks\n(95 % interval)")
    _legend(axes[0])
    _save(figure, file)


FROM_SCRATCH = {  # label: model, recipe, attention
    "learned, then tiled, window": ("learned", "tile-skip-special", WINDOWED),
    "learned, then tiled, full attention": ("learned", "tile-skip-special", FULL),
    "learned, then random rows, full attention": ("learned", "random", FULL),
    "sinusoidal, full attention": ("sinusoidal", "its own type", FULL),
    "hierarchical, full attention": ("hierarchical", "its own type", FULL),
}


def draw_scratch(places: dict[Place, tuple[Result, dict[Cell, Result]]], file: Path) -> None:
    """Models trained from scratch, read further than any row they were trained on."""
    scratch = [place for place in places if place[0].endswith(SCRATCH)]
    if not scratch:
        return
    lengths = sorted({place[2] for place in scratch})
    figure, axis = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for index, (label, (model, recipe, attention)) in enumerate(FROM_SCRATCH.items()):
        for place in scratch:
            baseline, cells = places[place]
            result = cells.get(Cell(*place, recipe, attention))
            if place[0] == f"{model} {SCRATCH}" and result:
                found = change(result, baseline, PAST)
                at = lengths.index(place[2])
                label_once = label if at == 0 else None
                interval(axis, at + 0.12 * (index - 2), found, color=f"C{index}", label=label_once)
    axis.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axis.axhline(0, color="black", linewidth=1)
    axis.grid(axis="y", color="0.9")
    axis.set_title(f"Trained from scratch on rows of up to {SOURCE_LENGTH} bytes, then read further", loc="left")
    axis.set(xlabel="bytes read", ylabel=f"loss past byte {SOURCE_LENGTH}, percent above chunks\n(95 % interval)")
    figure.legend(loc="outside right center")
    _save(figure, file)


def _legend(axis: Any) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)


def _save(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    print(file, file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder to draw them in")
    arguments = parser.parse_args()
    found = places(Study(arguments.study))
    print("\n\n".join(table(place, *cells) for place, cells in found.items()))
    if arguments.pictures:
        main_place = max(found, key=lambda place: len(found[place][1]))
        of_one_place = {
            "overview": draw_overview,
            "untrained": draw_untrained,
            "positions": draw_positions,
            "alpha": draw_alpha,
        }
        for name, draw in of_one_place.items():
            draw(main_place, *found[main_place], arguments.pictures / f"{name}.png")
        for name, draw in {"steps": draw_steps, "scratch": draw_scratch}.items():
            draw(found, arguments.pictures / f"{name}.png")


if __name__ == "__main__":
    main()
