"""A corpus of one file, from the file to the proof: one novel, its chapters, and Chinese words masked whole."""

import random
import signal
from pathlib import Path

import pytest
import torch
from conftest import first_then_slow
from processes import SignalAtStep, result, train, write_settings
from transformers import BertConfig, BertForPreTraining, BertTokenizer


WORDS = ["大家", "明天", "学校", "老师", "学生", "今天", "天气", "我们", "朋友", "中国", "北京", "图书馆"]


@pytest.fixture(scope="module")
def chinese_source(tmp_path_factory) -> Path:
    """A tiny random BERT of 64 positions whose pieces are Chinese letters."""
    path = tmp_path_factory.mktemp("chinese")
    letters = sorted({*"".join(WORDS), *"，。第回零一二三四五六七八九十"})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    tokenizer = BertTokenizer(vocab={piece: index for index, piece in enumerate(vocabulary)})
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **size)
        BertForPreTraining(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def novel(tmp_path_factory) -> Path:
    """One file of 24 chapters."""
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("novel") / "novel[1].TXT"
    text = ""
    for number in range(24):
        text += f"第{'一二三四五六七八九'[number % 9]}回\n"
        text += "".join(draw.choice(WORDS) + draw.choice(["，", "", "。"]) for _ in range(150)) + "\n"
    file.write_text(text, "utf-8")
    return file


VARIANTS = {
    "pieces": ({}, "1 documents of"),
    "chapters": ({"document_separator": "^第.*回"}, "documents"),
    "pieces, streamed": ({"streaming": True}, ""),
    "chapters, streamed": ({"streaming": True, "document_separator": "^第.*回"}, ""),
    "next chapters": ({"objective": "mlm+nsp", "document_separator": "^第.*回"}, "added from other documents"),
}


@pytest.mark.parametrize("variant", first_then_slow(VARIANTS, 1))
def test_a_run_on_one_novel_is_proven_and_resumes(variant, chinese_source, novel, tmp_path):
    changes, said = VARIANTS[variant]
    changes = {
        "data": [str(novel)],
        "held_out_every": 4,
        "whole_word_mask": True,
        "word_segmenter": "rjieba",
        **changes,
    }
    files = [write_settings(tmp_path / name, chinese_source, **changes) for name in ("unbroken", "killed")]
    status, printed = train(files[0])
    assert status == 0, printed
    assert said in printed
    assert ("fewer documents than held_out_every" in printed) == ("pieces" in variant)
    assert (files[0].parent / "run" / "proof.json").exists()
    assert train(files[1], before=SignalAtStep(signal.SIGKILL, step=8))[0] == -9
    assert train(files[1], "resume=auto")[0] == 0
    assert result(files[1]) == result(files[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"whole_word_mask": True}, "% of the tokens belong to scripts that write no spaces"),
        ({"whole_word_mask": True, "word_segmenter": "no_such_package"}, "install the package no_such_package"),
        ({"objective": "mlm+nsp"}, "there is but one: set objective: mlm+sop"),
        ({"document_separator": "^("}, "document_separator must be line, empty-line or a regular expression"),
        ({"document_separator": "^CHAPTER"}, "matches document_separator '^CHAPTER'"),
        ({"encoding": "gb18030"}, "is not in gb18030"),
        ({"encoding": "utf-99"}, "encoding must be a name that Python knows"),
    ],
)
def test_what_cannot_be_trained_on_is_said_in_one_line(changes, message, chinese_source, novel, tmp_path):
    file = write_settings(tmp_path, chinese_source, **{"data": [str(novel)], "held_out_every": 4, **changes})
    status, printed = train(file)
    assert status == 2
    assert message in printed.splitlines()[-1] and printed.splitlines()[-1].startswith("train.py: ")
