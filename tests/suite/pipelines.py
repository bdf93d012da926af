"""What transformers' pipeline tests need and its source package lacks: tiny models on disk, and the tests' bodies."""

import itertools
import json
from pathlib import Path
from typing import Any

from conftest import long_class, tiny_config
from transformers import BertTokenizer, Pipeline, pipeline


TASKS = {
    "Model": ["feature-extraction"],
    "ForMaskedLM": ["fill-mask"],
    "ForSequenceClassification": ["text-classification", "zero-shot"],
    "ForTokenClassification": ["token-classification"],
}
KEYS = {
    "fill-mask": {"score", "token", "token_str", "sequence"},
    "text-classification": {"label", "score"},
    "zero-shot": {"sequence", "labels", "scores"},
    "token-classification": {"entity", "score", "index", "word", "start", "end"},
}
WORDS = ["this", "example", "is", "about", "ships", "and", "storms", "far", "from", "land", "."]


def save_models(settings: dict[str, Any], folder: Path) -> None:
    """Write a tiny model for every task, laid out as transformers' `TRANSFORMERS_TINY_MODEL_PATH` is to be."""
    config = tiny_config(**settings)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(
        vocab={word: index for index, word in enumerate(vocabulary)}, model_max_length=config.max_position_embeddings
    )
    summary = {}
    for head in TASKS:
        name = long_class(head).__name__
        long_class(head)(config).save_pretrained(folder / config.model_type / name)
        tokenizer.save_pretrained(folder / config.model_type / name)
        summary[name] = {"tokenizer_classes": ["BertTokenizer"], "processor_classes": []}
    (folder / "reports").mkdir(exist_ok=True)
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))


class PipelineTests:
    """Base of what stands for transformers' own class of each task; `task` is its name there."""

    task: str

    def get_test_pipeline(self, model: Any, tokenizer: Any, **kwargs: Any) -> tuple[Pipeline, list[str]]:
        """A pipeline, and two texts for it, one of them as long as the model reaches."""
        task = self.task
        if task == "zero-shot":
            task, kwargs = "zero-shot-classification", {**kwargs, "candidate_labels": ["ships", "storms"]}
        first = ["[MASK]"] if task == "fill-mask" else WORDS[:1]
        longest = model.config.max_position_embeddings - 2  # [CLS] and [SEP]
        texts = [" ".join(itertools.islice(itertools.chain(first, itertools.cycle(WORDS)), n)) for n in (5, longest)]
        return pipeline(task, model=model, tokenizer=tokenizer, **kwargs), texts

    def run_pipeline_test(self, pipe: Pipeline, examples: list[str]) -> None:
        """Every text's result has the task's documented form."""
        for text, result in zip(examples, pipe(examples), strict=True):
            if self.task == "feature-extraction":
                tokens = len(pipe.tokenizer(text).input_ids)
                assert [len(vector) for vector in result[0]] == [pipe.model.config.hidden_size] * tokens
            else:
                answers = result if isinstance(result, list) else [result]
                assert answers and all(KEYS[self.task] <= answer.keys() for answer in answers)
