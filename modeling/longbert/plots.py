"""Pictures of position tables and of proofs. Needs matplotlib (extra `train`)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch

from .intervals import measure, plain_interval, sums_by_unit


matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter


def plot_positions(table: torch.Tensor, pretrained_positions: int, folder: str | Path) -> list[Path]:
    """Draw a position table `[length, hidden_size]` four ways, the seam at `pretrained_positions` marked.

    Returns:
        The files written: values by dimension, values by position, heat map, cosine similarity.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = table.detach().float().cpu().numpy()
    drawings = {
        "values_by_dimension": _values_by_dimension,
        "values_by_position": _values_by_position,
        "heat_map": _heat_map,
        "cosine_similarity": _cosine_similarity,
    }
    files = []
    for name, draw in drawings.items():
        figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
        draw(axes, values, pretrained_positions)
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=120)
        plt.close(figure)
    return files


SEAMS_SHOWN = 4


def _values_by_dimension(axes: plt.Axes, values: np.ndarray, seam: int) -> None:
    length = len(values)
    for position in sorted({0, 1, seam // 2, seam - 1, min(seam, length - 1), length - 1}):
        axes.plot(values[position], label=f"position {position}", linewidth=0.8, alpha=0.8)
    # [CLS]'s row has a few huge values, beside which a linear axis shows nothing else
    axes.set_yscale("symlog", linthresh=float(np.quantile(np.abs(values), 0.99)))
    axes.set(xlabel="dimension", ylabel="value (logarithmic past the 99th percentile)")
    axes.set_title("A few positions across dimensions")
    axes.legend()


def _values_by_position(axes: plt.Axes, values: np.ndarray, seam: int) -> None:
    shown = values[: SEAMS_SHOWN * seam]
    spread = np.argsort(-shown[1:].std(axis=0))
    for dimension in spread[[0, len(spread) // 4, len(spread) // 2, -1]]:
        axes.plot(np.arange(1, len(shown)), shown[1:, dimension], label=f"dimension {dimension}", linewidth=0.8)
    _mark_seam(axes, seam, len(values))
    axes.set(xlabel="position (0, [CLS], left out)", ylabel="value")
    axes.set_title(f"A few dimensions, most to least varying, across {_shown(values, shown)}")
    axes.legend(loc="upper right")


def _heat_map(axes: plt.Axes, values: np.ndarray, seam: int) -> None:
    shown = values[: SEAMS_SHOWN * seam]
    limit = float(np.quantile(np.abs(shown), 0.99))
    extent = (0, len(shown), shown.shape[1], 0)
    image = axes.imshow(
        shown.T, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", extent=extent
    )
    _mark_seam(axes, seam, len(values))
    axes.figure.colorbar(image, ax=axes, label="value (clipped at the 99th percentile)")
    axes.set(xlabel="position", ylabel="dimension", title=f"The position table, {_shown(values, shown)}")


def _shown(values: np.ndarray, shown: np.ndarray) -> str:
    return (
        f"all {len(values)} positions"
        if len(shown) == len(values)
        else f"positions 0-{len(shown) - 1} of {len(values)}"
    )


def _cosine_similarity(axes: plt.Axes, values: np.ndarray, seam: int, at_most: int = 1024) -> None:
    """Long tables are averaged over blocks: the mean of unit vectors gives the mean of cosines, and no moire."""
    directions = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    block = -(-len(values) // at_most)
    rows = np.stack([directions[start : start + block].mean(axis=0) for start in range(0, len(values), block)])
    similarity = rows @ rows.T
    low, high = np.quantile(similarity, [0.01, 0.995])
    extent = (0, len(values), len(values), 0)
    image = axes.imshow(similarity, cmap="viridis", vmin=low, vmax=high, interpolation="nearest", extent=extent)
    _mark_seam(axes, seam, len(values))
    if seam < len(values):
        axes.axhline(seam, color="red", linewidth=0.8, linestyle="--")
    label = "cosine similarity" + (f", mean over blocks of {block} positions" if block > 1 else "")
    axes.figure.colorbar(image, ax=axes, label=label)
    axes.set(xlabel="position", ylabel="position", title="Similarity of all positions to all")


def _mark_seam(axes: plt.Axes, seam: int, length: int) -> None:
    if seam < length:
        axes.axvline(seam, color="red", linewidth=0.8, linestyle="--", label=f"source ends at {seam}")


def plot_losses(
    lines: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    source_length: int,
    max_seq_length: int,
    title: str,
    file: str | Path,
    points: int = 8,
) -> None:
    """Draw by position how far each line's loss is above or below the first line's, with 95 % intervals over texts.

    Texts differ far more than ways to read them, so the losses themselves would show nothing.

    Args:
        lines: for every name the text, the position and the loss of its tokens, `[tokens]` each: the same tokens in
            every line.
        points: at most so many points a line; each stands for a multiple of the source length.
    """
    baseline, *others = lines
    text, position, base = lines[baseline]
    span = source_length * max(1, -(-max_seq_length // (source_length * points)))
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for index, name in enumerate(others):
        aside = span * 0.12 * (index - (len(others) - 1) / 2)
        drawn = []
        for start in np.unique(position // span) * span:  # in few short texts it may happen that nothing is masked
            inside = (position >= start) & (position < start + span)
            sums = sums_by_unit(np.stack([lines[name][2], base], axis=-1)[inside], text[inside].tolist())
            measured = measure(sums, lambda each: 100 * (each[..., 0] / each[..., 1] - 1))
            value, (low, high) = measured.value, plain_interval(measured)
            drawn.append((start + span / 2 + aside, value, value - low, high - value))
        at, change, below, above = np.array(drawn).reshape(-1, 4).T
        axes.errorbar(at, change, yerr=[below, above], fmt="o", capsize=3, color=f"C{index}", label=name)
    for seam in range(span, max_seq_length, span):
        axes.axvline(seam, color="0.85", linewidth=1)
    axes.axhline(0, color="black", linewidth=1)
    axes.set(
        xlim=(0, max_seq_length),
        xlabel=f"position in the text, {span} tokens to a point",
        ylabel=f"MLM loss, percent above or below\n{baseline} (95 % interval)",
        title=title,
    )
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_by_distance(
    lines: dict[str, list[tuple[float, tuple[float, float]]]], distances: Sequence[str], title: str, file: str | Path
) -> None:
    """Draw how often masked tokens are right, by how far away there is something to copy, with 95 % intervals.

    Args:
        lines: for every name the accuracy and its interval at each distance.
    """
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for index, (name, points) in enumerate(lines.items()):
        at = np.arange(len(points)) + 0.1 * (index - (len(lines) - 1) / 2)
        values = np.array([value for value, _ in points])
        low, high = np.array([interval for _, interval in points]).T
        axes.errorbar(at, values, yerr=[values - low, high - values], fmt="o-", capsize=3, label=name)
    axes.set_xticks(range(len(distances)), distances)
    axes.set(xlabel="tokens to the nearest unmasked twin", ylabel="accuracy (95 % interval)")
    axes.set(title=title, ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_by_position(
    lines: dict[str, np.ndarray], source_length: int, reach: int, title: str, file: str | Path
) -> None:
    """Draw figures of a task, in [0, 1], by the position of the token that decides; multiples of the source length are
    marked.

    Args:
        lines: for every name positions and figures, `[2, points]`.
    """
    figure, axes = plt.subplots(figsize=(11, 5), layout="constrained")
    for name, (position, values) in lines.items():
        axes.plot(position, values, marker="o", markersize=3, linewidth=1.4, label=name)
    for seam in range(source_length, reach, source_length):
        axes.axvline(seam, color="grey", linewidth=0.6, linestyle="--")
    axes.set(
        xlabel=f"position in the text (tokens); dashes: multiples of {source_length}",
        ylabel="figure of the task, from 0 to 1",
        ylim=(-0.02, 1.02),
        title=title,
    )
    figure.legend(loc="outside lower center", ncols=4)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_lengths(lengths: Sequence[int], source_length: int, reach: int, file: str | Path) -> None:
    """Draw how many texts have how many tokens, in bins that widen by a constant factor, with what the source and what
    the run reads marked, and the share of texts past each."""
    values = np.asarray(lengths)
    steps = np.arange(np.floor(4 * np.log2(values.min())) - 1, np.ceil(4 * np.log2(values.max())) + 1)
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    # half a token further, so that a text as long as a mark stands on its left
    axes.hist(values, bins=2 ** (steps / 4) + 0.5, color="tab:blue", edgecolor="white")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    marks = {source_length: ("the source reads", "tab:red")}
    if reach > source_length:
        marks[reach] = ("this run reads", "tab:green")
    for length, (who, color) in marks.items():
        past = int((values > length).sum())
        label = f"{who} {length:,} tokens: {past:,} of {len(values):,} texts ({past / len(values):.1%}) are longer"
        axes.axvline(length, color=color, linestyle="--", linewidth=1.4, label=label)
    axes.set(xlabel="length (tokens, logarithmic)", ylabel="texts", title=f"How long the {len(values):,} texts are")
    figure.legend(loc="outside lower center")
    figure.savefig(file, dpi=120)
    plt.close(figure)
