"""Law 2: whichever way a BERT comes in, its rows arrive bit for bit, nothing is lost, a wrong source is refused."""

import shutil

import pytest
import torch
from conftest import (
    KEEPING,
    LONG,
    REAL,
    TYPES,
    N,
    assert_equal,
    auto_class,
    bert_class,
    every_dtype,
    every_head,
    extended,
    long_class,
    real,
    table,
    tiny_config,
)
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel
from transformers.utils.logging import warning_once

from longbert import LongBertConfig, LongBertForMaskedLM, LongBertModel, extend_table


ROWS = "embeddings.position_embeddings.weight"
LONGER = {name: settings for name, settings in TYPES.items() if name in ("learned-extended", "hierarchical")}
every_longer = table("settings", LONGER)


def stored_rows(folder) -> torch.Tensor:
    """The position table in a folder's weights, whatever its prefix."""
    (rows,) = (tensor for key, tensor in load_file(folder / "model.safetensors").items() if key.endswith(ROWS))
    return rows


def assert_arrived(model, rows: torch.Tensor) -> None:
    assert_equal(model.position_table(len(rows)), rows)
    heads = model.get_output_embeddings()
    if heads is not None:
        assert heads.weight is model.get_input_embeddings().weight
        assert heads.bias is model.cls.predictions.bias


# The ways in


@every_longer
@pytest.mark.parametrize("source", ["Model", "ForPreTraining", "ForMaskedLM"])
@every_head
def test_every_head_from_every_source(head, source, settings, bert):
    folder = bert(source)
    plain, of_plain = bert_class(head).from_pretrained(folder, output_loading_info=True)
    config = LongBertConfig.from_pretrained(folder, **settings)
    for loader in (long_class(head), auto_class(head)):
        model, info = loader.from_pretrained(folder, config=config, output_loading_info=True)
        assert type(model) is long_class(head)
        assert info == of_plain
        assert_arrived(model, stored_rows(folder))
        arrived, theirs = model.state_dict(), plain.state_dict()
        assert arrived.keys() == theirs.keys()
        kept = arrived.keys() - info["missing_keys"] - {model.base_model_prefix + "." + ROWS, ROWS}
        assert_equal({key: arrived[key] for key in kept}, {key: theirs[key] for key in kept})


@pytest.mark.parametrize("head", ["Model", "ForMaskedLM", "ForSequenceClassification"])
@pytest.mark.parametrize("name", REAL)
def test_real_checkpoints(name, head):
    plain, of_plain = bert_class(head).from_pretrained(real(name), output_loading_info=True)
    settings = TYPES["learned-extended"] | {"max_position_embeddings": 2048}
    model, info = extended(real(name), head, settings, output_loading_info=True)
    assert info == of_plain
    assert_arrived(model, plain.base_model.embeddings.position_embeddings.weight.detach())


def as_sharded(model, folder) -> None:
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2


def as_bin(model, folder) -> None:
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def as_half(model, folder) -> None:
    model.half().save_pretrained(folder)


@pytest.mark.parametrize("head", ["Model", "ForMaskedLM"])
@every_longer
@pytest.mark.parametrize("write", [as_sharded, as_bin, as_half])
def test_every_format(write, settings, head, bert, tmp_path):
    plain = BertForMaskedLM.from_pretrained(bert("ForMaskedLM"))
    write(plain, tmp_path)
    model = extended(tmp_path, head, settings)
    assert_arrived(model, plain.bert.embeddings.position_embeddings.weight.detach())


@every_longer
@every_dtype
def test_every_dtype(dtype, settings, bert, source_rows):
    assert_arrived(extended(bert(), "ForMaskedLM", settings, dtype=dtype), source_rows.to(dtype))


@every_longer
@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"], ids=str)
def test_every_device_map(device_map, settings, bert, source_rows):
    assert_arrived(extended(bert(), "ForMaskedLM", settings, device_map=device_map), source_rows)


@every_longer
def test_a_state_dict_in_memory(settings, bert, source_rows):
    weights = load_file(bert() / "model.safetensors")
    config = LongBertConfig.from_pretrained(bert(), **settings)
    assert_arrived(LongBertForMaskedLM.from_pretrained(None, config=config, state_dict=weights), source_rows)


def test_settings_given_to_from_pretrained_itself(bert, source_rows):
    model = LongBertForMaskedLM.from_pretrained(bert(), **TYPES["hierarchical"])
    assert model.config.max_position_embeddings == LONG
    assert_arrived(model, source_rows)


def test_without_any_setting_the_model_is_as_long_as_its_source(bert, source_rows):
    model = LongBertForMaskedLM.from_pretrained(bert())
    assert_equal(model.position_table(), source_rows)


@table("settings", {name: settings for name, settings in KEEPING.items() if name != "learned-extended-random"})
def test_the_filled_rows_arrive_too(settings, bert, source_rows):
    model = extended(bert(), "Model", settings)
    stored = model.get_position_embeddings().weight.detach()
    is_extended = settings["position_type"] == "learned-extended"
    assert_equal(stored, extend_table(source_rows, LONG, model.config) if is_extended else source_rows)


@pytest.mark.parametrize("position_type", ["learned-extended", "hierarchical"])
@every_longer
def test_our_own_checkpoint_is_a_source(settings, position_type, bert, tmp_path):
    source = extended(bert(), "ForMaskedLM", settings)
    source.save_pretrained(tmp_path)
    rows = source.get_position_embeddings().weight.detach()
    further = {"position_type": position_type, "max_position_embeddings": 100}
    model = extended(tmp_path, "ForMaskedLM", further)
    assert_equal(model.position_table(len(rows)), rows)


# Wrong sources


def test_another_hidden_size_is_refused(bert):
    config = tiny_config(**TYPES["hierarchical"], hidden_size=16, num_attention_heads=1)
    with pytest.raises(ValueError, match=r"shape \(16, 32\), the config expects .* = \[16, 16\]: build it"):
        LongBertModel.from_pretrained(bert(), config=config)


@every_longer
@pytest.mark.parametrize("rows", [N - 4, N + 4], ids=["fewer", "more"])
@pytest.mark.parametrize("loader", [LongBertModel, AutoModel])
def test_another_number_of_rows_is_refused(loader, rows, settings, bert):
    config = tiny_config(**settings | {"pretrained_positions": rows})
    with pytest.raises(ValueError, match=rf"\(16, 32\).*\[{rows}, 32\].*LongBertConfig.from_pretrained\(source"):
        loader.from_pretrained(bert("Model"), config=config)


@every_longer
@pytest.mark.parametrize("way", ["folder", "state_dict"])
def test_weights_that_contradict_the_config_beside_them_are_refused(way, settings, bert, tmp_path):
    short = bert("Model", max_position_embeddings=N - 4) / "model.safetensors"
    shutil.copy(bert("Model") / "config.json", tmp_path)
    shutil.copy(short, tmp_path)
    source, weights = (tmp_path, None) if way == "folder" else (None, load_file(short))
    with pytest.raises(ValueError, match=r"of shape \(12, 32\), the config expects .* = \[16, 32\]: build it"):
        LongBertModel.from_pretrained(source, config=tiny_config(**settings), state_dict=weights)


@every_longer
def test_a_sinusoidal_source_has_no_rows_to_give(settings, bert, tmp_path):
    extended(bert(), "Model", TYPES["sinusoidal"]).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"'sinusoidal' and stores no position rows to make '{settings['position_type']}'"
    ):
        extended(tmp_path, "Model", settings)


def test_sinusoids_replace_a_learned_table_and_say_so(bert, logged):
    warning_once.cache_clear()
    _, info = extended(bert(), "ForPreTraining", TYPES["sinusoidal"], output_loading_info=True)
    assert not any(info.values())
    assert "knows no position until it is trained" in logged


# Memory


class LargestAllocation(TorchDispatchMode):
    """Bytes of the largest tensor that really takes memory."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and not leaf.is_meta]
        self.bytes = max([self.bytes, *(tensor.untyped_storage().nbytes() for tensor in tensors)])
        return result


def test_hierarchical_never_holds_the_whole_table(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # a dispatch mode sees its own thread only
    n, hidden_size, length = 512, 768, 512 * 512
    size = {"vocab_size": 100, "num_hidden_layers": 1, "intermediate_size": 64, "hidden_size": hidden_size}
    settings = {"position_type": "hierarchical", "max_position_embeddings": length}
    BertModel(BertConfig(**size)).save_pretrained(tmp_path)
    largest = LargestAllocation()
    with largest:
        from_scratch = LongBertModel(LongBertConfig(**size, **settings))
        transplanted = extended(tmp_path, "Model", settings)
        for model in (from_scratch, transplanted):
            assert model.get_position_embeddings().weight.shape == (n, hidden_size)
            model(torch.ones(1, 8, dtype=torch.long), position_ids=torch.arange(8)[None] + length - 8)
    buffer, square = 8 * length, 4 * hidden_size**2
    assert buffer <= largest.bytes <= max(buffer, square)
