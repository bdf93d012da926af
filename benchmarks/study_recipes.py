"""What the study compares: ways to extend a table, and kinds of attention.

Importing it adds the study's own ways to fill a table to the package's `POSITION_INITS`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from longbert import POSITION_INITS, PositionInit, register_position_init


WINDOW = 512
ATTENTION: dict[str, dict[str, Any]] = {
    "full": {"attention_window": None},
    "window": {"attention_window": WINDOW, "global_tokens": 0},
    "window + [CLS]": {"attention_window": WINDOW},
    "window 384 + [CLS]": {"attention_window": 384},
    "window 640 + [CLS]": {"attention_window": 640},
    "window + 2 tokens": {"attention_window": WINDOW, "global_tokens": 2},
    "window + [CLS], first layer full": {"attention_window": WINDOW, "full_attention_layers": [0]},
}
LOG_N = "full, log-n"  # Su (https://kexue.fm/archives/8823): attention logits times log(n) / log(512)
LSG = "LSG's own"
LSG_ATTENTION = ("LSG, blocks of 128, sparse by norm", "LSG, blocks of 256, no sparse tokens")


def _tile_from(first: int, fade: int = 0) -> Callable[[torch.Tensor, int, Any], torch.Tensor]:
    """Tile rows `first` to n-2; over the first `fade` places of a block the old block fades into the new one.

    The first rows of a BERT are unlike all others and few texts taught it its last ones; the fade is how a sampler
    loops a sound, and costs `fade` positions of the period.
    """

    def fill(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
        n, rows = len(table), table.float()
        body = n - 1 - first - fade
        # past the table a block begins as the end of the one before it; only the first block has no such end left
        place = first + (fade + torch.arange(length - n, device=table.device)) % body
        share = ((place - first + 1) / (fade + 1)).clamp(max=1)[:, None]
        blended = share * rows[place] + (1 - share) * rows[(place + body).clamp(max=n - 1)]
        return torch.cat((table, blended.to(table.dtype)))

    return fill


def _loop(table: torch.Tensor, length: int, config: Any, context: int = 16) -> torch.Tensor:
    """Tile rows a to b-1 for the a and b whose surroundings are most alike, so that b-1 is followed by b's like."""
    n, rows = len(table), table.float()
    first = torch.arange(context, n // 4, device=table.device)
    last = torch.arange(3 * n // 4, n - context, device=table.device)
    around = torch.arange(-context, context, device=table.device)
    surroundings = [rows[ends[:, None] + around].flatten(1) for ends in (first, last)]
    best = int(torch.cdist(*surroundings).argmin())
    a, b = int(first[best // len(last)]), int(last[best % len(last)])
    position = torch.arange(length, device=table.device)
    return table[torch.where(position < n, position, a + (position - b) % (b - a))]


def _continued(table: torch.Tensor, length: int, config: Any, rank: int = 12) -> torch.Tensor:
    """Continue the table's own waves: rows of a BERT lie near some 12 dimensions, in which each step is a rotation."""
    n, rows = len(table), table.float()[32:-1]
    mean = rows.mean(0)
    axes = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:rank]
    path = (rows - mean) @ axes.T
    turns = torch.linalg.eigvals(torch.linalg.lstsq(path[:-1], path[1:]).solution)
    turns = turns / turns.abs()  # what grows or fades within the table would explode or vanish past it
    recent = path[-128:].to(turns.dtype)
    weights = torch.linalg.lstsq(turns ** torch.arange(1 - len(recent), 1)[:, None], recent).solution
    ahead = (turns ** torch.arange(2, length - n + 2)[:, None] @ weights).real
    return torch.cat((table, (ahead @ axes + mean).to(table.dtype)))


def _coarse_rows(first: int, stride: int) -> Callable[[torch.Tensor, int, Any], torch.Tensor]:
    """Hierarchical with ordinary rows as block codes in the place of [CLS]'s row and its neighbours."""

    def fill(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
        alpha, n = config.hierarchical_alpha, len(table)
        position = torch.arange(length, device=table.device)
        codes = table.float()[first + stride * torch.arange(math.ceil(length / n), device=table.device)]
        offsets = alpha / (1 - alpha) * (codes - codes[:1])
        return (table.float()[position % n] + offsets[position // n]).to(table.dtype)

    return fill


FILLS = {
    "interior": _tile_from(64),
    **{f"cross-fade {fade}": _tile_from(1, fade) for fade in (16, 32, 64, 128)},
    **{f"interior, cross-fade {fade}": _tile_from(64, fade) for fade in (16, 32, 64)},
    "loop": _loop,
    "continued": _continued,
    "hierarchical, coarse rows 128 + 16 b": _coarse_rows(128, 16),
}
for _name, _fill in FILLS.items():
    register_position_init(_name, PositionInit(_fill))
TABLE = {"position_type": "learned-extended"}
RECIPES: dict[str, dict[str, Any]] = {
    **{name: {**TABLE, "position_init": name} for name in POSITION_INITS if not name.startswith("hierarchical")},
    **{
        f"hierarchical {alpha}": {"position_type": "hierarchical", "hierarchical_alpha": alpha}
        for alpha in (0.1, 0.2, 0.3, 0.4, 0.6)
    },
    **{
        f"hierarchical {alpha}, coarse rows 128 + 16 b": {
            **TABLE,
            "position_init": "hierarchical, coarse rows 128 + 16 b",
            "hierarchical_alpha": alpha,
        }
        for alpha in (0.1, 0.4)
    },
    "hierarchical 0.4, stored": {**TABLE, "position_init": "hierarchical", "hierarchical_alpha": 0.4},
    "sinusoidal": {"position_type": "sinusoidal"},
    "its own type": {},
}
