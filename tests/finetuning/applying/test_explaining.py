"""What decided: the passage that decides is found wherever it stands, figures are what plain transformers computes one
by one, and the page shows the whole document, as text."""

import html.parser
import itertools
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers

from longbert import (
    LongBertConfig,
    LongBertForQuestionAnswering,
    LongBertForSequenceClassification,
)
from longbert.baking import write_baked
from longbert.cli import main
from longbert.finetuning.applying.explaining import Explanation, explain, strongest
from longbert.finetuning.applying.occlusion import log_odds
from longbert.finetuning.applying.page import probability, render, signed
from longbert.finetuning.applying.passages import cut_passages, token_spans
from longbert.source import load_whole


WORDS = [
    "state",
    "union",
    "people",
    "war",
    "peace",
    "law",
    "work",
    "year",
    "great",
    "land",
    "iron",
    "silver",
    "copper",
]
SOURCE_LENGTH = 64
REACH = 256


def sentences(words: int, seed: int = 0, needle_at: int | None = None) -> str:
    """Sentences of eight words, one of them, on request, the word that decides."""
    draw = random.Random(seed)
    drawn = [draw.choice(WORDS) for _ in range(words)]
    if needle_at is not None:
        drawn[needle_at] = "gold"
    return " ".join(word + "." * (number % 8 == 7) for number, word in enumerate(drawn))


@pytest.fixture(scope="module")
def saved(tiny_tokenizer, tmp_path_factory) -> Callable[..., Path]:
    """The folder of a plain BERT with a head, its weights random, that reads 64 tokens."""

    def make(model_class: type, **settings) -> Path:
        size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        config = transformers.BertConfig(
            vocab_size=len(tiny_tokenizer), max_position_embeddings=SOURCE_LENGTH, **size, **settings
        )
        folder = tmp_path_factory.mktemp("plain")
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            model = model_class(config)
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def taken_further(tmp_path_factory) -> Callable[..., Path]:
    """The folder of the long model of another, in full attention unless told otherwise."""

    def make(source: Path, model_class: type, **settings) -> Path:
        folder = tmp_path_factory.mktemp("long")
        settings = {"max_position_embeddings": REACH, "attention_window": None, **settings}
        config = LongBertConfig.from_pretrained(source, **settings)
        model_class.from_pretrained(source, config=config).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def needle_finder(tiny_tokenizer, tmp_path_factory) -> Path:
    """A classifier of 1,200 tokens in which the word gold decides, and nothing else: its weights are made by hand.

    Dimension 0 of a word is what it says. One head attends to all tokens alike and brings dimension 0 of their mean to
    [CLS]; the classifier reads it.
    """
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32}
    config = transformers.BertConfig(
        vocab_size=len(tiny_tokenizer), max_position_embeddings=512, id2label={0: "no", 1: "yes"}, **size
    )
    folder = tmp_path_factory.mktemp("needle")
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                parameter.zero_()
        vectors = torch.randn(len(tiny_tokenizer), 32)
        vectors[:, 0] = 0
        vectors[:, 1:] -= vectors[:, 1:].mean(dim=1, keepdim=True)
        gold = tiny_tokenizer.convert_tokens_to_ids("gold")
        vectors[gold, 0], vectors[gold, 1:] = 5.0, -5.0 / 31
        model.bert.embeddings.word_embeddings.weight.copy_(vectors)
        layer = model.bert.encoder.layer[0]
        layer.attention.self.value.weight[0, 0] = 1
        layer.attention.output.dense.weight[0, 0] = 200
        model.bert.pooler.dense.weight[0, 0] = 1
        model.classifier.weight[1, 0], model.classifier.bias[1] = 6, -0.5
    model.save_pretrained(folder / "plain")
    config = LongBertConfig.from_pretrained(folder / "plain", max_position_embeddings=1200)  # with its usual window
    long = LongBertForSequenceClassification.from_pretrained(folder / "plain", config=config)
    long.save_pretrained(folder / "long")
    for name in ("plain", "long"):
        tiny_tokenizer.save_pretrained(folder / name)
    return folder


def explained_by(folder: Path, text: str, **settings) -> Explanation:
    return explain(*load_whole(str(folder)), text, **settings)


# passages


def cut(text: str, size: int, stop: int | None = None, limit: int | None = None, tokens: str = r"\w|[^\w\s]"):
    spans = [match.span() for match in re.finditer(tokens, text)]
    passages = cut_passages(text, spans, size, stop, limit)
    return [text[passage.start : passage.end] for passage in passages], passages


TEXTS = {
    "english": "The first sentence. The second one? It is! 'So,' he said. " * 20,
    "chinese": "話說天下大勢，分久必合，合久必分。周末七國分爭，并入於秦。「及秦滅之後？」楚、漢分爭！" * 12,
    "arabic": "هذه جملة. وهذه أخرى؟ نعم! " * 20,
    "hindi": "यह एक वाक्य है। यह दूसरा है॥ " * 20,
    "thai": "ภาษาไทยไม่มีช่องว่างระหว่างคำ" * 20,
    "spaces": "  \n\n a b \n c \t\n\n\n d.   \n" * 9,
    "emoji": "👩‍👩‍👧 fine. 🎉🎉 " * 20,
    "no break": "x" * 301,
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("size", [2, 7, 32, 1000])
def test_passages_hold_every_character_once_and_are_not_too_long(name, size):
    text = TEXTS[name]
    for stop, limit in ((None, None), (40, 11), (40, 40), (11, 40), (10_000, 10_000)):
        parts, passages = cut(text, size, stop, limit)
        assert "".join(parts) == text
        assert all(before.stop == after.first for before, after in itertools.pairwise(passages))
        assert passages[0].first == 0 and passages[-1].stop == len(re.findall(r"\w|[^\w\s]", text))
        read = [passage for passage in passages if stop is None or passage.stop <= stop]
        assert all(0 < passage.stop - passage.first <= size for passage in read)
        firsts = {passage.first for passage in passages}
        for bound in (stop, limit):
            if bound is not None and bound < min(stop + 1, passages[-1].stop):
                assert bound in firsts


def test_passages_end_where_paragraphs_or_else_sentences_do():
    parts, _ = cut("One two three. Four five six.\n\nSeven eight. Nine ten eleven twelve.", 7, tokens=r"\w+|[^\w\s]")
    assert parts == ["One two three. ", "Four five six.\n\n", "Seven eight. ", "Nine ten eleven twelve."]
    parts, _ = cut("天下大勢。分久必合！「合久必分。」周末", 8)
    assert parts == ["天下大勢。", "分久必合！", "「合久必分。」", "周末"]
    parts, _ = cut("話說天下大勢，分久必合，合久必分", 10)
    assert parts == ["話說天下大勢，", "分久必合，合久必分"]
    parts, _ = cut("pneumonia strikes again", 12, tokens=r"\w")
    assert parts == ["pneumonia ", "strikes again"]


def test_the_tokens_of_one_character_stay_together():
    text = "abcd"
    spans = [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3), (3, 4)]  # b is three bytes
    assert [(p.first, p.stop) for p in cut_passages(text, spans, 2)] == [(0, 1), (1, 4), (4, 6)]
    assert token_spans("a b", [0, 1], [1, 3]) == [(0, 1), (2, 3)]


# which passage


@pytest.mark.parametrize("place", [3, 300, 505, 700, 1100])
def test_the_passage_with_the_word_that_decides_is_found_wherever_it_stands(place, needle_finder):
    text = sentences(1050, place, needle_at=place) if place < 1050 else sentences(900, 1) + " gold"
    found = explained_by(needle_finder / "long", text, passage_tokens=48)
    assert found.prediction == "yes"
    assert len(found.deciding) == 1
    decided = found.passages[found.deciding[0]]
    assert "gold" in decided["text"]
    assert decided["contribution"] > 10 * max(
        abs(line["contribution"]) for line in found.passages if line is not decided
    )
    assert decided["prediction_without"] == "no"
    assert decided["past_source_limit"] == (text.index("gold") >= found.source_limit)
    # both figures of ERASER: without it nothing is left of the prediction, and it is enough
    assert found.comprehensiveness == pytest.approx(found.score - decided["score_without"])
    assert found.sufficiency < found.comprehensiveness / 10
    # what truncation would have lost
    assert found.truncated["prediction"] == ("no" if decided["past_source_limit"] else "yes")


def test_a_plain_bert_explains_what_it_reads_and_says_what_it_does_not(needle_finder, capsys, tmp_path):
    (tmp_path / "text.txt").write_text(sentences(700, needle_at=600))
    page = tmp_path / "page.html"
    assert main(["explain", str(needle_finder / "plain"), str(tmp_path / "text.txt"), "--out", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "prediction: no" in printed and "read: the first 510 of " in printed
    shown = page.read_text("utf-8")
    assert "The source stops at token 512: what follows was not read" in shown
    assert shown.count('title="not read"') == 2  # in the text and on the map
    found = explained_by(needle_finder / "plain", (tmp_path / "text.txt").read_text())
    assert [line["read"] for line in found.passages].index(False) == len(found.passages) - 1
    assert found.truncated is None
    assert "contribution" not in found.passages[-1]


def test_a_reach_past_the_source_is_marked_too(needle_finder):
    found = explained_by(needle_finder / "long", sentences(1500, needle_at=600))
    page = render(found)
    assert page.index('id="limit"') < page.index('id="reach"')
    assert "This model stops at token 1,200: what follows was not read" in page


def test_those_that_decided_have_half_of_what_speaks_for_it():
    assert strongest({0: 1.0, 1: -5.0, 2: 8.0, 3: 0.5}) == [2]
    assert strongest({0: 4.0, 1: 1.0, 2: 3.0, 3: 1.0}) == [0, 2]
    assert strongest(dict.fromkeys(range(40), 1.0)) == [0, 1, 2, 3, 4]
    assert strongest({0: -1.0, 1: 0.0}) == strongest({0: 1e-6}, 1e-3) == []


# the figures, by plain transformers, one copy at a time


def by_hand(plain: torch.nn.Module, inputs: dict, left_out: list[int]) -> dict:
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, left_out] = 0
    with torch.no_grad():
        return plain(**inputs, attention_mask=mask), mask[0].bool()


PROBLEMS = {
    "single_label_classification": lambda logits, at: (logits.softmax(-1)[at] / (1 - logits.softmax(-1)[at])).log(),
    "multi_label_classification": lambda logits, at: (logits.sigmoid()[at] / (1 - logits.sigmoid()[at])).log(),
    "regression": lambda logits, at: logits[at],
}


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_a_classifiers_figures_are_plain_transformers(problem_type, saved, taken_further, tmp_path):
    labels = ["value"] if problem_type == "regression" else ["a", "b", "c"]
    source = saved(
        transformers.BertForSequenceClassification, problem_type=problem_type, id2label=dict(enumerate(labels))
    )
    long = taken_further(source, LongBertForSequenceClassification)
    write_baked(str(long), str(tmp_path / "baked"))
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "baked").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    text = sentences(180)
    found = explained_by(long, text, passage_tokens=20)
    assert len(found.passages) > 8 and found.passages[-1]["past_source_limit"]
    inputs = dict(tokenizer(text, return_tensors="pt"))
    del inputs["attention_mask"]
    strength, at = PROBLEMS[problem_type], labels.index(found.explained)
    whole = by_hand(plain, inputs, [])[0].logits[0].double()
    assert found.strength == pytest.approx(float(strength(whole, at)), abs=1e-4)
    for line in found.passages:
        tokens = range(line["first_token"] + 1, line["first_token"] + line["tokens"] + 1)  # behind [CLS]
        said = by_hand(plain, inputs, [*tokens])[0].logits[0].double()
        expected = float(strength(whole, at) - strength(said, at))
        assert line["contribution"] == pytest.approx(expected, abs=1e-4)
        for number, label in enumerate(labels):
            fall = float(strength(whole, number) - strength(said, number))
            assert line["contributions"][label] == pytest.approx(fall, abs=1e-4)
        words = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(line["text"]))
        assert inputs["input_ids"][0, list(tokens)].tolist() == words
    assert max(abs(line["contribution"]) for line in found.passages) > 1e-3
    # the first 64 tokens alone
    inputs = dict(tokenizer(text, return_tensors="pt", truncation=True, max_length=SOURCE_LENGTH))
    cut_short = plain(**inputs).logits[0].detach().double()
    assert found.truncated["score"] == pytest.approx(
        float(
            {"regression": cut_short, "single_label_classification": cut_short.softmax(-1)}.get(
                problem_type, cut_short.sigmoid()
            )[at]
        ),
        abs=1e-5,
    )


def test_an_answers_figures_are_plain_transformers(saved, taken_further, tmp_path):
    source = saved(transformers.BertForQuestionAnswering)
    long = taken_further(source, LongBertForQuestionAnswering)
    write_baked(str(long), str(tmp_path / "baked"))
    plain = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "baked").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    text, question = sentences(180), "which metal is it"
    found = explained_by(long, text, question=question, passage_tokens=20)
    answer = found.answer
    assert text[answer["start"] : answer["end"]] == answer["text"] == found.explained
    inputs = dict(tokenizer(question, text, return_tensors="pt"))
    del inputs["attention_mask"]
    offset = inputs["token_type_ids"][0].tolist().index(1)
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    first = offset + [begin for begin, _ in spans].index(answer["start"])
    last = offset + [end for _, end in spans].index(answer["end"])

    def strength(left_out: list[int]) -> float:
        said, kept = by_hand(plain, inputs, left_out)
        starts, ends = (
            each[0].double().masked_fill(~kept, -torch.inf) for each in (said.start_logits, said.end_logits)
        )
        probability = starts.softmax(-1)[first] * ends.softmax(-1)[last]
        return float((probability / (1 - probability)).log())

    assert found.strength == pytest.approx(strength([]), abs=1e-4)
    for line in found.passages:
        tokens = range(line["first_token"] + offset, line["first_token"] + line["tokens"] + offset)
        left_out = [token for token in tokens if not first <= token <= last]  # the answer itself stays
        assert line["contribution"] == pytest.approx(found.strength - strength(left_out), abs=1e-4)
        assert line["holds_answer"] == (first in tokens or last in tokens)
        assert line["read_with_answer"]
    assert [line["holds_answer"] for line in found.passages].count(True) in (1, 2)


def test_an_answer_found_in_one_of_several_pieces_is_moved_by_that_piece_alone(saved, taken_further):
    # pieces share 64 tokens here, as what the model was trained with says
    long = taken_further(
        saved(transformers.BertForQuestionAnswering), LongBertForQuestionAnswering, task_settings={"stride": 64}
    )
    found = explained_by(long, sentences(700), question="which metal", passage_tokens=32)
    assert found.pieces > 2
    apart = [line for line in found.passages if not line["read_with_answer"]]
    assert apart and all(line["contribution"] == 0 for line in apart)
    assert all(not line["holds_answer"] for line in apart)
    with_it = [line for line in found.passages if line["read_with_answer"]]
    assert sum(abs(line["contribution"]) for line in with_it) > 0
    page = render(found)
    assert "not read together with the answer" in page and "it was read in" in page


def test_log_odds_tell_apart_what_probabilities_do_not():
    near = [log_odds(torch.tensor([strong, 0.0, -1.0]), "single_label_classification")[0] for strong in (40.0, 50.0)]
    assert near[1] - near[0] == pytest.approx(10)
    assert torch.tensor([40.0, 0.0, -1.0]).softmax(-1)[0] == torch.tensor([50.0, 0.0, -1.0]).softmax(-1)[0] == 1


def test_the_explained_prediction_is_what_predict_says(saved, taken_further, tmp_path, capsys):
    long = taken_further(
        saved(transformers.BertForSequenceClassification, id2label={0: "x", 1: "y"}), LongBertForSequenceClassification
    )
    (tmp_path / "text.txt").write_text(sentences(100))
    assert main(["predict", str(long), str(tmp_path / "text.txt")]) == 0
    line = json.loads(capsys.readouterr().out)
    assert main(["explain", str(long), str(tmp_path / "text.txt"), "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert found["prediction"] == line["prediction"]
    assert found["scores"] == pytest.approx(line["scores"])
    other = "xy"[line["prediction"] == "x"]
    asked = explained_by(long, sentences(100), label=other)
    assert asked.explained == other and asked.score == pytest.approx(line["scores"][other])
    assert "it is not what the model predicts" in render(asked)


# the page


class Reader(html.parser.HTMLParser):
    """What a browser makes of a page: tags, and the text of passages."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.passages: list[str] = []
        self.depth = 0
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag == "span" and "p" in (given.get("class") or "").split():
            self.passages.append("")
            self.depth = 1
        elif self.depth and tag in ("span", "mark"):
            self.depth += 1

    def handle_endtag(self, tag: str) -> None:
        if self.depth and tag in ("span", "mark"):
            self.depth -= 1

    def handle_data(self, data: str) -> None:
        if self.depth:
            self.passages[-1] += data


HOSTILE = (
    "<script>alert('1')</script> & <b onclick=\"x()\">gold</b> &lt; ]]> $heading ${x} {y}\r\nhe said 天下。 שלום \0 "
)


@pytest.mark.parametrize("asks", [False, True])
def test_what_a_document_holds_is_shown_as_text(asks, saved, taken_further):
    head = transformers.BertForQuestionAnswering if asks else transformers.BertForSequenceClassification
    long_class = LongBertForQuestionAnswering if asks else LongBertForSequenceClassification
    settings = {} if asks else {"id2label": {0: "<i>no</i>", 1: '"yes" & </span>'}}
    model = taken_further(saved(head, **settings), long_class, **({"task_settings": {"stride": 32}} if asks else {}))
    text = HOSTILE * 4
    question = {"question": "<script>ask</script>"} if asks else {}
    found = explained_by(model, text, name="<img src=x onerror=y>.txt", passage_tokens=16, **question)
    read = Reader(render(found))
    assert not {tag for tag, _ in read.tags} & {"script", "img", "b", "i", "iframe", "link", "object"} - {"i"}
    assert not [given for _, given in read.tags if any(name.startswith("on") or name == "src" for name in given)]
    assert all(given["href"].startswith("#p") for tag, given in read.tags if tag == "a")
    assert "".join(read.passages) == text.replace("\r\n", "\n").replace("\0", "\ufffd")
    assert len(read.passages) == len(found.passages)
    names = [given["id"] for _, given in read.tags if "id" in given]
    assert len(names) == len({*names})
    assert {given["href"][1:] for tag, given in read.tags if tag == "a"} <= {*names}
    assert any(given.get("content", "").startswith("default-src 'none'") for tag, given in read.tags if tag == "meta")


def test_json_has_every_passage_and_no_figure_that_is_none(needle_finder, tmp_path):
    (tmp_path / "text.txt").write_text(HOSTILE.replace("\0", "") + sentences(400), "utf-8")  # no file has bytes of 0
    out = tmp_path / "out.json"
    assert main(["explain", str(needle_finder / "long"), str(tmp_path / "text.txt"), "--json", str(out)]) == 0

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(out.read_text("utf-8"), parse_constant=refuse)
    assert "".join(line["text"] for line in found["passages"]) == (tmp_path / "text.txt").read_text("utf-8")
    assert all({"contribution", "score_without", "contributions"} <= line.keys() for line in found["passages"])
    assert found["copies"] == len(found["passages"]) + 3 + (found["truncated"] is not None)
    assert sum(line["tokens"] for line in found["passages"]) == found["tokens"] == found["tokens_read"]


def test_figures_are_written_as_people_read_them():
    assert [signed(value) for value in (1.234, -0.5, 0.001, -0.001, 1234.5)] == [
        "+1.23", "\u22120.50", "0.00", "0.00", "+1,234.50",
    ]  # fmt: skip
    assert [probability(value) for value in (0.5, 0.99999, 1.0, 1e-9, 0.0)] == [
        "0.500", "&gt; 0.999", "1.000", "&lt; 0.001", "0.000",
    ]  # fmt: skip


# errors


@pytest.mark.parametrize(
    ("head", "text", "options", "message"),
    [
        ("ForSequenceClassification", "", [], "text.txt"),
        ("ForSequenceClassification", " \n ", [], "1 rows have no text"),
        ("ForSequenceClassification", "state", ["--question", "why"], "leave --question out"),
        ("ForSequenceClassification", "state", ["--label", "gold"], "it has LABEL_0, LABEL_1"),
        ("ForSequenceClassification", "state", ["--row", "3"], "there is no row 3"),
        ("ForSequenceClassification", "state", ["--passage-tokens", "1"], "at least 2, got 1"),
        ("ForSequenceClassification", None, [], "there is no file at"),
        ("ForQuestionAnswering", "state", [], "--question"),
        ("ForQuestionAnswering", "state", ["--question", "why", "--label", "x"], "leave --label out"),
        ("ForTokenClassification", "state", [], "got a LongBertForTokenClassification"),
        ("ForMaskedLM", "state", [], "got a LongBertForMaskedLM"),
    ],
)
def test_what_cannot_be_explained_is_said_in_one_line(head, text, options, message, saved, tmp_path, capsys):
    model = saved(getattr(transformers, f"Bert{head}"))
    if text is not None:
        (tmp_path / "text.txt").write_text(text)
    assert main(["explain", str(model), str(tmp_path / "text.txt"), *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longbert:")]
    assert message in line


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--out", "page.txt", "must end in .html"),
        ("--json", "x.html", "must end in .json"),
        ("--out", "no/x.html", "no folder"),
    ],
)
def test_a_place_to_write_to_is_checked_before_anything_is_read(option, name, message, tmp_path, capsys):
    assert main(["explain", "no-model", "no-file", option, str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_several_texts_needs_a_row(needle_finder, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"body": text}) + "\n" for text in ("state law", "gold")))
    command = ["explain", str(needle_finder / "long"), str(rows), "--text-column", "body"]
    assert main(command) == 2
    assert "holds 2 texts: choose one, --row 0 to --row 1" in capsys.readouterr().err
    assert main([*command, "--row", "1"]) == 0
    assert "prediction: yes" in capsys.readouterr().out


# in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        path = found or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no browser is installed: apt-get install chromium, or playwright install chromium")
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """WCAG 2.2's contrast ratio of two colours, 0 to 255."""

    def luminance(colour: tuple[float, ...]) -> float:
        parts = [c / 255 / 12.92 if c <= 10.31 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def colour(css: str) -> tuple[float, ...]:
    return tuple(float(part) for part in re.findall(r"[\d.]+", css))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("kind", ["classifier", "question", "foreign"])
def test_a_browser_shows_it(kind, width, scheme, browser, needle_finder, saved, taken_further, tmp_path):
    if kind == "question":
        model = taken_further(
            saved(transformers.BertForQuestionAnswering), LongBertForQuestionAnswering, task_settings={"stride": 32}
        )
        found = explained_by(model, sentences(400), question="which metal is it?", passage_tokens=24)
    else:
        foreign = "שלום עולם. هذه جملة طويلة؟\n天下大勢，分久必合。\n" * 25 if kind == "foreign" else ""
        text = HOSTILE.replace("\0", "").replace("\r", "") + foreign + "x" * 300 + " " + sentences(700, needle_at=650)
        found = explained_by(needle_finder / "long", text, passage_tokens=48)
    page = tmp_path / "page.html"
    page.write_text(render(found), "utf-8")
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    tab = context.new_page()
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: said.append(dialog.message))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    assert said == [] and asked == [page.as_uri()]
    assert tab.locator(".text .p").count() == len(found.passages)
    assert tab.evaluate(
        "[...document.querySelectorAll('.text .p')].map(each => each.textContent).join('')"
    ) == "".join(line["text"] for line in found.passages)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    # the limit stands between the text that the source reads and the rest
    limit = tab.locator("#limit").bounding_box()
    past = [line["number"] for line in found.passages if line["past_source_limit"]]
    before, after = (tab.locator(f"#p{number}").bounding_box() for number in (past[0] - 1, past[0]))
    assert before["y"] + before["height"] <= limit["y"] + 2 and limit["y"] + limit["height"] <= after["y"] + 2
    # links lead to passages
    strongest_link = tab.locator("aside li a").first
    strongest_link.click()
    assert tab.evaluate("location.hash") == strongest_link.get_attribute("href")
    tab.wait_for_timeout(900)
    assert tab.locator(":target").bounding_box()["y"] < 800
    # text on the strongest colour can be read: WCAG AA asks for 4.5
    paper = colour(tab.evaluate("getComputedStyle(document.querySelector('.document')).backgroundColor"))[:3]
    for place in tab.locator(".text .p").all()[:200]:
        style = place.evaluate("e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]")
        ink, fill = colour(style[0])[:3], colour(style[1])
        alpha = fill[3] if len(fill) == 4 else 1.0
        behind = tuple(alpha * over + (1 - alpha) * under for over, under in zip(fill[:3], paper, strict=True))
        assert contrast(ink, behind) >= 4.5
    dark = sum(paper) < 3 * 128
    assert dark == (scheme == "dark")
    if kind == "foreign":
        assert tab.evaluate("getComputedStyle(document.querySelector('.text')).unicodeBidi") == "plaintext"
    context.close()
