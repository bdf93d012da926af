"""Position types: where the vector of position k comes from. Travels to the Hub beside the model.

Every type is a module with `nn.Embedding`'s contract, `forward(position_ids) -> [..., hidden_size]`, and keeps what it
stores under BERT's own key `position_embeddings.weight`, so that a source's learned table always arrives at it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils import logging


logger = logging.get_logger(__name__)


# Rows of a table, `[rows, hidden_size]`, and the length wanted, to `[length, hidden_size]` in the table's dtype.
Fill = Callable[[torch.Tensor, int, Any], torch.Tensor]


@dataclass(frozen=True)
class PositionInit:
    """A way to fill the rows that a table never had.

    Args:
        fill: computes the longer table.
        least_rows: rows that a source must have for it.
        keeps_rows: whether the rows that were there stay as they are, bit for bit.
    """

    fill: Fill
    least_rows: int = 1
    keeps_rows: bool = True


# A table that was filled before is filled further as if all had been filled at once: what is copied, or computed from,
# follows the period of the source's n rows, `config.pretrained_positions`, and copies are of the latest rows.


def _random(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    rows = torch.empty(length - len(table), table.shape[1], dtype=computing_dtype(table.dtype), device=table.device)
    return torch.cat((table, rows.normal_(std=config.initializer_range).to(table.dtype)))


def _tile(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    return _repeat(table, length, config.pretrained_positions, skip=0)


def _tile_skip_special(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    """Tile rows 1..n-2 only: row 0 is [CLS]'s and the last row is the least trained."""
    return _repeat(table, length, config.pretrained_positions, skip=1)


def _repeat(table: torch.Tensor, length: int, n: int, skip: int) -> torch.Tensor:
    """Repeat the source's n rows, without the first and the last `skip` of them, over positions n, n + 1, ..."""
    rows, period = len(table), n - 2 * skip
    position = torch.arange(rows, length, device=table.device)
    rank = (position - n) % period
    # the copies that there are already after the first; negative where the source's own row is the only one
    copies = (rows - 1 - n - rank).div(period, rounding_mode="floor")
    copied = torch.where(copies < 0, skip + rank, n + rank + copies * period)
    return torch.cat((table, table[copied]))


def _repeat_last(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    return table[torch.arange(length, device=table.device).clamp(max=len(table) - 1)]


def _interpolate(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    """Stretch rows 1..n-1 over positions 1..length-1, keeping [CLS]'s row apart as ViT does with its class token.

    Moves the first n rows, so short inputs change (LongEmbed, arXiv 2404.12096, section 4.1, "PI").
    """
    rows = table[1:].to(computing_dtype(table.dtype))
    stretched = F.interpolate(rows.T[None], size=length - 1, mode="linear", align_corners=True)
    return torch.cat((table[:1], stretched[0].T.to(table.dtype)))


def _hierarchical(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    n = HierarchicalPositionEmbedding.stored_rows(config)
    position = torch.arange(len(table), length, device=table.device)
    return torch.cat((table, hierarchical_vectors(table[:n], position, config.hierarchical_alpha)))


POSITION_INITS: dict[str, PositionInit] = {
    "random": PositionInit(_random),
    "tile": PositionInit(_tile),
    "tile-skip-special": PositionInit(_tile_skip_special, least_rows=3),
    "repeat-last": PositionInit(_repeat_last),
    "interpolate": PositionInit(_interpolate, least_rows=2, keeps_rows=False),
    "hierarchical": PositionInit(_hierarchical),
}


def register_position_init(name: str, position_init: PositionInit) -> None:
    """Make `config.position_init = name` fill the rows of `learned-extended` in every head, script and tool.

    Raises:
        TypeError: it is not a `PositionInit`.
        ValueError: the name is taken by another one.
    """
    if not isinstance(position_init, PositionInit):
        raise TypeError(f"a position init is a longbert.PositionInit, got {position_init!r}")
    if POSITION_INITS.get(name, position_init) != position_init:
        raise ValueError(f"position init {name!r} is already registered")
    POSITION_INITS[name] = position_init


def extend_table(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    """Fill a learned table up to `length` rows as `config.position_init` says.

    Args:
        table: `[rows, hidden_size]`, any floating dtype: the source's n rows, or a table that was filled before.
        length: rows wanted, at least as many as there are.

    Returns:
        `[length, hidden_size]` in the table's dtype. It begins with `table` bit for bit for every `position_init` but
        `interpolate`.

    Raises:
        ValueError: `length` is smaller than the table, past n² for `hierarchical`, the table is shorter than its
            source, or `position_init` cannot start from it.
    """
    rows, name = len(table), config.position_init
    if length < rows:
        raise ValueError(f"cannot extend a table of {rows} positions to {length}: ask for at least {rows}")
    if length == rows:
        return table
    if rows < config.pretrained_positions:
        raise ValueError(f"the table has {rows} rows, fewer than pretrained_positions={config.pretrained_positions}")
    refuse_init(config)
    refuse_moving(config, rows, length)
    n = HierarchicalPositionEmbedding.stored_rows(config)
    if name == "hierarchical" and length > n * n:
        raise ValueError(f"position_init='hierarchical' reaches {n}² = {n * n} positions, got {length}")
    if name == "random":
        logger.warning(
            f"position_init='random': rows {rows} to {length - 1} hold noise, which wrecks a pretrained model "
            f"until they are trained; the others of {sorted(POSITION_INITS)} start from what the source knew"
        )
    return POSITION_INITS[name].fill(table, length, config)


def refuse_moving(config: Any, rows: int, length: int) -> None:
    """Raise `ValueError` where filling a table of `rows` rows up to `length` would change the rows it has."""
    name = config.position_init
    if length > rows and rows != config.pretrained_positions and not POSITION_INITS[name].keeps_rows:
        raise ValueError(
            f"position_init={name!r} would move all {rows} rows that the model has: extend its source anew, or name a "
            f"position_init that keeps them, such as 'tile-skip-special'"
        )


def refuse_init(config: Any) -> None:
    """Raise `ValueError` where `config.position_init` needs more rows than the source has."""
    least, n = POSITION_INITS[config.position_init].least_rows, config.pretrained_positions
    if n < least:
        raise ValueError(
            f"position_init={config.position_init!r} needs a source of at least {least} positions, got {n}: use 'tile'"
        )


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a table is computed in: fp32, or float64 where the user asked for it."""
    return torch.promote_types(dtype, torch.float32)


def block_offsets(table: torch.Tensor, alpha: float) -> torch.Tensor:
    """What block b adds to the table: `alpha / (1 - alpha) * (table[b] - table[0])`, `[n, hidden_size]`.

    Su Jianlin's hierarchical decomposition (https://kexue.fm/archives/7947) in closed form; block 0 adds exactly zero
    in every dtype, which the original form does not.
    """
    return alpha / (1 - alpha) * (table - table[:1])


def hierarchical_vectors(table: torch.Tensor, position_ids: torch.Tensor, alpha: float) -> torch.Tensor:
    """`table[k % n] + block_offsets(table)[k // n]` for positions k: `[..., hidden_size]` in the table's dtype."""
    n = len(table)
    offsets = block_offsets(table.to(computing_dtype(table.dtype)), alpha).to(table.dtype)
    return F.embedding(position_ids % n, table) + F.embedding(position_ids // n, offsets)


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

    @classmethod
    def takes_rows(cls, config: Any, rows: int) -> bool:
        """Whether a source's learned table of so many rows can be turned into this type's `weight`."""
        return rows in (config.pretrained_positions, cls.stored_rows(config))

    def init_weight(self) -> None:
        """Initialise `weight` for training from scratch."""
        init.normal_(self.weight, mean=0.0, std=self.config.initializer_range)

    def transplant(self, table: torch.Tensor) -> torch.Tensor:
        """The `weight` that a source's learned `table` `[rows, hidden_size]` turns into.

        The source may be a BERT, with n rows, or a longbert model, with as many as its type stores.
        """
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

    @classmethod
    def takes_rows(cls, config: Any, rows: int) -> bool:
        return rows >= config.max_position_embeddings

    def transplant(self, table: torch.Tensor) -> torch.Tensor:
        return table[: self.config.max_position_embeddings]


class LearnedExtendedPositionEmbedding(_TablePositionEmbedding):
    """A longer table: the source's rows, then rows filled by `config.position_init`, all of them trainable."""

    @classmethod
    def validate_config(cls, config: Any) -> None:
        if config.max_position_embeddings > config.pretrained_positions:
            refuse_init(config)
        if config.position_init == "hierarchical":
            HierarchicalPositionEmbedding.validate_config(config)

    @classmethod
    def stored_rows(cls, config: Any) -> int:
        return config.max_position_embeddings

    @classmethod
    def takes_rows(cls, config: Any, rows: int) -> bool:
        return rows >= config.pretrained_positions

    def transplant(self, table: torch.Tensor) -> torch.Tensor:
        return self._with_rows(table, self.config.max_position_embeddings)

    def resized_weight(self, length: int) -> torch.Tensor:
        return self._with_rows(self.weight.detach(), length)

    def _with_rows(self, table: torch.Tensor, length: int) -> torch.Tensor:
        return table[:length] if length <= len(table) else extend_table(table, length, self.config)


class HierarchicalPositionEmbedding(_TablePositionEmbedding):
    """n stored rows reach n² positions: `table[k % n] + alpha/(1-alpha) * (table[k // n] - table[0])`.

    Su Jianlin, https://kexue.fm/archives/7947. Positions below n are the stored rows bit for bit.
    """

    @classmethod
    def validate_config(cls, config: Any) -> None:
        n, alpha = cls.stored_rows(config), config.hierarchical_alpha
        if not 0 < alpha < 1 or alpha == 0.5:
            raise ValueError(
                f"hierarchical_alpha must lie in (0, 1) and not be 0.5, which gives positions i*n+j and j*n+i the "
                f"same vector; got {alpha}. 0.4 is the published default, 0.1 to 0.2 suits use without training"
            )
        if config.max_position_embeddings > n * n:
            raise ValueError(
                f"hierarchical positions of {n} rows reach {n}² = {n * n}, got "
                f"max_position_embeddings={config.max_position_embeddings}"
            )
        if alpha > 0.5:
            logger.warning_once(
                f"hierarchical_alpha={alpha} is above 0.5: positions inside a block become hard to tell apart and "
                "training converges more slowly; 0.4 is the published default"
            )

    @classmethod
    def stored_rows(cls, config: Any) -> int:
        return config.hierarchical_rows or config.pretrained_positions

    @classmethod
    def takes_rows(cls, config: Any, rows: int) -> bool:
        return rows == cls.stored_rows(config)

    def forward(self, position_ids: torch.LongTensor) -> torch.Tensor:
        return hierarchical_vectors(self.weight, position_ids, self.config.hierarchical_alpha)


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

    @classmethod
    def takes_rows(cls, config: Any, rows: int) -> bool:
        return rows > 0  # any table has the spread that the sinusoids are scaled to

    def init_weight(self) -> None:
        # sin² + cos² = 1 gives every sinusoid a root mean square of sqrt(1/2), whatever the position
        init.constant_(self.weight, math.sqrt(2) * self.config.initializer_range)

    def transplant(self, table: torch.Tensor) -> torch.Tensor:
        of_words = table[1:] if len(table) > 1 else table  # row 0 is [CLS]'s, and larger than the others
        spread = of_words.to(computing_dtype(table.dtype)).square().mean().sqrt()
        scale = (math.sqrt(2) * spread).reshape(1).to(table.dtype)
        if table.device.type != "meta" and not self._is_sinusoidal(table, scale):
            logger.warning_once(
                "position_type='sinusoidal' replaces the source's position table: the model knows no position until "
                "it is trained"
            )
        return scale

    def _is_sinusoidal(self, table: torch.Tensor, scale: torch.Tensor) -> bool:
        """Whether the source's table is what this type computes, as some DistilBERTs' is."""
        ours = self._vectors(torch.arange(len(table), device=table.device), scale)
        return torch.allclose(ours, table, atol=1e-2 * float(scale), rtol=0)

    def forward(self, position_ids: torch.LongTensor) -> torch.Tensor:
        vectors = self._vectors(position_ids, self.weight)
        if self.config.zero_padding_positions:
            vectors = vectors.masked_fill(position_ids[..., None] < 0, 0.0)
        return vectors

    def _vectors(self, position_ids: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        dtype = computing_dtype(scale.dtype)
        dimension = torch.arange(0, self.config.hidden_size, 2, device=position_ids.device, dtype=dtype)
        frequencies = torch.exp(dimension * (-math.log(self.config.sinusoidal_base) / self.config.hidden_size))
        angles = position_ids[..., None].to(dtype) * frequencies
        vectors = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2) * scale.to(dtype)
        return vectors.to(scale.dtype)


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
