"""What a checkpoint holds, read from its files before any weight is loaded: names, shapes and the family they belong
to. Travels to the Hub beside the model.

`from_pretrained` asks here what to call the weights and refuses what cannot arrive, before anything is loaded.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_utils import load_state_dict
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils.hub import get_checkpoint_shard_files

from .families import FAMILIES, POSITIONS, Family, family_of, family_of_encoder


WORDS = "embeddings.word_embeddings.weight"
RELATIVE_POSITIONS = "distance_embedding."
# what DDP, torch.compile, FSDP and checkpointed layers put into the names of what they wrap
WRAPPERS = r"(?:(?<=\.)|^)(?:(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
# of `from_pretrained`'s arguments, those that say where the files are
LOCATION = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class SourceWeights:
    """The weights of a source whose encoders are BERT's under some name.

    Args:
        shapes: of every weight, under the name that it has.
        mapping: renamings that come first: wrappers' prefixes removed, and the caller's `key_mapping`.
        family: whose names they are.
        prefixes: what stands before each encoder's weights, such as `bert.`, `model.roberta.` or nothing.
    """

    shapes: Shapes
    mapping: dict[str, str]
    family: Family
    prefixes: tuple[str, ...]

    @classmethod
    def of(
        cls, shapes: Shapes, config_dict: dict[str, Any] | None, key_mapping: dict[str, str] | None = None
    ) -> "SourceWeights":
        """What a checkpoint's weights are.

        Args:
            config_dict: the config beside them; None where there is none, and names alone tell the family.
            key_mapping: a caller's own renamings, as `from_pretrained` takes them.

        Raises:
            ValueError: it has no encoder like BERT's, or its names belong to another family than the config's.
        """
        mapping = dict(key_mapping or {})
        if any(re.search(WRAPPERS, name) for name in shapes):
            # twice, under two names for the same: each renaming is applied once, and a layer in a wrapped model may be
            # wrapped itself
            mapping |= {WRAPPERS: "", f"(?:{WRAPPERS})": ""}
        shapes = renamed(shapes, mapping)
        prefixes = tuple(sorted({name.removesuffix(WORDS) for name in shapes if name.endswith(WORDS)}))
        if not prefixes:
            raise ValueError(
                f"no weight is called *{WORDS}, so these {len(shapes)} weights hold no encoder like BERT's "
                f"({some(shapes)}): name a whole checkpoint of {', '.join(FAMILIES)}"
            )
        if any(RELATIVE_POSITIONS in name for name in shapes):
            raise ValueError(f"weights called *{RELATIVE_POSITIONS}* are relative positions, which this BERT lacks")
        return cls(shapes, mapping, _family(prefixes, config_dict), prefixes)

    @property
    def outer_prefix(self) -> str:
        """The prefix that a wrapper put before the family's names, in all weights."""
        return self.prefixes[0].removesuffix(f"{self.family.key_prefix}.") if len(self.prefixes) == 1 else ""

    def key_mapping(self, tied: bool = True) -> dict[str, str]:
        """The renamings that give its weights BERT's names, as `from_pretrained` takes them, in order.

        Args:
            tied: whether its decoder is its word vectors, as usual.
        """
        outer = {rf"^{re.escape(self.outer_prefix)}": ""} if self.outer_prefix else {}
        return self.mapping | outer | self.family.key_mapping(tied)

    def bert_names(self) -> Shapes:
        """The shapes under BERT's names, the encoder's after `bert.`; what is not BERT's keeps its own name."""
        outer = {rf"^{re.escape(self.outer_prefix)}": ""} if self.outer_prefix else {}
        names = renamed(self.shapes, outer | self.family.key_mapping())
        if self.prefixes[0].removeprefix(self.outer_prefix):
            return names
        return {re.sub(r"^(?=(embeddings|encoder|pooler)\.)", "bert.", name): shape for name, shape in names.items()}

    def tables(self, encoders: Iterable[str]) -> list[tuple[int, ...]]:
        """The shapes `[rows, hidden_size]` of its encoders' tables of positions, reserved rows counted.

        Args:
            encoders: if there are several, which of them, by the class's attribute names.

        Raises:
            ValueError: an encoder has none.
        """
        asked = {f"{name}." for name in encoders}
        prefixes = self.prefixes if len(self.prefixes) == 1 else [each for each in self.prefixes if each in asked]
        names = [prefix + POSITIONS for prefix in prefixes]
        for name in names:
            if name not in self.shapes:
                raise ValueError(f"no weight is called {name}: its positions cannot be extended")
        return [self.shapes[name] for name in names]


def _family(prefixes: tuple[str, ...], config_dict: dict[str, Any] | None) -> Family:
    encoder = prefixes[0].rstrip(".").rpartition(".")[2]
    named = family_of_encoder(encoder) if len(prefixes) == 1 else None
    if config_dict is None:
        return named or FAMILIES["bert"]
    family = family_of(config_dict)
    # a longbert model may be part of a class that calls it anything
    if named is not None and named.key_prefix != family.key_prefix and family is not FAMILIES["longbert"]:
        raise ValueError(
            f"the weights are {named.class_prefix}'s ({encoder}.*), and the config is read as "
            f"{family.class_prefix}'s: set model_type in config.json to what the checkpoint is"
        )
    return family


def renamed(shapes: Shapes, mapping: dict[str, str]) -> Shapes:
    """The shapes under the names that a `key_mapping` gives, each renaming applied once, as transformers does."""
    result: Shapes = {}
    for name, shape in shapes.items():
        for pattern, replacement in mapping.items():
            name = re.sub(pattern, replacement, name, count=1)
        result[name] = shape
    return result


def read_shapes(
    source: Any, variant: str | None = None, use_safetensors: bool | None = None, **location: Any
) -> Shapes | None:
    """The shape of every weight in a checkpoint's files, read without the weights; None where they are of a format
    that only transformers knows.

    Args:
        source: a folder or a Hub id.
        variant, use_safetensors, location: as for `from_pretrained`.
    """
    safe = [] if use_safetensors is False else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]
    for name in (*safe, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        file = find_file(source, _with_variant(name, variant), **location)
        if file is None:
            continue
        shapes: Shapes = {}
        for part in _parts(source, file, location) if name.endswith(".json") else [file]:
            shapes |= _read(part)
        return shapes
    return None


def _parts(source: Any, index: str, location: dict[str, Any]) -> list[str]:
    try:
        return get_checkpoint_shard_files(source, index, **location)[0]
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{index} cannot be read ({error}): it is no index of parts, so fetch it again") from error


def _read(file: str) -> Shapes:
    try:
        return shapes_of(load_state_dict(file, map_location="meta"))
    except Exception as error:  # each format has its own, and none is an OSError
        if isinstance(error, ValueError):
            raise
        raise OSError(f"{file} cannot be read ({error}): it is damaged or cut off, so fetch it again") from error


def shapes_of(state_dict: Mapping[str, Any]) -> Shapes:
    """The shape of every weight of a state dict.

    Raises:
        ValueError: it is not a state dict but holds one, as a training framework's checkpoints do.
    """
    if state_dict and not any(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(
            f"the file holds {some(state_dict)} and no weights at its top: save the state_dict alone, "
            "as model.save_pretrained(folder) does"
        )
    return {name: tuple(value.shape) for name, value in state_dict.items() if isinstance(value, torch.Tensor)}


def some(names: Iterable[str], at_most: int = 4) -> str:
    """The first names, and dots if there are more."""
    listed = sorted(names)
    return ", ".join(listed[:at_most]) + (", ..." if len(listed) > at_most else "")


def find_file(source: Any, name: str, **location: Any) -> str | None:
    """A file of a folder or a Hub id, as a path; None where there is none."""
    return cached_file(
        source,
        name,
        **location,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )


def _with_variant(name: str, variant: str | None) -> str:
    """`model.fp16.safetensors` for `model.safetensors`, as transformers calls variants."""
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{variant}.{ending}" if variant else name
