"""Multiple choice: what is read of an example, what is refused, and who can see the evidence."""

import json
import random
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from conftest import assert_close, tiny_config
from processes import run
from transformers import AutoTokenizer, BertForPreTraining

from longbert import LongBertForMultipleChoice
from longbert.finetuning.results.metrics import ChoiceMetric
from longbert.finetuning.strategies import STRATEGIES, Reader
from longbert.finetuning.tasks.multiple_choice import (
    ChunkPoolForMultipleChoice,
    MultipleChoice,
    MultipleChoiceArguments,
    choice_number,
    read_choices,
)


METALS = ["gold", "iron"]
NOISE = ["state", "union", "people", "war", "peace", "law", "work", "year", "great", "land"]
EXAMPLE = {"context": " ".join(NOISE * 4), "choices": ["gold", "iron and peace"], "label": 1}


@pytest.fixture(scope="module")
def tokenizer(tiny_source):
    return AutoTokenizer.from_pretrained(tiny_source)


@pytest.fixture
def task(tokenizer) -> MultipleChoice:
    return MultipleChoice(tokenizer, batch_size=2)


def encoded(task: MultipleChoice, *examples: dict) -> datasets.Dataset:
    return task.tokenize(datasets.Dataset.from_list([{"id": str(n), **e} for n, e in enumerate(examples)]), 32)


def words(task: MultipleChoice, input_ids: torch.Tensor) -> str:
    return task.tokenizer.decode(input_ids).replace(" [PAD]", "")


def read(model: LongBertForMultipleChoice, batch: dict):
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("labels", "documents", "text_lengths")}
    return model(**inputs)


# what is read


@pytest.mark.parametrize("question", [None, "which metal"])
def test_question_and_choice_come_first_are_global_and_the_context_is_cut_at_its_end(question, task):
    rows = encoded(task, EXAMPLE | ({"question": question} if question else {}))
    batch = task.collator(Reader(STRATEGIES["long"], 20, 20)).batch(list(rows))
    asked = f"{question} " if question else ""
    room = 20 - 3 - len(f"{asked}iron and peace".split())
    seen = " ".join(EXAMPLE["context"].split()[:room])
    assert batch["input_ids"].shape == batch["token_type_ids"].shape == (1, 2, 20)
    for choice, ids, types, marks in zip(
        EXAMPLE["choices"],
        *(batch[name][0] for name in ("input_ids", "token_type_ids", "global_attention_mask")),
        strict=True,
    ):
        # the shorter choice reads no more of the context than the longest
        assert words(task, ids) == f"[CLS] {asked}{choice} [SEP] {seen} [SEP]"
        first = len(f"{asked}{choice}".split()) + 2
        assert marks.tolist() == [1] * first + [0] * (20 - first)
        assert types.tolist() == [0] * first + [1] * (room + 1) + [0] * (20 - first - room - 1)
    assert batch["labels"].tolist() == [1]
    assert rows["length"][:] == [len(f"{asked}iron and peace".split()) + 40 + 3]


def test_head_and_tail_are_of_the_context(task):
    (row,) = encoded(task, EXAMPLE)
    batch = task.collator(Reader(STRATEGIES["head-tail"], 20, 40)).batch([row])
    context = EXAMPLE["context"].split()
    expected = " ".join([*context[:3], *context[-11:]])  # 14 tokens of room, 128 / 510 of them from the head
    assert words(task, batch["input_ids"][0, 1]) == f"[CLS] iron and peace [SEP] {expected} [SEP]"


def test_pieces_cover_what_long_reads_and_the_best_one_decides(task):
    rows = encoded(task, EXAMPLE, {**EXAMPLE, "context": "war peace"})
    batch = task.collator(Reader(STRATEGIES["chunk-pool"], 16, 32)).batch(list(rows))
    seen = [words(task, ids).split(" [SEP]")[1].split() for ids in batch["input_ids"][:, 1]]
    assert seen[0] + seen[1] + seen[2] == EXAMPLE["context"].split()[: 32 - 6] and seen[3] == ["war", "peace"]
    assert batch["owner"].tolist() == [0, 0, 0, 1]
    model = ChunkPoolForMultipleChoice(tiny_config(vocab_size=len(task.tokenizer), max_position_embeddings=32)).eval()
    pooled = read(model, batch).logits
    pieces = LongBertForMultipleChoice.forward(
        model, **{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    ).logits
    assert_close(pooled, torch.stack((pieces[:3].amax(0), pieces[3])))


@pytest.mark.parametrize("implementation", ["longbert", "sdpa", "eager"])
def test_under_a_window_each_choice_is_read_as_if_alone_with_its_own_marks(implementation, task):
    """transformers flattens what it knows to `[examples * choices, seq_length]`; the marks are none of it."""
    config = tiny_config(vocab_size=len(task.tokenizer), max_position_embeddings=64, attention_window=4)
    model = LongBertForMultipleChoice(config).eval()
    torch.nn.init.normal_(model.classifier.weight)
    model.set_attn_implementation(implementation)
    batch = task.collator(Reader(STRATEGIES["long"], 64, 64)).batch(
        list(encoded(task, EXAMPLE, {**EXAMPLE, "label": 0}))
    )
    together = read(model, batch).logits
    names = ("input_ids", "attention_mask", "token_type_ids", "global_attention_mask")
    with torch.no_grad():
        for choice in range(2):
            pooled = model.bert(**{name: batch[name][0, choice][None] for name in names}).pooler_output
            assert_close(model.classifier(pooled)[0, 0], together[0, choice], rtol=1e-5, atol=1e-6)
        unmarked = model(**{name: batch[name] for name in names[:-1]}).logits
    assert not torch.allclose(unmarked, together)


# loss


@pytest.mark.parametrize("strategy", ["long", "chunk-pool"])
def test_the_loss_means_the_same_for_any_split(strategy, task):
    """Law 6: over micro-batches whose number of labels is the number of examples, as Trainer counts it."""
    draw = random.Random(0)
    examples = [{**EXAMPLE, "context": " ".join(draw.choices(NOISE, k=n)), "label": n % 2} for n in (30, 9, 17, 40)]
    rows, collator = list(encoded(task, *examples)), task.collator(Reader(STRATEGIES[strategy], 24, 48))
    model_class = ChunkPoolForMultipleChoice if strategy == "chunk-pool" else LongBertForMultipleChoice
    model = model_class(tiny_config(vocab_size=len(task.tokenizer), max_position_embeddings=48, attention_window=4))
    losses, gradients = [], []
    for parts in ([rows], [rows[:1], rows[1:]], [[row] for row in rows]):
        batches = [collator.batch(part) for part in parts]
        items = sum(batch["labels"].ne(-100).sum() for batch in batches)
        assert items == len(rows)
        model.eval().zero_grad()
        for batch in batches:
            loss = task.loss(read(model, batch), batch["labels"], items)
            loss.backward()
            losses.append(loss.item())
        gradients.append(model.bert.embeddings.word_embeddings.weight.grad.clone())
    assert losses[0] == pytest.approx(sum(losses[1:3]), rel=1e-5) == pytest.approx(sum(losses[3:]), rel=1e-5)
    for split in gradients[1:]:
        assert_close(split, gradients[0], rtol=1e-4, atol=1e-7)


# examples


@pytest.mark.parametrize(("label", "number"), [(0, 0), (3, 3), ("2", 2), ("A", 0), ("d", 3)])
def test_the_right_choice_is_a_number_or_a_letter(label, number):
    assert choice_number(label, 4) == number


@pytest.mark.parametrize("label", [4, -1, "E", "AB", "", None, 1.5])
def test_a_label_that_is_no_choice_is_refused(label):
    with pytest.raises(ValueError, match="no label|the label is .*0 to 3, or as A to D"):
        choice_number(label, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "line 2: the label is 2: the right one of 2 choices is given as 0 to 1, or as A to B"),
        ({"label": None}, "1 rows have no label .*line 2.*skip_empty"),
        ({"choices": ["gold"]}, "line 2: choices must be a list of at least two"),
        ({"choices": ["gold", " "]}, "1 rows have an empty choice .*line 2"),
        ({"choices": ["gold", "iron", "war"]}, "line 2 has 3 choices, others have 2"),
        ({"context": ""}, "1 rows have an empty context .*line 2"),
        ({"question": ""}, "1 rows have an empty question .*line 2"),
        ({"choices": ["gold", "war " * 28]}, "have 29 tokens, which leaves no room for the context in 32 tokens"),
    ],
)
def test_what_cannot_be_used_is_refused(change, message, task, tmp_path):
    good = {**EXAMPLE, "question": "which"}
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(json.dumps(example) for example in (good, good | change)))
    arguments = MultipleChoiceArguments(train_file=str(file), question_column="question")
    with pytest.raises(ValueError, match=message):
        task.tokenize(read_choices(str(file), arguments), 32)


def test_columns_are_named_and_the_question_is_optional(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"article": "a b", "question": "q", "options": ["c", "d"], "answer": "B"}))
    columns = {"context_column": "article", "choices_column": "options", "label_column": "answer"}
    (row,) = read_choices(str(file), MultipleChoiceArguments(train_file=str(file), **columns))
    assert row == {"context": "a b", "choices": ["c", "d"], "label": 1, "id": "0", "place": f"{file}, line 1"}
    (row,) = read_choices(
        str(file), MultipleChoiceArguments(train_file=str(file), question_column="question", **columns)
    )
    assert row["question"] == "q"


def test_the_metric_is_accuracy_alone():
    assert ChoiceMetric().compute(predictions=[0, 1, 1, 3], references=[0, 1, 2, 3]) == {"accuracy": 0.75}


# the whole script


@pytest.fixture
def lively_source(tiny_source, tmp_path) -> Path:
    """The tiny source with matrices ten times as large: that a choice matches its context is learned from products of
    small weights, which begin so near to nothing at BERT's 0.02 that it takes thousands of steps."""
    model = BertForPreTraining.from_pretrained(tiny_source)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    model.save_pretrained(tmp_path / "source")
    AutoTokenizer.from_pretrained(tiny_source).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def hidden(draw: random.Random) -> dict:
    """A context whose evidence lies past the source's 64 tokens, and the choices in any order."""
    context, metals = draw.choices(NOISE, k=100), draw.sample(METALS, 2)
    label = draw.randrange(2)
    context[60:95] = [metals[label]] * 35
    return {"context": " ".join(context), "question": "which metal", "choices": metals, "label": "AB"[label]}


# that pieces learn takes more than three times as long; what they read and give is held above
@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategies", "epochs"), [(["long", "truncate"], 3), (["long", "truncate", "chunk-pool"], 10)]
)
def test_who_sees_the_evidence_can_tell_and_who_does_not_cannot(strategies, epochs, lively_source, tmp_path):
    draw = random.Random(0)
    for split, number in (("train", 240), ("test", 40)):
        lines = [json.dumps(hidden(draw)) for _ in range(number)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    settings = {
        "model": str(lively_source),
        "max_position_embeddings": 128,
        "hidden_dropout_prob": 0.0,
        "train_file": str(tmp_path / "train.jsonl"),
        "validation_file": str(tmp_path / "test.jsonl"),
        "question_column": "question",
        "strategies": strategies,
        "output_dir": str(tmp_path / "run"),
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "warmup_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    status, printed = run("finetune/multiple_choice.py", file)
    assert status == 0, printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results.pop("truncate")["accuracy"] < 0.75
    for strategy, figures in results.items():
        assert figures["accuracy"] > 0.95, strategy
    first, *_ = (tmp_path / "run" / "long" / "seed-42" / "predictions" / "test.jsonl").read_text().splitlines()
    line = json.loads(first)
    assert sum(line["scores"]) == pytest.approx(1) and line["scores"].index(max(line["scores"])) == line["prediction"]
