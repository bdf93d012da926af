"""Write a long model of a source into a folder of its own; and the recipes that the study found best."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .configuration_longbert import NAMING_LAYERS, LongBertConfig, default_window, parse_every
from .folders import refuse_occupied, written_aside
from .modeling_longbert import LongBertPreTrainedModel
from .publishing import write_card
from .source import copy_sentence_modules, find_source, load_long, load_tokenizer, stated_config
from .tables import strict_json


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a source is extended, and what docs/study.md measured of it.

    Args:
        positions: fields of `LongBertConfig`.
        windowed: whether long texts are read through a window as long as the source, or in full.
        closed: "every Nth" layer of a windowed model, which learns to look past the window; "", where none is to.
        expect: what to expect, in words.
    """

    positions: dict[str, Any]
    windowed: bool
    expect: str
    closed: str = ""

    def settings(self, source: LongBertConfig, given: dict[str, Any]) -> dict[str, Any]:
        """The recipe's fields of `LongBertConfig`, overridden by those that are given."""
        merged = {**self.positions, **given}
        windowed = self.windowed and merged["position_type"] == self.positions["position_type"]
        windowed &= not source.is_decoder  # which sees no token on its right
        window = default_window(source.pretrained_positions) if windowed else None
        settings = {"attention_window": window, **merged}
        if self._closes(source, settings):
            settings["closed_attention_layers"] = self.closed
        return settings

    def _closes(self, source: LongBertConfig, settings: dict[str, Any]) -> bool:
        """Whether layers begin closed: nothing was said of layers, there is a window, and there are layers enough."""
        if not self.closed or settings["attention_window"] is None or any(name in settings for name in NAMING_LAYERS):
            return False
        return parse_every("closed_attention_layers", self.closed) <= source.num_hidden_layers


_TILED = {"position_type": "learned-extended", "position_init": "tile-skip-special"}
RECIPES: dict[str, Recipe] = {
    "untrained": Recipe(
        _TILED,
        True,
        "the level of reading in chunks of the source's length, without training: -0.1 % of loss (95 %: -0.5 to +0.2)",
    ),
    "short-training": Recipe(
        _TILED,
        True,
        "chunk level before the first step, so that every step is gain: -14 % of loss after 200 steps in a domain of "
        "long documents with masking=retrieval-aware, of which 3.9 % is long context (the window alone and plain "
        "masking: 1.4 %). Every third layer begins closed, and learns to look past the window",
        closed="every 3rd",
    ),
    "long-training": Recipe(
        {"position_type": "hierarchical", "hierarchical_alpha": 0.4},
        False,
        "nothing usable before training (+132 % of loss); +35 % after 100 steps of 4,096 tokens, +10 % after "
        "500, or +7 % if the rate falls to zero; a BERT-tiny was at chunk level after 1,000. Only where every token "
        "must see every other",
    ),
}
DEFAULT_RECIPE = "untrained"


def extend(
    source: str | Path,
    out: str | Path,
    *,
    max_positions: int,
    recipe: str | None = None,
    encoder_only: bool = False,
    tokenizer: str | None = None,
    with_code: bool = True,
    **config_overrides: Any,
) -> LongBertPreTrainedModel:
    """Extend a source to `max_positions` tokens and write it, with its tokenizer, into a folder that appears whole or
    not at all.

    Args:
        source: a folder, a Hub id, or `package://name/folder`.
        out: a new or empty folder.
        max_positions: tokens that the long model reaches.
        recipe: a key of `RECIPES`; by default `untrained`, and for a longbert model what it has.
        encoder_only: leave the source's head out.
        tokenizer: a folder or Hub id, where the source has none.
        with_code: write the modeling files too, so that the folder loads without longbert (`trust_remote_code=True`);
            where longbert is imported, its own code is used.
        config_overrides: fields of `LongBertConfig`, which override the recipe's.

    Raises:
        FileExistsError: there is something in `out`.
        ValueError: the source cannot be extended so; nothing is written.
    """
    refuse_occupied(out)
    if "max_position_embeddings" in config_overrides:
        raise ValueError("max_positions and max_position_embeddings are one setting: pass max_positions only")
    path = find_source(source)
    settings = extension_settings(path, recipe, config_overrides)
    arrived = load_long(source, encoder_only, max_position_embeddings=max_positions, **settings)
    model = arrived.model
    words = load_tokenizer(find_source(tokenizer or source), model.config)
    model.config.architectures = [type(model).__name__]
    for line in arrived.in_words():
        logger.warning(line)
    with written_aside(out) as folder:
        model.save_pretrained(folder)
        words.save_pretrained(folder)
        copy_sentence_modules(path, folder, model.config.max_position_embeddings)
        if not with_code:
            _drop_code(folder)
        write_card(folder, str(source), name=Path(out).name)
    return model


def extension_settings(path: str, recipe: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The fields of `LongBertConfig` that extend a checkpoint by a recipe, overridden by those that are given.

    Raises:
        ValueError: there is no such recipe.
    """
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
    name = recipe or default_recipe(path)
    return given if name is None else RECIPES[name].settings(LongBertConfig.from_pretrained(path), given)


def default_recipe(path: str) -> str | None:
    """`untrained` for a plain BERT; none for a longbert model, which keeps what it has."""
    return None if stated_config(path).get("model_type") == LongBertConfig.model_type else DEFAULT_RECIPE


def _drop_code(folder: Path) -> None:
    for file in folder.glob("*.py"):
        file.unlink()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    del config["auto_map"]
    (folder / "config.json").write_text(strict_json(dict(sorted(config.items()))), "utf-8")
