"""Pictures of position tables and of proofs. Needs matplotlib (extra `train`)."""

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch


matplotlib.use("Agg")
import matplotlib.pyplot as plt


if TYPE_CHECKING:
    from .evaluation import Proof


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


def _sampled(length: int, at_most: int = 1024) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, min(length, at_most)).astype(int))


def _values_by_dimension(axes: plt.Axes, values: np.ndarray, seam: int) -> None:
    length = len(values)
    for position in sorted({0, 1, seam // 2, seam - 1, min(seam, length - 1), length - 1}):
        axes.plot(values[position], label=f"position {position}", linewidth=0.8, alpha=0.8)
    axes.set(xlabel="dimension", ylabel="value", title="A few positions across dimensions")
    axes.legend()


def _values_by_position(axes: plt.Axes, values: np.ndarray, seam: int) -> None:
    shown = _sampled(len(values), 4096)
    spread = np.argsort(-values.std(axis=0))
    for dimension in spread[[0, len(spread) // 4, len(spread) // 2, -1]]:
        axes.plot(shown, values[shown, dimension], label=f"dimension {dimension}", linewidth=0.8)
    _mark_seam(axes, seam, len(values))
    axes.set(xlabel="position", ylabel="value", title="A few dimensions across positions (most to least varying)")
    axes.legend(loc="upper right")


def _heat_map(axes: plt.Axes, values: np.ndarray, seam: int) -> None:
    shown = _sampled(len(values))
    limit = float(np.quantile(np.abs(values[shown]), 0.99))
    image = axes.imshow(
        values[shown].T,
        aspect="auto",
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
        extent=(0, len(values), values.shape[1], 0),
    )
    _mark_seam(axes, seam, len(values))
    axes.figure.colorbar(image, ax=axes, label="value (clipped at the 99th percentile)")
    axes.set(xlabel="position", ylabel="dimension", title="The position table")


def _cosine_similarity(axes: plt.Axes, values: np.ndarray, seam: int) -> None:
    shown = _sampled(len(values))
    rows = values[shown] / np.maximum(np.linalg.norm(values[shown], axis=1, keepdims=True), 1e-12)
    extent = (0, len(values), len(values), 0)
    image = axes.imshow(rows @ rows.T, cmap="viridis", vmin=-1, vmax=1, interpolation="nearest", extent=extent)
    _mark_seam(axes, seam, len(values))
    if seam < len(values):
        axes.axhline(seam, color="red", linewidth=0.8, linestyle="--")
    axes.figure.colorbar(image, ax=axes, label="cosine similarity")
    axes.set(xlabel="position", ylabel="position", title="Similarity of all positions to all")


def _mark_seam(axes: plt.Axes, seam: int, length: int) -> None:
    if seam < length:
        axes.axvline(seam, color="red", linewidth=0.8, linestyle="--", label=f"source ends at {seam}")


def plot_proof(proof: "Proof", file: str | Path, bin_size: int = 64) -> None:
    """Draw the loss by position of every row of a proof, averaged over `bin_size` positions, seams marked."""
    figure, axes = plt.subplots(figsize=(11, 6), layout="constrained")
    bins = np.arange(0, proof.max_seq_length + bin_size, bin_size)
    for name, scores in proof.rows.items():
        count, _ = np.histogram(scores.position, bins)
        total, _ = np.histogram(scores.position, bins, weights=scores.loss)
        filled = count > 0
        axes.plot(bins[:-1][filled] + bin_size / 2, total[filled] / count[filled], label=name, linewidth=1.4)
    for seam in range(proof.window, proof.max_seq_length, proof.window):
        axes.axvline(seam, color="grey", linewidth=0.6, linestyle="--")
    axes.set(
        xlabel="position in the text (tokens)",
        ylabel=f"MLM loss (nats), mean over {bin_size} positions",
        title=f"{proof.documents} held-out texts, the same masks in every line; dashes: multiples of {proof.window}",
    )
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)
