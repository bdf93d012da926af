"""How good is an extension before any training? One proof, a row for each way to extend.

    python benchmarks/untrained_quality.py SOURCE --data 'books/*.txt' --max-seq-length 2048 --out docs/untrained/2048

SOURCE needs a working MLM head. Every row reads the same texts with the same masks; the first is the source itself,
chunked at its own length, which an extension must not fall behind.
"""

import argparse
from typing import Any

from transformers import AutoTokenizer

from longbert import LongBertConfig
from longbert.data.documents import load_documents, resolve_path
from longbert.evaluation import Prover
from longbert.training.pretraining import load_for_pretraining


WINDOW = {"attention_window": 512}
VARIANTS: dict[str, dict[str, Any]] = {
    "window 512 + [CLS], tile-skip-special": WINDOW,
    "window 512 + [CLS], tile": {**WINDOW, "position_init": "tile"},
    "window 512 + [CLS], hierarchical 0.1": {**WINDOW, "position_type": "hierarchical", "hierarchical_alpha": 0.1},
    "window 640 + [CLS], tile-skip-special": {"attention_window": 640},
    "window 384 + [CLS], tile-skip-special": {"attention_window": 384},
    "window 512, no global token": {**WINDOW, "global_tokens": 0},
    "window 512 + first 2 tokens": {**WINDOW, "global_tokens": 2},
    "window 512 + [CLS], first layer full": {**WINDOW, "full_attention_layers": [0]},
    "window 512 + [CLS], last layer full": {**WINDOW, "full_attention_layers": [-1]},
    "full attention, tile-skip-special": {},
    "full attention, hierarchical 0.4": {"position_type": "hierarchical"},
    "full attention, interpolate": {"position_init": "interpolate"},
    "full attention, repeat-last": {"position_init": "repeat-last"},
    "full attention, random": {"position_init": "random"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--max-seq-length", type=int, required=True)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="rows whose name contains one of these")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()

    source = resolve_path(arguments.source)
    native = LongBertConfig.from_pretrained(source)
    prover = Prover(
        load_documents(arguments.data),
        AutoTokenizer.from_pretrained(source),
        window=native.max_position_embeddings,
        max_seq_length=arguments.max_seq_length,
        at_most=arguments.documents,
        mlm_probability=0.15,
        seed=0,
    )
    prover.chunked("source, chunked", load_for_pretraining(source, native))
    for name, overrides in VARIANTS.items():
        if arguments.variants and not any(part in name for part in arguments.variants):
            continue
        config = LongBertConfig.from_pretrained(
            source, max_position_embeddings=arguments.max_seq_length, **_resolved(overrides, native)
        )
        prover.whole(name, load_for_pretraining(source, config))
        prover.proof.save(arguments.out)
    print(prover.proof.to_markdown())


def _resolved(overrides: dict[str, Any], native: LongBertConfig) -> dict[str, Any]:
    """Layers counted from the end, as numbers."""
    layers = overrides.get("full_attention_layers")
    if layers is None:
        return overrides
    return {**overrides, "full_attention_layers": [layer % native.num_hidden_layers for layer in layers]}


if __name__ == "__main__":
    main()
