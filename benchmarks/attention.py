"""What longbert's attention and MLM loss save, each claim a ratio measured side by side in one run.

    python benchmarks/attention.py                          # every case for this device, about half an hour on 2 cores
    python benchmarks/attention.py --cases padded-mlm short --repeats 5

Prints a markdown table and leaves a record (JSON: machine, versions, commit, command, every sample) and a picture in
benchmarks/results. Weights are random, equal on both sides where the model is the same one. How things are measured
is told in measure.py; what each case is, in CASES below. Ends with an error where two sides that must agree do not,
or a case fails; a missed target is only reported, for speed depends on the machine.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import (
    NO_DROPOUT,
    SIZE,
    Goal,
    NotMeasured,
    Report,
    Work,
    compare_memory,
    compare_times,
    draw_tokens,
    draw_weights,
    encoder_work,
    generator,
    serve,
)
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BigBirdConfig,
    BigBirdModel,
    LongformerConfig,
    LongformerModel,
    ModernBertConfig,
    ModernBertModel,
)
from transformers.models.bert.modeling_bert import BertOnlyMLMHead

from longbert import LongBertConfig, LongBertForMaskedLM, LongBertModel
from longbert.losses import masked_lm_loss


@dataclass(frozen=True)
class Run:
    """What the command line says about building a side."""

    device: str
    attn_implementation: str
    shrink: int


# ---- models: (run, length, **config fields) -> a model that reaches `length` tokens


def longbert(run: Run, length: int, head: type = LongBertModel, **fields: Any) -> nn.Module:
    """Ours. A field that this longbert lacks is refused: transformers would keep it on the config and ignore it.

    The source's table is 512 positions long, as BERT's: a window applies to longer texts only.
    """
    unknown = fields.keys() - {field.name for field in dataclasses.fields(LongBertConfig)}
    if unknown:
        raise ValueError(f"this longbert has no config field {', '.join(sorted(unknown))}")
    fields = {"max_position_embeddings": length, **SIZE, **NO_DROPOUT, **fields}
    return head(LongBertConfig(**fields, attn_implementation=run.attn_implementation))


def bert(run: Run, length: int, head: type = BertModel, **fields: Any) -> nn.Module:
    fields = {"max_position_embeddings": length, **SIZE, **NO_DROPOUT, **fields}
    return head(BertConfig(**fields, attn_implementation="sdpa"))


class LongformerWithGlobalCls(LongformerModel):
    """Longformer as its own classification heads call it: token 0 sees and is seen by all."""

    def forward(self, input_ids: torch.Tensor) -> Any:
        global_attention_mask = torch.zeros_like(input_ids)
        global_attention_mask[:, 0] = 1
        return super().forward(input_ids, global_attention_mask=global_attention_mask)


def longformer(run: Run, length: int, **fields: Any) -> nn.Module:
    """Its positions start at `pad_token_id + 1`."""
    fields = {"attention_window": 512, "max_position_embeddings": length + 2, **SIZE, **NO_DROPOUT, **fields}
    return LongformerWithGlobalCls(LongformerConfig(**fields))


# At most (5 + 2 * 3) * 64 = 704 tokens switch a BigBird to full attention, and it never switches back.
BIGBIRD_SCRAP = 1024


def bigbird(run: Run, length: int, **fields: Any) -> nn.Module:
    if length < BIGBIRD_SCRAP:
        raise ValueError(f"BigBird is not sparse at {length} tokens")
    sparse = {"attention_type": "block_sparse", "block_size": 64, "num_random_blocks": 3}
    return BigBirdModel(BigBirdConfig(max_position_embeddings=length, **sparse, **{**SIZE, **NO_DROPOUT, **fields}))


def modernbert(run: Run, length: int, **fields: Any) -> nn.Module:
    """Its own MLP and rotary positions; every third layer is global, the others see the same window as ours."""
    fields = {**SIZE, "intermediate_size": ModernBertConfig.intermediate_size, "local_attention": 512, **fields}
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    config = ModernBertConfig(max_position_embeddings=length, pad_token_id=0, **tokens, **fields)
    return ModernBertModel._from_config(config, attn_implementation="sdpa")


# ---- steps: (model, length, ..., run) -> the work to measure


def refuse_slow(dtype: torch.dtype, device: str) -> None:
    """Raise `ValueError` for bf16 on a processor without it: products then run some 70 times slower than in fp32."""
    if device == "cpu" and dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise ValueError("this processor has no bf16 instructions (AVX-512 or AMX), a step would take hours")


def encoder(
    model: Callable[..., nn.Module],
    length: int,
    run: Run,
    *,
    batch_size: int = 1,
    backward: bool = True,
    dtype: torch.dtype = torch.float32,
    scrap: int = 64,
    **fields: Any,
) -> Work:
    """Forward, and with `backward` back, through an encoder; all tokens are real."""
    refuse_slow(dtype, run.device)
    length //= run.shrink
    built = model(run, length, **fields).to(dtype)
    return encoder_work(built, length, run.device, batch_size=batch_size, backward=backward, scrap=scrap)


def draw_labels(tokens: torch.Tensor) -> torch.Tensor:
    """15 % of the tokens, -100 elsewhere."""
    return tokens.masked_fill(torch.rand(tokens.shape, generator=generator()) >= 0.15, -100)


def mlm(
    model: Callable[..., nn.Module],
    lengths: tuple[int, ...],
    run: Run,
    *,
    checkpointing: bool = False,
    dtype: torch.dtype = torch.float32,
    **fields: Any,
) -> Work:
    """An MLM training step without the optimizer, on texts of `lengths` padded to the longest; returns the loss."""
    refuse_slow(dtype, run.device)
    lengths = torch.tensor(lengths) // run.shrink
    length = int(lengths.max())
    built = draw_weights(model(run, length, **fields)).to(run.device, dtype).train()
    if checkpointing:
        built.gradient_checkpointing_enable()
    real = torch.arange(length) < lengths[:, None]
    tokens = draw_tokens(len(lengths), length)
    batch = {
        "input_ids": tokens.masked_fill(~real, 0).to(run.device),
        "attention_mask": real.long().to(run.device),
        "labels": draw_labels(tokens).masked_fill(~real, -100).to(run.device),
    }

    def step(length: int) -> torch.Tensor:
        loss = built(**{name: tensor[:, :length].contiguous() for name, tensor in batch.items()}).loss
        loss.backward()
        return loss.detach()

    return Work(list(built.parameters()), step, length)


def all_positions_loss(head: nn.Module, hidden_states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What BertForMaskedLM does."""
    return nn.CrossEntropyLoss()(head(hidden_states).flatten(0, 1), labels.flatten())


def mlm_head(loss: Callable[..., torch.Tensor], length: int, run: Run) -> Work:
    """The MLM head and its loss alone, forward and backward; returns the gradient of the hidden states."""
    length //= run.shrink
    head = draw_weights(BertOnlyMLMHead(BertConfig(**SIZE))).to(run.device)
    hidden_states = torch.randn(1, length, SIZE["hidden_size"], generator=generator())
    hidden_states = nn.Parameter(hidden_states.to(run.device))
    labels = draw_labels(draw_tokens(1, length)).to(run.device)

    def step(length: int) -> torch.Tensor:
        loss(head, hidden_states[:, :length], labels[:, :length]).backward()
        return hidden_states.grad

    return Work([*head.parameters(), hidden_states], step, length)


# ---- cases


@dataclass(frozen=True)
class Case:
    """One claim.

    Args:
        what: the claim's conditions and opponent, for the reader.
        ours: builds our side.
        against: builds the other side; the name of a script beside this one is run by `--lsg-python`.
        time: what the seconds are to show; None where they are not measured.
        memory: the same for peak bytes above the model and its gradients.
        same_to: the sides' results must agree to this, relative to the largest value; None where they differ.
        rounds: pairs of time samples for each of `--repeats`.
    """

    name: str
    what: str
    ours: Callable[[Run], Work]
    against: Callable[[Run], Work] | str | None = None
    time: Goal | None = None
    memory: Goal | None = None
    same_to: float | None = None
    rounds: int = 1

    @property
    def needs_cuda(self) -> bool:
        return self.name.startswith("gpu-")


gain, cost, amount = (partial(Goal, kind) for kind in ("gain", "cost", "amount"))
ours_mlm, stock_mlm = partial(mlm, longbert, head=LongBertForMaskedLM), partial(mlm, bert, head=BertForMaskedLM)
ours, window = partial(encoder, longbert), partial(encoder, longbert, attention_window=512)
padded = (2048, 512, 256, 128)
dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
base = {"num_hidden_layers": 12, "dtype": torch.bfloat16}

CASES = [
    Case(
        "padded-mlm",
        f"MLM step on a padded batch of lengths {list(padded)}, against BertForMaskedLM (sdpa)",
        ours=partial(ours_mlm, padded),
        against=partial(stock_mlm, padded),
        time=gain(4.5),
        memory=gain(3.8),
        same_to=1e-5,
    ),
    Case(
        "padded-mlm-checkpointed",
        "the same with gradient checkpointing on our side only",
        ours=partial(ours_mlm, padded, checkpointing=True),
        against=partial(stock_mlm, padded),
        time=gain(3.5),
        memory=gain(8),
        same_to=1e-5,
    ),
    Case(
        "mlm-loss",
        "MLM head and loss alone, 8192 tokens, against logits for all positions",
        ours=partial(mlm_head, masked_lm_loss, 8192),
        against=partial(mlm_head, all_positions_loss, 8192),
        time=gain(5),
        memory=gain(5),
        same_to=1e-5,
    ),
    Case(
        "default-dropout",
        "encoder in training mode with BERT's default dropout of 0.1, 2048 tokens, against BertModel (sdpa); "
        "attn_implementation longbert leaves attention dropout out",
        ours=partial(ours, 2048, **dropout),
        against=partial(encoder, bert, 2048, **dropout),
        time=gain(1.8),
        memory=gain(4),
    ),
    Case(
        "window-longformer",
        "window 512 + [CLS], 8192 tokens, against LongformerModel of the same window and global token",
        ours=partial(window, 8192),
        against=partial(encoder, longformer, 8192),
        time=gain(2.2),
        memory=gain(2.5),
    ),
    Case(
        "window-bigbird",
        "window 512 + [CLS], 4096 tokens, against BigBirdModel (block_sparse, blocks of 64, 3 random)",
        ours=partial(window, 4096),
        against=partial(encoder, bigbird, 4096, scrap=BIGBIRD_SCRAP),
        time=gain(1.8),
        memory=gain(3.5),
    ),
    Case(
        "window-full",
        "window 512 + [CLS], 8192 tokens, against our own full attention",
        ours=partial(window, 8192),
        against=partial(ours, 8192),
        time=gain(2.2),
        memory=gain(),
    ),
    Case(
        "window-doubling",
        "window 512 + [CLS], 16384 tokens, against 8192 tokens",
        ours=partial(window, 16384),
        against=partial(window, 8192),
        time=cost(2.2),
        memory=cost(),
    ),
    Case(
        "window-modernbert",
        "window 512 + [CLS], 8192 tokens, forward only, against ModernBertModel (sdpa, every third layer global)",
        ours=partial(window, 8192, backward=False),
        against=partial(encoder, modernbert, 8192, backward=False),
        time=gain(2),
    ),
    *(
        Case(
            name,
            f"MLM step of a BERT-base on 16384 tokens, full attention, {dtype}, gradient checkpointing",
            ours=partial(ours_mlm, (16384,), checkpointing=True, **{**base, "dtype": dtype}),
            memory=amount(limit),
        )
        for name, dtype, limit in (("exact-bf16", torch.bfloat16, 1.0e9), ("exact-fp32", torch.float32, 2.0e9))
    ),
    *(
        Case(
            f"short-{length}",
            f"encoder, 8 unpadded texts of {length} tokens, against BertModel (sdpa)",
            ours=partial(ours, length, batch_size=8),
            against=partial(encoder, bert, length, batch_size=8),
            time=cost(1.05),
            same_to=1e-5,
            rounds=5,
        )
        for length in (512, 128)
    ),
    Case(
        "lsg",
        "window 512 + [CLS], 4096 tokens, against LSGBertModel (blocks of 256, no sparse tokens, transformers 4.40.2)",
        ours=partial(window, 4096),
        against="lsg_peer.py",
        time=gain(),
        memory=gain(),
    ),
]


def floor_seconds(tokens: int, training: bool) -> float:
    """What one BERT-base step on an H100 or H200 cannot go below, counting only linear layers and attention.

    FLOP are BERT-base's; 650 TFLOP/s for linear layers is what large GEMMs attain; 324 forward and 291 backward are
    FlashAttention-2's (arXiv 2407.08608, head dimension 64, 16k tokens). Its backward is 2.5 times its forward.
    """
    linear, attention = 169.9e6 * tokens, 36_864 * tokens**2
    forward = linear / 650e12 + attention / 324e12
    return forward + training * (2 * linear / 650e12 + 2.5 * attention / 291e12)


CASES += [
    *(
        Case(
            f"gpu-exact-{tokens}",
            f"MLM step of a BERT-base on {tokens} tokens, full attention, bf16; target: twice the computed floor",
            ours=partial(ours_mlm, (tokens,), **base),
            time=amount(2 * floor_seconds(tokens, training=True)),
            memory=amount(),
        )
        for tokens in (16384, 65536)
    ),
    Case(
        "gpu-262144",
        "forward of a BERT-base on 262144 tokens, hierarchical positions, full attention, bf16; targets: twice the "
        "computed floor, a 24 GB card",
        ours=partial(ours, 262144, backward=False, position_type="hierarchical", pretrained_positions=512, **base),
        time=amount(2 * floor_seconds(262144, training=False)),
        memory=amount(23.5e9),  # the weights take another 0.2
    ),
    *(
        Case(
            f"gpu-peers-{tokens}-{peer.__name__}",
            f"BERT-base size, bf16, {batch_size} texts of {tokens} tokens, window 512 + [CLS], "
            f"against {peer.__name__}",
            ours=partial(window, tokens, batch_size=batch_size, **base),
            against=partial(encoder, peer, tokens, batch_size=batch_size, **options, **base),
            time=gain(1),
            memory=gain(),
        )
        for tokens, batch_size in ((4096, 8), (8192, 4))
        for peer, options in ((longformer, {}), (bigbird, {"scrap": BIGBIRD_SCRAP}), (modernbert, {}))
    ),
]


# ---- a run


def commands(case: Case, arguments: argparse.Namespace) -> list[list[str]]:
    """The command lines that serve our side and the other."""
    options = ["--device", arguments.device, "--shrink", str(arguments.shrink)]
    ours = [sys.executable, __file__, "--attn-implementation", arguments.attn_implementation, *options, "--serve"]
    if not isinstance(case.against, str):
        return [[*ours, side, case.name] for side in ("ours", "against") if getattr(case, side)]
    if not arguments.lsg_python:
        raise NotMeasured(f"not run: needs --lsg-python, see {case.against}")
    return [[*ours, "ours", case.name], [arguments.lsg_python, str(Path(__file__).with_name(case.against)), *options]]


def measure(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case's record."""

    def goal(of: Goal) -> Goal:
        return of if arguments.shrink == 1 else dataclasses.replace(of, limit=None)

    record: dict[str, Any] = {"case": case.name, "what": case.what}
    try:
        sides = commands(case, arguments)
        if case.time:
            samples, difference = compare_times(sides, arguments.repeats * case.rounds, case.same_to is not None)
            record["time"] = goal(case.time).judge("seconds", samples)
            record["cores_of_others"] = max(sample["cores_of_others"] for side in samples for sample in side)
            record["difference"] = difference
            if difference is not None and not difference <= case.same_to:
                raise NotMeasured(f"failed: results differ by {difference:.1g}, {case.same_to:.0e} is allowed")
        if case.memory:
            record["memory"] = goal(case.memory).judge("bytes", compare_memory(sides))
    except NotMeasured as reason:
        record["problem"] = str(reason)
    return record


def chosen(names: list[str] | None, device: str) -> list[Case]:
    """The named cases, a name standing for itself or all that continue it; by default all that the device is for.

    Raises:
        ValueError: no such case, or it needs the other device.
    """
    if not names:
        return [case for case in CASES if case.needs_cuda == (device == "cuda")]
    cases = []
    for name in names:
        found = [case for case in CASES if case.name == name] or [
            case for case in CASES if case.name.startswith(f"{name}-")
        ]
        if not found:
            raise ValueError(f"no case {name!r}; there are {', '.join(case.name for case in CASES)}")
        if device != "cuda" and any(case.needs_cuda for case in found):
            raise ValueError(f"{name} needs --device cuda")
        cases += found
    return cases


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="default: all for the device")
    parser.add_argument("--repeats", type=int, default=3, help="time samples of each side")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--lsg-python", metavar="PYTHON", help="python of a venv as lsg_peer.py describes")
    parser.add_argument("--attn-implementation", default="longbert", help="of our side")
    parser.add_argument(
        "--shrink", type=int, default=1, help="divide all lengths: tries the script out, its ratios mean nothing"
    )
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        arguments.cases = chosen(arguments.cases, arguments.device)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def main() -> int:
    arguments = parse()
    if arguments.serve:
        side, name = arguments.serve
        (case,) = (case for case in CASES if case.name == name)
        run = Run(arguments.device, arguments.attn_implementation, arguments.shrink)
        serve(lambda: getattr(case, side)(run), run.device)
        return 0
    note = "" if arguments.shrink == 1 else f"a trial with all lengths divided by {arguments.shrink}, no result"
    report = Report(arguments.out, arguments.device, note)
    for case in arguments.cases:
        report.add(measure(case, arguments))
    report.close()
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
