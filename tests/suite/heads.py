"""transformers' own tests over every head, for the position type whose settings the environment holds.

Not collected by its name: `tests/transformers_suite.py` runs it where the package `tests` is transformers', not ours.
"""

import json
import os
import unittest
from typing import Any

import torch
from conftest import HEADS, auto_class, long_class, tiny_config
from suite.pipelines import TASKS
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask
from tests.test_pipeline_mixin import PipelineTesterMixin
from tests.test_training_mixin import TrainingTesterMixin
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter

from longbert import LongBertConfig, LongBertModel
from longbert.families import POSITIONS
from longbert.transplant import Transplant, register_transplant


SETTINGS = json.loads(os.environ["LONGBERT_SETTINGS"])

# The mixins know a head by the name of its class in transformers' own lists, to which `AutoModel.register` adds none
for head in HEADS:
    auto_class(head)._model_mapping._model_mapping[LongBertConfig.model_type] = long_class(head).__name__


class ModelTester:
    """What the mixins ask about the models: a tiny config, and inputs past the source's table wherever possible."""

    base_model_class = LongBertModel
    batch_size = 4
    num_choices = 3

    def __init__(self, is_training: bool):
        config = self.get_config()
        self.is_training = is_training
        self.seq_length = min(24, config.max_position_embeddings)
        self.hidden_size = config.hidden_size
        self.num_hidden_layers = config.num_hidden_layers
        self.num_attention_heads = config.num_attention_heads

    def get_config(self) -> LongBertConfig:
        return tiny_config(**SETTINGS)

    def prepare_config_and_inputs_for_common(self) -> tuple[LongBertConfig, dict[str, torch.Tensor]]:
        config, shape = self.get_config(), (self.batch_size, self.seq_length)
        inputs = {
            "input_ids": ids_tensor(shape, config.vocab_size),
            "token_type_ids": ids_tensor(shape, config.type_vocab_size),
            "attention_mask": random_attention_mask(shape),
        }
        return config, inputs


class Judged(ModelTesterMixin, TrainingTesterMixin, PipelineTesterMixin):
    """The tests of one head."""

    head: str
    model_tester = None
    test_resize_position_embeddings = True
    test_can_init_all_missing_weights_before_2023 = True
    training_overfit_batch_size = ModelTester.batch_size

    def setUp(self) -> None:
        model_class = long_class(self.head)
        self.all_model_classes = (model_class,)
        self.pipeline_model_mapping = dict.fromkeys(TASKS.get(self.head, []), model_class)
        self.model_tester = ModelTester(is_training=self.head != "Model")  # a bare encoder has no loss
        self.training_overfit_seq_length = self.model_tester.seq_length

    def test_config(self) -> None:
        ConfigTester(self, config_class=LongBertConfig, **SETTINGS).run_common_tests()

    def test_resize_position_vector_embeddings(self) -> None:
        if SETTINGS["position_type"] != "learned-extended":
            self.skipTest("it expects a longer table to have more rows, which is what learned-extended is")
        super().test_resize_position_vector_embeddings()

    def test_sdpa_can_dispatch_non_composite_models(self) -> None:
        self.skipTest("it expects sdpa where nothing was asked for; our default is our own attention, sdpa on request")

    def test_reverse_loading_mapping(self) -> None:
        # it wants each name of a conversion in what is saved, and nothing is saved under the names of another family
        for name in (long_class(self.head).__name__, "LongBertModel"):
            own = WeightConverter(POSITIONS, POSITIONS, operations=[Transplant()])
            register_checkpoint_conversion_mapping(name, [own], overwrite=True)
            self.addCleanup(register_transplant, name)
        super().test_reverse_loading_mapping(check_keys_were_modified=False)  # a transplant changes values

    def test_model_weights_reload_no_missing_tied_weights(self) -> None:
        self.skipTest("it loads a file that holds no weight of the model, which is refused here: no encoder arrived")

    def run_task_tests(self, task: str, **kwargs: Any) -> None:
        if task not in self.pipeline_model_mapping:
            self.skipTest("a pipeline of another head, modality or of decoders")
        super().run_task_tests(task, **kwargs)

    def _prepare_for_class(
        self, inputs_dict: dict[str, torch.Tensor], model_class: type, return_labels: bool = False
    ) -> dict[str, torch.Tensor]:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and self.head == "ForPreTraining":  # of which the mixin knows only images
            inputs["labels"] = torch.zeros_like(inputs["input_ids"])
            inputs["next_sentence_label"] = torch.zeros(self.model_tester.batch_size, dtype=torch.long)
        return inputs

    def _create_text_training_batch(self, *args: int, **kwargs: int) -> dict[str, torch.Tensor]:
        batch = super()._create_text_training_batch(*args, **kwargs)
        inputs = self._prepare_for_class({"input_ids": batch["input_ids"]}, long_class(self.head), return_labels=True)
        if self.head in ("ForPreTraining", "ForMaskedLM"):
            inputs["labels"] = batch["labels"]
        if self.head == "ForMultipleChoice":  # the mixin's choices are all equal, so none could be learned
            inputs["input_ids"][:, 1] = inputs["input_ids"][:, 1].flip(-1)
        return inputs


for head in HEADS:
    globals()[f"Test{head}"] = type(f"Test{head}", (Judged, unittest.TestCase), {"head": head})
