"""An exported window's attention, head by head.

ONNX Runtime holds all of what a node computes. Where one node computes the scores of all heads, and others gather
their keys and values, that is 1.5 GB at 16,384 tokens of a BERT-base. This is done to the graph rather than to the
model, as torch takes five times as long to export one of single heads.
"""

from dataclasses import dataclass
from typing import Any

import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def producer_of(value: onnx_ir.Value | None) -> onnx_ir.Node | None:
    return None if value is None else value.producer()


@dataclass(frozen=True)
class Gathered:
    """The queries, keys or values of all blocks.

    Args:
        states: `[tokens, num_heads * head_dim]`.
        tokens: `[blocks, size]`, those of each block.
    """

    states: onnx_ir.Value | None
    tokens: onnx_ir.Value | None

    @classmethod
    def behind(cls, value: onnx_ir.Value | None) -> "Gathered | None":
        """What a value, `[blocks, num_heads, size, head_dim]` or its transpose, was gathered from, if it was."""
        producer = producer_of(value)
        while producer is not None and producer.op_type in ("Transpose", "Reshape"):
            producer = producer_of(producer.inputs[0])
        return cls(*producer.inputs) if producer is not None and producer.op_type == "Gather" else None


@dataclass(frozen=True)
class Attention:
    """softmax(query @ key * scale + bias) @ value, as `blocked_attention.py` is exported.

    Args:
        nodes: from the first product to the last, in order.
        gathered: query, key and value.
    """

    nodes: list[onnx_ir.Node]
    gathered: list[Gathered]

    @classmethod
    def around(cls, softmax: onnx_ir.Node) -> "Attention | None":
        """The attention in blocks that a node is the softmax of, if it is one: global queries are few, and layers in
        full have another form."""
        nodes = [softmax]
        for operation in ("Add", "Mul", "MatMul"):
            producer = producer_of(nodes[0].inputs[0])
            if producer is None or producer.op_type != operation:
                return None
            nodes.insert(0, producer)
        (last, _), *others = softmax.outputs[0].uses()
        if others or last.op_type != "MatMul":
            return None
        found = [Gathered.behind(value) for value in (*nodes[0].inputs, last.inputs[1])]
        gathered = [each for each in found if each is not None]
        return cls([*nodes, last], gathered) if len(gathered) == len(found) else None

    def by_heads(self, num_heads: int) -> list[onnx_ir.Node]:
        """The same of each head, and their outputs side by side by the last node."""
        _products, scaled, biased, _softmax, _weighted = self.nodes
        made: list[onnx_ir.Node] = []

        def make(operation: str, *inputs: onnx_ir.Value | None, outputs: int = 1, **attributes: Any) -> list:
            made.append(onnx_ir.node(operation, inputs, attributes, num_outputs=outputs))
            return list(made[-1].outputs)

        split = [
            make("Split", each.states, outputs=num_heads, axis=1, num_outputs=num_heads) for each in self.gathered
        ]
        (axis,) = make("Constant", value=onnx_ir.tensor([1]))
        (bias,) = make("Squeeze", biased.inputs[1], axis)
        outputs = []
        for states in zip(*split, strict=True):
            query, key, value = (
                make("Gather", of_head, each.tokens, axis=0)[0]
                for of_head, each in zip(states, self.gathered, strict=True)
            )
            (scores,) = make("MatMul", query, *make("Transpose", key, perm=[0, 2, 1]))
            (scores,) = make("Mul", scores, scaled.inputs[1])
            (scores,) = make("Add", scores, bias)
            (output,) = make("MatMul", *make("Softmax", scores, axis=-1), value)
            outputs += make("Unsqueeze", output, axis)
        make("Concat", *outputs, axis=1)
        return made


def split_heads(model: onnx_ir.Model, num_heads: int) -> None:
    """Compute attention through a window head by head, wherever a graph computes it."""
    for softmax in [node for node in model.graph if node.op_type == "Softmax"]:
        attention = Attention.around(softmax)
        if attention is None:
            continue
        made = attention.by_heads(num_heads)
        last = attention.nodes[-1]
        model.graph.insert_before(last, made)
        onnx_ir.convenience.replace_all_uses_with(last.outputs[0], made[-1].outputs[0])
    RemoveUnusedNodesPass()(model)
