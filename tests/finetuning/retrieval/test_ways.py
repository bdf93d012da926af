"""Ways to read: BM25 is its formula, MaxSim a loop, late chunking one forward pooled by hand, names what they say."""

import collections
import json
import math
import random

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close, assert_equal, real
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from transformers import AutoTokenizer, BertModel

from longbert.arguments import ModelArguments
from longbert.finetuning.retrieval.bm25 import read_words, words_of
from longbert.finetuning.retrieval.collection import read_retrieval, write_retrieval
from longbert.finetuning.retrieval.embedding import EmbeddingArguments
from longbert.finetuning.retrieval.encoders import exchange_model, load_encoder, with_token_vectors
from longbert.finetuning.retrieval.reading import read
from longbert.finetuning.retrieval.ways import refuse_sizes, way_of
from longbert.source import Source


NOISE = ["state", "union", "people", "war", "peace", "law", "work", "year", "great", "land"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Documents of 5 to 150 words, the last two alike, and queries of some of their words."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(NOISE, k=length)) for length in (5, 61, 62, 63, 90, 150, 150)]
    texts.append(texts[-1])
    corpus = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    queries = [
        {"id": str(number), "text": " ".join(draw.sample(NOISE, 3)), "document": str(number)} for number in range(4)
    ]
    folder = tmp_path_factory.mktemp("ways")
    write_retrieval(folder, corpus, queries)
    return folder


@pytest.fixture(scope="module")
def source(tiny_source):
    return Source.of(ModelArguments(model=str(tiny_source), max_position_embeddings=192, attention_window=32))


def encoder_of(source, name, prompts=None):
    way = way_of(name, 64)
    encoder = load_encoder(source, prompts)
    if way.by_token:
        encoder = with_token_vectors(encoder)
    exchange_model(encoder, source, source.config if way.extended else source.native, 192 if way.extended else 64)
    return encoder, way


def texts_of(folder, name):
    return [json.loads(line)["text"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]


# BM25


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A cat's 2 hats, a_b.", ["a", "cat", "s", "2", "hats", "a_b"]),
        ("ÉCOLE Straße", ["école", "straße"]),
        ("長い", ["長い"]),
        ("美", ["美"]),
        ("北京大学在BERT里，大 学", ["北京", "京大", "大学", "学在", "bert", "里", "大", "学"]),
        ("?!", []),
    ],
)
def test_words_of_a_text(text, words):
    assert words_of(text) == words


def test_bm25_is_its_formula():
    documents = ["the cat sat on the mat", "the dog", "", "a cat and a dog and a cat", "北京大学 cat"]
    queries = ["cat dog", "the the cat", "zebra", "", "大学"]
    split = [text.split() for text in documents]
    split[-1] = ["北京", "京大", "大学", "cat"]
    average = sum(map(len, split)) / len(split)

    def weight(word, words):
        holding = sum(word in each for each in split)
        rarity = math.log(1 + (len(split) - holding + 0.5) / (holding + 0.5))
        often = collections.Counter(words)[word]
        return rarity * often / (often + 1.5 * (1 - 0.75 + 0.75 * len(words) / average))

    expected = [[sum(weight(word, words) for word in query.split()) for words in split] for query in queries]
    reading = read_words(documents, queries)
    assert_close(reading.scores, torch.tensor(expected), atol=1e-6, rtol=1e-5)
    assert reading.tokens == sum(map(len, split)) + 2 + 3 + 1 + 0 + 1


def test_bm25_of_documents_without_a_word_finds_nothing():
    assert_equal(read_words(["?!", ""], ["cat", ""]).scores, torch.zeros(2, 2))


# a vector for every token


@pytest.mark.parametrize("prompts", [None, {"query": "law ", "document": "great work "}])
@pytest.mark.parametrize("name", ["multi-vector", "chunk-multi-vector", "chunk-multi-vector-20"])
def test_maxsim_is_a_loop(name, prompts, folder, source):
    encoder, way = encoder_of(source, name, prompts)
    retrieval = read_retrieval(str(folder), encoder.tokenizer, 64)
    reading = read(encoder, retrieval, way, 3)
    encoder.eval()
    before = {kind: len(text.split()) for kind, text in (prompts or {"query": "", "document": ""}).items()}
    room = encoder.max_seq_length - 2 - before["document"]
    size = min(room, {"multi-vector": 190, "chunk-multi-vector": 62, "chunk-multi-vector-20": 20}[name])

    def vectors(kind, text):
        prompt = (prompts or {}).get(kind, "")
        ids = encoder.tokenizer(prompt + text, return_tensors="pt")
        with torch.no_grad():
            return F.normalize(encoder[0].model(**ids).last_hidden_state[0], dim=-1)

    expected = torch.zeros(4, 8)
    stored = 0
    for column, text in enumerate(texts_of(folder, "corpus")):
        words = text.split()
        chunks = [" ".join(words[start : start + size]) for start in range(0, len(words), size)]
        document = [vector for chunk in chunks for vector in vectors("document", chunk)]
        stored += len(document)
        for row, query in enumerate(texts_of(folder, "queries")):
            expected[row, column] = sum(max(float(a @ b) for b in document) for a in vectors("query", query))
    found = reading.similarities(way.nearest)
    assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert_equal(found[:, -1], found[:, -2])  # what is alike ties
    assert reading.stored(way.nearest) == (stored, stored * vectors("query", "law").shape[1] * 4)


def test_a_multi_vector_encoder_is_saved_and_says_the_same(folder, source, tmp_path):
    encoder, way = encoder_of(source, "multi-vector", {"query": "law ", "document": "work "})
    reading = read(encoder, read_retrieval(str(folder), encoder.tokenizer, 64), way, 3)
    encoder.save_pretrained(str(tmp_path / "saved"))
    saved = MultiVectorEncoder(str(tmp_path / "saved"), device="cpu")
    queries = saved.encode_query(texts_of(folder, "queries"))
    documents = saved.encode_document(texts_of(folder, "corpus"))
    assert_close(reading.similarities(False), saved.similarity(queries, documents).cpu(), atol=1e-4, rtol=1e-5)


# late chunking


@pytest.mark.parametrize("size", [20, 62])
def test_late_chunks_are_pooled_from_one_forward(size, folder, source):
    encoder, way = encoder_of(source, f"late-chunk-{size}", {"query": "", "document": "great work "})
    retrieval = read_retrieval(str(folder), encoder.tokenizer, 64)
    reading = read(encoder, retrieval, way, 3)
    encoder.eval()
    tokenizer, expected, owner = encoder.tokenizer, [], []
    for number, text in enumerate(texts_of(folder, "corpus")):
        ids = tokenizer("great work " + text, return_tensors="pt")
        with torch.no_grad():
            states = encoder[0].model(**ids).last_hidden_state[0]
        ends = [*range(3 + size, len(states) - 1, size), len(states)]  # [CLS], the prompt and `size` words
        for start, end in zip([0, *ends], ends, strict=False):
            expected.append(F.normalize(states[start:end].mean(dim=0), dim=-1))
            owner.append(number)
    assert reading.owner.tolist() == owner
    assert_close(reading.pieces, torch.stack(expected), atol=1e-5, rtol=1e-5)
    asked = torch.tensor(encoder.encode(texts_of(folder, "queries")))
    cosines = asked @ torch.stack(expected).T
    best = [cosines[:, [i for i, each in enumerate(owner) if each == number]].max(dim=1).values for number in range(8)]
    assert_close(reading.similarities(way.nearest), torch.stack(best, dim=1), atol=1e-5, rtol=1e-5)


def test_a_late_chunk_of_a_short_text_is_what_transformers_bert_pools(tmp_path):
    text = "The state of the union is strong. " * 40
    write_retrieval(tmp_path, [{"id": "a", "text": text}], [{"id": "q", "text": "union", "document": "a"}])
    minilm = real("minilm")
    of_minilm = Source.of(ModelArguments(model=str(minilm), max_position_embeddings=1024, attention_window=512))
    encoder = load_encoder(of_minilm)
    exchange_model(encoder, of_minilm, of_minilm.config, 1024)
    retrieval = read_retrieval(str(tmp_path), encoder.tokenizer, 512)
    reading = read(encoder, retrieval, way_of("late-chunk-128", 512), 8)
    ids = AutoTokenizer.from_pretrained(minilm)(text, return_tensors="pt")
    with torch.no_grad():
        states = BertModel.from_pretrained(minilm)(**ids).last_hidden_state[0]
    parts = [states[:129], states[129:257], states[257:]]
    expected = torch.stack([F.normalize(part.mean(dim=0), dim=-1) for part in parts])
    assert_close(reading.pieces, expected, atol=1e-5, rtol=1e-4)
    whole = SentenceTransformer(str(minilm), device="cpu")
    whole.max_seq_length = 512
    one = read(encoder, retrieval, way_of("late-chunk-500", 512), 8)
    assert_close(one.pieces[0], torch.tensor(whole.encode(text)), atol=1e-5, rtol=1e-4)


# names


def test_a_number_is_the_tokens_of_a_piece():
    ids = list(range(300))
    assert [len(piece) for piece in way_of("chunk-max-128").pieces(ids, 510)] == [128, 128, 44]
    assert [len(piece) for piece in way_of("chunk-mean-128").pieces(ids, 100)] == [100, 100, 100]
    assert [len(piece) for piece in way_of("late-chunk-128").pieces(ids, 250)] == [250]
    assert way_of("chunk-max", 512) == way_of("chunk-max-510")


@pytest.mark.parametrize(
    "strategies",
    [["long-128"], ["chunk-max-0"], ["chunk-max-"], ["chunk-max--5"], ["chunk-max-a"], ["multi-vector-9"], [""], []],
)
def test_names_that_say_nothing_are_refused(strategies):
    with pytest.raises(ValueError, match=r"strategies must be of long, .*as in chunk-max-128; got"):
        EmbeddingArguments(strategies=strategies)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="strategies must name each once"):
        EmbeddingArguments(strategies=["chunk-max-9", "chunk-max-9"])
    with pytest.raises(ValueError, match="chunk-max-511 asks for chunks of 511 tokens, and the source reads 510"):
        refuse_sizes(["late-chunk-4000", "chunk-max-510", "chunk-max-511"], 512)
    with pytest.raises(ValueError, match="late-chunk is read by the trained encoder of long: put long before it"):
        EmbeddingArguments(strategies=["late-chunk", "long"], train=["all"])
    with pytest.raises(ValueError, match="chunk-multi-vector is read by the trained encoder of multi-vector"):
        EmbeddingArguments(strategies=["long", "chunk-multi-vector"], train=["all"], train_baselines=True)
