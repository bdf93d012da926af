"""Documents to rows: read, tokenise, cut, mask."""

import glob
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase


PACKAGE_SCHEME = "package://"
BUILDERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def resolve_path(path: str) -> str:
    """`package://name/folder/file` as a path inside the installed package; anything else as it is.

    Raises:
        ValueError: the package is not installed.
    """
    if not path.startswith(PACKAGE_SCHEME):
        return path
    package, _, inner = path.removeprefix(PACKAGE_SCHEME).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{path} needs the package that provides {package!r}: install it, or name files instead")
    return str(Path(spec.submodule_search_locations[0], inner))


def load_documents(paths: list[str], text_column: str = "text") -> datasets.Dataset:
    """Read documents, one a text file or one a row, in sorted order of their files.

    Args:
        paths: files, globs or folders of .txt, .json(l), .parquet or .csv; a folder written by
            `datasets.save_to_disk`; or any of these inside a package, `package://name/...`.

    Returns:
        A dataset with the one column `text`.

    Raises:
        ValueError: nothing found, several kinds of file, no such column, or a document that is not a text.
    """
    documents = datasets.concatenate_datasets([_read(resolve_path(path), text_column) for path in paths])
    for index, text in enumerate(documents["text"]):
        if not isinstance(text, str):
            raise ValueError(
                f"document {index} of {paths} has {type(text).__name__} in column {text_column!r}, not text"
            )
    return documents


def _read(path: str, text_column: str) -> datasets.Dataset:
    if Path(path, "state.json").exists():
        dataset = datasets.load_from_disk(path)
    else:
        files = _files(path)
        suffixes = {Path(file).suffix for file in files}
        if len(suffixes) != 1:
            raise ValueError(f"{path} mixes {sorted(suffixes)}: name one kind of file, for example '{path}/*.txt'")
        builder = BUILDERS[suffixes.pop()]
        options: dict[str, Any] = {"sample_by": "document"} if builder == "text" else {}
        dataset = datasets.load_dataset(builder, data_files=files, split="train", **options)
    if text_column not in dataset.column_names:
        raise ValueError(f"{path} has columns {dataset.column_names}, not {text_column!r}: set text_column")
    return dataset.select_columns([text_column]).rename_columns({} if text_column == "text" else {text_column: "text"})


def _files(path: str) -> list[str]:
    pattern = str(Path(path, "**", "*")) if Path(path).is_dir() else path
    files = sorted(file for file in glob.glob(pattern, recursive=True) if Path(file).suffix in BUILDERS)
    if not files:
        raise ValueError(f"no documents at {path}: expected {', '.join(BUILDERS)} files or a saved dataset")
    return files


def split_held_out(documents: datasets.Dataset, every: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and held-out documents: number 0, `every`, 2 `every`, ... are held out."""
    if not 2 <= every <= len(documents):
        raise ValueError(
            f"held_out_every must lie between 2 and the {len(documents)} documents there are, got {every}"
        )
    held_out = range(0, len(documents), every)
    return (
        documents.select([index for index in range(len(documents)) if index % every]),
        documents.select(held_out),
    )


def tokenize(documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """Token ids `input_ids` of whole documents, without special tokens; empty ones are left out."""

    def encode(batch: dict) -> dict:
        # verbose=False: longer than model_max_length is what these documents are for
        return {"input_ids": tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]}

    tokens = documents.map(encode, batched=True, remove_columns=documents.column_names, desc="tokenizing")
    return tokens.filter(lambda document: len(document["input_ids"]) > 0)


def cut(tokens: datasets.Dataset, max_seq_length: int) -> datasets.Dataset:
    """Rows of at most `max_seq_length - 2` consecutive tokens of one document, room left for [CLS] and [SEP]."""

    def pieces(batch: dict) -> dict:
        size = max_seq_length - 2
        return {
            "input_ids": [ids[i : i + size] for ids in batch["input_ids"] for i in range(0, len(ids), size)],
        }

    return tokens.map(pieces, batched=True, desc=f"cutting at {max_seq_length}")


class TokenMasker:
    """BERT's masking, drawn from a key and nothing else: the same key masks a row in the same places, always.

    Of the `mlm_probability` of tokens chosen, 80 % become [MASK], 10 % a random token, 10 % stay.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mlm_probability: float):
        self.collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=mlm_probability)

    def __call__(self, input_ids: list[int], *key: int) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Masked ids and labels, both `[len(input_ids)]`; no id is treated as special."""
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
        self.collator.generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        row = torch.tensor([input_ids])
        masked, labels = self.collator.torch_mask_tokens(row, special_tokens_mask=torch.zeros_like(row))
        return masked[0], labels[0]


class MaskedRows(torch.utils.data.Dataset):
    """Rows as [CLS] tokens [SEP], masked from (seed, epoch, index) alone.

    Row i of an epoch is thus the same whatever was drawn before it, in whichever worker or process.
    """

    def __init__(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, mlm_probability: float, seed: int):
        self.rows = rows
        self.seed = seed
        self.epoch = 0
        self.special = (tokenizer.cls_token_id, tokenizer.sep_token_id)
        self.mask = TokenMasker(tokenizer, mlm_probability)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.LongTensor]:
        input_ids, labels = self.mask(self.rows[index]["input_ids"], self.seed, self.epoch, index)
        return frame(input_ids, labels, *self.special)


def frame(
    input_ids: torch.LongTensor, labels: torch.LongTensor, cls_token_id: int, sep_token_id: int
) -> dict[str, torch.LongTensor]:
    """Put [CLS] and [SEP] around a piece of masked text."""
    cls, sep, unlabelled = (torch.tensor([value]) for value in (cls_token_id, sep_token_id, -100))
    return {
        "input_ids": torch.cat((cls, input_ids, sep)),
        "labels": torch.cat((unlabelled, labels, unlabelled)),
    }
