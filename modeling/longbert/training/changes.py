"""What may be another when a run goes on, and what is another."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ..arguments import plain
from ..data.fingerprints import difference
from ..disclosure import is_secret


# settings that change no weight and no figure
SEARCHED = {"data", "test_file", "train_file", "validation_file"}  # of a folder all files are read
READ = SEARCHED | {"test_folder", "validation_folder"}  # of which two files are read, by their names
# things lie; what is read there has a fingerprint
WHERE = READ | {"delimiter", "encoding", "model", "output_dir", "text_column", "tokenizer"}
SAID = {  # of a run, and kept of it
    "debug",
    "disable_tqdm",
    "include_num_input_tokens_seen",
    "project",
    "push_to_hub",
    "report_to",
    "run_name",
    "save_on_each_node",
    "save_total_limit",
    "skip_memory_metrics",
}
HOW = {  # it is done
    "checkpoint_from",
    "ddp_timeout",
    "do_eval",
    "do_predict",
    "do_train",
    "dry_run",
    "eval_accumulation_steps",
    "gradient_checkpointing",
    "per_device_eval_batch_size",
    "resume",
    "resume_with_changes",
}
WHICH = {"seeds", "strategies", "train"}  # runs a comparison has: each is by itself
FREE = WHERE | SAID | HOW | WHICH
FREE_KINDS = ("logging_", "log_", "hub_", "dataloader_", "push_to_hub_", "trackio_")
# free as well, unless the best checkpoint is chosen, or training stopped, by what they say
CHOOSING_KINDS = ("eval_", "save_")
# they say how texts are read, and are named where the texts are others
READING = ("data", "text_column", "encoding", "delimiter", "skip_empty", "document_separator", "model", "tokenizer")


def is_free(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a setting may be another in a run that goes on."""
    chooses = settings.get("load_best_model_at_end") or settings.get("early_stopping_patience") is not None
    return name in FREE or name.startswith(FREE_KINDS) or (not chooses and name.startswith(CHOOSING_KINDS))


def settings_of(*instances: Any) -> dict[str, Any]:
    """All settings but secrets, as JSON has them."""
    found = {}
    for instance in instances:
        for spec in dataclasses.fields(instance):
            if spec.init and not is_secret(spec.name):
                found[spec.name] = json.loads(json.dumps(plain(getattr(instance, spec.name)), default=str))
    return found


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that are others and change the result, each in words."""
    names = sorted({*before, *now})
    return [
        f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
        for name in names
        if before.get(name) != now.get(name) and not (is_free(name, now) and is_free(name, before))
    ]


def changed_content(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What else is other: the source, the data, the versions, the device, each in words."""
    found = []
    if before["source"] != now["source"]:
        found.append("the source's files are not the same")
    for name in sorted({*before["data"], *now["data"]}):
        if words := difference(before["data"].get(name), now["data"].get(name)):
            found.append(f"{name}: {words}")
    if found:
        told = [each["settings"] for each in (before, now)]
        found += [
            f"{name}: {told[0].get(name)!r} -> {told[1].get(name)!r}"
            for name in READING
            if told[0].get(name) != told[1].get(name) and is_free(name, told[1])
        ]
    for part in ("versions", "machine"):
        for name, value in now[part].items():
            if before[part].get(name) != value:
                found.append(f"{name}: {before[part].get(name)} -> {value}")
    return found
