"""Queries and the documents that answer them: read from files, checked before any work starts, ranked."""

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from ...arguments import FileArguments, described
from ...data.files import is_missing, read_objects, refuse_half_characters, refuse_rows
from ...folders import resolve_path
from ...proof import position_buckets
from ...tables import strict_json
from ..examples.reading import as_text, read_examples
from ..results.report import Lines


RANKED = 10  # documents kept of a ranking, as many as the figures look at, and those that tie with the tenth


@dataclass(kw_only=True)
class RetrievalArguments(FileArguments):
    """Where the pairs to train on are, and the documents and queries to test on."""

    train_file: str | None = described(None, "(query, document) pairs: csv, json(l), parquet, or a saved dataset")
    query_column: str = described("query", "column of the queries in train_file")
    document_column: str = described("document", "column of the documents in train_file")
    id_column: str | None = described(None, "column that names a pair in error messages; by default its number")
    evidence_column: str | None = described(
        None, "column of train_file with the character of the document at which what answers the query begins"
    )
    balance_evidence: bool = described(
        False, "train as often on answers in the first, the middle and the last third of a document; rarer ones repeat"
    )
    validation_folder: str | None = described(
        None, "chooses the best checkpoint; by default every tenth document of train_file, with its queries"
    )
    test_folder: str | None = described(None, "folder of corpus.jsonl and queries.jsonl, which the table measures")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_folder is None:
            raise ValueError("test_folder must name a folder with corpus.jsonl and queries.jsonl")
        if self.balance_evidence and self.evidence_column is None:
            raise ValueError("balance_evidence needs to know where answers stand: set evidence_column")


@dataclass(frozen=True)
class Document:
    """Token ids without special tokens, the group among which a query's documents are sought, None for all, and the
    text."""

    ids: list[int]
    group: str | None
    text: str = ""


@dataclass(frozen=True)
class Query:
    """A query, and the documents that answer it.

    Args:
        ids: token ids without special tokens.
        documents: ids of the documents that are right.
        evidence: token of the first of them, [CLS] counted, at which the evidence begins; None where it is not known.
        group: of its documents; where they have none, how long the first of them is.
        text: what it asks.
    """

    id: str
    ids: list[int]
    documents: list[str]
    evidence: int | None
    group: str
    text: str = ""


@dataclass
class Retrieval:
    """Documents by their ids, queries, and the queries' groups in the order in which a table shows them."""

    documents: dict[str, Document]
    queries: list[Query]
    groups: list[str]

    def of_their_group(self, similarities: torch.Tensor) -> torch.Tensor:
        """`[queries, documents]` with -inf for the documents of other groups than a query's own."""
        groups = [document.group for document in self.documents.values()]
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        theirs = torch.tensor([numbers[group] for group in groups])
        ours = torch.tensor([numbers[self.documents[query.documents[0]].group] for query in self.queries])
        return similarities.masked_fill(ours[:, None] != theirs, -torch.inf)

    def lines(self, similarities: torch.Tensor) -> Lines:
        """Rank the documents for each query, as LongEmbed (Zhu et al. 2024, arXiv 2404.12096, section 3) among those
        of its own group, where documents have groups.

        Args:
            similarities: `[queries, documents]`; documents tie where they are equal, and are not found at -inf.

        Returns:
            What `Report` reads: for each query the best ids, in place of an id a list of those that tie; the right
            ids, where its evidence stands, its group.
        """
        names, allowed = list(self.documents), self.of_their_group(similarities)
        last = allowed.topk(min(RANKED, len(names))).values[:, -1]
        lines = []
        for query, scores, least in zip(self.queries, allowed, last, strict=True):
            # all that tie with the last one too
            best = ((scores >= least) & (scores > -torch.inf)).nonzero()[:, 0].tolist()
            scored = {names[index]: float(scores[index]) for index in best}
            ranked = sorted(scored, key=lambda name: (-scored[name], name))
            ties = [list(tied) for _, tied in groupby(ranked, key=scored.__getitem__)]
            lines.append(
                {
                    "id": query.id,
                    "prediction": [tied[0] if len(tied) == 1 else tied for tied in ties],
                    "reference": query.documents,
                    "scores": {name: scored[name] for name in ranked},
                    "evidence": query.evidence,
                    "group": query.group,
                }
            )
        return lines


def read_pairs(arguments: RetrievalArguments, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """Read the training pairs, as `query`, `document`, `id`, and the document's `length` in tokens.

    Raises:
        ValueError: no file, a column that is not there, or an empty text.
    """
    if arguments.train_file is None:
        raise ValueError("training needs pairs: set train_file, or train: [none]")
    names = {"query": arguments.query_column, "document": arguments.document_column, "id": arguments.id_column}
    names |= {"evidence": arguments.evidence_column}

    def parse(values: dict[str, Any]) -> dict[str, Any]:
        texts = {kind: as_text(values[kind], kind) for kind in ("query", "document")}
        if arguments.evidence_column is None:
            return texts
        return texts | {"third": _third(values["evidence"], len(texts["document"]))}

    pairs = read_examples(arguments.train_file, names, parse, arguments).remove_columns("place")

    def measure(batch: dict[str, list]) -> dict[str, list]:
        return {"length": [len(ids) for ids in tokenizer(batch["document"], verbose=False)["input_ids"]]}

    return pairs.map(measure, batched=True, desc="tokenizing")


def _third(evidence: Any, length: int) -> int:
    """Of a document of so many characters, in which evidence begins: 0, 1 or 2."""
    start = int(evidence) if isinstance(evidence, float) and evidence.is_integer() else evidence
    if isinstance(start, str) and start.isdecimal():
        start = int(start)
    if not isinstance(start, int) or isinstance(start, bool) or not 0 <= start < length:
        raise ValueError(f"evidence must be a character of its document, 0 to {length - 1}, got {evidence!r:.80}")
    return 3 * start // length


def balance(pairs: datasets.Dataset) -> datasets.Dataset:
    """As often each third of a document in which evidence stands, after position-balanced pairs (arXiv 2605.26578):
    pairs of the rarer ones repeat, and no text is changed.

    Raises:
        ValueError: a third has no pair.
    """
    places: list[list[int]] = [[], [], []]
    for place, third in enumerate(pairs["third"]):
        places[third].append(place)
    counts = [len(some) for some in places]
    if not all(counts):
        raise ValueError(
            f"answers stand in the first, middle and last third of {counts[0]:,}, {counts[1]:,} and {counts[2]:,} "
            "documents of train_file: balance_evidence needs some in each"
        )
    print(
        f"train_file: answers in the first, middle and last third of {', '.join(map(str, counts))} documents, balanced"
    )
    repeated = [some[number % len(some)] for number in range(max(counts)) for some in places]
    return pairs.select(sorted(repeated))


def refuse_few(pairs: datasets.Dataset, batch_size: int) -> None:
    """Raise `ValueError` if there are too few different queries or documents to fill a batch of pairs."""
    for column in ("query", "document"):
        number = len({*pairs[column]})
        if number < batch_size:
            raise ValueError(
                f"train_file has {number} different values of {column}, and a batch of {batch_size} pairs needs as "
                "many, because a batch's other documents are the wrong answers: set a smaller "
                "per_device_train_batch_size"
            )


def hold_out(
    pairs: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, source_length: int
) -> tuple[datasets.Dataset, Retrieval]:
    """Split off every tenth document with its queries; the pairs of the other documents stay to train on."""
    texts = list(dict.fromkeys(pairs["document"]))
    held = {text: f"document {number}" for number, text in enumerate(texts[::10])}
    inside = [index for index, text in enumerate(pairs["document"]) if text in held]
    rest = sorted({*range(len(pairs))} - {*inside})
    if not rest:
        raise ValueError("every tenth document of train_file is held out, and nothing is left: set validation_folder")
    corpus = [{"id": name, "text": text} for text, name in held.items()]
    queries = [
        {"id": str(pair["id"]), "text": pair["query"], "document": held[pair["document"]]}
        for pair in pairs.select(inside)
    ]
    return pairs.select(rest), _retrieval("train_file", corpus, queries, tokenizer, source_length)


def training_pairs(
    arguments: RetrievalArguments, tokenizer: PreTrainedTokenizerBase, source_length: int, evaluates: bool
) -> tuple[datasets.Dataset, Retrieval | None]:
    """The pairs to train on, `query`, `document`, `id` and `length`, and the test that chooses the best checkpoint, if
    one is chosen.

    Raises:
        ValueError: no pairs, or some that cannot be used.
    """
    pairs, validation = read_pairs(arguments, tokenizer), None
    if arguments.validation_folder:
        validation = read_retrieval(arguments.validation_folder, tokenizer, source_length, arguments)
    elif evaluates:
        pairs, validation = hold_out(pairs, tokenizer, source_length)
    if arguments.balance_evidence:
        pairs = balance(pairs)
    return pairs.select_columns(["query", "document", "id", "length"]), validation


def read_retrieval(
    folder: str, tokenizer: PreTrainedTokenizerBase, source_length: int, settings: FileArguments | None = None
) -> Retrieval:
    """Read a test: `corpus.jsonl` with `id`, `text` and perhaps `group`; `queries.jsonl` with `id`, `text`, `document`
    (an id, or a list of them) and perhaps `evidence`, the character of the first document at which it begins.

    Args:
        source_length: tokens that the source reads; without groups, figures are split by documents of up to so
            many, twice as many, four times, ...
        settings: how the files are read; by default as UTF-8, in which no text is empty.

    Raises:
        ValueError: a line without a column, an id that is unknown or there twice, evidence outside its document, or
            groups that do not fit.
        OSError: no such files.
    """
    folder = resolve_path(folder)
    settings = settings or FileArguments()
    corpus = _read_lines(Path(folder, "corpus.jsonl"), ("id", "text"), settings)
    queries = _read_lines(Path(folder, "queries.jsonl"), ("id", "text", "document"), settings)
    return _retrieval(folder, corpus, queries, tokenizer, source_length)


def write_retrieval(folder: str | Path, corpus: list[dict[str, Any]], queries: list[dict[str, Any]]) -> None:
    """Write a test as `read_retrieval` reads it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, lines in (("corpus", corpus), ("queries", queries)):
        text = "".join(strict_json(line, indent=None) for line in lines)
        Path(folder, f"{name}.jsonl").write_text(text, "utf-8")


def _read_lines(file: Path, columns: tuple[str, ...], settings: FileArguments) -> list[dict[str, Any]]:
    """The objects of a jsonl file, their ids as text."""
    lines: list[dict[str, Any]] = []
    places: dict[str, str] = {}
    lacking: dict[str, list[str]] = {}
    for record in read_objects(file, columns, settings):
        line, place = record.values, record.place
        lacks = [name for name in columns if is_missing(line[name]) or line[name] == []]
        if lacks:
            lacking.setdefault(" and ".join(f"no {name}" for name in lacks), []).append(place)
            continue
        line["id"] = str(line["id"])
        if line["id"] in places:
            raise ValueError(f"{place}: the id {line['id']!r} is there twice, first in {places[line['id']]}")
        if not isinstance(line["text"], str):
            raise ValueError(f"{place}: text must be a text, got {line['text']!r:.80}")
        refuse_half_characters(place, line)
        places[line["id"]] = place
        lines.append(line)
    for what, lacked in lacking.items():
        if not settings.skip_empty:
            refuse_rows(lacked, what)
        print(f"{file}: {len(lacked):,} rows with {what} are left out")
    if not lines:
        raise ValueError(f"{file} is empty")
    return lines


def _retrieval(
    where: str, corpus: list[dict[str, Any]], queries: list[dict[str, Any]], tokenizer: Any, source_length: int
) -> Retrieval:
    def tokens(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    grouped = [line for line in corpus if line.get("group") is not None]
    if grouped and len(grouped) < len(corpus):
        raise ValueError(f"{where}: {len(grouped)} of {len(corpus)} documents have a group: give all of them one")
    texts = {line["id"]: line["text"] for line in corpus}
    if copies := len(texts) - len({*texts.values()}):
        print(f"{where}: {copies:,} of {len(texts):,} documents have the text of another one, and tie with it")
    documents = {
        line["id"]: Document(ids, str(line["group"]) if grouped else None, line["text"])
        for line, ids in zip(corpus, tokens(list(texts.values())), strict=True)
    }
    longest = max(len(document.ids) for document in documents.values()) + 2
    buckets = {
        stop: f"{start + 1:,}-{stop:,}" for start, stop in position_buckets(max(longest, source_length), source_length)
    }
    made = []
    for line, ids in zip(queries, tokens([line["text"] for line in queries]), strict=True):
        right = _right_documents(where, line, documents)
        first = documents[right[0]]
        length = len(first.ids) + 2
        group = first.group or next(title for stop, title in buckets.items() if length <= stop)
        evidence = _evidence(where, line, texts[right[0]], tokens)
        made.append(Query(line["id"], ids, right, evidence, group, line["text"]))
    groups = dict.fromkeys(str(line["group"]) for line in grouped) or buckets.values()
    present = {query.group for query in made}
    return Retrieval(documents, made, [group for group in groups if group in present])


def _right_documents(where: str, query: dict[str, Any], documents: dict[str, Document]) -> list[str]:
    named = query["document"] if isinstance(query["document"], list) else [query["document"]]
    right = list(dict.fromkeys(map(str, named)))
    for name in right:
        if name not in documents:
            raise ValueError(f"{where}, query {query['id']!r}: there is no document {name!r} in corpus.jsonl")
    if len({documents[name].group for name in right}) != 1:
        raise ValueError(f"{where}, query {query['id']!r}: its documents must be of one group, got {right}")
    return right


def _evidence(where: str, query: dict[str, Any], text: str, tokens: Any) -> int | None:
    start = query.get("evidence")
    if start is None:
        return None
    if not isinstance(start, int) or isinstance(start, bool) or not 0 <= start < len(text):
        raise ValueError(
            f"{where}, query {query['id']!r}: evidence must be a character of its document, 0 to {len(text) - 1}, got "
            f"{start!r}"
        )
    return 1 + len(tokens([text[:start]])[0])
