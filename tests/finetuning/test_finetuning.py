"""Fine-tuning: what goes in is checked, metrics are right, every strategy learns what it can see, runs resume."""

import io
import json
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path

import evaluate
import numpy as np
import pytest
import yaml
from processes import ROOT, Divided, SignalAtStep, run
from safetensors.torch import load_file
from sentence_transformers import CrossEncoderTrainingArguments, SentenceTransformerTrainingArguments
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from longbert import (
    LongBertConfig,
    LongBertForMaskedLM,
    LongBertForQuestionAnswering,
    LongBertForSequenceClassification,
    LongBertForTokenClassification,
)
from longbert.arguments import ModelArguments, parse_config
from longbert.cli import main
from longbert.finetuning.examples.labels import infer_labels
from longbert.finetuning.examples.splits import make_splits
from longbert.finetuning.loop import FinetuningArguments
from longbert.finetuning.results import metrics
from longbert.finetuning.results.report import length_histogram
from longbert.finetuning.retrieval.collection import RetrievalArguments
from longbert.finetuning.retrieval.embedding import EmbeddingArguments
from longbert.finetuning.retrieval.reranking import RerankingArguments
from longbert.finetuning.strategies import STRATEGIES
from longbert.finetuning.tasks.classification import ClassificationArguments, read_documents
from longbert.finetuning.tasks.multiple_choice import MultipleChoiceArguments
from longbert.finetuning.tasks.question_answering import QuestionAnsweringArguments, read_questions
from longbert.finetuning.tasks.token_classification import TokenClassificationArguments


def finetune(script: str, file: Path, *overrides: str) -> tuple[int, str]:
    """The exit status and what was printed."""
    return run(f"finetune/{script}.py", file, *overrides)


# metrics


def test_metrics_are_evaluates_and_need_no_network():
    for metric in (
        metrics.SingleLabelMetric(),
        metrics.MultiLabelMetric(),
        metrics.RegressionMetric(),
        metrics.SpanMetric(),
        metrics.EntityMetric(),
    ):
        assert isinstance(metric, evaluate.Metric)


def test_single_label_figures():
    found = metrics.SingleLabelMetric().compute(predictions=[0, 1, 1, 2], references=[0, 1, 2, 2])
    assert found["accuracy"] == found["micro_f1"] == 0.75
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    # Gorodkin 2004, by hand: (c s - sum p t) / sqrt((s² - sum p²)(s² - sum t²)) with c=3, s=4, p=1,2,1, t=1,1,2
    assert found["mcc"] == pytest.approx((3 * 4 - 5) / np.sqrt((16 - 6) * (16 - 6)))


def test_multi_label_and_regression_figures():
    found = metrics.MultiLabelMetric().compute(predictions=[[1, 0], [1, 1]], references=[[1, 0], [0, 1]])
    assert found == {"macro_f1": pytest.approx((2 / 3 + 1) / 2), "micro_f1": pytest.approx(0.8), "accuracy": 0.5}
    found = metrics.RegressionMetric().compute(predictions=[1.0, 2.0, 3.0], references=[2.0, 4.0, 6.0])
    assert found == {"pearson": pytest.approx(1), "spearman": pytest.approx(1), "rmse": pytest.approx(np.sqrt(14 / 3))}


@pytest.mark.parametrize(
    ("metric", "predictions", "references"),
    [
        (metrics.SingleLabelMetric, [0, 1, 1, 2], [0, 1, 2, 2]),
        (metrics.ChoiceMetric, [0, 1, 1, 2], [0, 1, 2, 2]),
        (metrics.MultiLabelMetric, [[1, 0], [1, 1], [0, 0]], [[1, 0], [0, 1], [1, 0]]),
        (metrics.RegressionMetric, [1.0, 2.0, 4.0], [2.0, 5.0, 6.0]),
        (metrics.SpanMetric, ["a black cat", "x", ""], [["cat"], ["x", "y"], []]),
        (metrics.EntityMetric, [["B-A", "I-A"], ["O", "B-B"]], [["B-A", "O"], ["O", "B-B"]]),
        (metrics.WordMetric, [["x", "y"], ["x"]], [["x", "x"], ["x"]]),
        (metrics.RetrievalMetric, [["a", "b"], ["a", "b"]], [["a"], ["b"]]),
    ],
)
def test_what_is_measured_is_the_metric(metric, predictions, references):
    for places in ([*range(len(references))], [0, 0, 1]):
        some = {"predictions": [predictions[i] for i in places], "references": [references[i] for i in places]}
        measured = metric().measured(**some, units=places)[metric.primary]
        assert measured.value == pytest.approx(metric().compute(**some)[metric.primary])


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("The Cat.", ["cat"], 1, 1),
        ("a black cat", ["cat", "dog"], 0, 2 / 3),
        ("", [], 1, 1),
        ("something", [], 0, 0),
        ("", ["cat"], 0, 0),
    ],
)
def test_spans_are_scored_as_squads(prediction, answers, exact, f1):
    found = metrics.SpanMetric().compute(predictions=[prediction], references=[answers])
    assert found == {"exact_match": exact, "f1": pytest.approx(f1)}


def test_entities_count_as_a_whole():
    truth = [["B-PER", "I-PER", "O", "B-LOC"]]
    found = metrics.EntityMetric().compute(predictions=[["B-PER", "O", "O", "B-LOC"]], references=truth)
    assert (found["f1"], found["precision"], found["recall"], found["accuracy"]) == (0.5, 0.5, 0.5, 0.75)


# reading


def test_each_strategy_reads_what_it_says():
    ids = list(range(2000))
    assert STRATEGIES["truncate"].read(ids, 510) == STRATEGIES["long"].read(ids, 510) == [ids[:510]]
    assert STRATEGIES["head-tail"].read(ids, 510) == [ids[:128] + ids[-382:]]
    assert STRATEGIES["head-tail"].read(ids[:510], 510) == [ids[:510]]
    pieces = STRATEGIES["chunk-pool"].read(ids, 510)
    assert sum(pieces, []) == ids
    assert [len(piece) for piece in pieces] == [510, 510, 510, 470]


def test_the_histogram_counts_every_text():
    assert length_histogram([3, 512, 513, 1024, 5000], 512).splitlines()[1:] == [
        "      1 - 512          2",
        "    513 - 1,024        2",
        "  1,025 - 2,048        0",
        "  2,049 - 4,096        0",
        "  4,097 - 8,192        1",
    ]


# examples


def write(path: Path, examples: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(example) for example in examples))
    return path


def test_folds_test_every_example_once_and_keep_groups_together(tmp_path):
    examples = [{"text": f"t{i}", "label": i % 2, "by": i // 4} for i in range(60)]
    file = write(tmp_path / "x.jsonl", examples)
    arguments = ClassificationArguments(train_file=str(file), folds=5, group_column="by")
    splits = make_splits(arguments, lambda path: read_documents(path, arguments), lambda rows: rows["label"], seed=0)
    assert sorted(text for split in splits for text in split.test["text"]) == sorted(e["text"] for e in examples)
    for split in splits:
        groups = [set(part["group"]) for part in (split.train, split.validation, split.test)]
        assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]


def test_one_label_is_none():
    with pytest.raises(ValueError, match="at least two labels"):
        infer_labels(["a", "a"])


# classification


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "finetune").glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_config_can_be_resolved(file):
    (script,) = re.findall(r"accelerate launch --quiet finetune/(\w+)\.py", file.read_text())
    task = {
        "classification": ClassificationArguments,
        "question_answering": QuestionAnsweringArguments,
        "multiple_choice": MultipleChoiceArguments,
        "token_classification": TokenClassificationArguments,
        "embedding": RetrievalArguments,
        "reranking": RetrievalArguments,
    }[script]
    run_types = (FinetuningArguments, TrainingArguments)
    if script == "embedding":
        run_types = (EmbeddingArguments, SentenceTransformerTrainingArguments)
    if script == "reranking":
        run_types = (RerankingArguments, CrossEncoderTrainingArguments)
    model, _, run, args = parse_config([str(file)], ModelArguments, task, *run_types)
    assert model.max_position_embeddings > 512
    assert {"long", "truncate"} <= {*run.strategies}
    assert args.load_best_model_at_end


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """Documents of some 200 tokens whose label is a word near their end, past the source's 64 tokens."""
    folder = tmp_path_factory.mktemp("classification")
    draw = random.Random(0)
    words = ["state", "union", "people", "war", "peace", "law", "work", "year", "great", "land"]
    for split, number in (("train", 240), ("test", 60)):
        examples = []
        for index in range(number):
            text = draw.choices(words, k=180)
            label = ("yes", "no")[index % 2]
            text[draw.randint(100, 110) : 150] = [{"yes": "gold", "no": "iron"}[label]] * 40
            examples.append({"body": " ".join(text), "kind": label})
        write(folder / f"{split}.jsonl", examples)
    return folder


@pytest.fixture
def settings(desk, tiny_source, tmp_path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "model": str(tiny_source),
                "max_position_embeddings": 256,
                "train_file": str(desk / "train.jsonl"),
                "test_file": str(desk / "test.jsonl"),
                "text_column": "body",
                "label_column": "kind",
                "output_dir": str(tmp_path / "run"),
                "strategies": ["long", "truncate", "head-tail", "chunk-pool"],
                "num_train_epochs": 4,
                "per_device_train_batch_size": 8,
                "learning_rate": 5e-3,
                "eval_strategy": "epoch",
                "save_strategy": "epoch",
                "save_total_limit": 1,
                "load_best_model_at_end": True,
                "report_to": "none",
                "use_cpu": True,
            }
        )
    )
    return file


def test_who_sees_the_end_can_tell_and_who_does_not_cannot(desk, settings, tmp_path, capsys):
    status, printed = finetune("classification", settings)
    assert status == 0, printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["long"]["accuracy"] > 0.95
    assert results["chunk-pool"]["accuracy"] > 0.95
    assert results["head-tail"]["accuracy"] > 0.95
    assert results["truncate"]["accuracy"] < 0.75
    assert "tokens            texts" in printed
    assert (tmp_path / "run" / "results.md").read_text() in printed
    lines = (tmp_path / "run" / "long" / "seed-42" / "predictions" / "test.jsonl").read_text().splitlines()
    assert len(lines) == 60
    assert set(json.loads(lines[0])["scores"]) == {"yes", "no"}
    run_folder = tmp_path / "run" / "long" / "seed-42"
    (state,) = (
        json.loads(file.read_text()) for file in sorted(run_folder.glob("checkpoint-*/trainer_state.json"))[-1:]
    )
    best = Path(state["best_model_checkpoint"])
    assert (run_folder / "model.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()
    model = AutoModelForSequenceClassification.from_pretrained(run_folder)
    assert model.config.id2label == {0: "no", 1: "yes"}
    # predict takes the best that it reads as the run did, and says of each text what the run said
    assert main(["predict", str(tmp_path / "run"), str(desk / "test.jsonl"), "--text-column", "body"]) == 0
    said = capsys.readouterr()
    assert f"{run_folder} is taken: long has accuracy" in said.err and "the best of long, truncate" in said.err
    assert "head-tail is not offered" in said.err and "chunk-pool is not offered" in said.err
    for line, tested in zip(said.out.splitlines(), lines, strict=True):
        assert json.loads(line)["scores"] == pytest.approx(json.loads(tested)["scores"], abs=1e-5)
    # finished runs are kept
    status, printed = finetune("classification", settings, "resume=auto")
    assert status == 0, printed
    assert "epoch" not in printed
    assert (tmp_path / "run" / "results.md").read_text() in printed
    assert "already holds something" in finetune("classification", settings)[1]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["ddp", "fsdp2", "deepspeed-zero2"])
def test_two_processes_are_one(by, settings, still_source, tmp_path):
    """Also where they divide the model, and one of them was killed in its second strategy."""
    if by == "deepspeed-zero2":
        pytest.importorskip("deepspeed")
    changes = [f"model={still_source}", "strategies=[long,chunk-pool]", "num_train_epochs=1"]
    status, printed = finetune("classification", settings, *changes, f"output_dir={tmp_path / 'alone'}")
    assert status == 0, printed
    script, together = ("finetune/classification.py", settings), [*changes, "per_device_train_batch_size=4"]
    killed = Divided(by, then=SignalAtStep(signal.SIGKILL, step=40))
    status, printed = run(*script, *together, ranks=2, before=killed)
    assert status == -9, printed
    assert (tmp_path / "run" / "long" / "seed-42" / "predictions").is_dir()
    status, printed = run(*script, *together, "resume=auto", ranks=2, before=Divided(by))
    assert status == 0, printed
    for strategy in ("long", "chunk-pool"):
        found, expected = (tmp_path / name / strategy / "seed-42" for name in ("run", "alone"))
        assert (found / "config.json").read_text() == (expected / "config.json").read_text()
        assert load_file(found / "model.safetensors").keys() == load_file(expected / "model.safetensors").keys()
        lines, wanted = (
            [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]
            for folder in (found, expected)
        )
        for line, other in zip(lines, wanted, strict=True):
            assert line["id"] == other["id"]
            assert line["scores"] == pytest.approx(other["scores"], abs=1e-4)


@pytest.fixture
def fine_tuned(tiny_source, tmp_path) -> Callable[..., Path]:
    """The folder of a model with a head, its weights random, that reads 256 tokens."""

    def make(model_class: type, **settings) -> Path:
        config = LongBertConfig.from_pretrained(tiny_source, max_position_embeddings=256, **settings)
        model_class.from_pretrained(tiny_source, config=config).save_pretrained(tmp_path / "model")
        AutoTokenizer.from_pretrained(tiny_source).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


def test_predictions_of_files_and_of_standard_input(fine_tuned, tmp_path, capsys, caplog, monkeypatch):
    model = fine_tuned(LongBertForSequenceClassification, id2label={0: "no", 1: "yes"})
    texts = {"long": "state " * 100 + "gold " * 40, "longer": "iron " * 300}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    assert main(["predict", str(model), str(tmp_path / "*.txt")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["tokens"], line["read_at_once"]) for line in lines] == [(142, True), (302, False)]
    assert {line["prediction"] for line in lines} <= {"yes", "no"}
    assert "longer.txt has 302 tokens, this model reaches 256" in caplog.text
    monkeypatch.setattr("sys.stdin", io.StringIO(texts["long"]))
    assert main(["predict", str(model), "-"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == pytest.approx(lines[0]["scores"])


def test_words_of_a_text_past_the_reach_are_labelled_where_they_stand(fine_tuned, tmp_path, capsys):
    labels = {0: "B-METAL", 1: "I-METAL"}  # a random model that could say O might say nothing else
    model = fine_tuned(LongBertForTokenClassification, id2label=labels)
    text = "Iron, steel; gold. " * 100
    (tmp_path / "text.txt").write_text(text)
    assert main(["predict", str(model), str(tmp_path / "text.txt")]) == 0
    line = json.loads(capsys.readouterr().out)
    assert not line["read_at_once"]
    assert len(line["scores"]) == 600
    assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in line["prediction"])
    assert sum(len(re.findall(r"\w+|[^\w\s]", entity["text"])) for entity in line["prediction"]) == 600


@pytest.mark.parametrize(
    ("splitter", "words"),
    [
        ("characters", [*"三国演义是", "AI", *"小说。"]),
        ("punctuation", ["三国演义是AI小说", "。"]),
        ("spaces", ["三国演义是AI小说。"]),
    ],
)
def test_a_tagger_splits_texts_as_its_training_data_was_split(splitter, words, fine_tuned, tmp_path, capsys, caplog):
    settings = {"word_splitter": splitter, "stride": 16, "words_found": 1.0 if splitter == "characters" else 0.5}
    model = fine_tuned(LongBertForTokenClassification, id2label={0: "NN", 1: "VB"}, task_settings=settings)
    (tmp_path / "text.txt").write_text("三国演义是AI小说。", "utf-8")
    assert main(["predict", str(model), str(tmp_path / "text.txt")]) == 0
    assert [word["text"] for word in json.loads(capsys.readouterr().out)["prediction"]] == words
    assert ("finds 50.0% of the words" in caplog.text) == (splitter != "characters")


def test_a_question_is_asked_of_every_text(fine_tuned, tmp_path, capsys):
    model = fine_tuned(LongBertForQuestionAnswering)
    (tmp_path / "text.txt").write_text("state union " * 200)
    assert main(["predict", str(model), str(tmp_path / "text.txt")]) == 2
    assert "--question" in capsys.readouterr().err
    assert main(["predict", str(model), str(tmp_path / "text.txt"), "--question", "which state?"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert all(answer["text"] in "state union " * 200 for answer in line["scores"]["n_best"])


def test_a_model_that_is_not_fine_tuned_predicts_nothing(fine_tuned, tmp_path, capsys):
    model = fine_tuned(LongBertForMaskedLM)
    (tmp_path / "text.txt").write_text("state")
    assert main(["predict", str(model), str(tmp_path / "text.txt")]) == 2
    assert "got a LongBertForMaskedLM" in capsys.readouterr().err


def test_a_run_that_is_stopped_twice_ends_as_one_never_stopped(desk, settings, tmp_path):
    changes = [f"train_file={desk / 'test.jsonl'}", "test_file=null", "strategies=[long]", "seeds=2", "max_steps=6"]
    changes += [f"{kind}_strategy=steps" for kind in ("save", "eval")] + ["save_steps=2", "eval_steps=2"]
    changes += ["train_sampling_strategy=group_by_length", "per_device_train_batch_size=4"]

    def train(*more: str, before: SignalAtStep | None = None) -> tuple[int, str]:
        return run("finetune/classification.py", settings, *changes, *more, before=before)

    assert train()[0] == 0
    (tmp_path / "run").rename(tmp_path / "unbroken")
    status, printed = train(before=SignalAtStep(signal.SIGTERM, step=4))
    assert status == 143, printed
    status, printed = train("resume=auto", before=SignalAtStep(signal.SIGKILL, step=6))
    assert status == -9, printed
    assert re.findall("resuming from .*", printed) == [f"resuming from {tmp_path}/run/long/seed-42/checkpoint-4"]
    status, printed = train("resume=auto")
    assert status == 0, printed
    assert re.findall("resuming from .*", printed) == [f"resuming from {tmp_path}/run/long/seed-43/checkpoint-2"]
    for name in ("long/seed-42/model.safetensors", "long/seed-43/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "unbroken")]
    for figures in results:  # seconds differ
        assert figures["long"].pop("cost") and figures["long"].pop("verdict")
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body": "x", "kind": "maybe"}, "has the label 'maybe', which the training set does not have: no, yes"),
        ({"body": " ", "kind": "yes"}, "1 rows have an empty text"),
    ],
)
def test_examples_that_cannot_be_used_are_refused_before_training(change, message, desk, settings, tmp_path):
    file = write(tmp_path / "bad.jsonl", [{"body": "fine", "kind": "yes"}, change])
    status, printed = finetune("classification", settings, f"test_file={file}")
    assert status == 2
    assert message in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["several labels", "a number"])
def test_several_labels_and_numbers(kind, settings, tmp_path):
    draw = random.Random(0)
    examples = []
    for _ in range(320):
        gold, iron = draw.random() < 0.5, draw.random() < 0.5
        text = ["state"] * 20 + ["gold"] * 60 * gold + ["iron"] * 60 * iron
        label = (
            [name for name, there in (("gold", gold), ("iron", iron)) if there]
            if kind == "several labels"
            else (gold + 0.5 * iron)
        )
        examples.append({"body": " ".join(text), "kind": label})
    file = write(tmp_path / "train.jsonl", examples)
    changes = (
        "test_file=null",
        "strategies=[long]",
        "num_train_epochs=5",
        "learning_rate=3e-3",
        "hidden_dropout_prob=0.0",
        "load_best_model_at_end=false",
        *(f"{kind}_strategy=no" for kind in ("save", "eval")),
    )
    status, printed = finetune("classification", settings, f"train_file={file}", *changes)
    assert status == 0, printed
    (result,) = json.loads((tmp_path / "run" / "results.json").read_text()).values()
    assert result["micro_f1" if kind == "several labels" else "pearson"] > 0.9


# question answering


def needle(draw: random.Random, index: int, words: int) -> dict:
    """A context of noise with one fact in it, somewhere."""
    noise = draw.choices(["state", "union", "people", "war", "peace", "law", "work", "year", "great", "land"], k=words)
    place, answer = draw.randrange(words - 5), draw.choice(["gold", "iron", "silver", "copper"])
    noise[place : place + 4] = ["the", "secret", "metal", "is"]
    noise[place + 4] = answer
    context = " ".join(noise)
    start = len(" ".join(noise[: place + 4])) + 1
    answers = {"text": [answer], "answer_start": [start]}
    return {"id": str(index), "question": "what is the secret metal", "context": context, "answers": answers}


@pytest.fixture
def question_settings(tiny_source, tmp_path) -> Path:
    draw = random.Random(0)
    for split, number in (("train", 400), ("test", 40)):
        write(tmp_path / f"{split}.jsonl", [needle(draw, index, 120) for index in range(number)])
    file = tmp_path / "run.yaml"
    settings = {
        "model": str(tiny_source),
        "max_position_embeddings": 192,
        "attention_window": 32,
        "hidden_dropout_prob": 0.0,
        "train_file": str(tmp_path / "train.jsonl"),
        "test_file": str(tmp_path / "test.jsonl"),
        "id_column": "id",
        "stride": 16,
        "strategies": ["long", "truncate", "chunk-pool"],
        "output_dir": str(tmp_path / "run"),
        "num_train_epochs": 6,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "warmup_steps": 20,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.mark.slow
def test_answers_are_found_where_truncation_cannot_see_them(question_settings, tmp_path):
    status, printed = finetune("question_answering", question_settings)
    assert status == 0, printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["long"]["exact_match"] > 0.9
    assert results["chunk-pool"]["exact_match"] > 0.9
    assert results["truncate"]["exact_match"] < 0.8
    low, high = results["truncate"]["first_is_better_by"]
    assert 0 < low < results["long"]["f1"] - results["truncate"]["f1"] < high
    late = {name: row["by_position"]["≥ 64"] for name, row in results.items()}
    assert late["long"]["f1"] > 0.9 and late["truncate"]["f1"] < 0.6


def test_questions_end_in_a_table_by_position_a_picture_and_n_best(question_settings, tmp_path):
    status, printed = finetune("question_answering", question_settings, "max_steps=2")
    assert status == 0, printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results) == ["long", "truncate", "chunk-pool"]
    buckets = [bucket["predictions"] for title, bucket in results["long"]["by_position"].items() if "≥" not in title]
    assert sum(buckets) == results["long"]["predictions"] == 40
    assert (tmp_path / "run" / "by_position.png").stat().st_size > 10_000
    lines = (tmp_path / "run" / "long" / "seed-42" / "predictions" / "test.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert len(first["scores"]["n_best"]) == 5
    assert first["scores"]["n_best"][0]["score"] >= first["scores"]["n_best"][1]["score"]


def test_an_answer_that_is_not_there_is_refused(question_settings, tmp_path):
    example = needle(random.Random(1), 0, 50)
    example["answers"]["answer_start"][0] += 1
    file = write(tmp_path / "bad.jsonl", [example])
    status, printed = finetune("question_answering", question_settings, f"test_file={file}")
    assert status == 2
    assert "is not at character" in printed
    _, printed = finetune("question_answering", question_settings, "strategies=[long,head-tail]")
    assert "head-tail would tear" in printed
    _, printed = finetune("question_answering", question_settings, "stride=0")
    assert "longer than the stride of 0" in printed


def test_articles_are_merged(tmp_path):
    paragraphs = [
        {"context": "One two.", "qas": [{"id": 1, "question": "?", "answers": [{"text": "two", "answer_start": 4}]}]},
        {
            "context": "Three four.",
            "qas": [{"id": 2, "question": "?", "answers": [{"text": "four", "answer_start": 6}]}],
        },
    ]
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    arguments = QuestionAnsweringArguments(train_file=str(file), merge_articles=True)
    for row in read_questions(str(file), arguments):
        (start,), (text,) = row["answers"]["answer_start"], row["answers"]["text"]
        assert row["context"] == "One two.\nThree four."
        assert row["context"][start : start + len(text)] == text
