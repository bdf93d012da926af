"""What makes a model that was taken to 4,096 tokens use them? Trains and compares cells at equal steps, on one GPU.

    python benchmarks/length_study.py prepare SOURCE tokens.npz python=python-docs sotu=speeches \
      wikipedia=enwiki-latest-...-shortened.bz2 anarchism=anarchism/html
    python benchmarks/length_study.py check
    python benchmarks/length_study.py run SOURCE tokens.npz OUT --seconds 300
    python benchmarks/length_study.py report tokens.npz OUT

`prepare` tokenizes documents: text files and pages of HTML in sorted order, or the articles of a Wikipedia dump.
Every tenth document is held out. `run` writes after every cell, and begins none that its seconds would cut off.

**Closed layers.** A full layer in which every head adds a learned bias b to the scores of keys outside the window. At
b = -inf the layer is the window, with b = 0 it is full attention. Both are kernels that we have, and so is every b
between, in linear memory: with Z and N the sums of exp(score) and exp(score) * value,

    Z = (1 - exp b) Z_window + exp(b) Z_full,        N likewise,

so outputs are merged by their log-sum-exp, and backwards both kernels get the merged output and log-sum-exp.

**Copy tokens.** Masked tokens that are not among their document's 50 most frequent, by the distance to the nearest
place in the row where the same token stands unmasked.
"""

import argparse
import bz2
import functools
import html
import json
import re
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from records import environment
from torch import nn

from longbert import LongBertConfig, LongBertForMaskedLM
from longbert.copies import frequent_tokens
from longbert.data.twins import nearest_twins


CHUNK = 510  # tokens of a chunk between [CLS] and [SEP]
CHUNKS = 8
ROW = CHUNK * CHUNKS  # tokens of a long row between [CLS] and [SEP]
PAD, CLS, SEP, MASK, FIRST_WORD = 0, 101, 102, 103, 1000  # of bert-base-uncased's vocabulary
VOCABULARY = 30522
IGNORED = -100
RECURS, PROBE, FAR = 1, 2, 4  # flags of a token, by which masking may choose it
FAR_DISTANCE = 256


# ---- documents


def read_kind(path: Path) -> Iterator[str]:
    if path.suffix == ".bz2":
        yield from read_dump(path)
        return
    for file in sorted(each for each in path.rglob("*") if each.suffix in (".txt", ".html")):
        text = file.read_text("utf-8", errors="replace")
        if file.suffix == ".html":
            text = re.sub(r"(?is)<(script|style).*?</\1>|<[^>]+>", " ", text)
            text = html.unescape(text)
        yield text


def read_dump(path: Path) -> Iterator[str]:
    pages = re.findall(r"(?s)<page>.*?</page>", bz2.decompress(path.read_bytes()).decode("utf-8"))
    for page in pages:
        found = re.search(r"(?s)<text[^>]*>(.*?)</text>", page)
        if found and "<ns>0</ns>" in page and "<redirect" not in page:
            yield plain_wiki(html.unescape(found[1]))


def plain_wiki(text: str) -> str:
    text = re.sub(r"(?s)<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>", " ", text)
    for _ in range(6):  # templates and tables nest
        text = re.sub(r"(?s)\{\{[^{}]*\}\}|\{\|[^{}]*\|\}", " ", text)
    text = re.sub(r"\[\[(?:File|Image|Category):[^\[\]]*(?:\[\[[^\]]*\]\][^\[\]]*)*\]\]", " ", text)
    text = re.sub(r"\[\[(?:[^\]|]*\|)?([^\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?://\S+ ?([^\]]*)\]", r"\1", text)
    return re.sub(r"'{2,}|<[^>]+>|={2,}", " ", text)


def prepare(source: str, out: str, kinds: list[str]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    parts, lengths, kind_of, held_out = [], [], [], []
    for number, kind in enumerate(kinds):
        documents = list(read_kind(Path(kind.partition("=")[2])))
        for first in range(0, len(documents), 64):
            encoded = tokenizer(documents[first : first + 64], add_special_tokens=False, verbose=False)["input_ids"]
            for index, ids in enumerate(encoded, start=first):
                parts.append(np.array(ids, dtype=np.uint16))
                lengths.append(len(ids))
                kind_of.append(number)
                held_out.append(index % 10 == 0)
        print(kind, len(documents), "documents,", sum(lengths), "tokens so far", flush=True)
    np.savez_compressed(
        out,
        ids=np.concatenate(parts),
        lengths=np.array(lengths),
        kind=np.array(kind_of),
        held_out=np.array(held_out),
        names=np.array([kind.partition("=")[0] for kind in kinds]),
    )


@dataclass
class Rows:
    """Framed rows of documents, `[rows, ROW + 2]`, with the flags of their tokens; on the device for training."""

    ids: Any
    flags: Any
    lengths: np.ndarray  # between [CLS] and [SEP]
    document: np.ndarray
    kind: np.ndarray

    def some(self, count: int) -> "Rows":
        """Rows spread over all."""
        where = np.linspace(0, len(self.lengths) - 1, min(count, len(self.lengths))).astype(int)
        return Rows(*(getattr(self, part.name)[where] for part in fields(self)))


def make_rows(path: str, held_out: bool, shortest: int, most: int | None = None) -> tuple[Rows, list[str]]:
    """Cut documents into rows.

    Args:
        shortest: tokens of a row that is worth a row.
        most: rows that are made.
    """
    data = read(path)
    ids, flags, lengths, documents, kinds = [], [], [], [], []
    for document in np.flatnonzero(data["held_out"] == held_out)[:most]:
        tokens = tokens_of(data, document)
        frequent = frequent_tokens(tokens)
        for start in range(0, len(tokens), ROW):
            row = tokens[start : start + ROW]
            if len(row) < shortest:
                continue
            framed, marks = np.full(ROW + 2, PAD, np.int32), np.zeros(ROW + 2, np.uint8)
            framed[: len(row) + 2] = np.concatenate(([CLS], row, [SEP]))
            marks[1 : len(row) + 1] = flags_of(row, frequent)
            ids.append(framed)
            flags.append(marks)
            lengths.append(len(row))
            documents.append(document)
            kinds.append(data["kind"][document])
    rows = Rows(np.stack(ids), np.stack(flags), np.array(lengths), np.array(documents), np.array(kinds))
    return (rows if most is None else rows.some(most)), [str(name) for name in data["names"]]


@functools.cache
def read(path: str) -> dict[str, np.ndarray]:
    data = dict(np.load(path))
    return data | {"starts": np.cumsum(data["lengths"]) - data["lengths"]}


def tokens_of(data: dict[str, np.ndarray], document: int) -> np.ndarray:
    start = data["starts"][document]
    return data["ids"][start : start + data["lengths"][document]].astype(np.int64)


def flags_of(row: np.ndarray, frequent: np.ndarray) -> np.ndarray:
    """Which tokens masking may choose beyond chance."""
    flags, half = np.zeros(len(row), np.uint8), len(row) // 2
    distance = nearest_twins(row)
    flags[(distance > FAR_DISTANCE) & ~np.isin(row, frequent)] |= FAR
    if len(row) >= 1024:
        late = np.arange(len(row)) >= half + 256
        flags[late & np.isin(row, row[:half])] |= RECURS
        for place in (10, 50, 100, 200, 500):
            again = np.flatnonzero(row[half:] == row[place])
            if len(again):
                flags[half + again[0]] |= PROBE
    return flags


# ---- cells


@dataclass(frozen=True)
class Cell:
    """One model, trained or not.

    Args:
        full, closed: layers that read in full, plainly or closed, with gates that begin at `opening`.
        masking: plain, retrieval-aware, or far-copies.
        chunked: whether it is trained on chunks of 512 tokens.
        longer: how many times the common number of steps.
    """

    name: str
    window: int = 512
    full: tuple[int, ...] = ()
    closed: tuple[int, ...] = ()
    opening: float = -8.0
    masking: str = "plain"
    chunked: bool = False
    seed: int = 0
    longer: int = 1


TWO, ALL = (2, 5), (0, 1, 2, 3, 4, 5)
CELLS = [
    Cell("chunks", chunked=True),
    Cell("window"),
    Cell("closed 2", closed=TWO),
    Cell("full 2", full=TWO),
    Cell("closed 2, retrieval-aware", closed=TWO, masking="retrieval-aware"),
    Cell("closed all", closed=ALL),
    Cell("window 256, closed 2", window=256, closed=TWO),
    Cell("closed 2, far copies", closed=TWO, masking="far-copies"),
    Cell("window, retrieval-aware", masking="retrieval-aware"),
    Cell("closed 2, seed 1", closed=TWO, seed=1),
    Cell("window, seed 1", seed=1),
    Cell("closed all, far copies, 3 times the steps", closed=ALL, masking="far-copies", longer=3),
    Cell("window 128, closed all", window=128, closed=ALL),
    Cell("closed 2 from -4", closed=TWO, opening=-4.0),
    Cell("full 2, far copies", full=TWO, masking="far-copies"),
    Cell("closed all, seed 1", closed=ALL, seed=1),
    Cell("chunks, seed 1", chunked=True, seed=1),
]
UNTRAINED = ("window", "closed 2", "full 2", "closed all", "window 256, closed 2")


def build(source: str, cell: Cell, device: torch.device) -> LongBertForMaskedLM:
    config = LongBertConfig.from_pretrained(
        source,
        max_position_embeddings=4096,
        position_type="learned-extended",
        position_init="tile-skip-special",
        attention_window=cell.window,
        full_attention_layers=list(cell.full) or None,
        closed_attention_layers=list(cell.closed) or None,
        closed_attention_start=cell.opening,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return LongBertForMaskedLM.from_pretrained(source, config=config, dtype=torch.float32).to(device)


def gates(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if name.endswith("far_gate")}


def to_chunks(
    ids: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows cut into chunks, each between a [CLS] and a [SEP] of its own, with their lengths."""
    parts = (lengths[:, None] - torch.arange(CHUNKS, device=ids.device) * CHUNK).clamp(0, CHUNK).flatten()
    cut = [
        F.pad(tensor[:, 1 : ROW + 1].reshape(-1, CHUNK), (1, 1), value=fill)
        for tensor, fill in ((ids, PAD), (labels, IGNORED))
    ]
    cut[0][:, 0] = CLS
    cut[0][torch.arange(len(parts), device=ids.device), parts + 1] = SEP
    return cut[0][parts > 0], cut[1][parts > 0], parts[parts > 0]


def encode(model: nn.Module, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None] + 2
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=ids.is_cuda):
        return model.bert(ids, attention_mask=mask).last_hidden_state


def predict(model: nn.Module, states: torch.Tensor) -> torch.Tensor:
    with torch.autocast(states.device.type, dtype=torch.bfloat16, enabled=states.is_cuda):
        return model.cls.predictions(states)


# ---- training


def masked(
    ids: torch.Tensor, flags: torch.Tensor, lengths: torch.Tensor, how: str, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids with [MASK] at 80 % of what is chosen, a random token at 10 %, and labels."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, device=ids.device, generator=generator)

    place = torch.arange(ids.shape[1], device=ids.device)
    words = (place > 0) & (place <= lengths[:, None])
    rate = torch.full(ids.shape, 0.3 if how == "retrieval-aware" else 0.15, device=ids.device)
    if how == "far-copies":
        rate = torch.where((flags & FAR) > 0, 0.3, rate)
    chosen = draw(*ids.shape) < rate
    if how == "retrieval-aware":
        chosen |= ((flags & RECURS) > 0) & (draw(*ids.shape) < 0.1)
        chosen |= ((flags & PROBE) > 0) & (draw(len(ids), 1) < 0.5)
    chosen &= words
    labels = torch.where(chosen, ids, IGNORED)
    fate = draw(*ids.shape)
    random = torch.randint(FIRST_WORD, VOCABULARY, ids.shape, device=ids.device, generator=generator)
    changed = torch.where(fate < 0.8, MASK, torch.where(fate < 0.9, random, ids))
    return torch.where(chosen, changed, ids), labels


def schedule(lengths: np.ndarray, steps: int, tokens: int, seed: int) -> list[np.ndarray]:
    """Rows of every step, about as many tokens in each; the same for all cells of a seed."""
    draw, steps_of_rows, row = np.random.default_rng(seed), [], 0
    order = draw.permutation(len(lengths))
    for _ in range(steps):
        batch, total = [], 0
        while total < tokens:
            if row == len(order):
                order, row = draw.permutation(len(lengths)), 0
            batch.append(order[row])
            total += lengths[order[row]]
            row += 1
        steps_of_rows.append(np.array(batch))
    return steps_of_rows


@dataclass
class Training:
    """Settings that all cells share."""

    steps: int
    tokens: int = 32768
    rate: float = 4e-4
    bias_rate: float = 5e-2
    warmup: float = 0.06
    decay: float = 0.01


def train(model: nn.Module, cell: Cell, rows: Rows, settings: Training, stop: int | None = None) -> list[float]:
    """Train a cell's model; the mean loss of each twentieth of the run.

    Args:
        stop: end after so many steps, for timing.
    """
    device = rows.ids.device
    opened = gates(model)
    others = [parameter for name, parameter in model.named_parameters() if name not in opened]
    groups = [{"params": others, "lr": settings.rate, "weight_decay": settings.decay}]
    if opened:
        groups.append({"params": list(opened.values()), "lr": settings.bias_rate, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, fused=device.type == "cuda")
    steps = settings.steps * cell.longer
    warmup = max(1, round(settings.warmup * settings.steps))
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    generator = torch.Generator(device).manual_seed(cell.seed)
    model.train()
    losses = []
    for number, batch in enumerate(schedule(rows.lengths, steps, settings.tokens, cell.seed)):
        if number == stop:
            break
        where = torch.from_numpy(batch).to(device)
        width = int(rows.lengths[batch].max()) + 2
        lengths = torch.from_numpy(rows.lengths[batch]).to(device)
        ids, flags = rows.ids[where].long(), rows.flags[where]
        ids, labels = masked(ids, flags, lengths, cell.masking, generator)
        if cell.chunked:
            ids, labels, lengths = to_chunks(ids, labels, lengths)
        else:
            ids, labels = ids[:, :width], labels[:, :width]
        chosen = (labels != IGNORED).nonzero(as_tuple=True)
        logits = predict(model, encode(model, ids, lengths)[chosen])
        loss = F.cross_entropy(logits.float(), labels[chosen])
        loss.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        falling.step()
        with torch.no_grad():
            for bias in opened.values():
                bias.clamp_(max=0.0)
        losses.append(loss.detach())
    curve = torch.stack(losses).float().cpu().tolist()
    size = max(1, len(curve) // 20)
    return [float(np.mean(curve[start : start + size])) for start in range(0, len(curve), size)]


# ---- evaluation


@dataclass
class Probe:
    """Held-out rows, their masks, and of each masked token: document, kind, place in the row, distance to a copy.

    Distances are -1 for tokens that are frequent in their document, 0 for those that stand nowhere else.
    """

    rows: Rows
    names: list[str]
    chosen: np.ndarray
    document: np.ndarray
    kind: np.ndarray
    place: np.ndarray
    distance: np.ndarray


def make_probe(path: str, most: int | None = None, seed: int = 7) -> Probe:
    rows, names = make_rows(path, held_out=True, shortest=CHUNK + 1, most=most)
    draw = np.random.default_rng(seed)
    place = np.arange(ROW + 2)
    chosen = (draw.random(rows.ids.shape) < 0.15) & (place > 0) & (place <= rows.lengths[:, None])
    data = read(path)
    distance = np.full(rows.ids.shape, -1)
    for index, (row, length, document) in enumerate(zip(rows.ids, rows.lengths, rows.document, strict=True)):
        words = row[1 : length + 1]
        found = nearest_twins(words, ~chosen[index, 1 : length + 1])
        found[np.isin(words, frequent_tokens(tokens_of(data, document)))] = -1
        distance[index, 1 : length + 1] = found
    row_of, place_of = np.nonzero(chosen)
    return Probe(rows, names, chosen, rows.document[row_of], rows.kind[row_of], place_of, distance[chosen])


@torch.no_grad()
def evaluate(model: nn.Module, probe: Probe, device: torch.device, at_once: int = 16) -> dict[str, np.ndarray]:
    """Loss (fp16) and correctness of each masked token, read whole and in chunks."""
    model.eval()
    found: dict[str, list[torch.Tensor]] = {name: [] for name in ("long", "long right", "chunks", "chunks right")}
    for first in range(0, len(probe.rows.ids), at_once):
        some = slice(first, first + at_once)
        ids = torch.from_numpy(probe.rows.ids[some]).to(device).long()
        chosen = torch.from_numpy(probe.chosen[some]).to(device)
        lengths = torch.from_numpy(probe.rows.lengths[some]).to(device)
        labels = torch.where(chosen, ids, IGNORED)
        hidden = torch.where(chosen, MASK, ids)
        for way, (words, targets, sizes) in {
            "long": (hidden, labels, lengths),
            "chunks": to_chunks(hidden, labels, lengths),
        }.items():
            where = (targets != IGNORED).nonzero(as_tuple=True)
            logits = predict(model, encode(model, words, sizes)[where]).float()
            found[way].append(F.cross_entropy(logits, targets[where], reduction="none"))
            found[f"{way} right"].append(logits.argmax(-1) == targets[where])
    return {
        name: torch.cat(parts).cpu().numpy().astype(bool if "right" in name else np.float16)
        for name, parts in found.items()
    }


def summary(probe: Probe, scores: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """By kind: losses past 512 and of texts up to 512, and accuracy on copy tokens further than 512."""
    result = {}
    for number, name in enumerate(probe.names):
        past, all_ = (probe.kind == number) & (probe.place >= 512), probe.kind == number
        far = all_ & (probe.distance > 512)
        result[name] = {
            "long": float(scores["long"][past].mean(dtype=np.float64)),
            "chunks": float(scores["chunks"][past].mean(dtype=np.float64)),
            "short": float(scores["chunks"][all_].mean(dtype=np.float64)),
            "far long": float(scores["long right"][far].mean()),
            "far chunks": float(scores["chunks right"][far].mean()),
        }
    return result


# ---- a run


def run(source: str, tokens: str, out: Path, arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out.mkdir(parents=True, exist_ok=True)
    rows, names = make_rows(tokens, held_out=False, shortest=256, most=arguments.rows)
    rows.ids, rows.flags = torch.from_numpy(rows.ids).to(device), torch.from_numpy(rows.flags).to(device)
    probe = make_probe(tokens, most=arguments.rows)
    report: dict[str, Any] = {
        "environment": environment(),
        "rows": len(rows.lengths),
        "tokens": int(rows.lengths.sum()),
        "probe": {"rows": len(probe.rows.lengths), "masked": len(probe.place)},
        "far share": float(((rows.flags & FAR) > 0).sum() / rows.lengths.sum()),
        "recurring share": float(((rows.flags & RECURS) > 0).sum() / rows.lengths.sum()),
        "cells": [],
    }
    arrays: dict[str, np.ndarray] = {}
    print(json.dumps({**report, "prepared": time.monotonic() - started}), flush=True)

    def record(cell: Cell, model: nn.Module, name: str, **more: Any) -> None:
        begin = time.monotonic()
        scores = evaluate(model, probe, device)
        opened = {key: [round(each, 2) for each in value.tolist()] for key, value in gates(model).items()}
        result = {**asdict(cell), "name": name, **more, "summary": summary(probe, scores), "biases": opened}
        result["evaluated"] = time.monotonic() - begin
        report["cells"].append(result)
        for key, value in scores.items():
            arrays[f"{name}/{key}"] = np.packbits(value) if value.dtype == bool else value
        (out / "length-study.json").write_text(json.dumps(report, indent=1))
        np.savez(out / "scores.npz", **arrays)
        print(f"\n{name}: " + ", ".join(f"{key} {value}" for key, value in more.items() if key != "curve"))
        for kind, row in result["summary"].items():
            gain = 100 * (row["long"] / row["chunks"] - 1)
            figures = f"long {row['long']:.4f} chunks {row['chunks']:.4f} ({gain:+.2f} %), short {row['short']:.4f}"
            print(f"  {kind:10} {figures}, far copies {row['far long']:.4f} {row['far chunks']:.4f}")
        for key, value in opened.items():
            print("  ", key, value)
        print(f"  {time.monotonic() - started:.0f} s", flush=True)

    by_name = {cell.name: cell for cell in CELLS}
    for name in () if arguments.cells else UNTRAINED:
        try:
            record(by_name[name], build(source, by_name[name], device), f"untrained: {name}")
        except Exception:
            traceback.print_exc()
    settings = Training(arguments.steps, tokens=arguments.tokens)
    if arguments.steps == 0:
        settings.steps = affordable(source, rows, settings, device, arguments.seconds - (time.monotonic() - started))
    report["training"] = asdict(settings)
    print("training", report["training"], flush=True)
    longest = 0.0
    for cell in [by_name[name] for name in arguments.cells] if arguments.cells else CELLS:
        begin = time.monotonic()
        if begin - started + longest * cell.longer > arguments.seconds:
            print("not begun:", cell.name, flush=True)
            continue
        try:
            model = build(source, cell, device)
            curve = train(model, cell, rows, settings)
            took = time.monotonic() - begin
            record(cell, model, cell.name, seconds=round(took, 1), curve=curve)
            longest = max(longest, (time.monotonic() - begin) / cell.longer)
            del model
        except Exception:
            traceback.print_exc()


def affordable(source: str, rows: Rows, settings: Training, device: torch.device, seconds: float) -> int:
    """Steps of a cell, so that the first 14 cells' worth of steps fit into the seconds that are left."""
    settings.steps, cell = 1000, Cell("timing", closed=ALL)
    model = build(source, cell, device)
    train(model, cell, rows, settings, stop=8)
    begin = time.monotonic()
    train(model, cell, rows, settings, stop=25)
    one = (time.monotonic() - begin) / 25
    print("all layers closed, a step", one, flush=True)
    return int(min(1000, max(200, (seconds / 14 - 3) / one / 50 // 1 * 50)))


# ---- report


def load(tokens: str, out: Path) -> tuple[Probe, dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    probe = make_probe(tokens)
    report = json.loads((out / "length-study.json").read_text())
    arrays = np.load(out / "scores.npz")
    scores: dict[str, dict[str, np.ndarray]] = {}
    for key in arrays.files:
        name, _, what = key.rpartition("/")
        value = arrays[key]
        if "right" in what:
            value = np.unpackbits(value)[: len(probe.place)]
        scores.setdefault(name, {})[what] = value.astype(np.float64)
    return probe, report, scores


def bootstrap(documents: np.ndarray, columns: list[np.ndarray], draws: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Means of columns, `[columns]`, and of resampled documents, `[draws, columns]`."""
    _, index = np.unique(documents, return_inverse=True)
    sums = np.stack([np.bincount(index, weights=column) for column in [*columns, np.ones(len(index))]])
    draw = np.random.default_rng(0).integers(0, sums.shape[1], (draws, sums.shape[1]))
    resampled = sums[:, draw].sum(-1)
    return sums[:-1].sum(-1) / sums[-1].sum(), (resampled[:-1] / resampled[-1]).T


def interval(values: np.ndarray) -> list[float]:
    return [float(each) for each in np.percentile(values, [2.5, 97.5])]


DISTANCES = [(1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 128), (128, 256), (256, 512), (512, 1024),
             (1024, 2048), (2048, 4096)]  # fmt: skip


def compare(probe: Probe, one: Any, other: Any, chosen: np.ndarray, relative: bool) -> list[float]:
    """Two readings of the same tokens: their means, the difference in percent or points, and its interval."""
    means, drawn = bootstrap(probe.document[chosen], [one[chosen], other[chosen]])
    difference = 100 * (means[0] / means[1] - 1) if relative else 100 * (means[0] - means[1])
    spread = 100 * (drawn[:, 0] / drawn[:, 1] - 1) if relative else 100 * (drawn[:, 0] - drawn[:, 1])
    return [round(float(each), 4) for each in means] + [
        round(float(each), 2) for each in (difference, *interval(spread))
    ]


PAST, FAR_COPIES, SHORT = "past 512", "far copies", "texts up to 512"
OWN, OF_CHUNKS, OF_WINDOW, OF_SOURCE = "own chunks", "the model trained on chunks", "the window", "the source's chunks"


def describe(tokens: str, out: Path) -> dict[str, Any]:
    """Every cell by kind of text: value, opponent's value, difference (% of loss, points of accuracy), interval."""
    probe, report, scores = load(tokens, out)
    kinds = {"all": np.ones(len(probe.kind), bool)} | {
        name: probe.kind == number for number, name in enumerate(probe.names)
    }
    report["probe"]["kinds"] = {
        kind: {
            "documents": len(np.unique(probe.document[where])),
            "masked": int(where.sum()),
            "masked past 512": int((where & (probe.place >= 512)).sum()),
            "far copies": int((where & (probe.distance > 512)).sum()),
        }
        for kind, where in kinds.items()
    }
    for cell in report["cells"]:
        own, cell["figures"], cell["copies by distance"] = scores[cell["name"]], {}, {}
        seed = f", seed {cell['seed']}" if cell["seed"] else ""
        opponents = [
            (OWN, own, "chunks"),
            (OF_CHUNKS, scores.get(f"chunks{seed}"), "chunks"),
            (OF_WINDOW, scores.get(f"window{seed}"), "long"),
            (OF_SOURCE, scores["untrained: window"], "chunks"),
        ]
        for kind, of_kind in kinds.items():
            past, far = of_kind & (probe.place >= 512), of_kind & (probe.distance > 512)
            figures = cell["figures"][kind] = {}
            for name, other, way in opponents:
                if other is None:
                    continue
                figures[f"{PAST}, {name}"] = compare(probe, own["long"], other[way], past, True)
                right = f"{way} right"
                figures[f"{FAR_COPIES}, {name}"] = compare(probe, own["long right"], other[right], far, False)
                if name != OWN:
                    figures[f"{SHORT}, {name}"] = compare(probe, own["chunks"], other["chunks"], of_kind, True)
            cell["copies by distance"][kind] = {
                f"{low}-{high - 1}": compare(probe, own["long right"], own["chunks right"], chosen, False)
                for low, high in DISTANCES
                if (chosen := of_kind & (probe.distance >= low) & (probe.distance < high)).sum() >= 50
            }
    return report


def tables(report: dict[str, Any]) -> Iterator[str]:
    """In markdown."""
    kinds = list(report["cells"][0]["figures"])

    def row(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def shown(figure: list[float] | None) -> str:
        return "" if figure is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*figure[2:])

    for title in (
        *(f"{PAST}, {name}" for name in (OWN, OF_CHUNKS, OF_WINDOW)),
        *(f"{FAR_COPIES}, {name}" for name in (OWN, OF_CHUNKS, OF_WINDOW)),
        *(f"{SHORT}, {name}" for name in (OF_CHUNKS, OF_WINDOW, OF_SOURCE)),
    ):
        yield from ("", title, "", row(["", *kinds]), row(["---"] * (len(kinds) + 1)))
        for cell in report["cells"]:
            yield row([cell["name"], *(shown(cell["figures"][kind].get(title)) for kind in kinds)])
    for kind in kinds:
        distances = list(report["cells"][0]["copies by distance"][kind])
        yield from ("", f"copies by distance, {kind}: accuracy long, in chunks", "")
        yield from (row(["", *distances]), row(["---"] * (len(distances) + 1)))
        for cell in report["cells"]:
            found = cell["copies by distance"][kind]
            yield row([cell["name"], *("{:.3f}, {:.3f}".format(*found[each][:2]) for each in distances)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare")
    first.add_argument("source")
    first.add_argument("out")
    first.add_argument("kinds", nargs="+", metavar="NAME=PATH")
    second = commands.add_parser("run")
    second.add_argument("source")
    second.add_argument("tokens_file")
    second.add_argument("out", type=Path)
    second.add_argument("--seconds", type=float, default=300)
    second.add_argument("--steps", type=int, default=0, help="of every cell; 0 chooses what the seconds allow")
    second.add_argument("--tokens", type=int, default=32768, help="of a step")
    second.add_argument("--rows", type=int, help="at most, for a try")
    second.add_argument("--cells", nargs="+", choices=[cell.name for cell in CELLS], help="only these")
    third = commands.add_parser("report")
    third.add_argument("tokens_file")
    third.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(arguments.source, arguments.out, arguments.kinds)
    elif arguments.command == "run":
        run(arguments.source, arguments.tokens_file, arguments.out, arguments)
    else:
        report = describe(arguments.tokens_file, arguments.out)
        (arguments.out / "report.json").write_text(compact(report), "utf-8")
        print("\n".join(tables(report)))


def compact(report: dict[str, Any]) -> str:
    """JSON with a line for each cell."""
    cells = ",\n".join(json.dumps(cell) for cell in report["cells"])
    return json.dumps({**report, "cells": "CELLS"}).replace('"CELLS"', f"[\n{cells}\n]") + "\n"


if __name__ == "__main__":
    main()
