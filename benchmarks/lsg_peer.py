"""The other side of the case `window-lsg`: the LSG converter's BERT, run by the python of a venv of its own.

LSG 0.1.9 cannot be imported beside transformers 4.45 or newer, so it gets

    python -m venv lsg && lsg/bin/pip install torch==2.13.0 transformers==4.40.2 lsg-converter==0.1.9
    python benchmarks/bench.py --cases window-lsg --lsg-python lsg/bin/python

Blocks of 256 without sparse tokens and one global token is what its authors set beside a Longformer of window 512: a
token sees its own block and both neighbours.
"""

import sys

from lsg_converter.bert.modeling_lsg_bert import LSGBertConfig, LSGBertModel
from sides import NO_DROPOUT, SIZE, Work, encoder_work, serve


LENGTH = 4096


def build() -> Work:
    config = LSGBertConfig(
        block_size=256,
        sparsity_type="none",
        sparsity_factor=0,
        sparse_block_size=0,
        num_global_tokens=1,
        max_position_embeddings=LENGTH,
        **SIZE,
        **NO_DROPOUT,
    )
    return encoder_work(LSGBertModel(config, add_pooling_layer=False), LENGTH)


if __name__ == "__main__":
    serve(build, threads=int(sys.argv[1]))
