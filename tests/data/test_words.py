"""Words: masked whole in every script, as a list of words that the segmenter did not make shows."""

import pickle
import re

import datasets
import pytest
import torch
from transformers import BertTokenizerFast

from longbert.arguments import DataArguments
from longbert.data.masking import RowMasker, TokenMasker, unspaced_share
from longbert.data.words import Segmenter, continues_word
from longbert.training.pretraining import make_mask


LISTED = ["大家", "明天", "学校", "老师", "学生", "今天", "天气", "我们", "朋友", "中国", "北京", "图书馆"]


def listed(text: str) -> list[str]:
    """A segmenter of listed words alone."""
    return re.findall("|".join(LISTED) + "|.", text)


def lossy(text: str) -> list[str]:
    """A segmenter that changes what it reads."""
    return [word.upper() + "!" for word in listed(text)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    letters = sorted({letter for word in LISTED for letter in word} | set("，。กขคงสวดีคับัิ"))
    english = ["un", "##believ", "##able", "the"]
    thai = ["##" + letter for letter in "กขคงสวดีคับัิ"]
    file = tmp_path_factory.mktemp("words") / "vocab.txt"
    file.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *english, *dict.fromkeys(thai)])
    )
    return BertTokenizerFast(vocab=str(file), do_lower_case=False)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ("大 家 明 天 ， 学 校", "大家 明天 ， 学校"),
        ("大 学 校", "大 学校"),
        ("un ##believ ##able 大 家 the", "un##believ##able 大家 the"),
        ("大 [UNK] 家", "大 [UNK] 家"),
        ("北 京 un ##able 图 书 馆", "北京 un##able 图书馆"),
        ("##able 大 家", "##able 大家"),
    ],
)
def test_words_of_pieces(pieces, words):
    pieces = pieces.split()
    joined = "".join(
        ("" if continues else " ") + piece
        for piece, continues in zip(pieces, continues_word(pieces, listed), strict=True)
    )
    assert joined.strip() == words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rjieba", "却说 曹操 大惊"),
        ("rjieba:cut", "却说 曹操 大惊"),
        ("builtins:list", "却 说 曹 操 大 惊"),
        ("test_words:listed", "却 说 曹 操 大 惊"),
    ],
)
def test_a_segmenter_is_found_by_its_name(name, words):
    segmenter = pickle.loads(pickle.dumps(Segmenter(name)))
    pieces = [*words.replace(" ", "")]
    text = "".join(
        ("" if continues else " ") + piece
        for piece, continues in zip(pieces, continues_word(pieces, segmenter), strict=True)
    )
    assert text.strip() == words


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package", "install the package no_such_package"),
        ("rjieba:nothing", "rjieba has no function 'nothing'"),
        (":cut", "must be package or package:function"),
    ],
)
def test_a_segmenter_that_is_not_there_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        Segmenter(name)


def test_a_segmenter_that_changes_the_text_is_refused():
    with pytest.raises(ValueError, match="gives the word '大家!', which is not in the text"):
        continues_word([*"大家"], lossy)


def spans(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer("|".join(LISTED), text)]


@pytest.mark.parametrize("segmenter", [None, Segmenter("rjieba")], ids=["letters", "rjieba"])
def test_chinese_words_are_masked_whole(segmenter, tokenizer):
    text = "，".join(LISTED * 60)
    masker = TokenMasker(tokenizer, 0.15, whole_word_mask=True, segmenter=segmenter)
    chosen = (masker(ids_of(tokenizer, text), 0)[1] != -100).tolist()
    touched = [chosen[start:stop] for start, stop in spans(text) if any(chosen[start:stop])]
    whole = sum(map(all, touched)) / len(touched)
    assert len(touched) > 60
    assert whole == 1 if segmenter else whole < 0.2
    assert sum(chosen) / len(chosen) == pytest.approx(0.15, abs=0.04)


def test_thai_words_are_not_what_stands_between_blanks(tokenizer):
    ids = ids_of(tokenizer, "สวัสดีกขคงกขคง")
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert "[UNK]" not in pieces
    assert continues_word(pieces) == [False] + [True] * (len(pieces) - 1)

    def syllables(text: str) -> list[str]:
        return re.findall("สวัสดี|กข|คง|.", text)

    starts = [index for index, continues in enumerate(continues_word(pieces, syllables)) if not continues]
    assert len(starts) == 5
    assert continues_word(["ก", "##ข", "กข", "##คง"], lambda text: text.split()) == [False, True, False, True]


def test_a_row_is_masked_by_its_key_alone(tokenizer):
    masker = RowMasker(tokenizer, TokenMasker(tokenizer, 0.3, True, Segmenter("rjieba")))
    row = {"texts": [ids_of(tokenizer, "".join(LISTED))]}
    first = masker(row, 1, 2, 3)
    masker({"texts": [[7] * 30]}, 1, 2, 4)
    torch.manual_seed(9)
    again = pickle.loads(pickle.dumps(masker))(row, 1, 2, 3)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert len({str(masker(row, 1, 2, number)["labels"].tolist()) for number in range(20)}) > 10


def test_the_second_text_of_a_pair_begins_a_word(tokenizer):
    row = {"texts": [ids_of(tokenizer, "大家")], "second": 1, "next_sentence_label": 0}
    masker = RowMasker(tokenizer, TokenMasker(tokenizer, 0.5, True, Segmenter("rjieba")))
    labels = [masker(row, number)["labels"] for number in range(100)]
    assert {(bool(each[1] != -100), bool(each[3] != -100)) for each in labels} == {
        (first, second) for first in (False, True) for second in (False, True)
    }


@pytest.mark.parametrize("streaming", [False, True], ids=["dataset", "stream"])
@pytest.mark.parametrize(
    ("text", "refused"), [("大家明天，", True), ("สวัสดี the", True), ("the unbelievable " * 200 + "大", False)]
)
def test_whole_words_are_refused_where_nothing_tells_them(text, refused, streaming, tokenizer):
    tokens = datasets.Dataset.from_dict({"input_ids": [ids_of(tokenizer, text)] * 3})
    tokens = tokens.to_iterable_dataset() if streaming else tokens
    assert (unspaced_share(tokens, tokenizer) >= 0.01) is refused
    settings = DataArguments(data=["x"], whole_word_mask=True)
    if refused:
        with pytest.raises(ValueError, match="of the tokens belong to scripts that write no spaces.*word_segmenter"):
            make_mask(tokens, tokenizer, settings, 256)
        settings.word_segmenter = "rjieba"
    make_mask(tokens, tokenizer, settings, 256)


def test_a_segmenter_without_whole_words_is_refused():
    with pytest.raises(ValueError, match="word_segmenter is for whole_word_mask: true"):
        DataArguments(data=["x"], word_segmenter="rjieba")
