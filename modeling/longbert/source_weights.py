"""What a checkpoint holds, read from its files before any weight is: names, shapes, whose they are. Travels to the Hub
beside the model.

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
# what DDP, torch.compile, FSDP and checkpointed layers put into the names of what they wrap
WRAPPERS = r"(?:(?<=\.)|^)(?:(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
# of `from_pretrained`'s arguments, those that say where the files are
LOCATION = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class SourceWeights:
    """The weights of a source whose encoder is BERT's under some name.

    Args:
        shapes: of every weight, under the name that it has.
        family: whose names they are.
        prefix: what stands before the encoder's weights, such as `bert.`, `module.roberta.` or nothing.
    """

    shapes: Shapes
    family: Family
    prefix: str

    @classmethod
    def of(cls, shapes: Shapes, config_dict: dict[str, Any] | None) -> "SourceWeights | None":
        """What a checkpoint's weights are; None where there are several encoders, which only the class that saved them
        can tell apart.

        Args:
            config_dict: the config beside them; None where there is none, and names alone tell the family.

        Raises:
            ValueError: there is no encoder of BERT's kind, or its name is another family's than the config's.
        """
        prefixes = sorted({name.removesuffix(WORDS) for name in shapes if name.endswith(WORDS)})
        if len(prefixes) > 1:
            return None
        if not prefixes:
            raise ValueError(
                f"no weight is called *{WORDS}, so there is no encoder of BERT's kind among the {len(shapes)} there "
                f"are ({some(shapes)}): name a whole checkpoint of {', '.join(FAMILIES)}"
            )
        encoder = re.sub(WRAPPERS, "", prefixes[0]).rstrip(".").rpartition(".")[2]
        named = family_of_encoder(encoder)
        family = named or FAMILIES["bert"] if config_dict is None else family_of(config_dict)
        if named is not None and named.key_prefix != family.key_prefix:
            raise ValueError(
                f"the weights are {named.class_prefix}'s ({encoder}.*), and the config is read as "
                f"{family.class_prefix}'s: set model_type in config.json to what the checkpoint is"
            )
        return cls(shapes, family, prefixes[0])

    @property
    def outer_prefix(self) -> str:
        """What stands before the names that the family gives, in all weights: a wrapper's name for what it wraps."""
        return self.prefix.removesuffix(f"{self.family.key_prefix}.")

    def key_mapping(self) -> dict[str, str]:
        """The renamings that give its weights BERT's names, as `from_pretrained` takes them, in order."""
        outer = {rf"^{re.escape(self.outer_prefix)}": ""} if self.outer_prefix else {}
        inner = {WRAPPERS: ""} if any(re.search(WRAPPERS, self._without_outer(name)) for name in self.shapes) else {}
        return outer | inner | self.family.key_mapping()

    def bert_names(self) -> Shapes:
        """The shapes under BERT's names, the encoder's after `bert.`; what is not BERT's keeps its own name."""
        renamed: Shapes = {}
        for name, shape in self.shapes.items():
            for pattern, replacement in self.key_mapping().items():
                name = re.sub(pattern, replacement, name, count=1)
            if not self.prefix.removeprefix(self.outer_prefix) and re.match(r"(embeddings|encoder|pooler)\.", name):
                name = f"bert.{name}"
            renamed[name] = shape
        return renamed

    def table(self) -> tuple[int, ...]:
        """The shape `[rows, hidden_size]` of its table of positions, reserved rows counted.

        Raises:
            ValueError: it has none.
        """
        name = next((name for name in self.shapes if re.sub(WRAPPERS, "", name).endswith(POSITIONS)), None)
        if name is None:
            raise ValueError(f"no weight is called *{POSITIONS}: its positions cannot be extended")
        return self.shapes[name]

    def _without_outer(self, name: str) -> str:
        return name.removeprefix(self.outer_prefix)


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
        file = _find(source, _with_variant(name, variant), **location)
        if file is None:
            continue
        files = get_checkpoint_shard_files(source, file, **location)[0] if name.endswith(".json") else [file]
        shapes: Shapes = {}
        for part in files:
            shapes |= _read(part)
        return shapes
    return None


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
        ValueError: it is no state dict, but holds one, as a training framework's checkpoints do.
    """
    if state_dict and not any(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(
            f"the file holds {some(state_dict)} and no weights at its top: save the state_dict alone, "
            "as model.save_pretrained(folder) does"
        )
    return {name: tuple(value.shape) for name, value in state_dict.items() if isinstance(value, torch.Tensor)}


def some(names: Iterable[str], at_most: int = 4) -> str:
    """The first names, and that there are more."""
    listed = sorted(names)
    return ", ".join(listed[:at_most]) + (", ..." if len(listed) > at_most else "")


def _find(source: Any, name: str, **location: Any) -> str | None:
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
