"""A long encoder inside other models, and classes built on ours: what is saved is what is loaded, and a plain BERT is
transplanted into each."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import LONG, TINY, TYPES, N, assert_equal, batch, bert_class, every_type, extended, outputs, table
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    EncoderDecoderModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    RobertaPreTrainedModel,
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


class WithArguments(LongBertPreTrainedModel):
    """A constructor that takes something of its own."""

    def __init__(self, config, labels, scale=1.0):
        super().__init__(config)
        self.encoder = LongBertModel(config)
        self.score = nn.Linear(config.hidden_size, labels)
        self.scale = scale
        self.post_init()


class WithAdapters(LongBertForMaskedLM):
    """Something new inside the encoder."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.bert.encoder.layer:
            layer.adapter = nn.Linear(config.hidden_size, config.hidden_size)
        self.bert.embeddings.turn_embeddings = nn.Embedding(3, config.hidden_size)
        self.post_init()


class OwnConfig(LongBertConfig):
    """A config of a user's, with a name of its own."""

    model_type = "of-a-user"
    colour: str = "red"


class WithOwnConfig(LongBertForMaskedLM):
    """A class that is built from it."""

    config_class = OwnConfig


def named(attribute: str) -> type:
    """A class whose encoder has a name that means something elsewhere."""

    def init(self, config):
        LongBertPreTrainedModel.__init__(self, config)
        setattr(self, attribute, LongBertModel(config))
        self.post_init()

    return type(f"Named_{attribute}", (LongBertPreTrainedModel,), {"__init__": init})


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


ATTRIBUTES = ["roberta", "electra", "distilbert", "encoder", "embeddings", "pooler", "module", "model"]


@pytest.mark.parametrize("attribute", ATTRIBUTES)
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM"])
def test_an_encoder_may_have_any_name(head, attribute, bert, tmp_path):
    model_class = named(attribute)
    folder = bert(head)
    model = model_class.from_pretrained(folder, **TYPES["learned-extended"])
    expected = extended(folder, "Model", TYPES["learned-extended"], add_pooling_layer=False)
    inputs = batch(LONG)
    said = outputs(getattr(model, attribute).eval(), **inputs)["last_hidden_state"]
    assert_equal(said, outputs(expected, **inputs)["last_hidden_state"])
    randomised(model).save_pretrained(tmp_path)
    assert_equal(model_class.from_pretrained(tmp_path).state_dict(), model.state_dict())


@pytest.mark.parametrize("arguments", [((3,), {}), ((), {"labels": 3}), ((), {"labels": 3, "scale": 2.0})], ids=str)
def test_a_constructor_may_take_arguments(arguments, bert):
    positional, by_name = arguments
    config = encoder_config(bert, TYPES["hierarchical"])
    model = WithArguments.from_pretrained(bert(), *positional, config=config, **by_name)
    assert (model.score.out_features, model.scale) == (3, by_name.get("scale", 1.0))
    assert_equal(model.encoder.position_table(N), extended(bert(), "Model", {}).position_table())


def test_what_a_class_adds_inside_its_encoder_is_new(bert):
    model, info = WithAdapters.from_pretrained(bert(), **TYPES["learned-extended"], output_loading_info=True)
    news = {key for key in info["missing_keys"] if "adapter" in key or "turn" in key}
    assert len(news) == 5 and news == set(info["missing_keys"])
    assert_equal(model.position_table(N), extended(bert(), "Model", {}).position_table())


def test_a_config_of_a_users_own_is_read_saved_and_read_again(bert, tmp_path):
    model = WithOwnConfig.from_pretrained(bert("ForMaskedLM"), max_position_embeddings=LONG)
    assert (type(model.config), model.config.attention_window) == (OwnConfig, N)
    model.save_pretrained(tmp_path)
    again = WithOwnConfig.from_pretrained(tmp_path, max_position_embeddings=2 * LONG)
    assert (again.config.model_type, again.config.pretrained_positions) == ("of-a-user", N)
    assert_equal(again.position_table(LONG), model.position_table())


class Unlike(LongBertPreTrainedModel):
    """Two encoders of different depth, the shallow one first."""

    def __init__(self, config):
        super().__init__(config)
        shallow = copy.deepcopy(config)
        shallow.num_hidden_layers = 1
        self.shallow, self.deep = LongBertModel(shallow), LongBertModel(config)
        self.post_init()


def test_one_source_for_encoders_of_different_sizes_is_refused(bert):
    with pytest.raises(ValueError, match="is of another size: load each from a source of its own"):
        Unlike.from_pretrained(bert(), config=encoder_config(bert, TYPES["hierarchical"]))


def test_one_weight_that_is_missing_replaces_no_encoder(bert, tmp_path):
    randomised(Twice(encoder_config(bert, TYPES["hierarchical"]))).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["bert_of_documents.embeddings.word_embeddings.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match="weights 1 did not arrive .bert_of_documents.embeddings.word"):
        Twice.from_pretrained(tmp_path)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_two_encoders_of_another_family_are_transplanted_each(prefix, bert, tmp_path):
    class TwoRobertas(RobertaPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.bert_of_queries, self.bert_of_documents = RobertaModel(config), RobertaModel(config)
            self.post_init()

    sizes = TINY | {"max_position_embeddings": N + 2, "type_vocab_size": 1, "pad_token_id": 1}
    source = randomised(TwoRobertas(RobertaConfig(**sizes)))
    source.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({prefix + name: weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    model = Twice.from_pretrained(tmp_path, max_position_embeddings=LONG)
    inputs = {"input_ids": batch(N)["input_ids"].clamp(min=2)}
    for name in ("bert_of_queries", "bert_of_documents"):
        ours, theirs = (outputs(getattr(each, name).eval(), **inputs) for each in (model, source))
        assert_equal(ours["last_hidden_state"], theirs["last_hidden_state"])


def test_an_encoder_that_did_not_arrive_is_an_error(bert, tmp_path):
    model = randomised(Twice(encoder_config(bert, TYPES["hierarchical"])))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="did not arrive .*bert_of_documents.* fit nowhere"):
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
