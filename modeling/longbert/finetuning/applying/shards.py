"""Predictions for a whole archive, in shards that are there whole or not at all: what was stopped goes on, and several
processes divide the work."""

import datetime
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

from ...arguments import FileArguments
from ...errors import USER_ERRORS
from ...folders import file_written_aside, read_json, refuse_occupied, sha256_of, written_aside
from ...source_weights import find_file
from .archive import Archive, Input, Text, to_stderr
from .best import Chosen


Made = TypeVar("Made")
Lines = Iterable[dict[str, Any]]

RECORD = "archive.json"
JSONL, PARQUET = "jsonl", "parquet"
FORMATS = (JSONL, PARQUET)
SIZE = 1024  # texts
# what decides about a prediction; parts of the weights are named by their index
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def processes() -> PartialState:
    """This process among those that `accelerate launch` started, or alone; and its device."""
    device = torch.accelerator.current_accelerator()
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    # where no device has a library by which processes speak to each other, they read on the CPU
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (several and (device is None or device.type == "mps"))
    # the first process looks at all files before the others begin, and the last may be done long after the others
    return PartialState(cpu=cpu, timeout=datetime.timedelta(days=30))


def on_first(state: PartialState, make: Callable[[], Made]) -> Made:
    """What the first process makes, in every process. Its error ends the others too, which say nothing."""
    made: list[Any] = [None]
    if state.is_main_process:
        try:
            made = [make()]
        except USER_ERRORS as error:
            made = [error]
    broadcast_object_list(made)
    if isinstance(made[0], Exception):
        raise made[0] if state.is_main_process else SystemExit(2)
    return made[0]


@dataclass(frozen=True)
class Shards:
    """A folder of shards.

    Args:
        form: of `FORMATS`.
        size: texts in a shard; the last may have fewer.
    """

    folder: Path
    form: str = JSONL
    size: int = SIZE

    def __post_init__(self) -> None:
        if self.form not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.form!r}")
        if self.size < 1:
            raise ValueError(f"a shard must have at least 1 text, got {self.size}")

    def files(self, texts: int) -> list[Path]:
        """The files of the shards of so many texts."""
        count = -(-texts // self.size)
        return [self.folder / f"part-{number:05}-of-{count:05}.{self.form}" for number in range(count)]

    def open(self, archive: Archive, model: dict[str, Any], settings: dict[str, Any]) -> list[int]:
        """Write down what the folder is made of, or see that it is what is there; the numbers of missing shards.

        Args:
            model: as `describe_model` has it.
            settings: whatever else decides about a prediction.

        Raises:
            FileExistsError: the folder holds something else.
            ValueError: it was begun with something else; each thing is named, old and new.
        """
        shaped = {"format": self.form, "shard_size": self.size, "longbert": importlib.metadata.version("longbert")}
        record = {"model": model, "settings": settings | shaped, "inputs": archive.record()}
        if (self.folder / RECORD).exists():
            _refuse_changes(self.folder, read_json(self.folder / RECORD), record)
        else:
            refuse_occupied(self.folder)
            with written_aside(self.folder) as aside:
                (aside / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return [number for number, file in enumerate(self.files(len(archive))) if not file.exists()]

    def write(
        self,
        archive: Archive,
        numbers: list[int],
        predict: Callable[[Iterable[Text]], Lines],
        schema: pa.Schema,
        say: Callable[[str], None] = to_stderr,
    ) -> None:
        """Predict and write the shards of these numbers, one after another.

        Args:
            predict: texts -> a line for each. It sees a shard alone, so that no line depends on what else is done.
            schema: of the lines.
            say: takes a line for each shard.
        """
        files = self.files(len(archive))
        for number, texts in archive.shards({*numbers}, self.size):
            with file_written_aside(files[number]) as aside:
                written = _write_lines(aside, self.form, predict(texts), schema)
            say(f"{files[number]}: {written:,} texts")


def _write_lines(file: Path, form: str, lines: Lines, schema: pa.Schema) -> int:
    if form == PARQUET:
        rows = pa.Table.from_pylist(list(lines), schema)
        pq.write_table(rows, file)
        return len(rows)
    with open(file, "w", encoding="utf-8", newline="\n") as stream:
        return sum(bool(stream.write(json.dumps(line, ensure_ascii=False) + "\n")) for line in lines)


def describe_model(path: str, at_once: int | None) -> dict[str, Any]:
    """A model's path, what it reads at once where that is not its reach, and the checksums of its files."""
    found = {name: file for name in MODEL_FILES if (file := find_file(path, name)) is not None}
    parts = {
        part: find_file(path, part)
        for index in (file for name, file in found.items() if name.endswith(".index.json"))
        for part in sorted(set(read_json(index)["weight_map"].values()))
    }
    sums = {name: sha256_of(Path(file)) for name, file in (found | parts).items() if file is not None}
    return {"path": path, "at_once": at_once, "sha256": sums}


def _refuse_changes(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    old, new = _flat(before), _flat(now)
    changed = [name for name in old | new if old.get(name) != new.get(name)]
    said = [f"{name} was {old.get(name, 'not there')}, is {new.get(name, 'not there')}" for name in changed[:5]]
    if len(changed) > 5:
        said.append(f"and {len(changed) - 5:,} more")
    if changed:
        raise ValueError(f"{folder} was begun with something else: {'; '.join(said)}. Name another folder")


def _flat(record: dict[str, Any]) -> dict[str, str]:
    """What decides about predictions, each under its name; where the model lies does not."""
    model, inputs = record["model"], record["inputs"]
    sums = {f"the model's {name}": f"sha256 {checksum[:12]}" for name, checksum in model["sha256"].items()}
    settings = {name: repr(value) for name, value in (record["settings"] | {"at_once": model["at_once"]}).items()}
    return (
        sums | settings | {name: _in_words(Input(**each), place) for place, (name, each) in enumerate(inputs.items())}
    )


def _in_words(each: Input, place: int) -> str:
    used = f"{each.texts} texts" if each.refused is None else "refused"
    return f"file {place + 1} with {each.size:,} bytes, sha256 {each.sha256[:12]}, {used}"


def settings_of(column: str, settings: FileArguments, question: str | None) -> dict[str, Any]:
    """What decides about predictions beside the model and the files."""
    return {"text_column": column, "question": question, **asdict(settings)}


def predict_shards(
    shards: Shards,
    look: Callable[[], Archive],
    chosen: Chosen,
    settings: dict[str, Any],
    predict: Callable[[Iterable[Text]], Lines],
    schema: pa.Schema,
) -> Archive:
    """Write the shards that are missing, those of this process among several; the archive, when all are done.

    Args:
        look: gives the archive; the first process alone looks.
        settings: as `settings_of` has them.
        predict, schema: as for `Shards.write`.
    """
    state = processes()

    def begin() -> tuple[Archive, list[int]]:
        archive = look()
        return archive, shards.open(archive, describe_model(chosen.path, chosen.at_once), settings)

    archive, missing = on_first(state, begin)
    shards.write(archive, missing[state.process_index :: state.num_processes], predict, schema)
    state.wait_for_everyone()
    if state.is_main_process:
        count = len(shards.files(len(archive)))
        kept = f", of which {count - len(missing):,} were there" if len(missing) < count else ""
        by = f", by {state.num_processes} processes" if state.num_processes > 1 else ""
        to_stderr(f"{len(archive):,} texts in {count:,} shards of {shards.folder}{by}{kept}")
    return archive
