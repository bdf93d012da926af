"""A long encoder inside other models, and classes built on ours: what is saved is what is loaded, and a plain BERT is
transplanted into each."""

from pathlib import Path

import pytest
import torch
from conftest import LONG, TINY, TYPES, N, assert_equal, batch, bert_class, every_type, extended, outputs, table
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    EncoderDecoderModel,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTModel,
)

from longbert import (
    LongBertConfig,
    LongBertForMaskedLM,
    LongBertForSequenceClassification,
    LongBertModel,
    LongBertPreTrainedModel,
)


# Classes of a user's


class Renamed(LongBertModel):
    """A subclass of an encoder."""


class WithHead(LongBertForMaskedLM):
    """A subclass of a head, with something added."""

    def __init__(self, config):
        super().__init__(config)
        self.extra = nn.Linear(config.hidden_size, 2)
        self.post_init()


class Classifier(LongBertPreTrainedModel):
    """transformers' usual pattern."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = LongBertModel(config, add_pooling_layer=False)
        self.score = nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, input_ids, labels=None, **kwargs):
        return self.score(self.bert(input_ids, **kwargs).last_hidden_state[:, 0])


class Elsewhere(LongBertPreTrainedModel):
    """The encoder under a name of its own."""

    def __init__(self, config):
        super().__init__(config)
        self.text_tower = LongBertModel(config)
        self.projection = nn.Linear(config.hidden_size, 4)
        self.post_init()


class NamedElsewhere(Elsewhere):
    """The same, told to transformers."""

    base_model_prefix = "text_tower"


class Twice(LongBertPreTrainedModel):
    """Two encoders, whose names begin as transformers' prefix does."""

    def __init__(self, config):
        super().__init__(config)
        self.bert_of_queries = LongBertModel(config)
        self.bert_of_documents = LongBertModel(config)
        self.post_init()


class Foreign(PreTrainedModel):
    """A class of transformers' alone around two of ours."""

    config_class = LongBertConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model_a = LongBertModel(config)
        self.inner = nn.ModuleDict({"b": LongBertForSequenceClassification(config)})
        self.post_init()

    def _init_weights(self, module):
        pass


OURS = [Renamed, WithHead, Classifier, Elsewhere, NamedElsewhere, Twice]
every_class = pytest.mark.parametrize("model_class", OURS, ids=lambda each: each.__name__)


def encoders(model: nn.Module) -> list[LongBertModel]:
    return [module for module in model.modules() if isinstance(module, LongBertModel)]


def randomised(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def encoder_config(bert, settings) -> LongBertConfig:
    return LongBertConfig.from_pretrained(bert(), **settings)


@every_class
@every_type
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM", "ForPreTraining"])
def test_a_plain_bert_is_transplanted_into_a_users_class(head, settings, model_class, bert):
    folder = bert(head)
    config = LongBertConfig.from_pretrained(folder, **settings)
    model, info = model_class.from_pretrained(folder, config=config, output_loading_info=True)
    expected = extended(folder, "Model", settings, add_pooling_layer=False).state_dict()
    for encoder in encoders(model):
        arrived = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("pooler.")}
        assert_equal(arrived, expected)
    assert not [name for name in info["missing_keys"] if "embeddings" in name or "encoder.layer" in name]


@pytest.mark.parametrize("model_class", [*OURS, Foreign], ids=lambda each: each.__name__)
@every_type
def test_a_users_class_is_saved_and_loaded(settings, model_class, bert, tmp_path):
    model = randomised(model_class(encoder_config(bert, settings)))
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) <= set(model.state_dict())
    again, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_equal(again.state_dict(), model.state_dict())
    again.save_pretrained(tmp_path / "again")
    assert_equal(load_file(tmp_path / "again" / "model.safetensors"), load_file(tmp_path / "model.safetensors"))
    fresh = model_class(model.config)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert_equal(fresh.state_dict(), model.state_dict())


@every_class
def test_a_users_class_is_taken_further(model_class, bert, tmp_path):
    model = randomised(model_class(encoder_config(bert, TYPES["learned-extended"])))
    model.save_pretrained(tmp_path)
    further = model_class.from_pretrained(tmp_path, max_position_embeddings=100)
    model.resize_position_embeddings(100)
    assert_equal(further.state_dict(), model.state_dict())
    assert further.config.max_position_embeddings == model.config.max_position_embeddings == 100


@every_class
def test_a_trainers_checkpoint_is_what_was_trained(model_class, bert, tmp_path):
    model = randomised(model_class(encoder_config(bert, TYPES["hierarchical"])))
    trainer = Trainer(model, TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    trainer.save_model(tmp_path / "checkpoint")
    assert_equal(model_class.from_pretrained(tmp_path / "checkpoint").state_dict(), model.state_dict())


def test_an_encoder_that_did_not_arrive_is_an_error(bert, tmp_path):
    model = randomised(Twice(encoder_config(bert, TYPES["hierarchical"])))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="weights of the encoder did not arrive .*bert_of_documents.* fit nowhere"):
        LongBertModel.from_pretrained(tmp_path)


def test_positions_of_a_class_with_two_encoders_are_asked_of_each(bert):
    model = Twice(encoder_config(bert, TYPES["hierarchical"]))
    with pytest.raises(ValueError, match="Twice has 2 long encoders.*model.long_encoders"):
        model.get_position_embeddings()
    assert len({id(each.get_position_embeddings()) for each in model.long_encoders()}) == 2


# transformers' own composite models


def decoder(bert) -> Path:
    return bert("Model", is_decoder=True, add_cross_attention=True)


def in_an_encoder_decoder(bert, config: LongBertConfig, tmp_path: Path) -> EncoderDecoderModel:
    return EncoderDecoderModel.from_encoder_decoder_pretrained(
        str(bert()), str(bert()), encoder_config=config, decoder_is_decoder=True, decoder_add_cross_attention=True
    )


def in_a_dual_encoder(bert, config: LongBertConfig, tmp_path: Path) -> VisionTextDualEncoderModel:
    sizes = {name: TINY[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    vision = ViTModel(ViTConfig(**sizes, intermediate_size=64, image_size=8, patch_size=4))
    return VisionTextDualEncoderModel(
        vision_model=vision, text_model=LongBertModel.from_pretrained(bert(), config=config)
    )


COMPOSITES = {"encoder-decoder": in_an_encoder_decoder, "dual encoder": in_a_dual_encoder}


@table("build", COMPOSITES)
@every_type
def test_a_composite_model_is_transplanted_saved_and_loaded(settings, build, bert, tmp_path):
    config = LongBertConfig.from_pretrained(bert(), **settings)
    model = build(bert, config, tmp_path)
    (encoder,) = encoders(model)
    assert_equal(encoder.position_table(), extended(bert(), "Model", settings).position_table())
    randomised(model)
    model.save_pretrained(tmp_path / "composite")
    written = load_file(tmp_path / "composite" / "model.safetensors")
    assert {name for name in written if name.startswith(("encoder.", "text_model."))} <= set(model.state_dict())
    again, info = type(model).from_pretrained(tmp_path / "composite", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_equal(again.state_dict(), model.state_dict())
    trainer = Trainer(model, TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    trainer.save_model(tmp_path / "checkpoint")
    assert_equal(type(model).from_pretrained(tmp_path / "checkpoint").state_dict(), model.state_dict())
    again.save_pretrained(tmp_path / "again")
    assert_equal(load_file(tmp_path / "again" / "model.safetensors"), written)


@every_type
def test_a_long_folder_becomes_the_encoder_of_another_model(settings, bert, tmp_path):
    long = randomised(extended(bert(), "ForMaskedLM", settings))
    long.save_pretrained(tmp_path / "long")
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(str(tmp_path / "long"), str(bert()))
    model.save_pretrained(tmp_path / "composite")
    again = EncoderDecoderModel.from_pretrained(tmp_path / "composite").eval()
    inputs = batch(N if settings["position_type"] == "learned" else LONG)
    expected = outputs(AutoModel.from_pretrained(tmp_path / "long"), **inputs)["last_hidden_state"]
    assert_equal(outputs(again.encoder, **inputs)["last_hidden_state"], expected)


def test_a_plain_bert_beside_a_long_one_stays_as_it_is(bert, tmp_path):
    class Both(LongBertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.long = LongBertModel(config)
            self.short = BertModel(BertConfig(**TINY))
            self.post_init()

    model = randomised(Both(encoder_config(bert, TYPES["learned-extended"])))
    assert type(model.short) is BertModel
    model.save_pretrained(tmp_path)
    assert_equal(Both.from_pretrained(tmp_path).state_dict(), model.state_dict())


def test_a_subclass_with_labels_keeps_them(bert, tmp_path):
    class Mine(LongBertForSequenceClassification):
        pass

    config = LongBertConfig.from_pretrained(bert("ForSequenceClassification"), max_position_embeddings=LONG)
    model = Mine.from_pretrained(bert("ForSequenceClassification"), config=config)
    plain = bert_class("ForSequenceClassification").from_pretrained(bert("ForSequenceClassification"))
    assert_equal(outputs(model, **batch(N))["logits"], outputs(plain, **batch(N))["logits"])
