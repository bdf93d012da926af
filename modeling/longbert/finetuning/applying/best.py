"""The best model of a comparison, among those that `predict` reads as the comparison did."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...arguments import written_config
from ...configuration_longbert import LongBertConfig
from ...folders import read_json
from ...source import find_source
from ..results import metrics
from ..strategies import STRATEGIES


RESULTS = "results.json"
MODELS = ("config.json", "adapter_config.json")  # either makes a folder a model's, or what is taken for one
CLASSIFIER = "LongBertForSequenceClassification"
READ_IN_PIECES = ("LongBertForTokenClassification", "LongBertForQuestionAnswering")
METRICS: list[type[metrics.Figures]] = [
    each
    for each in vars(metrics).values()
    if isinstance(each, type) and issubclass(each, metrics.Figures) and each is not metrics.Figures
]


@dataclass(frozen=True)
class Chosen:
    """A model, and how it is read.

    Args:
        at_once: tokens that it reads at once; None for its reach.
        why: it was chosen, in lines.
    """

    path: str
    at_once: int | None = None
    why: tuple[str, ...] = ()


def find_model(named: str) -> Chosen:
    """The model that a user names: itself, or the best of a comparison whose `output_dir` it is.

    Raises:
        FileNotFoundError: a folder that is neither.
        ValueError: a comparison without a model that `predict` reads as the comparison did.
    """
    folder = Path(find_source(named))
    if not folder.is_dir() or any((folder / name).exists() for name in MODELS):
        return Chosen(str(folder))
    if not (folder / RESULTS).exists():
        raise FileNotFoundError(
            f"{named} holds neither config.json, as the folder of a model does, nor {RESULTS}, as the output_dir of a "
            "finished `longbert finetune` does"
        )
    return best_of(folder)


def best_of(run: Path) -> Chosen:
    """The model with the best figure: of the rows by the figure that they compete for, of a row's models by the
    validation's."""
    results = _rows(run / RESULTS)
    unfit = {name: reason for name in results if (reason := _unfit(run / name, name))}
    metric = _metric(run, results)
    primary = metric.primary
    scored = {name: row[primary] for name, row in results.items() if name not in unfit and row[primary] is not None}
    left_out = tuple(f"{run}: {name} is not offered: {reason}" for name, reason in unfit.items())
    if not scored:
        raise ValueError(f"{run} has no model that predict reads as the comparison did. {'; '.join(left_out)}")
    best = max(scored, key=lambda name: scored[name])  # of every metric's primary figure more is better
    model, among = _best_model(run, best, metric)
    others = f"the best of {', '.join(scored)}" if len(scored) > 1 else "the only way of reading that is offered"
    said = f"{model} is taken: {best} has {primary} {scored[best]:.3f}, {others}{among}"
    return Chosen(str(model), _at_once(run, model, best), (*left_out, said))


def _rows(file: Path) -> dict[str, dict[str, Any]]:
    rows = read_json(file)
    if not all(isinstance(row, dict) and row for row in rows.values()):
        raise ValueError(f"{file} is not what `longbert finetune` writes: a row of figures for each strategy")
    return rows


def _metric(run: Path, rows: dict[str, dict[str, Any]]) -> type[metrics.Figures]:
    """The metric that has the figures of the rows, of those that have no others the one with most."""
    named = {*next(iter(rows.values()), {})}
    known = [each for each in METRICS if {*each.figures} <= named]
    if not known:
        raise ValueError(f"{run / RESULTS} has none of the figures by which `longbert finetune` compares")
    return max(known, key=lambda metric: len(metric.figures))


def _models(row: Path) -> list[Path]:
    """The models of a row: one for each seed, of every fold."""
    return sorted(file.parent for pattern in ("seed-*", "*/seed-*") for file in row.glob(f"{pattern}/config.json"))


def _unfit(row: Path, name: str) -> str | None:
    """Why `predict` does not read the models of a row as the comparison did; None where it does."""
    models = _models(row)
    if not models:
        return f"there is no model in {row}"
    head = (read_json(models[0] / "config.json").get("architectures") or ["unnamed model"])[0]
    strategy = STRATEGIES.get(name)
    if head not in (CLASSIFIER, *READ_IN_PIECES) or strategy is None:
        pools = strategy is not None and strategy.pooled
        return f"its model, a {head}, {'pools pieces, and ' if pools else ''}is none that predict loads"
    if strategy.skips_middle:
        return "it reads the beginning and the end of a text, predict reads on from the beginning"
    if strategy.first_alone and head in READ_IN_PIECES:
        return "it reads the first piece of a text alone, predict reads all pieces"
    return None


def _best_model(run: Path, name: str, metric: type[metrics.Figures]) -> tuple[Path, str]:
    """A row's model with the best validation figure, the first where there is none; and that in words."""
    models = _models(run / name)
    if len(models) == 1:
        return models[0], ""
    figures = {model: figure for model in models if (figure := _validation_figure(model)) is not None}
    if not figures:
        return models[0], f"; the first of its {len(models)} models, none of which has a validation figure"
    asked = str(_settings(run).get("metric_for_best_model") or "").removeprefix("eval_")
    best = (min if asked in metric.lower_is_better else max)(figures, key=lambda model: figures[model])
    return best, f"; of its {len(models)} models the best in validation ({figures[best]:.3f})"


def _validation_figure(model: Path) -> float | None:
    """The best figure that a model had while it was trained, as its last checkpoint says."""
    states = [read_json(file) for file in model.glob("checkpoint-*/trainer_state.json")]
    figure = max(states, key=lambda state: state["global_step"])["best_metric"] if states else None
    return figure if figure is not None and math.isfinite(figure) else None


def _settings(run: Path) -> dict[str, Any]:
    """What the comparison was told."""
    file = run / "config.yaml"
    return written_config(file) if file.exists() else {}


def _at_once(run: Path, model: Path, name: str) -> int:
    """Tokens that a row's models have read at once."""
    config = LongBertConfig.from_pretrained(model)
    if not STRATEGIES[name].extended:
        return config.pretrained_positions
    reach = config.max_position_embeddings
    return min(_settings(run).get("max_length") or reach, reach)
