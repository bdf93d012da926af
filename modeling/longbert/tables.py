"""How figures are written: Markdown tables, and json that every reader takes."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def table(titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table whose rows begin with their names."""
    lines = [f"| | {' | '.join(map(_cell, titles))} |", f"|---|{'---|' * len(titles)}"]
    return "\n".join([*lines, *(f"| {_cell(name)} | {' | '.join(cells)} |" for name, cells in rows.items())])


def _cell(text: str) -> str:
    """A name in one cell, whatever a user has called a label."""
    return " ".join(str(text).replace("|", "\\|").split())


def with_interval(value: float, interval: tuple[float, float], sign: str = "", digits: int = 3, unit: str = "") -> str:
    """A figure with its interval in brackets; the figure alone where there is none."""
    low, high = (f"{each:{sign}.{digits}f}" for each in interval)
    shown = f"{value:{sign}.{digits}f}{unit}"
    return f"{shown} ({low} to {high})" if all(map(math.isfinite, interval)) else shown


def percent(value: float, interval: tuple[float, float], unit: str = "") -> str:
    """A share of one as a signed percentage, or as points, with its interval."""
    return with_interval(100 * value, (100 * interval[0], 100 * interval[1]), "+", 1, unit)


def strict_json(value: Any, indent: int | None = 2) -> str:
    """JSON that has null where a number is not finite: NaN is no JSON, and many readers stop at it.

    Args:
        indent: None for one line.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
