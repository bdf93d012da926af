"""How often the 95 % intervals of fine-tuning's tables and of the proof hold what they are of: drawn again and again.

Test sets are drawn of which the right figure is known, predicted by models of several seeds, and measured as
`longbert finetune` and `train.py` measure them. Prints the tables of docs/finetuning.md.

python benchmarks/coverage.py [--draws 4000]
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from longbert.finetuning.results.metrics import SingleLabelMetric
from longbert.intervals import Interval, difference_interval
from longbert.scoring import Scores
from longbert.tables import table


CLASSES = np.array([0.5, 0.3, 0.2])  # how frequent they are
SEEDS, EXAMPLES, DOCUMENTS = (1, 3, 5, 10), (30, 100, 1000), (4, 8, 16, 64)
ACCURACIES = ((0.85, 0.8), (0.95, 0.9))
FOLDS = 5


@dataclass(frozen=True)
class World:
    """Where errors come from: a prediction is right where a sum of normal variables is above a threshold.

    Args:
        shared: share of the variance that all predictions of an example have in common, whoever predicts it.
        own: share that all seeds of a strategy have in common.
        seeds: standard deviation of the seeds' thresholds, by which all of a seed's predictions are better or worse.
        folds: the same of a fold's model.
    """

    shared: float = 0.0
    own: float = 0.0
    seeds: float = 0.0
    folds: float = 0.0


WORLDS = {
    "examples differ, all seeds find the same ones hard": World(shared=0.6, own=0.2),
    "seeds differ, examples do not": World(seeds=0.2),
    "both, and folds": World(shared=0.3, own=0.2, seeds=0.15, folds=0.1),
}


@dataclass(frozen=True)
class Drawn:
    """A test set.

    Args:
        truth: `[examples]`.
        found: for each of two strategies `[seeds, examples]`.
        accuracy: of each, of these models over all examples there could be.
        of_any: of each, of all models there could be.
    """

    truth: np.ndarray
    found: tuple[np.ndarray, np.ndarray]
    accuracy: tuple[float, float]
    of_any: tuple[float, float]


def draw_test(
    world: World, accuracies: tuple[float, float], examples: int, seeds: int, draw: np.random.Generator
) -> Drawn:
    """A test set that two strategies of given accuracies predict."""
    truth = draw.choice(len(CLASSES), examples, p=CLASSES)
    shared = draw.standard_normal(examples)
    fold = np.arange(examples) % FOLDS
    found, accuracy = [], []
    spread = math.sqrt(1 + world.seeds**2 + world.folds**2)
    for wanted in accuracies:
        models = NormalDist().inv_cdf(wanted) * spread + world.seeds * draw.standard_normal((seeds, 1))
        models = models + world.folds * draw.standard_normal((seeds, FOLDS))
        alone = math.sqrt(1 - world.shared - world.own) * draw.standard_normal((seeds, examples))
        common = math.sqrt(world.shared) * shared + math.sqrt(world.own) * draw.standard_normal(examples)
        right = common + alone + models[:, fold] > 0
        other = (truth + draw.integers(1, len(CLASSES), (seeds, examples))) % len(CLASSES)
        found.append(np.where(right, truth, other))
        accuracy.append(float(np.mean([NormalDist().cdf(model) for model in models.ravel()])))
    return Drawn(truth, (found[0], found[1]), (accuracy[0], accuracy[1]), accuracies)


def macro_f1(accuracy: float) -> float:
    """Of all examples there could be, where an error is any of the other classes."""
    wrongly = (1 - CLASSES) * (1 - accuracy) / (len(CLASSES) - 1)
    return float(np.mean(2 * CLASSES * accuracy / (CLASSES + CLASSES * accuracy + wrongly)))


def holds(interval: Interval, value: float) -> bool:
    """Whether an interval holds a value."""
    return interval[0] - 1e-12 <= value <= interval[1] + 1e-12


@dataclass(frozen=True)
class Cell:
    """What is drawn again and again: `accuracies` are of two strategies."""

    world: str
    accuracies: tuple[float, float]
    examples: int
    seeds: int


@dataclass(frozen=True)
class Coverage:
    """How often an interval was right: of one strategy, of the difference of two, and of the one for any seeds."""

    own: float
    difference: float
    any_seeds: float


def coverage(cell: Cell, draws: int) -> dict[str, Coverage]:
    """Of accuracy and of macro F1."""
    metric, draw = SingleLabelMetric(), np.random.default_rng((cell.examples, cell.seeds))
    units = [*range(cell.examples)] * cell.seeds
    figures: dict[str, Callable[[float], float]] = {"accuracy": float, "macro_f1": macro_f1}
    held = {figure: np.zeros(3) for figure in figures}
    for _ in range(draws):
        drawn = draw_test(WORLDS[cell.world], cell.accuracies, cell.examples, cell.seeds, draw)
        truth = [*drawn.truth.tolist()] * cell.seeds
        ours, theirs = (metric.measured(found.ravel().tolist(), truth, units) for found in drawn.found)
        for figure, of in figures.items():
            first, second = map(of, drawn.accuracy)
            interval = metric.interval(ours[figure])
            difference = difference_interval(ours[figure], theirs[figure], metric.interval)
            any_seeds = holds(interval, of(drawn.of_any[0]))
            held[figure] += holds(interval, first), holds(difference, first - second), any_seeds
    return {figure: Coverage(*(counts / draws).tolist()) for figure, counts in held.items()}


def draw_texts(documents: int, draw: np.random.Generator) -> tuple[Scores, Scores]:
    """Two readings of texts that differ in length and in how hard they are; the second has .9 times the loss."""
    tokens = draw.integers(20, 400, documents)
    text = np.repeat(np.arange(documents), tokens)
    hard = draw.gamma(25, 1 / 25, (2, documents))[:, text]
    losses = draw.gamma(1.0, 3.0, (2, len(text)))
    nothing = np.zeros_like(text)
    first = Scores(text, nothing, hard[0] * losses[0], nothing)
    # half of the second's loss is the first's, token by token; the other half is its own
    second = Scores(text, nothing, 0.9 * (0.5 * first.loss + 0.5 * hard[0] * hard[1] * losses[1]), nothing)
    return first, second


def coverage_of_the_proof(documents: int, draws: int) -> tuple[float, float]:
    """How often the intervals of a loss, 3 nats, and of a change, a tenth less, are right."""
    draw = np.random.default_rng(documents)
    counted = np.zeros(2)
    for _ in range(draws):
        first, second = draw_texts(documents, draw)
        interval, change = first.summary()["loss_interval"], second.change_from(first)["change_interval"]
        counted += holds(interval, 3.0), holds(change, -0.1)
    loss, change = counted / draws
    return loss, change


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000, help="test sets of a cell; half as many of the largest")
    draws = parser.parse_args().draws
    found = {}
    for world in WORLDS:
        for accuracies in ACCURACIES:
            for examples in EXAMPLES:
                for seeds in SEEDS:
                    cell = Cell(world, accuracies, examples, seeds)
                    found[cell] = coverage(cell, draws // (1 + (examples == max(EXAMPLES))))
                    print(cell, found[cell], file=sys.stderr, flush=True)
    titles = [f"{seeds} seed{'s' * (seeds > 1)}" for seeds in SEEDS]
    for figure in ("accuracy", "macro_f1"):
        rows: dict[str, list[str]] = {}
        for cell, of in found.items():
            first, second = cell.accuracies
            name = f"{cell.world}; {first} and {second}; {cell.examples:,} examples"
            told = of[figure]
            rows.setdefault(name, []).append(f"{told.own:.3f} / {told.difference:.3f} / {told.any_seeds:.3f}")
        print(f"\n{figure}, its own interval / the difference of two strategies / the first for any seeds:\n")
        print(table(titles, rows))
    print("\nthe proof's loss, and its change:\n")
    pairs = [coverage_of_the_proof(documents, draws) for documents in DOCUMENTS]
    rows = {name: [f"{pair[place]:.3f}" for pair in pairs] for place, name in enumerate(("loss", "change"))}
    print(table([f"{documents} texts" for documents in DOCUMENTS], rows))


if __name__ == "__main__":
    main()
