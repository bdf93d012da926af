"""The table of a dry run: what each strategy of a comparison would cost."""

from collections.abc import Mapping

from ...tables import table
from ...training.estimates import Estimate


PARTS = ("training", "evaluations", "checkpoints", "test")
TITLES = (
    "peak memory, GB",
    "tokens a second, training",
    "tokens a second, prediction",
    *(f"{part}, h" for part in PARTS),
    "all runs, h",
)


def estimate_table(estimates: Mapping[str, Estimate], counts: Mapping[str, int]) -> str:
    """A row for each strategy.

    Args:
        counts: how many runs, folds times seeds, each has.
    """
    rows, whole = {}, 0.0
    for name, each in estimates.items():
        hours = [each.parts[part].seconds / 3600 for part in PARTS]
        all_runs = counts[name] * each.seconds / 3600
        whole += all_runs
        rows[name] = [
            f"{each.peak_memory / 1e9:.2f} ({each.memory_of})",
            f"{each.training_rate:,.0f}" if each.training_rate else "",
            f"{each.prediction_rate:,.0f}",
            *(f"{part:.4f}" for part in hours),
            f"{all_runs:.4f} ({counts[name]} run{'s' * (counts[name] > 1)})",
        ]
    return (
        "dry run, nothing is written: some steps and predictions of each strategy, and its longest texts\n\n"
        f"{table(TITLES, rows)}\n\n"
        f"expected in all: {whole:.4f} h after the start"
    )
