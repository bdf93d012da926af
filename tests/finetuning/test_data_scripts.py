"""The scripts of finetune/data that read other people's files, on small files written by hand in the same formats."""

import json
import runpy
import sys
from pathlib import Path

import pytest


SCRIPTS = Path(__file__).parents[2] / "finetune" / "data"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script as the shell does, and returns what it printed."""

    def run_script(name: str, *arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return capsys.readouterr().out

    return run_script


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def meeting(*turns: str, questions: list[tuple[str, list[list[str]]]], summary: str) -> str:
    return json.dumps(
        {
            "topic_list": [],
            "general_query_list": [{"query": "Summarize the meeting", "answer": summary}],
            "specific_query_list": [
                {"query": query, "answer": "It was.", "relevant_text_span": spans} for query, spans in questions
            ],
            "meeting_transcripts": [{"speaker": "Ann", "content": turn} for turn in turns],
        }
    )


@pytest.fixture
def meetings(tmp_path) -> Path:
    file = tmp_path / "meetings.jsonl"
    first = meeting(
        "Hello.", "Cats?", "Yes.", questions=[("Are there cats?", [["2", "2"], ["1", "1"]])], summary="Cats."
    )
    second = meeting(
        "Dogs.", questions=[("Dogs?", [["0", "0"]]), ("Why?", [["0", "0"]])], summary="It was about dogs."
    )
    file.write_text(f"{first}\n{second}\n", "utf-8")
    return file


def test_questions_to_meetings_begin_where_the_first_turn_that_answers_does(meetings, run, tmp_path):
    assert "3 queries to 2 meetings" in run("qmsum_retrieval.py", tmp_path / "out", meetings)
    corpus, queries = (lines_of(tmp_path / "out" / f"{name}.jsonl") for name in ("corpus", "queries"))
    assert corpus[0]["text"] == "Ann: Hello.\nAnn: Cats?\nAnn: Yes.\n"
    assert [query["text"] for query in queries] == ["Are there cats?", "Dogs?", "Why?"]
    assert [query["document"] for query in queries] == [corpus[0]["id"], corpus[1]["id"], corpus[1]["id"]]
    assert corpus[0]["text"][queries[0]["evidence"] :] == "Ann: Cats?\nAnn: Yes.\n"


def test_summaries_ask_for_whole_meetings(meetings, run, tmp_path):
    run("qmsum_retrieval.py", tmp_path / "out", meetings, "--summaries")
    corpus, queries = (lines_of(tmp_path / "out" / f"{name}.jsonl") for name in ("corpus", "queries"))
    assert [query["text"] for query in queries] == ["Cats.", "It was about dogs."]
    assert [query["document"] for query in queries] == [document["id"] for document in corpus]
    assert not any("evidence" in query for query in queries)


def test_a_part_of_the_meetings(meetings, run, tmp_path):
    assert "1 queries to 1 meetings" in run(
        "qmsum_retrieval.py", tmp_path / "out", meetings, meetings, "--meetings", "1"
    )


@pytest.mark.parametrize(
    ("emptied", "flags", "said"),
    [
        ("general_query_list", ["--summaries"], "meeting 1 has no summary"),
        ("relevant_text_span", [], "question 0 of meeting 1 has no turn"),
    ],
)
def test_a_meeting_without_an_answer_is_refused_before_anything_is_written(
    emptied, flags, said, meetings, run, tmp_path, capsys
):
    first, second = lines_of(meetings)
    place = second if emptied in second else second["specific_query_list"][0]
    place[emptied] = []
    meetings.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n", "utf-8")
    with pytest.raises(SystemExit):
        run("qmsum_retrieval.py", tmp_path / "out", meetings, *flags)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_contracts_have_what_they_entail_and_contradict_as_labels(run, tmp_path):
    text = "Keep it secret. Tell nobody. The end."
    annotations = {
        "nda-2": {"choice": "Contradiction", "spans": [2, 0]},
        "nda-1": {"choice": "Entailment", "spans": [1]},
        "nda-3": {"choice": "NotMentioned", "spans": []},
    }
    document = {"id": 7, "text": text, "spans": [[0, 15], [16, 28], [29, 37]]}
    document["annotation_sets"] = [{"annotations": annotations}]
    (tmp_path / "nli.json").write_text(json.dumps({"documents": [document], "labels": {}}))
    assert "1 contracts, 2 labels" in run("contract_nli.py", tmp_path / "nli.json", tmp_path / "new" / "out.jsonl")
    (line,) = lines_of(tmp_path / "new" / "out.jsonl")
    assert line["text"] == text
    assert line["labels"] == ["nda-1 Entailment", "nda-2 Contradiction"]
    assert line["evidence"] == {"nda-1 Entailment": [16, 28], "nda-2 Contradiction": [0, 37]}


def test_the_outermost_entities_of_novels_are_taken(run, tmp_path):
    rows = ["Sir\tB-PER\tB-PER\tO\tO\t", "Walter\tI-PER\tO\tO\tO\t", "", "of\tO\tO\tO\tO\t", "Bath\tB-GPE\tO\tO\tO\t"]
    (tmp_path / "105_persuasion_brat.tsv").write_text("\n".join(rows) + "\n", "utf-8")
    assert "1 pieces, 1 PER, 1 GPE" in run("litbank.py", tmp_path, tmp_path / "out.jsonl")
    (line,) = lines_of(tmp_path / "out.jsonl")
    assert line["book"] == "105_persuasion"
    assert line["words"] == ["Sir", "Walter", "of", "Bath"]
    assert line["labels"] == ["B-PER", "I-PER", "O", "B-GPE"]


def test_the_paragraphs_of_an_article_are_one_document(run, tmp_path):
    paragraphs = [
        {"context": "Rome is old.", "qas": [question("a", "What is old?", "Rome", 0)]},
        {"context": "Paris is new.", "qas": [question("b", "What is new?", "Paris", 0)]},
    ]
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"version": "1", "data": [{"title": "Cities", "paragraphs": paragraphs}]}))
    assert "2 questions to 1 articles" in run("squad_retrieval.py", file, tmp_path / "out")
    (document,) = lines_of(tmp_path / "out" / "corpus.jsonl")
    queries = lines_of(tmp_path / "out" / "queries.jsonl")
    assert [document["text"][query["evidence"] :].split()[0] for query in queries] == ["Rome", "Paris"]


def question(name: str, text: str, answer: str, start: int) -> dict:
    return {"id": name, "question": text, "answers": [{"text": answer, "answer_start": start}]}
