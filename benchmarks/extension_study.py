"""Which extension should I use? Every recipe beside its source chunked at 512, on the same tokens and masks.

    python benchmarks/extension_study.py STUDY.jsonl SOURCE --data books/ --lengths 2048 4096
    python benchmarks/extension_study.py STUDY.jsonl SOURCE --data books/ --lengths 2048 \
        --recipes tile-skip-special --attention "window + [CLS]" --train positions all --steps 25 100
    python benchmarks/study_report.py STUDY.jsonl

A cell is a recipe for the positions, an attention, a length, what is trained and for how many steps, and a seed. Each
is one line of STUDY.jsonl; what is there already is not run again. Documents 0, k, 2k, ... are measured on, the others
trained on. SOURCE needs a working MLM head.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from study_recipes import ATTENTION, LOG_N, LSG, LSG_ATTENTION, RECIPES
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainingArguments, set_seed

from longbert import LongBertConfig
from longbert.arguments import DataArguments, ModelArguments, PretrainingArguments, from_settings
from longbert.data.batches import TrainingPlan
from longbert.data.documents import load_documents
from longbert.data.held_out import split_held_out
from longbert.folders import resolve_path
from longbert.proof import Prover
from longbert.scoring import Cutter, MaskedDocument, Piece, Scores, cutter, framed_piece, score
from longbert.source import PretrainingModel, Source, load_for_pretraining
from longbert.training.freezing import select_parameters
from longbert.training.pretraining import make_plan, tokenize_for
from longbert.training.trainer import LongTrainer


BIN = 64  # positions whose losses are summed in a profile
SEAM = 32  # positions on either side of the source's end
CONSTANT = "constant_with_warmup"  # the only schedule under which a run of fewer steps is part of a longer one


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement; the baselines' recipes are those of `CHUNKED`, and all is compared with the first."""

    checkpoint: str
    data: str
    length: int
    recipe: str
    attention: str = "full"
    train: str = "none"
    steps: int = 0
    learning_rate: float = 0.0
    seed: int = 0
    lr_scheduler_type: str = CONSTANT


class Study:
    """Measurements in a file, one JSON line each; what is there is not measured again."""

    def __init__(self, file: Path):
        self.file = file
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
        self.results = {Cell(**line.pop("cell")): line for line in map(json.loads, lines)}

    def add(self, cell: Cell, result: dict[str, Any]) -> None:
        """Keep a measurement."""
        self.results[cell] = result
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": dataclasses.asdict(cell), **result}) + "\n")


def overlapping(tokenizer: PreTrainedTokenizerBase, chunk_length: int) -> Cutter:
    """Cut into chunks that share half their tokens; each token is predicted where most context is around it."""

    def cut(document: MaskedDocument) -> list[Piece]:
        size = chunk_length - 2
        tokens, step = len(document.input_ids), size // 2
        pieces = []
        for start in range(0, max(tokens - size, 0) + step, step):
            at = torch.arange(start, min(start + size, tokens))
            inner = (at >= start + step // 2) | (start == 0)
            inner &= (at < start + step // 2 + step) | (start + size >= tokens)
            labels = document.labels[at].where(inner, torch.tensor(-100))
            positions = torch.arange(start, start + len(at) + 2)
            pieces.append(Piece(framed_piece(tokenizer, document.input_ids[at], labels), positions))
        return pieces

    return cut


CHUNKED = {"chunked": cutter, "chunked, half overlapping": overlapping}


class Bench:
    """Held-out texts of one length, and what a model makes of them beside the chunked baseline."""

    def __init__(self, arguments: argparse.Namespace, length: int):
        self.source = resolve_path(arguments.source)
        self.native = LongBertConfig.from_pretrained(self.source)
        self.training, held_out = split_held_out(load_documents(arguments.data), arguments.held_out_every)
        self.prover = Prover(
            held_out,
            AutoTokenizer.from_pretrained(self.source),
            source_length=self.native.max_position_embeddings,
            max_seq_length=length,
            at_most=arguments.documents,
            mlm_probability=0.15,
            seed=0,
        )

    def config(self, recipe: str, attention: str, length: int) -> LongBertConfig:
        overrides = {**RECIPES[recipe], **ATTENTION.get(attention, ATTENTION["full"])}
        return LongBertConfig.from_pretrained(self.source, max_position_embeddings=length, **overrides)

    def measure(self, model: PretrainingModel, cut: Cutter | None = None) -> dict[str, Any]:
        """What a model makes of the texts, read whole unless `cut` says otherwise."""
        begun = time.perf_counter()
        cut = cut or cutter(self.prover.tokenizer)
        texts = [score(model, [text], cut, self.prover.tokenizer) for text in self.prover.texts]
        return {**self.sums(texts), "seconds": round(time.perf_counter() - begun, 1)}

    def measure_lsg(self, python: str, settings: str, training: dict[str, Any]) -> dict[int, dict[str, Any]]:
        """What LSG's conversion of the source makes of them, after each number of steps; its python is its own."""
        framed = [piece for text in self.prover.texts for piece in cutter(self.prover.tokenizer)(text)]
        task = {
            "source": self.source,
            "max_sequence_length": self.prover.proof.max_seq_length,
            "settings": settings,
            "texts": [piece.features for piece in framed],
            **training,
        }
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "task.pt")
            torch.save(task, file)
            script = Path(__file__).with_name("lsg_quality.py")
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            subprocess.run([python, script, file], check=True, env=environment)
            results = torch.load(file.with_suffix(".results"))
        positions = [piece.positions[piece.features["labels"] != -100].numpy() for piece in framed]
        return {
            steps: self.sums(
                [
                    Scores(np.zeros_like(at), at, *(each.numpy() for each in text))
                    for at, text in zip(positions, texts, strict=True)
                ]
            )
            for steps, texts in results.items()
        }

    def sums(self, texts: list[Scores]) -> dict[str, Any]:
        """Sums over masked tokens: by text and position bucket, and by every 64 positions."""
        proof = self.prover.proof
        columns = {**proof.columns(), "first seam": (proof.source_length - SEAM, proof.source_length + SEAM)}
        bins = [(start, start + BIN) for start in range(0, proof.max_seq_length, BIN)]
        return {
            "sums": {title: [_sum([text.within(*bounds)]) for text in texts] for title, bounds in columns.items()},
            "profile": [_sum([text.within(*bounds) for text in texts]) for bounds in bins],
        }


def _sum(scores: list[Scores]) -> tuple[float, int, int]:
    """Loss, masked tokens, and those that were predicted."""
    loss = np.concatenate([each.loss for each in scores])
    return round(float(loss.sum()), 4), len(loss), int(sum(each.correct.sum() for each in scores))


def cells_of(arguments: argparse.Namespace, length: int) -> Iterator[Cell]:
    """What is asked for at a length, the baseline first."""
    fixed = (arguments.source_name or arguments.source, arguments.data_name or ", ".join(arguments.data), length)
    yield from (Cell(*fixed, chunked) for chunked in CHUNKED)
    trainings: list[tuple[Any, ...]] = [("none",)]
    if arguments.train:
        rates = {"all": arguments.learning_rate, "positions": arguments.positions_learning_rate}
        how = (arguments.seed, arguments.lr_scheduler_type)
        trainings = [(train, max(arguments.steps), rates[train], *how) for train in arguments.train]
    for recipe, attention, training in itertools.product(arguments.recipes, arguments.attention, trainings):
        if (recipe == LSG) == (attention in LSG_ATTENTION):
            yield Cell(*fixed, recipe, attention, *training)


def run(arguments: argparse.Namespace) -> None:
    """Measure every cell that is not there yet."""
    study = Study(arguments.study)
    for length in arguments.lengths:
        todo = [cell for cell in cells_of(arguments, length) if cell not in study.results]
        bench = Bench(arguments, length) if todo else None
        for cell in todo:
            print(cell, flush=True)
            if cell.recipe in CHUNKED:
                cut = CHUNKED[cell.recipe](bench.prover.tokenizer, bench.native.max_position_embeddings)
                study.add(cell, bench.measure(load_for_pretraining(bench.source, bench.native), cut))
            elif cell.recipe == LSG:
                training = lsg_training(bench, cell, arguments)
                for steps, result in bench.measure_lsg(arguments.lsg_python, cell.attention, training).items():
                    study.add(dataclasses.replace(cell, steps=steps), result)
            elif cell.train == "none":
                model = load_for_pretraining(bench.source, bench.config(cell.recipe, cell.attention, length))
                if cell.attention == LOG_N:
                    scale_attention(model, math.log(length) / math.log(bench.native.max_position_embeddings))
                study.add(cell, bench.measure(model))
            else:
                train(bench, cell, arguments, study)


@torch.no_grad()
def scale_attention(model: PretrainingModel, factor: float) -> None:
    """Multiply all attention logits."""
    for layer in model.base_model.encoder.layer:
        layer.attention.self.query.weight.mul_(factor)
        layer.attention.self.query.bias.mul_(factor)


def prepare(bench: Bench, cell: Cell, arguments: argparse.Namespace) -> tuple[Source, TrainingPlan, TrainingArguments]:
    """What train.py would train on for a cell, and how."""
    settings = {
        "model": bench.source,
        "max_position_embeddings": cell.length,
        "data": arguments.data,
        "max_seq_length": cell.length,
        "max_steps": cell.steps,
        "per_device_train_batch_size": max(1, arguments.tokens_per_step // cell.length),
        "learning_rate": cell.learning_rate,
        "warmup_steps": arguments.warmup_steps,
        "lr_scheduler_type": cell.lr_scheduler_type,
        "weight_decay": 0.01,
        "eval_strategy": "steps",
        "eval_steps": math.gcd(*arguments.steps),
        "save_strategy": "no",
        "logging_steps": 10,
        "report_to": "none",
        "seed": cell.seed,
        "output_dir": str(arguments.study.with_suffix(".runs")),
    }
    types = (ModelArguments, DataArguments, PretrainingArguments, TrainingArguments)
    model_args, data_args, run_args, args = from_settings(settings, *types)
    source = Source.of(model_args)
    tokens = tokenize_for(bench.training, source.tokenizer, data_args, run_args)
    return source, make_plan(tokens, source, data_args, run_args, args), args


def train(bench: Bench, cell: Cell, arguments: argparse.Namespace, study: Study) -> None:
    """Train a recipe as train.py does, and measure it after each number of steps, and chunked after the last."""
    set_seed(cell.seed)
    source, plan, args = prepare(bench, cell, arguments)
    model = load_for_pretraining(bench.source, bench.config(cell.recipe, cell.attention, cell.length))
    print(select_parameters(model, [cell.train]))

    def measure(model: PretrainingModel) -> dict[str, float]:
        steps = trainer.state.global_step
        if steps in arguments.steps:
            study.add(dataclasses.replace(cell, steps=steps), bench.measure(model))
        return {"steps": float(steps)}

    trainer = LongTrainer(
        model=model, args=args, train_dataset=plan, processing_class=source.tokenizer, evaluator=measure
    )
    trainer.train()
    chunked = dataclasses.replace(cell, recipe=f"chunked after {cell.recipe}")
    study.add(chunked, bench.measure(model, cutter(source.tokenizer, bench.native.max_position_embeddings)))


def lsg_training(bench: Bench, cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """The batches of every step, and Trainer's settings, for a loop in another python."""
    if cell.train == "none":
        return {"measure_after": [0], "batches": []}
    _, plan, args = prepare(bench, cell, arguments)
    names = ("input_ids", "attention_mask", "labels")
    return {
        "measure_after": arguments.steps,
        "batches": [{name: plan[step][name] for name in names} for step in range(cell.steps)],
        "learning_rate": args.learning_rate,
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
        "warmup_steps": args.get_warmup_steps(cell.steps),
        "seed": cell.seed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("source")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--held-out-every", type=int, default=10)
    parser.add_argument("--source-name", help="in the tables")
    parser.add_argument("--data-name", help="in the tables")
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=[*RECIPES, LSG], metavar="RECIPE")
    parser.add_argument(
        "--attention",
        nargs="+",
        default=["full", "window", "window + [CLS]"],
        choices=[*ATTENTION, LOG_N, *LSG_ATTENTION],
    )
    parser.add_argument("--train", nargs="+", default=[], choices=["positions", "all"], help="LSG's: all")
    parser.add_argument("--steps", type=int, nargs="+", default=[100], help="measure after each of these")
    parser.add_argument(
        "--warmup-steps",
        type=float,
        default=50,
        help="below 1: a share of the longest of --steps, whose shorter ones are then not those of a shorter run",
    )
    parser.add_argument(
        "--lr-scheduler-type", default=CONSTANT, choices=[CONSTANT, "linear"], help="linear: measured at its end only"
    )
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--positions-learning-rate", type=float, default=1e-3)
    parser.add_argument("--lsg-python", help=f"python of a venv as lsg_quality.py describes, for the recipe {LSG!r}")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if LSG in arguments.recipes and not (arguments.lsg_python and set(arguments.train) <= {"all"}):
        parser.error(f"{LSG!r} needs --lsg-python, and can train all its weights only")
    if arguments.lr_scheduler_type != CONSTANT and (LSG in arguments.recipes or len(arguments.steps) > 1):
        parser.error(f"under {arguments.lr_scheduler_type!r} give one number of --steps, and no {LSG!r}")
    transformers.logging.set_verbosity_error()
    run(arguments)


if __name__ == "__main__":
    main()
