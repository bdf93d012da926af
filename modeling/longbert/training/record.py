"""What a run was told: settings, source, data and versions, kept beside its checkpoints and compared when it is
resumed."""

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import TrainingArguments
from transformers.utils import logging

from ..arguments import RunArguments, write_config
from ..data.fingerprints import Fingerprint
from ..disclosure import may_be_told
from ..folders import file_written_aside, read_json, refuse_occupied, refuse_output_in_data, set_aside, sha256_of
from ..tables import strict_json
from .changes import SEARCHED, WHICH, changed_content, changed_settings, is_free, settings_of
from .resuming import find_checkpoint
from .sharding import division


logger = logging.get_logger(__name__)

KEPT = {"told", "began", "changes", "resumed_from", "finished"}
KEPT_OF_TOLD = {"settings", "versions", "machine", "source", "data"}
RECORD, LOCK, SETTINGS = "run.json", ".lock", "config.yaml"
PACKAGES = ("longbert", "torch", "transformers", "tokenizers")


@dataclass
class Record:
    """The record of a run in its folder, `run.json`, and the lock that keeps other runs out.

    Args:
        told: what the run is told now: `settings`, `versions`, `machine`; `source` and `data` once they are known.
        kept: what the file says; nothing for a run that begins.
        finished: whether the run has ended before, and what it made is whole; known once it has begun.
    """

    args: TrainingArguments
    run_args: RunArguments
    instances: tuple[Any, ...]
    told: dict[str, Any]
    kept: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    lock: FileLock | None = field(default=None, repr=False)

    @classmethod
    def claim(cls, args: TrainingArguments, run_args: RunArguments, *settings: Any) -> "Record":
        """Look whether the output folder is this run's to take; call it before any work. Nothing is written.

        Raises:
            FileExistsError: there is something in it, and nothing is to be resumed.
            ValueError: the run there was begun with other settings, the checkpoint to go on from is not whole, or the
                folder lies among the data.
        """
        if args.resume_from_checkpoint:
            raise ValueError("resume_from_checkpoint is called resume here: auto, or a checkpoint's folder")
        instances = (*settings, run_args, args)
        told = {
            "settings": settings_of(*instances),
            "versions": {package: version(package) for package in PACKAGES},
            "machine": {
                "processes": args.world_size,
                "device": args.device.type,
                "divided by": division(args),
                **launched(args),
            },
        }
        searched = {name: told["settings"].get(name) for name in SEARCHED}
        refuse_output_in_data(("output_dir", told["settings"]["output_dir"]), searched)
        record = cls(args, run_args, instances, told)
        if record.is_kept and args.process_index == 0:
            record._refuse_occupied()
            if run_args.resume not in (None, "auto"):
                find_checkpoint(args.output_dir, run_args.resume, may_rename=False)  # refuses one that is not whole
            record.kept = record._read()
            if record.kept:
                record._refuse(changed_settings(record.kept["told"]["settings"], told["settings"]))
        return record

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.args.output_dir)

    @property
    def is_kept(self) -> bool:
        """Whether anything is written."""
        return not getattr(self.run_args, "dry_run", False)

    @property
    def identity(self) -> str:
        """Of all that changes the result, to mark results with."""
        settings = {
            name: value for name, value in self.told["settings"].items() if not is_free(name, self.told["settings"])
        }
        return json.dumps([settings, self.told["source"], self.told["data"]], sort_keys=True)

    def begin(self, source: str, data: dict[str, Fingerprint]) -> None:
        """Take the folder, and write the record and `config.yaml`, once everything is known that the run depends on.
        In a dry run nothing is taken.

        Args:
            source: digest of the checkpoint that the run starts from.
            data: fingerprint of each part of the data, by name.

        Raises:
            ValueError: another run is at work there, or this one was begun with another source, other data or
                versions.
        """
        self.told |= {"source": source, "data": data}
        if not self.is_kept:
            return
        with self.args.main_process_first():
            if self.args.process_index == 0:
                self._begin()
            else:
                self.kept = read_json(self.folder / RECORD)
                self.finished = bool(self.kept["finished"])

    def _begin(self) -> None:
        self._take()
        if self.kept:
            changes = self._refuse_or_note()
        else:
            changes = []
            self.kept = {"told": self.told, "began": _now(), "changes": [], "resumed_from": None, "finished": None}
        self._follow_explicit_resume()
        if changes or any(self._is_other(name) for name in WHICH):
            self.kept["finished"] = None
        self.finished = self._is_whole()
        if not self.finished:
            self.kept |= {"told": self.told, "finished": None}
            self._write()
            write_config(self.folder / SETTINGS, *self.instances, notes=self.changes_in_words())

    def _refuse_or_note(self) -> list[str]:
        """What is other than the run was told before."""
        before = self.kept["told"]
        changes = changed_settings(before["settings"], self.told["settings"]) + changed_content(before, self.told)
        self._refuse(changes)
        if changes:
            self.kept["changes"].append({"at": _now(), "changed": changes})
            logger.warning(f"going on with changes: {'; '.join(changes)}")
        return changes

    def _is_other(self, name: str) -> bool:
        return self.kept["told"]["settings"].get(name) != self.told["settings"].get(name)

    def _refuse_occupied(self) -> None:
        resume = self.run_args.resume
        if resume is None or (resume != "auto" and Path(resume).resolve().parent != self.folder.resolve()):
            refuse_occupied(self.folder, but=LOCK)

    def _take(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # the same for all of a process, which may begin a run anew where one has failed
        self.lock = FileLock(self.folder / LOCK, is_singleton=True)
        try:
            self.lock.acquire(blocking=False)
        except Timeout:
            raise ValueError(
                f"another run is at work in {self.folder}: wait for it, or name another output_dir"
            ) from None
        self._refuse_occupied()

    def _read(self) -> dict[str, Any]:
        """What the run was told before, here or where it is explicitly resumed from."""
        resume = self.run_args.resume
        if resume is None:
            return {}
        folder = self.folder if resume == "auto" else Path(resume).resolve().parent
        file = folder / RECORD
        if file.is_file():
            try:
                kept = read_json(file)
                if not (
                    kept.keys() >= KEPT and isinstance(kept["told"], dict) and kept["told"].keys() >= KEPT_OF_TOLD
                ):
                    raise ValueError(f"{file} is not the record of a run")
                return kept
            except ValueError as error:
                self._without_record(str(error))
        elif folder.is_dir() and any(each.name != LOCK for each in folder.iterdir()):
            self._without_record(f"{folder} has no {RECORD}, so nothing says what its run was told")
        return {}

    def _without_record(self, problem: str) -> None:
        """Go on, if that is what was asked for."""
        if not self.run_args.resume_with_changes:
            raise ValueError(
                f"{problem}: name another output_dir, or set resume_with_changes: true to go on with these"
            )
        logger.warning(f"{problem}; going on with these settings")

    def _refuse(self, changes: list[str]) -> None:
        if changes and not self.run_args.resume_with_changes:
            raise ValueError(
                f"the run in {self.folder} was begun with other settings: {'; '.join(changes)}. Set them back, name "
                "another output_dir, or set resume_with_changes: true, which goes on and writes it down"
            )

    def _follow_explicit_resume(self) -> None:
        """Where a checkpoint was named, later ones and a result belong to a branch that is abandoned."""
        resume = self.run_args.resume
        if resume in (None, "auto"):
            return
        if (self.folder / RECORD).exists():
            self._set_result_aside()
        self.kept |= {"resumed_from": str(Path(resume).resolve()), "finished": None}
        step = step_of(Path(resume).resolve())
        for later in self.folder.glob("checkpoint-*"):
            if step is not None and (step_of(later) or 0) > step:
                set_aside(later, "abandoned")
                logger.warning(f"{later} is set aside: the run goes on from {resume}")

    def _set_result_aside(self) -> None:
        aside = self.folder / "result.abandoned"
        set_aside(aside, "before")
        for name in self.kept["finished"] or []:
            if (self.folder / name).exists():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).rename(aside / name)

    def checkpoint(self) -> str | None:
        """The checkpoint to go on from."""
        first = self.kept.get("resumed_from")
        with self.args.main_process_first():
            return find_checkpoint(str(self.folder), self.run_args.resume, self.args.process_index == 0, first)

    def changes_in_words(self, public: bool = False) -> list[str]:
        """A line for each time that the run went on with changes.

        Args:
            public: without what names places on the user's disk.
        """
        times = [
            (each["at"], [change for change in each["changed"] if not public or may_be_told(change)])
            for each in self.kept["changes"]
        ]
        return [f"{at}, gone on with {'; '.join(changed)}" for at, changed in times]

    def _is_whole(self) -> bool:
        """Whether the run has ended, and everything that it made is as it was written; what is not is set aside."""
        made = self.kept["finished"] or {}
        files = {name: self.folder / name for name in made}
        bad = [name for name, file in files.items() if not file.is_file() or sha256_of(file) != made[name]]
        for name in bad:
            logger.warning(f"{files[name]} is missing or not what was written: it is made anew")
            set_aside(files[name], "damaged")
        return bool(made) and not bad

    def finish(self) -> None:
        """Write down that the run has ended, and what it has made."""
        if self.args.process_index == 0:
            self.kept["finished"] = {str(file.relative_to(self.folder)): sha256_of(file) for file in self._made()}
            self._write()

    def _made(self) -> list[Path]:
        """Files that make up the result: not checkpoints, logs of trackers, nor what was set aside."""
        files = [file for file in sorted(self.folder.rglob("*")) if file.is_file() and file != self.folder / RECORD]
        return [file for file in files if not any(map(_is_no_result, file.relative_to(self.folder).parts))]

    def _write(self) -> None:
        with file_written_aside(self.folder / RECORD) as aside:
            aside.write_text(strict_json(self.kept), "utf-8")


def step_of(checkpoint: Path) -> int | None:
    """The step that a folder `checkpoint-N` was written after."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else None


def launched(args: TrainingArguments) -> dict[str, str]:
    """What accelerate's launcher decides where the settings do not: how numbers are computed."""
    precision = next((kind for kind in ("fp16", "bf16") if getattr(args, kind)), None)
    return {
        "mixed precision": precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower(),
        "compiled by": os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower(),
    }


def _is_no_result(name: str) -> bool:
    aside = {".damaged", ".abandoned", ".replaced", ".changed"} & {*Path(name).suffixes}
    return bool(aside) or name.startswith(("checkpoint-", ".")) or name in ("runs", "native")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
