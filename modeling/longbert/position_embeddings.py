"""Position types: where the vector of position k comes from. Travels to the Hub beside the model.

Every type is a module with `nn.Embedding`'s contract, `forward(position_ids) -> [..., hidden_size]`, and keeps what it
stores under BERT's own key `position_embeddings.weight`, so that a source's learned table always arrives at it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils import logging


logger = logging.get_logger(__name__)


# How the rows a source never had are filled: (table [n, hidden_size], length, config) -> [length, hidden_size].
# Each computes in fp32, returns the table's dtype, and all but `interpolate` begin with the table itself, bit for bit.


def _random(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    rows = torch.empty(length - len(table), table.shape[1], dtype=torch.float32, device=table.device)
    return torch.cat((table, rows.normal_(std=config.initializer_range).to(table.dtype)))


def _tile(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    return table[torch.arange(length, device=table.device) % len(table)]


def _tile_skip_special(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    """Tile rows 1..n-2 only: row 0 is [CLS]'s and the last row is the least trained."""
    n = len(table)
    if n < 3:
        raise ValueError(
            f"position_init='tile-skip-special' needs a source of at least 3 positions, got {n}: use 'tile'"
        )
    position = torch.arange(length, device=table.device)
    return table[torch.where(position < n, position, 1 + (position - n) % (n - 2))]


def _repeat_last(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    return table[torch.arange(length, device=table.device).clamp(max=len(table) - 1)]


def _interpolate(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    """Stretch rows 1..n-1 over positions 1..length-1, keeping [CLS]'s row apart as ViT does with its class token.

    Moves the first n rows, so short inputs change (LongEmbed, arXiv 2404.12096, section 4.1, "PI").
    """
    stretched = F.interpolate(table[1:].float().T[None], size=length - 1, mode="linear", align_corners=True)
    return torch.cat((table[:1], stretched[0].T.to(table.dtype)))


def _hierarchical(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    position = torch.arange(length, device=table.device)
    offsets = block_offsets(table.float(), config.hierarchical_alpha)
    return (table.float()[position % len(table)] + offsets[position // len(table)]).to(table.dtype)


PositionInit = Callable[[torch.Tensor, int, Any], torch.Tensor]
POSITION_INITS: dict[str, PositionInit] = {
    "random": _random,
    "tile": _tile,
    "tile-skip-special": _tile_skip_special,
    "repeat-last": _repeat_last,
    "interpolate": _interpolate,
    "hierarchical": _hierarchical,
}


def extend_table(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    """Fill a learned table up to `length` rows as `config.position_init` says.

    Args:
        table: `[n, hidden_size]`, any floating dtype.
        length: rows wanted, at least n.

    Returns:
        `[length, hidden_size]` in the table's dtype. Its first n rows equal `table` bit for bit for every
        `position_init` but `interpolate`.

    Raises:
        ValueError: `length` is smaller than the table, or past n² for `hierarchical`.
    """
    if length < len(table):
        raise ValueError(f"cannot extend a table of {len(table)} positions to {length}: ask for at least {len(table)}")
    if config.position_init == "hierarchical" and length > len(table) ** 2:
        raise ValueError(
            f"position_init='hierarchical' reaches {len(table)}² = {len(table) ** 2} positions, got {length}"
        )
    if config.position_init == "random" and length > len(table):
        logger.warning(
            f"position_init='random': rows {len(table)} to {length - 1} hold noise, which wrecks a pretrained model "
            f"until they are trained; the others of {sorted(POSITION_INITS)} start from what the source knew"
        )
    return POSITION_INITS[config.position_init](table, length, config)


def block_offsets(table: torch.Tensor, alpha: float) -> torch.Tensor:
    """What block b adds to the table: `alpha / (1 - alpha) * (table[b] - table[0])`, `[n, hidden_size]`.

    Su Jianlin's hierarchical decomposition (https://kexue.fm/archives/7947) in closed form; block 0 adds exactly zero
    in every dtype, which the original form does not.
    """
    return alpha / (1 - alpha) * (table - table[:1])


class PositionEmbedding(nn.Module):
    """Base of every position type; see `register_position_type` for writing one.

    A type stores what it learns in the one parameter `weight`. Its config is checked by `validate_config` before any
    module is built, and `transplant` says which `weight` a source's learned table turns into.
    """

    weight: nn.Parameter

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    @classmethod
    def validate_config(cls, config: Any) -> None:
        """Raise `ValueError` for a config that this type cannot serve."""

    @classmethod
    def stored_rows(cls, config: Any) -> int:
        """Rows of `weight` that another type could start from; 0 where the type stores none."""
        return 0

    def init_weight(self) -> None:
        """Initialise `weight` for training from scratch."""
        init.normal_(self.weight, mean=0.0, std=self.config.initializer_range)

    def transplant(self, table: torch.Tensor) -> torch.Tensor:
        """The `weight` that a source's learned `table` `[n, hidden_size]` turns into."""
        return table

    def resized_weight(self, length: int) -> torch.Tensor:
        """The `weight` for another `max_position_embeddings`."""
        return self.weight.detach()

    def forward(self, position_ids: torch.LongTensor) -> torch.Tensor:
        """Vectors `[..., hidden_size]` of the positions `[...]`."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.config.max_position_embeddings}, {self.config.hidden_size}, stored={tuple(self.weight.shape)}"


class _TablePositionEmbedding(PositionEmbedding):
    """A type that stores rows of a learned table."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(self.stored_rows(config), config.hidden_size))

    def forward(self, position_ids: torch.LongTensor) -> torch.Tensor:
        return F.embedding(position_ids, self.weight)


class LearnedPositionEmbedding(_TablePositionEmbedding):
    """BERT's own table: `table[k]`, and no position past it."""

    @classmethod
    def validate_config(cls, config: Any) -> None:
        if config.max_position_embeddings != config.pretrained_positions:
            raise ValueError(
                f"position_type='learned' has exactly the source's {config.pretrained_positions} positions, got "
                f"max_position_embeddings={config.max_position_embeddings}: choose 'learned-extended', 'hierarchical' "
                "or 'sinusoidal' to reach further"
            )

    @classmethod
    def stored_rows(cls, config: Any) -> int:
        return config.max_position_embeddings


class LearnedExtendedPositionEmbedding(_TablePositionEmbedding):
    """A longer table: the source's rows, then rows filled by `config.position_init`, all of them trainable."""

    @classmethod
    def validate_config(cls, config: Any) -> None:
        if config.position_init == "hierarchical":
            HierarchicalPositionEmbedding.validate_config(config)

    @classmethod
    def stored_rows(cls, config: Any) -> int:
        return config.max_position_embeddings

    def transplant(self, table: torch.Tensor) -> torch.Tensor:
        return extend_table(table, self.config.max_position_embeddings, self.config)

    def resized_weight(self, length: int) -> torch.Tensor:
        table = self.weight.detach()
        return table[:length] if length <= len(table) else extend_table(table, length, self.config)


class HierarchicalPositionEmbedding(_TablePositionEmbedding):
    """n stored rows reach n² positions: `table[k % n] + alpha/(1-alpha) * (table[k // n] - table[0])`.

    Su Jianlin, https://kexue.fm/archives/7947. Positions below n are the stored rows bit for bit.
    """

    @classmethod
    def validate_config(cls, config: Any) -> None:
        n, alpha = config.pretrained_positions, config.hierarchical_alpha
        if not 0 < alpha < 1 or alpha == 0.5:
            raise ValueError(
                f"hierarchical_alpha must lie in (0, 1) and not be 0.5, which gives positions i*n+j and j*n+i the "
                f"same vector; got {alpha}. 0.4 is the published default, 0.1 to 0.2 suits use without training"
            )
        if config.max_position_embeddings > n * n:
            raise ValueError(
                f"hierarchical positions reach pretrained_positions² = {n}² = {n * n}, got "
                f"max_position_embeddings={config.max_position_embeddings}"
            )
        if alpha > 0.5:
            logger.warning_once(
                f"hierarchical_alpha={alpha} is above 0.5: positions inside a block become hard to tell apart and "
                "training converges more slowly; 0.4 is the published default"
            )

    @classmethod
    def stored_rows(cls, config: Any) -> int:
        return config.pretrained_positions

    def forward(self, position_ids: torch.LongTensor) -> torch.Tensor:
        n = len(self.weight)
        offsets = block_offsets(self.weight.float(), self.config.hierarchical_alpha).to(self.weight.dtype)
        return super().forward(position_ids % n) + F.embedding(position_ids // n, offsets)


class SinusoidalPositionEmbedding(PositionEmbedding):
    """`scale * [sin(k w_0), cos(k w_0), sin(k w_1), ...]`, `w_i = base^(-2i / hidden_size)`, on the fly in fp32.

    Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, interleaved as printed there. `weight` is the one learnable
    scale, `[1]`: a raw sinusoid is some 35 times a BERT row and would drown the words. Swapped into a pretrained model
    it needs training. With `config.zero_padding_positions`, negative positions get the zero vector.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(1))

    @classmethod
    def validate_config(cls, config: Any) -> None:
        if config.hidden_size % 2:
            raise ValueError(f"sinusoidal positions need an even hidden_size, got {config.hidden_size}")
        if not 1 < config.sinusoidal_base < math.inf:
            raise ValueError(f"sinusoidal_base must be greater than 1 (10000 is usual), got {config.sinusoidal_base}")

    def init_weight(self) -> None:
        # sin² + cos² = 1 gives every sinusoid a root mean square of sqrt(1/2), whatever the position
        init.constant_(self.weight, math.sqrt(2) * self.config.initializer_range)

    def transplant(self, table: torch.Tensor) -> torch.Tensor:
        if table.device.type != "meta":
            logger.warning_once(
                "position_type='sinusoidal' replaces the source's position table: the model knows no position until "
                "it is trained"
            )
        spread = table[1:].float().square().mean().sqrt()
        return (math.sqrt(2) * spread).reshape(1).to(table.dtype)

    def forward(self, position_ids: torch.LongTensor) -> torch.Tensor:
        dimension = torch.arange(0, self.config.hidden_size, 2, device=position_ids.device, dtype=torch.float32)
        frequencies = torch.exp(dimension * (-math.log(self.config.sinusoidal_base) / self.config.hidden_size))
        angles = position_ids[..., None].float() * frequencies
        vectors = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2) * self.weight.float()
        if self.config.zero_padding_positions:
            vectors = vectors.masked_fill(position_ids[..., None] < 0, 0.0)
        return vectors.to(self.weight.dtype)


POSITION_TYPES: dict[str, type[PositionEmbedding]] = {
    "learned": LearnedPositionEmbedding,
    "learned-extended": LearnedExtendedPositionEmbedding,
    "hierarchical": HierarchicalPositionEmbedding,
    "sinusoidal": SinusoidalPositionEmbedding,
}


def register_position_type(name: str, position_embedding: type[PositionEmbedding]) -> None:
    """Make `config.position_type = name` build `position_embedding(config)` in every head, script and tool.

    Raises:
        TypeError: the class is not a `PositionEmbedding`.
        ValueError: the name is taken by another class.
    """
    if not (isinstance(position_embedding, type) and issubclass(position_embedding, PositionEmbedding)):
        raise TypeError(f"a position type is a subclass of longbert.PositionEmbedding, got {position_embedding!r}")
    if POSITION_TYPES.get(name, position_embedding) is not position_embedding:
        raise ValueError(f"position type {name!r} is already registered as {POSITION_TYPES[name].__name__}")
    POSITION_TYPES[name] = position_embedding
