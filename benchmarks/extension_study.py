"""Which extension should I use? Every recipe beside its source chunked at 512, on the same tokens and masks.

    python benchmarks/extension_study.py run    STUDY.jsonl SOURCE --data books/ --lengths 2048 4096
    python benchmarks/extension_study.py run    STUDY.jsonl SOURCE --data books/ --lengths 2048 \
        --recipes tile-skip-special --attention "window + [CLS]" --train positions all --steps 25 100
    python benchmarks/extension_study.py report STUDY.jsonl

A cell is a recipe for the positions, an attention, a length, what is trained and for how many steps, and a seed. Each
is one line of STUDY.jsonl; what is there already is not run again. Documents 0, k, 2k, ... are measured on, the others
trained on. SOURCE needs a working MLM head.
"""

import argparse
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoTokenizer, TrainingArguments, set_seed

from longbert import POSITION_INITS, LongBertConfig
from longbert.arguments import DataArguments, ModelArguments, PretrainingArguments, from_settings
from longbert.data.documents import load_documents, resolve_path, split_held_out
from longbert.evaluation import Prover, Scores, reading, score
from longbert.training.parameters import select_parameters
from longbert.training.pretraining import PretrainingModel, Source, load_for_pretraining, make_plan, tokenize_for
from longbert.training.trainer import LongTrainer


WINDOW = 512
ATTENTION: dict[str, dict[str, Any]] = {
    "full": {},
    "window": {"attention_window": WINDOW, "global_tokens": 0},
    "window + [CLS]": {"attention_window": WINDOW},
}
LOG_N = "full, log-n"  # Su (https://kexue.fm/archives/8823): attention logits times log(n) / log(512)


# ---- recipes of the study's own, beside those of the package


def _interior(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    """Tile rows n/8 to n-2: the first rows of a BERT are unlike all others, and few texts taught it its last."""
    n, first = len(table), len(table) // 8
    position = torch.arange(length, device=table.device)
    return table[torch.where(position < n, position, first + (position - n) % (n - 1 - first))]


def _mirror(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
    """Rows 1..n-2 forwards and backwards in turn: no seam, at the price of direction."""
    n = len(table)
    position = torch.arange(length, device=table.device)
    step = (position - n) % (2 * (n - 2))
    return table[torch.where(position < n, position, torch.where(step < n - 2, n - 2 - step, step - n + 3))]


def _cross_fade(table: torch.Tensor, length: int, config: Any, width: int = 32) -> torch.Tensor:
    """Tile with period n-2-width: over the last rows before a seam the old block fades into the new one."""
    n, body = len(table), len(table) - 2 - width
    position = torch.arange(length, device=table.device)
    past = position - (n - width)
    place = 1 + past % body
    ending = (place + body).clamp(max=n - 1)
    # in the first `width` places of a block both readings of a position exist: as its beginning and as the old end
    share = (place.float() / (width + 1)).clamp(max=1)[:, None]
    blended = share * table.float()[place] + (1 - share) * table.float()[ending]
    own = position[:, None] < n
    return torch.where(own, table.float()[position.clamp(max=n - 1)], blended).to(table.dtype)


def _coarse_rows(first: int, stride: int) -> Callable[[torch.Tensor, int, Any], torch.Tensor]:
    """Hierarchical with ordinary rows as block codes in the place of [CLS]'s row and its neighbours."""

    def fill(table: torch.Tensor, length: int, config: Any) -> torch.Tensor:
        alpha, n = config.hierarchical_alpha, len(table)
        position = torch.arange(length, device=table.device)
        codes = table.float()[first + stride * torch.arange(math.ceil(length / n), device=table.device)]
        offsets = alpha / (1 - alpha) * (codes - codes[:1])
        return (table.float()[position % n] + offsets[position // n]).to(table.dtype)

    return fill


POSITION_INITS |= {
    "interior": _interior,
    "mirror": _mirror,
    "cross-fade": _cross_fade,
    "hierarchical, coarse rows 128 + 16 b": _coarse_rows(128, 16),
}
RECIPES: dict[str, dict[str, Any]] = {
    **{name: {"position_init": name} for name in POSITION_INITS if not name.startswith("hierarchical")},
    **{
        f"hierarchical {alpha}": {"position_type": "hierarchical", "hierarchical_alpha": alpha}
        for alpha in (0.1, 0.2, 0.3, 0.4, 0.6)
    },
    **{
        f"hierarchical {alpha}, coarse rows 128 + 16 b": {
            "position_init": "hierarchical, coarse rows 128 + 16 b",
            "hierarchical_alpha": alpha,
        }
        for alpha in (0.1, 0.4)
    },
    "sinusoidal": {"position_type": "sinusoidal"},
}


# ---- cells


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement; the baseline's recipe is `chunked`."""

    checkpoint: str
    data: str
    length: int
    recipe: str
    attention: str = "full"
    train: str = "none"
    steps: int = 0
    seed: int = 0


class Study:
    """Measurements in a file, one JSON line each; what is there is not measured again."""

    def __init__(self, file: Path):
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.results = {Cell(**line.pop("cell")): line for line in map(json.loads, lines)}

    def add(self, cell: Cell, result: dict[str, Any]) -> None:
        """Keep a measurement."""
        self.results[cell] = result
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a") as file:
            file.write(json.dumps({"cell": dataclasses.asdict(cell), **result}) + "\n")


class Bench:
    """Held-out texts of one length, and what a model makes of them beside the chunked baseline."""

    def __init__(self, arguments: argparse.Namespace, length: int):
        self.source = resolve_path(arguments.source)
        self.native = LongBertConfig.from_pretrained(self.source)
        self.training, held_out = split_held_out(load_documents(arguments.data), arguments.held_out_every)
        self.prover = Prover(
            held_out,
            AutoTokenizer.from_pretrained(self.source),
            window=self.native.pretrained_positions,
            max_seq_length=length,
            at_most=arguments.documents,
            mlm_probability=0.15,
            seed=0,
        )

    def config(self, recipe: str, attention: str, length: int) -> LongBertConfig:
        overrides = {**RECIPES[recipe], **ATTENTION.get(attention, {})}
        return LongBertConfig.from_pretrained(self.source, max_position_embeddings=length, **overrides)

    def measure(self, model: PretrainingModel, window: int | None = None) -> dict[str, Any]:
        """Sums of losses and numbers of masked tokens: a row for each text, a column for each position bucket."""
        begun = time.perf_counter()
        read = reading(self.prover.tokenizer, window)
        texts = [score(model, [text], read, self.prover.tokenizer) for text in self.prover.texts]
        columns = {**self.prover.proof.columns(), "seams": None}
        sums = {
            title: [_sum(self._seams(text) if bounds is None else text.within(*bounds)) for text in texts]
            for title, bounds in columns.items()
        }
        return {"sums": sums, "seconds": round(time.perf_counter() - begun, 1)}

    def _seams(self, text: Scores, reach: int = 16) -> Scores:
        """The tokens within `reach` of a multiple of the source's length."""
        n = self.prover.proof.window
        near = (text.position >= n - reach) & ((text.position + reach) % n < 2 * reach)
        return Scores(text.position[near], text.loss[near], text.correct[near])


def _sum(scores: Scores) -> tuple[float, int]:
    return round(float(scores.loss.sum()), 4), len(scores.loss)


def cells_of(arguments: argparse.Namespace, length: int) -> Iterator[Cell]:
    """What is asked for at a length, the baseline first."""
    fixed = (Path(arguments.source).name, arguments.name or ", ".join(arguments.data), length)
    yield Cell(*fixed, "chunked", train="none")
    trainings = (
        [("none", 0)] if not arguments.train else list(itertools.product(arguments.train, [max(arguments.steps)]))
    )
    for recipe, attention, (train, steps) in itertools.product(arguments.recipes, arguments.attention, trainings):
        yield Cell(*fixed, recipe, attention, train, steps, arguments.seed)


def run(arguments: argparse.Namespace) -> None:
    """Measure every cell that is not there yet."""
    study = Study(arguments.study)
    for length in arguments.lengths:
        todo = [cell for cell in cells_of(arguments, length) if cell not in study.results]
        bench = Bench(arguments, length) if todo else None
        for cell in todo:
            print(cell, flush=True)
            if cell.recipe == "chunked":
                model = load_for_pretraining(bench.source, bench.native)
                study.add(cell, bench.measure(model, bench.native.pretrained_positions))
            elif cell.train == "none":
                model = load_for_pretraining(bench.source, bench.config(cell.recipe, cell.attention, length))
                if cell.attention == LOG_N:
                    scale_attention(model, math.log(length) / math.log(bench.native.pretrained_positions))
                study.add(cell, bench.measure(model))
            else:
                train(bench, cell, arguments, study)


@torch.no_grad()
def scale_attention(model: PretrainingModel, factor: float) -> None:
    """Multiply all attention logits."""
    for layer in model.base_model.encoder.layer:
        layer.attention.self.query.weight.mul_(factor)
        layer.attention.self.query.bias.mul_(factor)


def train(bench: Bench, cell: Cell, arguments: argparse.Namespace, study: Study) -> None:
    """Train a recipe as train.py does, and measure it after each number of steps, and chunked after the last."""
    set_seed(cell.seed)
    settings = {
        "model": bench.source,
        "max_position_embeddings": cell.length,
        "data": arguments.data,
        "max_seq_length": cell.length,
        "max_steps": cell.steps,
        "per_device_train_batch_size": max(1, arguments.tokens_per_step // cell.length),
        "learning_rate": arguments.positions_learning_rate if cell.train == "positions" else arguments.learning_rate,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "constant_with_warmup",  # or a run of fewer steps would not be part of a longer one
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
    tokens = tokenize_for(bench.training, source.tokenizer, run_args)
    model = load_for_pretraining(bench.source, bench.config(cell.recipe, cell.attention, cell.length))
    print(select_parameters(model, [cell.train]))
    plan = make_plan(tokens, source, data_args, run_args, args)

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
    study.add(chunked, bench.measure(model, bench.native.pretrained_positions))


# ---- what the measurements say


def ratio(result: dict[str, Any], baseline: dict[str, Any], column: str, resamples: int = 2000) -> tuple[float, ...]:
    """Mean loss over the baseline's on the same tokens, with a 95 % bootstrap interval over texts."""
    ours, theirs = (np.array(each["sums"][column])[:, 0] for each in (result, baseline))
    drawn = np.random.default_rng(0).integers(len(ours), size=(resamples, len(ours)))
    resampled = ours[drawn].sum(1) / theirs[drawn].sum(1)
    return ours.sum() / theirs.sum(), *np.quantile(resampled, [0.025, 0.975])


def report(arguments: argparse.Namespace) -> None:
    """Print a table for each checkpoint, data and length: loss against the chunked baseline's, in percent."""
    study = Study(arguments.study)
    tables = []
    for place in dict.fromkeys((cell.checkpoint, cell.data, cell.length) for cell in study.results):
        cells = {cell: result for cell, result in study.results.items() if place == dataclasses.astuple(cell)[:3]}
        baseline = cells.pop(Cell(*place, "chunked"))
        columns = [title for title, column in baseline["sums"].items() if sum(count for _, count in column)]
        losses = {title: np.array(baseline["sums"][title]).sum(0) for title in columns}
        texts = len(baseline["sums"]["all"])
        lines = [
            f"{place[0]}, {place[1]}, {place[2]:,} tokens, {texts} texts; loss against chunked, percent (95 %):",
            "",
            f"| positions | attention | trained | {' | '.join(columns)} |",
            f"|---|---|---|{'---|' * len(columns)}",
            f"| chunked | | | {' | '.join(f'{loss / count:.3f}' for loss, count in losses.values())} |",
        ]
        ordered = sorted(cells, key=lambda cell: ratio(cells[cell], baseline, f"≥ {WINDOW}", 1)[0])
        for cell in ordered:
            found = [ratio(cells[cell], baseline, title) for title in columns]
            shown = [f"{100 * (r - 1):+.1f} ({100 * (a - 1):+.1f} to {100 * (b - 1):+.1f})" for r, a, b in found]
            trained = "no" if cell.train == "none" else f"{cell.train}, {cell.steps} steps"
            lines.append(f"| {cell.recipe} | {cell.attention} | {trained} | {' | '.join(shown)} |")
        tables.append("\n".join(lines))
    print("\n\n".join(tables))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("run", help="measure")
    command.set_defaults(run=run)
    command.add_argument("study", type=Path)
    command.add_argument("source")
    command.add_argument("--data", nargs="+", required=True)
    command.add_argument("--held-out-every", type=int, default=10)
    command.add_argument("--name", help="of the data, in the tables")
    command.add_argument("--documents", type=int, default=12)
    command.add_argument("--lengths", type=int, nargs="+", default=[2048])
    command.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="RECIPE")
    command.add_argument("--attention", nargs="+", default=list(ATTENTION), choices=[*ATTENTION, LOG_N])
    command.add_argument("--train", nargs="+", default=[], choices=["positions", "all"])
    command.add_argument("--steps", type=int, nargs="+", default=[100], help="measure after each of these")
    command.add_argument("--tokens-per-step", type=int, default=4096)
    command.add_argument("--learning-rate", type=float, default=5e-5)
    command.add_argument("--positions-learning-rate", type=float, default=1e-3)
    command.add_argument("--seed", type=int, default=0)
    command = commands.add_parser("report", help="print the tables")
    command.set_defaults(run=report)
    command.add_argument("study", type=Path)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
