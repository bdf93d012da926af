"""The command line: `longbert extend | inspect | plot | evaluate | select | train | finetune | launch | bake |
export | push | predict | explain`."""

import argparse
import runpy
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from .arguments import FULL, FileArguments, parse_window
from .configuration_longbert import NAMING_LAYERS, LongBertConfig
from .disclosure import redact_stderr
from .entry import launch, run
from .extending import RECIPES
from .folders import refuse_output_in_data, scripts_folder
from .position_embeddings import POSITION_INITS, POSITION_TYPES
from .tables import strict_json


MODEL = "a long model's folder, or its Hub id"
TEXT_COLUMN = "column of the texts in json, parquet and csv files (default: text)"
OVERRIDES = {"position_type", "position_init", "hierarchical_alpha", "attention_window", *NAMING_LAYERS}
TASKS = ("classification", "question_answering", "token_classification", "multiple_choice", "embedding", "reranking")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are those of any other: one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def _window(text: str) -> int | None:
    try:
        return parse_window(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _layers(text: str) -> list[int] | str:
    """Numbers of layers, or the words that name them, which the config reads."""
    numbers = text.split(",")
    return [int(number) for number in numbers] if all(number.strip().isdecimal() for number in numbers) else text


def add_extend(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("extend", help="make a long model of a BERT checkpoint")
    command.add_argument("source", help="folder, Hub id, or package://name/folder")
    command.add_argument("out", help="new or empty folder")
    command.add_argument("--max-positions", type=int, required=True, help="tokens the new model reaches")
    command.add_argument(
        "--recipe",
        choices=list(RECIPES),
        help="choose by how much training will follow; default for a plain BERT: untrained",
    )
    unsaid = {"default": argparse.SUPPRESS}
    command.add_argument(
        "--position-type", choices=list(POSITION_TYPES), help="overrides the recipe, as do the options below", **unsaid
    )
    command.add_argument("--position-init", choices=list(POSITION_INITS), help="how new rows are filled", **unsaid)
    command.add_argument(
        "--alpha",
        type=float,
        dest="hierarchical_alpha",
        help="weight of the block's vector in hierarchical positions",
        **unsaid,
    )
    command.add_argument(
        "--attention-window",
        type=_window,
        help=f"how many tokens around it a token of a long text sees: an even number, or {FULL}",
        **unsaid,
    )
    for name, what in (
        ("full", "layers that read long texts without the window: numbers, 2,5, or 'every 3rd', which is 2, 5, 8 ..."),
        ("closed", "layers, named alike, that begin with the window and learn to look past it"),
    ):
        command.add_argument(f"--{name}-attention-layers", type=_layers, help=what, **unsaid)
    command.add_argument("--encoder-only", action="store_true", help="leave the source's head out")
    command.add_argument("--tokenizer", help="folder or Hub id of a tokenizer, if the source has none")
    command.add_argument(
        "--no-code",
        action="store_false",
        dest="with_code",
        help="leave out the modeling files, without which the folder loads only where longbert is installed",
    )
    command.set_defaults(run=run_extend)


def run_extend(arguments: argparse.Namespace) -> int:
    from .extending import default_recipe, extend
    from .inspecting import describe
    from .source import find_source

    settings = dict(vars(arguments))
    for name in ("run", "source", "out"):
        del settings[name]
    model = extend(arguments.source, arguments.out, **settings)
    print("\n".join([*describe(model), f"written to {arguments.out}"]))
    recipe = arguments.recipe or default_recipe(find_source(arguments.source))
    overridden = settings.keys() & OVERRIDES
    if recipe and not overridden and not model.config.is_decoder:
        print(f"expect: {RECIPES[recipe].expect}")
    return 0


def add_inspect(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "inspect", help="do config, table, buffers and tokenizer agree, does the last token run?"
    )
    command.add_argument("model", help=MODEL)
    command.set_defaults(run=run_inspect)


def run_inspect(arguments: argparse.Namespace) -> int:
    from .inspecting import describe, disagreements, run_last_token
    from .source import load_long, saved_tokenizer

    arrived = load_long(arguments.model)
    model = arrived.model.eval()
    print("\n".join(describe(model)))
    found = disagreements(arrived, saved_tokenizer(arguments.model, model))
    for problem in found:
        print(f"DISAGREES: {problem}")
    run_last_token(model)
    reach = model.config.max_position_embeddings
    print(f"runs {min(model.config.pretrained_positions + 1, reach)} tokens, and position {reach - 1}")
    if not found:
        print("config, table, buffers and tokenizer agree")
    return 1 if found else 0


def add_plot(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("plot", help="draw the position table")
    command.add_argument("model", help=MODEL)
    command.add_argument("--out", required=True, help="folder for the pictures")
    command.set_defaults(run=run_plot)


def run_plot(arguments: argparse.Namespace) -> int:
    from .plots import plot_positions
    from .source import load_long

    model = load_long(arguments.model).model
    for file in plot_positions(model.position_table(), model.config.pretrained_positions, arguments.out):
        print(file)
    return 0


def _add_file_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--text-column", default="text", help=TEXT_COLUMN)
    command.add_argument("--encoding", help="of text files, such as cp1252 or gb18030 (default: UTF-8)")
    command.add_argument("--delimiter", help="of csv files (default: the one that gives the column)")
    command.add_argument("--skip-empty", action="store_true", help="leave out empty texts, and count them")


def _file_settings(arguments: argparse.Namespace) -> FileArguments:
    return FileArguments(encoding=arguments.encoding, delimiter=arguments.delimiter, skip_empty=arguments.skip_empty)


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("evaluate", help="MLM loss by position, compared with the source reading chunks")
    command.add_argument("model", help=MODEL)
    command.add_argument("--data", nargs="+", required=True, help="held-out documents: files, globs, folders")
    command.add_argument("--source", help="the checkpoint that was extended (default: the model itself, chunked)")
    command.add_argument("--out", help="folder for the tables, as Markdown and json, and the pictures")
    _add_file_options(command)
    command.add_argument("--document-separator", help="line, empty-line, or a regular expression, as train.py has it")
    command.add_argument(
        "--held-out-every", type=int, help="k: read only the documents that train.py holds out with it"
    )
    command.add_argument(
        "--max-seq-length", type=int, help="tokens read at once (default: all that the model reaches)"
    )
    command.add_argument("--documents", type=int, default=64, help="the most texts to read, spread evenly over all")
    command.add_argument("--mlm-probability", type=float, default=0.15, help="share of tokens to predict")
    command.add_argument("--seed", type=int, default=0, help="seed of the masks, which are the same for every model")
    command.add_argument(
        "--probes",
        type=int,
        default=0,
        metavar="TEXTS",
        help="also ask for a pass key and a name that were said once, in so many texts for each distance, such as 20",
    )
    command.set_defaults(run=run_evaluate)


def run_evaluate(arguments: argparse.Namespace) -> int:
    import torch

    from .data.documents import load_documents
    from .data.held_out import split_held_out
    from .errors import refuse_no_number
    from .probes import Prober
    from .proof import Prover
    from .proof_rows import SOURCE_CHUNKED, THIS, THIS_CHUNKED
    from .source import (
        find_source,
        load_for_pretraining,
        load_tokenizer,
        refuse_other_tokens,
        refuse_without_mlm_head,
    )

    if arguments.out and Path(arguments.out, "proof.json").exists():
        raise FileExistsError(f"{arguments.out} already holds a proof: name another folder")
    if arguments.out:
        refuse_output_in_data(("--out", arguments.out), {"--data": arguments.data})
    path, source = (find_source(each) for each in (arguments.model, arguments.source or arguments.model))
    config, source_config = map(LongBertConfig.from_pretrained, (path, source))
    for each in (path, source):
        refuse_without_mlm_head(each)
    source_length, max_seq_length = _lengths(path, config, arguments.max_seq_length)
    if arguments.documents < 1:
        raise ValueError(f"--documents must be at least 1, got {arguments.documents}")
    if arguments.probes < 0:
        raise ValueError(f"--probes must be a number of texts, 0 for none, got {arguments.probes}")
    tokenizer = load_tokenizer(path, config)
    refuse_other_tokens(source, source_config, tokenizer)
    documents = load_documents(
        arguments.data,
        arguments.text_column,
        settings=_file_settings(arguments),
        separator=arguments.document_separator,
    )
    if arguments.held_out_every:
        _, documents = split_held_out(documents, arguments.held_out_every)
    prover = Prover(
        documents,
        tokenizer,
        source_length=source_length,
        max_seq_length=max_seq_length,
        at_most=arguments.documents,
        mlm_probability=arguments.mlm_probability,
        seed=arguments.seed,
    )
    lengths = {"source_length": source_length, "max_seq_length": max_seq_length}
    prober = None
    if arguments.probes:
        prober = Prober(prover.texts, tokenizer, **lengths, count=arguments.probes, seed=arguments.seed)
    prover.chunked(SOURCE_CHUNKED, load_for_pretraining(source, source_config))
    model = load_for_pretraining(path, config)
    prover.whole(THIS, model)
    if arguments.source:
        prover.chunked(THIS_CHUNKED, model)
    for name, scores in prover.proof.rows.items():
        refuse_no_number([torch.from_numpy(scores.loss)], f"held-out texts ({name})")
    print(prover.proof.to_markdown())
    if arguments.out:
        prover.proof.save(arguments.out)
    if prober:
        probed = prober.ask(model)
        print(probed.to_markdown())
        if arguments.out:
            probed.save(arguments.out)
    return 0


def _lengths(path: str, config: LongBertConfig, asked: int | None) -> tuple[int, int]:
    """The source's length, and how many tokens are read at once, which must be more."""
    reach, source_length = config.max_position_embeddings, config.pretrained_positions
    if reach <= source_length:
        raise ValueError(f"{path} reads {reach} tokens, no more than its source: there is nothing to compare")
    max_seq_length = reach if asked is None else asked
    if not source_length < max_seq_length <= reach:
        raise ValueError(f"--max-seq-length must be {source_length + 1} to {reach}, got {max_seq_length}")
    return source_length, max_seq_length


def add_select(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("select", help="choose the documents of a corpus that need length, to train on")
    command.add_argument("data", nargs="+", help="documents: files, globs, folders, package://name/...")
    command.add_argument("--model", required=True, help=MODEL)
    command.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for scores.jsonl and selected.jsonl; the same command goes on with what was stopped",
    )
    command.add_argument("--keep", type=float, default=0.5, help="share of the long documents to keep (default: 0.5)")
    _add_file_options(command)
    command.add_argument("--document-separator", help="line, empty-line, or a regular expression, as train.py has it")
    command.add_argument(
        "--max-seq-length", type=int, help="tokens read at once (default: all that the model reaches)"
    )
    command.add_argument("--mlm-probability", type=float, default=0.15, help="share of tokens to predict")
    command.add_argument("--seed", type=int, default=0, help="seed of the masks")
    command.set_defaults(run=run_select)


def run_select(arguments: argparse.Namespace) -> int:
    import torch

    from .data.documents import load_documents
    from .selecting import Reading, select
    from .source import find_source, load_for_pretraining, load_tokenizer, refuse_without_mlm_head

    if not 0 < arguments.keep <= 1:
        raise ValueError(f"--keep must be a share, above 0 and at most 1, got {arguments.keep}")
    refuse_output_in_data(("--out", arguments.out), {"data": arguments.data})
    path = find_source(arguments.model)
    config = LongBertConfig.from_pretrained(path)
    refuse_without_mlm_head(path)
    reading = Reading(*_lengths(path, config, arguments.max_seq_length), arguments.mlm_probability, arguments.seed)
    tokenizer = load_tokenizer(path, config)
    files = _file_settings(arguments)
    documents = load_documents(
        arguments.data,
        arguments.text_column,
        settings=files,
        separator=arguments.document_separator,
        part_size=None,
    )
    settings = {
        "model": path,
        "data": arguments.data,
        "text_column": arguments.text_column,
        "document_separator": arguments.document_separator,
        **asdict(files),
    }
    model = load_for_pretraining(path, config).to(torch.accelerator.current_accelerator() or "cpu")
    print(select(documents, model, tokenizer, arguments.out, reading=reading, keep=arguments.keep, settings=settings))
    print(f"scores and texts are in {arguments.out}; to train on them: data={arguments.out / 'selected.jsonl'}")
    return 0


def add_train(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "train", help="continued pretraining, as train.py; on several GPUs: longbert launch -m longbert train ..."
    )
    _add_script_arguments(command)
    command.set_defaults(run=lambda arguments: run_script("train.py", arguments.argv))


def add_finetune(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("finetune", help="fine-tuning on long documents, as the scripts in finetune/")
    command.add_argument("task", choices=TASKS, help="which script")
    _add_script_arguments(command)
    command.set_defaults(run=lambda arguments: run_script(f"finetune/{arguments.task}.py", arguments.argv))


def _add_script_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "argv",
        nargs=argparse.REMAINDER,
        metavar="CONFIG.yaml [key=value ...]",
        help="a file, or one that comes with longbert, such as pretrain/base-4096.yaml; --help lists every key",
    )


def run_script(script: str, argv: list[str]) -> int:
    """Run a script as `python script argv` does."""
    file = str(scripts_folder() / script)
    sys.argv = [file, *argv]
    runpy.run_path(file, run_name="__main__")
    return 0


def add_launch(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "launch", help="accelerate launch, silent about errors that a process has said itself, with its exit status"
    )
    command.add_argument(
        "argv", nargs=argparse.REMAINDER, metavar="...", help="as accelerate launch has it: its options, then a script"
    )
    command.set_defaults(run=lambda arguments: launch(arguments.argv[arguments.argv[:1] == ["--"] :]))


def add_bake(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("bake", help="write a full-attention model as an ordinary BERT that any tool loads")
    command.add_argument("model", help=MODEL)
    command.add_argument("out", help="new or empty folder")
    command.add_argument("--max-positions", type=int, help="rows of the table (default: all that the model reaches)")
    command.set_defaults(run=run_bake)


def run_bake(arguments: argparse.Namespace) -> int:
    from .baking import write_baked

    write_baked(arguments.model, arguments.out, arguments.max_positions)
    print(f"written to {arguments.out}")
    return 0


def add_export(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "export",
        help="write an ONNX graph, window and all, for ONNX Runtime, sentence-transformers, Optimum, Transformers.js",
    )
    command.add_argument("model", help=MODEL)
    command.add_argument("out", help="new or empty folder")
    command.add_argument("--int8", action="store_true", help="write a second graph, with weights of 8 bits")
    command.set_defaults(run=run_export)


def run_export(arguments: argparse.Namespace) -> int:
    from .exporting import write_exported

    print("\n".join([*write_exported(arguments.model, arguments.out, arguments.int8), f"written to {arguments.out}"]))
    return 0


def add_push(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("push", help="publish a model on the Hub, with its code, tokenizer and card")
    command.add_argument("model", help=MODEL)
    command.add_argument("repo", help="NAME or OWNER/NAME")
    command.add_argument(
        "--private", action="store_true", default=None, help="make the repository private, if it is new"
    )
    command.add_argument("--revision", help="branch; created if there is none of this name")
    command.add_argument("--tag", help="tag for this version")
    command.add_argument("--message", help="commit message")
    command.add_argument(
        "--create-pr", action="store_true", help="open a pull request, for a repository that others own"
    )
    command.add_argument("--license", help="identifier such as apache-2.0 (default: the source's, where it is known)")
    command.set_defaults(run=run_push)


def run_push(arguments: argparse.Namespace) -> int:
    from .publishing import push

    address = push(
        arguments.model,
        arguments.repo,
        private=arguments.private,
        revision=arguments.revision,
        tag=arguments.tag,
        message=arguments.message,
        create_pr=arguments.create_pr,
        license=arguments.license,
    )
    print(address)
    return 0


def add_predict(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "predict",
        help="run a fine-tuned model over texts, a line of json each; an archive on several GPUs: longbert launch "
        "-m longbert predict ... --out FOLDER",
    )
    command.add_argument(
        "model", help=f"{MODEL}; or the output_dir of `longbert finetune`, whose best model is then taken"
    )
    command.add_argument(
        "data", nargs="+", help="text, HTML and table files, globs, folders; - reads one text from stdin"
    )
    _add_file_options(command)
    command.add_argument("--question", help="what a question-answering model is asked of every text")
    command.add_argument(
        "--out", type=Path, help="folder for the results, in shards; the same command goes on with what was stopped"
    )
    command.add_argument("--format", choices=("jsonl", "parquet"), help="of the shards (default: jsonl)")
    command.add_argument("--shard-size", type=int, help="texts in a shard (default: 1024)")
    command.set_defaults(run=run_predict)


def run_predict(arguments: argparse.Namespace) -> int:
    """The exit status is 1 where files could not be read; the others are predicted all the same."""
    import datasets

    from .finetuning.applying.archive import Archive, to_stderr
    from .finetuning.applying.best import find_model
    from .finetuning.applying.predicting import predict_texts, predictor_of
    from .finetuning.applying.shards import predict_shards, processes, settings_of
    from .source import load_whole

    datasets.disable_progress_bars()
    if arguments.out:
        refuse_output_in_data(("--out", arguments.out), {"data": arguments.data})
    shards, state = _shards(arguments), processes()
    if shards is None and state.num_processes > 1:
        raise ValueError("several processes write no common standard output: name a folder, --out FOLDER")
    chosen = find_model(arguments.model)
    if state.is_main_process:
        list(map(to_stderr, chosen.why))
    model, tokenizer = load_whole(chosen.path)
    schema = predictor_of(model, tokenizer, arguments.question).schema
    predict = partial(
        predict_texts, model.to(state.device), tokenizer, question=arguments.question, at_once=chosen.at_once
    )

    def look() -> Archive:
        return Archive.of(arguments.data, arguments.text_column, _file_settings(arguments))

    if arguments.data == ["-"]:
        _print_lines(predict([("stdin", _standard_input())]))
        return 0
    if shards is not None:
        settings = settings_of(arguments.text_column, _file_settings(arguments), arguments.question)
        archive = predict_shards(shards, look, chosen, settings, predict, schema)
    else:
        archive = look()
        _print_lines(predict(text for _, text in archive.texts()))
    if not archive.refused or not state.is_main_process:  # a launcher ends the others as soon as one has failed
        return 0
    to_stderr(f"{len(archive.refused):,} of {len(archive.inputs):,} files are not read, as said above")
    return 1


def _shards(arguments: argparse.Namespace) -> Any:
    """The folder of shards that is asked for; None where lines are printed."""
    from .finetuning.applying.shards import JSONL, SIZE, Shards

    if arguments.out is None and (arguments.format or arguments.shard_size):
        raise ValueError("--format and --shard-size are those of the results' folder: name it, --out FOLDER")
    if arguments.out is not None and "-" in arguments.data:
        raise ValueError("standard input is read once, and can be no part of what can be stopped: leave --out away")
    size = SIZE if arguments.shard_size is None else arguments.shard_size
    return None if arguments.out is None else Shards(arguments.out, arguments.format or JSONL, size)


def _standard_input() -> str:
    text = sys.stdin.read()
    if not text.strip():
        raise ValueError("standard input holds no text")
    return text


def _print_lines(lines: Iterable[dict[str, Any]]) -> None:
    for line in lines:
        print(strict_json(line, indent=None), end="", flush=True)


def _ending_in(suffix: str) -> Callable[[str], Path]:
    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() != suffix:
            raise argparse.ArgumentTypeError(f"{text} must end in {suffix}")
        if not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"there is no folder {path.parent} to write {path.name} into")
        return path

    return parse


def add_explain(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "explain", help="which passages of a text decided what a fine-tuned model says of it"
    )
    command.add_argument("model", help=MODEL)
    command.add_argument("file", help="a file as of predict, with one text or more; - for one text on stdin")
    command.add_argument("--question", help="what a question-answering model is asked")
    command.add_argument("--label", help="explain this label (default: the one with the highest score)")
    command.add_argument(
        "--out", type=_ending_in(".html"), help="the page to write, one .html file that needs no other"
    )
    command.add_argument("--json", type=_ending_in(".json"), help="the .json file to write the figures to")
    command.add_argument(
        "--passage-tokens", type=int, default=96, help="tokens of a passage at most: fewer say more and cost more"
    )
    command.add_argument("--row", type=int, help="which text of a file with several, from 0 on")
    command.add_argument("--text-column", default="text", help=TEXT_COLUMN)
    command.set_defaults(run=run_explain)


def run_explain(arguments: argparse.Namespace) -> int:
    import datasets

    from .finetuning.applying.explaining import explain, in_words, one_text
    from .finetuning.applying.page import render
    from .source import load_whole

    datasets.disable_progress_bars()
    if arguments.file == "-":
        name, text = "stdin", sys.stdin.read()
    else:
        name, text = one_text(arguments.file, arguments.text_column, arguments.row)
    model, tokenizer = load_whole(arguments.model)
    explained = explain(
        model,
        tokenizer,
        text,
        name,
        question=arguments.question,
        label=arguments.label,
        passage_tokens=arguments.passage_tokens,
    )
    print("\n".join(in_words(explained)))
    if arguments.json:
        arguments.json.write_text(explained.to_json(), "utf-8")
        print(f"figures written to {arguments.json}")
    if arguments.out:
        arguments.out.write_text(render(explained), "utf-8")
        print(f"page written to {arguments.out}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog="longbert", description="BERT past 512 tokens")
    parser.add_argument("--version", action="version", version=f"longbert {version('longbert')}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (
        add_extend,
        add_inspect,
        add_plot,
        add_evaluate,
        add_select,
        add_train,
        add_finetune,
        add_launch,
        add_bake,
        add_export,
        add_push,
        add_predict,
        add_explain,
    ):
        add(commands)
    return parser


def _passed_on(words: list[str]) -> list[str]:
    """The words with a mark before those that are not the parser's: what is launched, and `longbert train --help`,
    which the script answers, as it knows every key."""
    at = {"train": 1, "finetune": 2, "launch": 1}.get(words[0] if words else "", len(words))
    marked = at < len(words) and (words[at] in ("-h", "--help") or words[0] == "launch")
    return [*words[:at], "--", *words[at:]] if marked else words


def main(argv: list[str] | None = None) -> int:
    """The exit status of a command; without `argv` that of this process's."""
    if argv is None:
        redact_stderr()
    words = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        arguments = build_parser().parse_args(_passed_on(words))
        return arguments.run(arguments)

    return run("longbert", command)


if __name__ == "__main__":
    sys.exit(main())
