"""The texts of a batch, read from whatever mask or positions a caller gives. Travels to the Hub beside the model.

`read_texts` finds them once. Everything else asks the `Texts` that it returns: where positions begin, what is pooled,
and what a window and packed documents may see.
"""

import functools
from dataclasses import dataclass

import torch


REAL, FIRST = 1, 3  # on the host: a token of a text, the first one of a text; 0 is padding
HIDDEN = -1e4  # what an additive mask hides is at most this: BERT's own code said -10000, others their dtype's minimum


def is_traced() -> bool:
    """Whether this run is traced or compiled: the graph serves other inputs too, so no branch may depend on values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@dataclass
class Texts:
    """The texts of a batch `[batch_size, seq_length]`, whatever form its mask had.

    Args:
        real: bool, False at padding and at tokens in the middle of a text that are left out.
        starts: for every token the index in its row of its text's first token.
        packed: whether a row may hold several texts.
        mask: `[1 or batch_size, 1 or num_heads, 1 or seq_length, seq_length]`, True where a query sees a key or a
            number to add to its score: a caller's mask that says more than which tokens belong to which text; else
            None.
    """

    real: torch.Tensor
    starts: torch.Tensor
    packed: bool = False
    mask: torch.Tensor | None = None

    @functools.cached_property
    def on_host(self) -> torch.Tensor:
        """`[batch_size, seq_length]` uint8 on the CPU: FIRST, REAL or 0. A CUDA device is waited for, once."""
        return (self.real * torch.where(self.starts == self.index, FIRST, REAL)).to(torch.uint8).cpu()

    @property
    def index(self) -> torch.Tensor:
        """Where in its row a token stands, `[1, seq_length]`."""
        return torch.arange(self.real.shape[1], device=self.real.device)[None]

    @property
    def first(self) -> torch.Tensor:
        """The index of every row's first token that is no padding, `[batch_size, 1]`."""
        return first_of(self.real)

    @property
    def places(self) -> torch.Tensor:
        """How far each token is behind its text's first token; meaningless at padding."""
        return self.index - self.starts

    @property
    def ids(self) -> torch.Tensor:
        """A number for every text, -1 at padding."""
        rows = torch.arange(self.real.shape[0], device=self.real.device)[:, None]
        return torch.where(self.real, rows * self.real.shape[1] + self.starts, -1)

    @property
    def spans(self) -> torch.Tensor:
        """For every token, the place of its text's last token plus 1."""
        ids, places = self.ids.flatten() + 1, self.places.expand(self.real.shape).flatten()
        ends = torch.zeros(ids.shape[0] + 1, dtype=torch.long, device=ids.device)
        return ends.scatter_reduce(0, ids, places + 1, "amax")[ids].view(self.real.shape)


def first_of(real: torch.Tensor) -> torch.Tensor:
    """The index of the first True in every row of `[batch_size, seq_length]`, `[batch_size, 1]`."""
    return real.long().argmax(-1, keepdim=True)


def whole_rows(shape: tuple[int, int], device: torch.device) -> Texts:
    """Every row is one text, without padding."""
    texts = Texts(
        torch.ones(shape, dtype=torch.bool, device=device), torch.zeros(shape, dtype=torch.long, device=device)
    )
    if not is_traced():  # known without asking the device
        texts.on_host = torch.full(shape, REAL, dtype=torch.uint8)
        texts.on_host[:, 0] = FIRST
    return texts


def attended(attention_mask: torch.Tensor) -> torch.Tensor:
    """The tokens that a mask `[..., seq_length]` of any dtype keeps, as bool: whatever is not 0.

    A row in which it keeps none is kept whole, as BERT's softmax does. This is the only place that decides so.
    """
    kept = attention_mask != 0
    return kept | ~kept.any(-1, keepdim=True)


def read_texts(
    attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None, shape: tuple[int, int], num_heads: int
) -> Texts | None:
    """The texts of a batch; None where every row is one whole text.

    Without an `attention_mask`, `position_ids` that are 0 again inside a row mark packed documents, as in
    transformers' `DataCollatorWithFlattening`.

    Args:
        attention_mask: `[batch_size, seq_length]`, not 0 at tokens to attend to; or what each query sees,
            `[batch_size, seq_length, seq_length]` or with heads before the last two, in which queries may be 1 for
            all: bool or integers, not 0 where it sees a key, or floats to add to the scores. If such a mask only says
            what is padding, or which parts of a row are texts, it is read as that.

    Raises:
        ValueError: the mask has another shape, or numbers that could mean two things; or a row's `position_ids` are 0
            throughout.
    """
    if attention_mask is None:
        return _packed_texts(position_ids, shape)
    _refuse_shape(attention_mask, shape, num_heads)
    if attention_mask.dim() == 2:
        texts = _padded_texts(attended(attention_mask).expand(shape))
    else:
        texts = _texts_of_sight(explicit_mask(attention_mask), shape)
    if not is_traced() and texts.mask is None and is_whole(texts.on_host):
        return None
    return texts


def is_whole(on_host: torch.Tensor) -> bool:
    """Whether every row is one text, without padding."""
    return bool((on_host[:, 0] == FIRST).all()) and bool((on_host[:, 1:] == REAL).all())


def _refuse_shape(attention_mask: torch.Tensor, shape: tuple[int, int], num_heads: int) -> None:
    batch_size, length = shape
    rows, heads, queries = (1, batch_size), (1, num_heads), (1, length)
    allowed = {2: (rows, (length,)), 3: (rows, queries, (length,)), 4: (rows, heads, queries, (length,))}
    sizes = allowed.get(attention_mask.dim(), ())
    if not sizes or not all(size in fitting for size, fitting in zip(attention_mask.shape, sizes, strict=True)):
        raise ValueError(
            f"attention_mask has the shape {list(attention_mask.shape)}, the input has {batch_size} rows of {length} "
            f"tokens: pass [{batch_size}, {length}], [{batch_size}, {length}, {length}] or "
            f"[{batch_size}, 1 or {num_heads}, {length}, {length}]"
        )


def _padded_texts(real: torch.Tensor) -> Texts:
    return Texts(real, first_of(real).expand(real.shape))


def _packed_texts(position_ids: torch.Tensor | None, shape: tuple[int, int]) -> Texts | None:
    if position_ids is None or shape[1] == 1:
        return None
    at_zero = position_ids == 0
    if not is_traced():
        restarts, all_zero = torch.stack((at_zero[:, 1:].any(), at_zero.all(-1).any())).tolist()
        if not restarts:
            return None
        if all_zero:
            raise ValueError(
                "position_ids are 0 in all of a row: they may mean one text without positions, or packed texts of one "
                "token each. Pass attention_mask, all ones for the first and 4D (each token sees itself) for the other"
            )
    index = torch.arange(shape[1], device=position_ids.device)
    starts = (index * at_zero).cummax(-1)[0].expand(shape)  # [0]: ONNX's exporter gives a plain tuple
    return Texts(torch.ones(shape, dtype=torch.bool, device=position_ids.device), starts, packed=True)


def explicit_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """A 3D or 4D mask as `[batch_size, heads, queries, keys]`, bool (True: sees) or floats to add to the scores.

    Raises:
        ValueError: integers below 0, or floats that are all 0 or 1: they may be meant either way.
    """
    mask = attention_mask[:, None] if attention_mask.dim() == 3 else attention_mask
    if mask.is_floating_point():
        if not is_traced() and bool(((mask == 0) | (mask == 1)).all()) and bool((mask != mask.flatten()[:1]).any()):
            raise ValueError(
                f"attention_mask of {mask.dim()} dimensions holds the floats 0 and 1, but floats are added to the "
                "scores (0 sees, torch.finfo(dtype).min hides): pass attention_mask.bool() for 1 to see and 0 to hide"
            )
        return mask
    if mask.dtype != torch.bool and not is_traced() and bool((mask < 0).any()):
        raise ValueError(
            "attention_mask holds integers below 0: pass it as floats to have it added to the scores, or as bool"
        )
    return mask != 0


def _texts_of_sight(mask: torch.Tensor, shape: tuple[int, int]) -> Texts:
    """The texts that an explicit mask describes; the mask itself is kept if it says more than that.

    A token that does not see itself is padding. Every other token must see its own text and nothing else, so two
    tokens belong to one text exactly if the first token that they see is the same.
    """
    shown, uniform = mask, torch.ones((), dtype=torch.bool, device=mask.device)
    if mask.is_floating_point():
        shown = mask > HIDDEN
        uniform = mask.masked_fill(~shown, torch.inf).amin() >= mask.masked_fill(~shown, -torch.inf).amax()
    reads = uniform & (shown == shown[:, :1]).all()
    sees = shown[:, 0]
    if sees.shape[1] == 1:  # every query sees the same keys
        texts = _padded_texts(attended(sees[:, 0]).expand(shape))
    else:
        sees = sees | ~sees.flatten(1).any(-1)[:, None, None]  # as `attended` has it
        own = sees.diagonal(dim1=-2, dim2=-1)
        starts = sees.int().argmax(-1)
        same = (starts[:, :, None] == starts[:, None, :]) & own[:, None, :]
        in_order = starts.masked_fill(~own, 0).cummax(-1)[0] == starts
        reads = reads & own.any(-1).all() & ((sees == same) & in_order[:, :, None] | ~own[:, :, None]).all()
        texts = Texts(own.expand(shape), starts.expand(shape), packed=True)
    texts = Texts(texts.real | ~reads, texts.starts * reads, texts.packed, mask)
    if not is_traced() and bool(reads):
        texts.mask = None
        texts.packed = bool((texts.real & (texts.starts != texts.first)).any())
    return texts


def global_marks(texts: Texts, global_tokens: int, global_attention_mask: torch.Tensor | None) -> torch.Tensor:
    """`[batch_size, seq_length]` bool: the first tokens of every text, and those that the caller names.

    Raises:
        ValueError: `global_attention_mask` does not fit the batch.
    """
    counted = texts.real.long().cumsum(-1)
    marked = texts.real & (counted - counted.gather(-1, texts.starts) < global_tokens)
    if global_attention_mask is None:
        return marked
    refuse_marks(global_attention_mask, texts)
    return marked | global_attention_mask.reshape(marked.shape).bool()


def refuse_marks(global_attention_mask: torch.Tensor | None, texts: Texts) -> None:
    """Raise `ValueError` where a `global_attention_mask` does not fit the batch."""
    if global_attention_mask is not None and global_attention_mask.numel() != texts.real.numel():
        raise ValueError(
            f"global_attention_mask has the shape {list(global_attention_mask.shape)}, the input has "
            f"{texts.real.shape[0]} rows of {texts.real.shape[1]} tokens: pass one number for every token"
        )
