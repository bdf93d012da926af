"""Choose the documents of a corpus that need length: those whose tokens a model predicts better the more it reads."""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from .data.features import FRAME
from .data.fingerprints import of_documents
from .data.masking import TokenMasker
from .data.rows import tokenize
from .errors import refuse_no_number
from .folders import file_written_aside, read_json, refuse_occupied
from .scoring import MaskedDocument, cutter, score
from .source import PretrainingModel, digest_of_files
from .tables import strict_json
from .training.changes import changed_content, changed_settings


RECORD, SCORES, SELECTED, LOCK = "select.json", "scores.jsonl", "selected.jsonl", ".lock"
DIGITS = 6  # of a loss


@dataclass(frozen=True)
class Reading:
    """How documents are read for their scores.

    Args:
        source_length: tokens of the chunks, and the position from which on losses count.
        max_seq_length: tokens read at once where it is long; longer documents are read in rows of so many.
        mlm_probability: share of tokens to predict.
        seed: of the masks, which depend on it and on the text alone.
    """

    source_length: int
    max_seq_length: int
    mlm_probability: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.mlm_probability < 1:
            raise ValueError(f"mlm_probability must lie between 0 and 1, got {self.mlm_probability}")


@dataclass(frozen=True)
class Score:
    """What length is worth to a document.

    Args:
        tokens: of the document.
        predicted: masked tokens past the source length, which count.
        loss_long, loss_chunks: their mean MLM loss in nats, read at once and in chunks; None where there are none.
        gain: in nats a token, chunks less long.
    """

    document: str
    tokens: int
    predicted: int = 0
    loss_long: float | None = None
    loss_chunks: float | None = None
    gain: float | None = None


def score_document(
    document: dict[str, Any], model: PretrainingModel, tokenizer: PreTrainedTokenizerBase, reading: Reading
) -> Score:
    """The score of a document, given as `document`, `input_ids` and `digest`. It depends on the text alone.

    After LongFilter (arXiv 2510.25804), which compares a causal model's losses of the same tokens with a long and a
    short context; here the tokens are masked, and the model is the same too.

    Raises:
        MendableError: a loss is no number.
    """
    ids, size = document["input_ids"], reading.max_seq_length - FRAME
    mask = TokenMasker(tokenizer, reading.mlm_probability)
    rows = [
        MaskedDocument(*mask(ids[start : start + size], reading.seed, document["digest"], start))
        for start in range(0, len(ids), size)
        if len(ids) - start + FRAME > reading.source_length
    ]
    if not rows:
        return Score(document["document"], len(ids))
    losses = [
        score(model, rows, cutter(tokenizer, chunk), tokenizer, None).within(reading.source_length, None).loss
        for chunk in (None, reading.source_length)
    ]
    if not len(losses[0]):
        return Score(document["document"], len(ids))
    refuse_no_number(map(torch.from_numpy, losses), document["document"])
    long, chunks = (round(float(loss.mean(dtype=np.float64)), DIGITS) for loss in losses)
    return Score(document["document"], len(ids), len(losses[0]), long, chunks, round(chunks - long, DIGITS))


def chosen(gains: list[float | None], keep: float) -> list[int]:
    """The documents with the highest gains, a share `keep` of those that have one, rounded up, in their order.

    Of equal gains the earlier ones are chosen.
    """
    ranked = sorted((-gain, number) for number, gain in enumerate(gains) if gain is not None)
    return sorted(number for _, number in ranked[: math.ceil(round(keep * len(ranked), DIGITS))])


def select(
    documents: datasets.Dataset,
    model: PretrainingModel,
    tokenizer: PreTrainedTokenizerBase,
    out: str | Path,
    *,
    reading: Reading,
    keep: float,
    settings: dict[str, Any],
) -> str:
    """Score documents one by one into `out/scores.jsonl`, and write those that are kept to `out/selected.jsonl`.

    What was stopped goes on behind the last score that is whole. Another `keep` needs no new scores.

    Args:
        documents: columns `text`, `document`, `digest`; whole documents, none in parts.
        settings: what else decides how documents are read, for the record; `model` is the model's path.

    Returns:
        What was found, in words.

    Raises:
        FileExistsError: there is something else in `out`.
        ValueError: it was begun with other settings, data or another model; no document is longer than the source
            length; another process is at work there.
    """
    skip_empty = settings.get("skip_empty", False)
    tokens = tokenize(documents, tokenizer, skip_empty=skip_empty)
    n = reading.source_length
    if all(len(ids) + FRAME <= n for ids in tokens["input_ids"]):
        raise ValueError(f"none of the {len(tokens):,} documents is longer than {n} tokens: length gains them nothing")
    told = {
        "settings": settings | asdict(reading),
        "source": digest_of_files(settings["model"]),
        "data": {"documents": of_documents(documents)},
        "versions": {package: version(package) for package in ("longbert", "torch", "transformers", "tokenizers")},
        "machine": {"device": model.device.type},
    }
    with _claimed(Path(out), told):
        scores = list(_scores(Path(out, SCORES), tokens, model, tokenizer, reading))
        gains = [each.gain for each in scores]
        kept = chosen(gains, keep)
        if not kept:
            raise ValueError(
                f"no token past {n} is masked: raise mlm_probability, which is {reading.mlm_probability:g}"
            )
        texts = dict(zip(documents["document"], range(len(documents)), strict=True))
        with (
            file_written_aside(Path(out, SELECTED)) as aside,
            open(aside, "w", encoding="utf-8", newline="\n") as stream,
        ):
            for number in kept:
                name = scores[number].document
                line = {"text": documents[texts[name]]["text"], "document": name, "gain": gains[number]}
                stream.write(strict_json(line, None))
    return _in_words(scores, kept, n)


@contextlib.contextmanager
def _claimed(folder: Path, told: dict[str, Any]) -> Iterator[None]:
    """Begin in a folder, or go on with what was begun there, and keep others out."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, blocking=False):
            if not (folder / RECORD).exists():
                refuse_occupied(folder, but=LOCK)
                with file_written_aside(folder / RECORD) as aside:
                    aside.write_text(strict_json(told), "utf-8")
            before = read_json(folder / RECORD)
            changes = changed_settings(before["settings"], told["settings"]) + changed_content(before, told)
            if changes:
                raise ValueError(f"{folder} was begun with something else: {'; '.join(changes)}. Name another folder")
            yield
    except Timeout:
        raise ValueError(f"another process is at work in {folder}: wait for it, or name another folder") from None


def _scores(
    file: Path,
    tokens: datasets.Dataset,
    model: PretrainingModel,
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
) -> Iterator[Score]:
    """The scores of all documents in order; those that are not in the file yet are written to it, a line each."""
    whole = (
        [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if file.exists() else []
    )
    with open(file, "ab") as stream:
        stream.truncate(sum(map(len, whole)))  # what a kill has left of a line
        for line in whole:
            yield Score(**json.loads(line))
        for number in tqdm(range(len(whole), len(tokens)), desc="scoring", unit="document"):
            made = score_document(tokens[number], model, tokenizer, reading)
            stream.write(strict_json(asdict(made), None).encode())
            stream.flush()
            yield made


def _in_words(scores: list[Score], kept: list[int], source_length: int) -> str:
    gains = np.array([each.gain for each in scores if each.gain is not None])
    of_kept = np.array([scores[number].gain for number in kept])
    tokens = sum(scores[number].tokens for number in kept)
    short = len(scores) - len(gains)
    total = sum(each.tokens for each in scores)
    said = (
        f"{len(kept):,} of {len(gains):,} documents kept, {tokens:,} of {total:,} tokens: length gains them "
        f"{of_kept.mean():.4f} nats a token ({of_kept.min():.4f} to {of_kept.max():.4f}), {gains.mean():.4f} in all"
    )
    left_out = f"{short:,} documents have no masked token past {source_length} tokens, so no gain, and are left out"
    return f"{said}\n{left_out}" if short else said
