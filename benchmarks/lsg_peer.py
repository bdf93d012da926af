"""The other side of attention.py's case `lsg`: the LSG converter's BERT, run by the python of a venv of its own.

LSG 0.1.9 cannot be imported beside transformers 4.45 or newer, so it gets

    python -m venv lsg && lsg/bin/pip install torch==2.13.0 transformers==4.40.2 lsg-converter==0.1.9
    python benchmarks/attention.py --cases lsg --lsg-python lsg/bin/python

Blocks of 256 without sparse tokens and one global token is what its authors set beside a Longformer of window 512: a
token sees its own block and both neighbours.
"""

import argparse

from lsg_converter.bert.modeling_lsg_bert import LSGBertConfig, LSGBertModel
from measure import NO_DROPOUT, SIZE, Work, encoder_work, serve


LENGTH = 4096


def build(shrink: int, device: str) -> Work:
    length = LENGTH // shrink
    config = LSGBertConfig(
        block_size=256,
        sparsity_type="none",
        sparsity_factor=0,
        sparse_block_size=0,
        num_global_tokens=1,
        max_position_embeddings=length,
        **SIZE,
        **NO_DROPOUT,
    )
    return encoder_work(LSGBertModel(config, add_pooling_layer=False), length, device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shrink", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    serve(lambda: build(arguments.shrink, arguments.device), arguments.device)
