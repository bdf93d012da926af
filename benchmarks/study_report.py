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
from extension_study import BIN, CONSTANT, Cell, Study
from study_recipes import WINDOW


Result = dict[str, Any]
Place = tuple[str, str, int]
PAST = f"≥ {WINDOW}"
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
    "tiled rows, window of 512: the default": ("tile-skip-special", "window + [CLS]"),
    "hierarchical, alpha 0.1, window of 512": ("hierarchical 0.1", "window + [CLS]"),
    "tiled rows, full attention": ("tile-skip-special", "full"),
    "random rows, full attention": ("random", "full"),
    "random rows, window of 512": ("random", "window + [CLS]"),
    "last row repeated, full attention": ("repeat-last", "full"),
    "hierarchical, alpha 0.4, full attention": ("hierarchical 0.4", "full"),
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
    axis.set_xlabel(f"MLM loss past token {WINDOW}, percent above reading in chunks of {WINDOW} (95 % interval)")
    axis.set_title(f"Reading {place[2]:,} tokens without any training: 0 is as good as chunks", loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


def draw_untrained(place: Place, baseline: Result, cells: dict[Cell, Result], file: Path) -> None:
    """Every untrained recipe, a panel for each attention."""
    attentions = ("window + [CLS]", "full")
    figure, axes = plt.subplots(1, 2, figsize=(14, 6), layout="constrained")
    for axis, attention in zip(axes, attentions, strict=True):
        chosen = {
            c.recipe: change(r, baseline, PAST)
            for c, r in cells.items()
            if (c.attention, c.train) == (attention, "none") and not chunks(c)
        }
        ordered = sorted(chosen, key=lambda recipe: -chosen[recipe][0])
        for height, recipe in enumerate(ordered):
            value, low, high = chosen[recipe]
            axis.errorbar(value, height, xerr=[[value - low], [high - value]], fmt="o", color="C0")
            axis.annotate(
                f"{value:+.1f} %", (high, height), textcoords="offset points", xytext=(8, 0), va="center", size=8
            )
        axis.set_yticks(range(len(ordered)), ordered, size=8)
        axis.set_xscale("symlog", linthresh=3)
        axis.set(xlim=(-3, 900), ylim=(-0.8, max(1, len(ordered)) - 0.2))
        ticks = (-2, -1, 0, 1, 2, 10, 30, 100, 300)
        axis.set_xticks(ticks, map(str, ticks))
        axis.minorticks_off()
        axis.axvline(0, color="gray", linewidth=1)
        axis.set(
            title=f"attention: {attention}",
            xlabel=f"loss past token {WINDOW} against chunks, percent, untrained (95 % interval)",
            ylabel="how new positions are made" if attention == attentions[0] else None,
        )
    _save(figure, file)


def draw_positions(place: Place, baseline: Result, cells: dict[Cell, Result], file: Path) -> None:
    """Loss by position against chunking's: where the seams and the aliasing show."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    shown = {
        "window + [CLS]": ("tile-skip-special", "tile", "hierarchical 0.2"),
        "full": ("tile-skip-special", "hierarchical 0.4", "repeat-last"),
    }
    for axis, (attention, recipes) in zip(axes, shown.items(), strict=True):
        for recipe in recipes:
            result = cells.get(Cell(*place, recipe, attention))
            if result:
                ratio = [
                    ours[0] / theirs[0] for ours, theirs in zip(result["profile"], baseline["profile"], strict=True)
                ]
                axis.plot(BIN * np.arange(len(ratio)) + BIN / 2, 100 * (np.array(ratio) - 1), label=recipe)
        for seam in range(WINDOW, place[2], WINDOW):
            axis.axvline(seam, color="lightgray", linestyle="--", linewidth=1)
        axis.axhline(0, color="gray", linewidth=1)
        axis.set(
            title=f"{attention}, untrained",
            xlabel=f"position, {BIN} to a point",
            ylabel="loss against chunking, percent",
        )
        _legend(axis)
    _save(figure, file)


def draw_steps(places: dict[Place, tuple[Result, dict[Cell, Result]]], file: Path) -> None:
    """What training does, step by step, a panel for each checkpoint and kind of text."""
    trained_at = [place for place, (_, cells) in places.items() if any(cell.train != "none" for cell in cells)]
    if not trained_at:
        return
    figure, axes = plt.subplots(len(trained_at), 1, figsize=(13, 5 * len(trained_at)), layout="constrained")
    for axis, place in zip(np.atleast_1d(axes), trained_at, strict=True):
        axis.set_prop_cycle(color=plt.get_cmap("tab20").colors)
        baseline, cells = places[place]
        runs: dict[Cell, dict[int, Result]] = {}
        for cell, result in cells.items():
            if cell.train != "none" and not chunks(cell):
                runs.setdefault(dataclasses.replace(cell, steps=0), {})[cell.steps] = result
        for run, points in runs.items():
            untrained = cells.get(Cell(*place, run.recipe, run.attention))
            points |= {0: untrained} if untrained else {}
            heights = [change(points[step], baseline, PAST, 1)[0] for step in sorted(points)]
            label = f"{run.recipe}, {run.attention}: {run.train} at {rate(run)}, seed {run.seed}"
            axis.plot(sorted(points), heights, ":" if run.train == "positions" else "-", marker="o", label=label)
        axis.axhline(0, color="gray", linewidth=1)
        axis.set_xscale("symlog", linthresh=25)
        axis.set(
            xlim=(-2, None),
            title=f"{place[0]}, {place[1]}, {place[2]:,} tokens",
            xlabel="steps of 4,096 tokens",
            ylabel=f"loss past token {WINDOW} against chunks, percent",
        )
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    _save(figure, file)


def draw_alpha(place: Place, baseline: Result, cells: dict[Cell, Result], file: Path) -> None:
    """Hierarchical positions by alpha, untrained: what is kept below the source's end and what is gained past it."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for attention, style in (("full", "-"), ("window + [CLS]", "--")):
        for column in ("0-511", PAST):
            chosen = {
                float(c.recipe.split()[1]): change(r, baseline, column, 1)[0]
                for c, r in cells.items()
                if c.attention == attention
                and c.train == "none"
                and c.recipe.startswith("hierarchical")
                and "," not in c.recipe
            }
            axis.plot(
                sorted(chosen),
                [chosen[alpha] for alpha in sorted(chosen)],
                style,
                marker="o",
                label=f"{attention}, {column}",
            )
    axis.set(xlabel="hierarchical_alpha", ylabel="loss against chunking, percent")
    _legend(axis)
    _save(figure, file)


def draw_scratch(places: dict[Place, tuple[Result, dict[Cell, Result]]], file: Path) -> None:
    """Models trained from scratch, read further than any row they were trained on, a panel for each."""
    models = {place[0]: place for place in sorted(places, key=lambda place: place[2]) if place[0].endswith(SCRATCH)}
    if not models:
        return
    figure, axes = plt.subplots(
        1, len(models), figsize=(5 * len(models), 4), layout="constrained", squeeze=False, sharey=True
    )
    for axis, place in zip(axes[0], models.values(), strict=True):
        baseline, cells = places[place]
        whole = {f"{cell.recipe}, {cell.attention}": cells[cell] for cell in cells if not chunks(cell)}
        lines = {"in chunks": baseline, **whole}
        for label, result in lines.items():
            heights = [summed / count for summed, count, _ in result["profile"]]
            axis.plot(BIN * np.arange(len(heights)) + BIN / 2, heights, label=label)
        axis.axvline(WINDOW, color="gray", linestyle="--", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set(title=place[0], xlabel=f"position, {BIN} to a point", ylabel="loss, nats")
        _legend(axis)
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
