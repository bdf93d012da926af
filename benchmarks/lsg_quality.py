"""The other side of extension_study.py's LSG cells: the LSG converter's model of a source, run by a venv of its own.

    python -m venv lsg && lsg/bin/pip install torch==2.13.0 transformers==4.40.2 lsg-converter==0.1.9
    python benchmarks/extension_study.py STUDY.jsonl SOURCE --data books/ --lsg-python lsg/bin/python

Reads the texts that the study wrote, and writes each masked token's loss beside them, and whether it was
predicted.
"""

import sys
from pathlib import Path

import torch
from lsg_converter import LSGConverter
from torch.nn.functional import cross_entropy


# as its authors ship it, and as they set it beside a Longformer of window 512
SETTINGS = {
    "LSG, blocks of 128, sparse by norm": {},
    "LSG, blocks of 256, no sparse tokens": {"block_size": 256, "sparsity_type": "none", "sparsity_factor": 0},
}


@torch.no_grad()
def main(source: str, length: str, settings: str, file: str) -> None:
    converter = LSGConverter(max_sequence_length=int(length))
    model, _ = converter.convert_from_pretrained(source, num_global_tokens=1, **SETTINGS[settings])
    model.eval()
    results = []
    for text in torch.load(file):
        input_ids = text["input_ids"][None]
        logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits[0]
        labelled = text["labels"] != -100
        logits, targets = logits[labelled], text["labels"][labelled]
        results.append((cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets))
    torch.save(results, Path(file).with_suffix(".results"))


if __name__ == "__main__":
    main(*sys.argv[1:])
