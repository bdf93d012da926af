"""Run a fine-tuned model over texts, and warn about those that are longer than it reads at once."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa
from seqeval.metrics.sequence_labeling import get_entities
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ...modeling_longbert import (
    LongBertForQuestionAnswering,
    LongBertForSequenceClassification,
    LongBertForTokenClassification,
    LongBertPreTrainedModel,
)
from ..examples.entities import OUTSIDE, to_iob2
from ..examples.labels import MULTI, REGRESSION, SINGLE
from ..examples.words import WORD_SPLITTERS
from ..strategies import STRATEGIES, Reader
from ..tasks.classification import Classification
from ..tasks.question_answering import QuestionAnswering
from ..tasks.task import Task
from ..tasks.token_classification import TokenClassification


logger = logging.get_logger(__name__)

MOST_WORDS = 0.95  # of the training words that are found again, below which a tagger is said to miss some
TEXTS_AT_ONCE = 256  # enough to put like lengths together, few enough that lines come early


@dataclass
class Predictor:
    """A task applied to unlabelled texts.

    Args:
        example: a text as the task's `tokenize` takes it.
        line: (text, one of the task's predictions) -> what is printed about the text.
        beyond: what is done with a text that is longer than the reach.
        prediction, scores: the types of these two of a line.
    """

    task: Task
    example: Callable[[str], dict[str, Any]]
    line: Callable[[str, dict[str, Any]], dict[str, Any]]
    beyond: str
    prediction: pa.DataType
    scores: pa.DataType

    @property
    def schema(self) -> pa.Schema:
        """The columns of the lines, the same for any texts."""
        return pa.schema(
            {
                "id": pa.string(),
                "prediction": self.prediction,
                "scores": self.scores,
                "tokens": pa.int64(),
                "read_at_once": pa.bool_(),
            }
        )


def predict_texts(
    model: LongBertPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[tuple[str, str]],
    question: str | None = None,
    at_once: int | None = None,
) -> Iterator[dict[str, Any]]:
    """For each (name, text): `id`, `prediction`, `scores`, `tokens`, and whether it was read at once.

    Args:
        question: what a question-answering model is asked of every text.
        at_once: tokens that are read at once; by default all that the model reaches.

    Raises:
        ValueError: an empty text, or a model that is not fine-tuned for a task that reads a text alone.
    """
    predictor = predictor_of(model, tokenizer, question)
    reach = at_once or model.config.max_position_embeddings
    reader = Reader(STRATEGIES["long"], reach, reach)
    remaining = iter(texts)
    while some := list(itertools.islice(remaining, TEXTS_AT_ONCE)):
        examples = [{"id": name, **predictor.example(text)} for name, text in some]
        tokenized = predictor.task.tokenize(datasets.Dataset.from_list(examples), reach)
        for name, tokens in zip(tokenized["id"], tokenized["length"], strict=True):
            if tokens > reach:
                logger.warning(f"{name} has {tokens} tokens, this model reaches {reach}: {predictor.beyond}")
        predictions = predictor.task.predict(model, tokenized, reader)
        for (name, text), tokens, prediction in zip(some, tokenized["length"], predictions, strict=True):
            yield {"id": name, **predictor.line(text, prediction), "tokens": tokens, "read_at_once": tokens <= reach}


def predictor_of(
    model: LongBertPreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str | None = None
) -> Predictor:
    """How a model is applied to texts, by its class.

    Raises:
        ValueError: it is not fine-tuned for a task that reads a text alone, or a question is missing.
    """
    labels = [model.config.id2label[number] for number in range(model.config.num_labels)]
    settings = model.config.task_settings or {}
    if isinstance(model, LongBertForSequenceClassification):
        return _classifying(tokenizer, labels, model.config.problem_type or SINGLE)
    if isinstance(model, LongBertForTokenClassification):
        return _labelling(tokenizer, labels, settings)
    if isinstance(model, LongBertForQuestionAnswering):
        if not question:
            raise ValueError("a question-answering model needs a question: --question '...'")
        return _answering(tokenizer, question, settings)
    raise ValueError(
        f"this needs a model that is fine-tuned to classify texts, label words or answer questions, got a "
        f"{type(model).__name__}"
    )


def _classifying(tokenizer: PreTrainedTokenizerBase, labels: list[str], problem_type: str) -> Predictor:
    task = Classification(tokenizer, labels, problem_type)
    unknown: dict[str, Any] = {REGRESSION: "0", SINGLE: labels[0], MULTI: []}

    def line(text: str, prediction: dict[str, Any]) -> dict[str, Any]:
        return {"prediction": task.named(prediction["prediction"]), "scores": prediction["scores"]}

    found = {REGRESSION: pa.float64(), SINGLE: pa.string(), MULTI: pa.list_(pa.string())}[problem_type]
    scores = pa.struct(dict.fromkeys(["value"] if problem_type == REGRESSION else labels, pa.float64()))

    def example(text: str) -> dict[str, Any]:
        return {"text": text, "label": unknown[problem_type]}

    return Predictor(task, example, line, "the rest is not read", found, scores)


def _labelling(tokenizer: PreTrainedTokenizerBase, labels: list[str], settings: dict[str, Any]) -> Predictor:
    """Texts are split into words as the training data was; where that is not known, at spaces and punctuation."""
    unread = OUTSIDE if OUTSIDE in labels else labels[0]
    task = TokenClassification(tokenizer, labels, unread, scheme="", **settings)
    spans = WORD_SPLITTERS[task.word_splitter]
    if task.words_found < MOST_WORDS:
        logger.warning(
            f"texts are split at {task.word_splitter}, which finds {task.words_found:.1%} of the words that this "
            "model was trained on: expect it to miss the others, or train it on words that are split so"
        )

    def example(text: str) -> dict[str, Any]:
        words = [text[start:end] for start, end in spans(text)]
        return {"words": words, "labels": [task.unread] * len(words)}

    def line(text: str, prediction: dict[str, Any]) -> dict[str, Any]:
        places, found = spans(text), prediction["prediction"]
        marked = get_entities(to_iob2(found)) if task.entities else [(label, n, n) for n, label in enumerate(found)]
        named = []
        for label, first, last in marked:
            start, end = places[first][0], places[last][1]
            named.append({"label": label, "text": text[start:end], "start": start, "end": end})
        return {"prediction": named, "scores": prediction["scores"]}

    found = {"label": pa.string(), "text": pa.string(), "start": pa.int64(), "end": pa.int64()}
    return Predictor(task, example, line, "it is read in pieces", pa.list_(pa.struct(found)), pa.list_(pa.float64()))


def _answering(tokenizer: PreTrainedTokenizerBase, question: str, settings: dict[str, Any]) -> Predictor:
    task = QuestionAnswering(tokenizer, **settings)

    def example(text: str) -> dict[str, Any]:
        return {"question": question, "context": text, "answers": {"text": [], "answer_start": []}}

    def line(text: str, prediction: dict[str, Any]) -> dict[str, Any]:
        return {"prediction": prediction["prediction"], "scores": prediction["scores"]}

    span = pa.struct({"text": pa.string(), "score": pa.float64(), "answer_start": pa.int64()})
    scores = pa.struct({"no answer": pa.float64(), "n_best": pa.list_(span)})
    return Predictor(task, example, line, "it is read in pieces", pa.string(), scores)
