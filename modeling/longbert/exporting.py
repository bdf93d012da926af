"""A long model as an ONNX graph, in a folder for ONNX Runtime, sentence-transformers, Optimum and Transformers.js.

Unlike an ordinary BERT a graph holds the window too. The folder says `model_type: bert`, the name by which these tools
know what goes in and comes out, and how many tokens the graph reads.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from transformers import PreTrainedTokenizerBase

from .baking import plain_config
from .errors import MendableError, refuse_no_number
from .folders import read_json, refuse_occupied, written_aside
from .modeling_longbert import LongBertPreTrainedModel
from .onnx_heads import split_heads
from .source import MODULES, copy_sentence_modules, find_source, load_whole, refuse_what_is_no_model, stated_config
from .source_weights import find_file
from .tables import strict_json


OPSET = 18  # the oldest in which torch writes graphs
# where Optimum, sentence-transformers and Transformers.js (as dtype "fp32" and "q8") look for them
GRAPH, INT8_GRAPH = "onnx/model.onnx", "onnx/model_quantized.onnx"
LARGEST = 2_000_000_000  # bytes of weights in one file: protobuf ends at 2 GiB
# what a class's graph gives, by the names that Optimum looks for; "logits" where nothing is said
OUTPUTS = {
    "LongBertModel": ["last_hidden_state"],
    "LongBertForQuestionAnswering": ["start_logits", "end_logits"],
}
RENAMED = {"prediction_logits": "logits"}  # of LongBertForPreTraining, which is exported as a masked language model
READ_A_QUESTION = ("LongBertForQuestionAnswering", "LongBertForMultipleChoice")
TOLERANCE = 1e-3  # of outputs, from PyTorch's; sines of large angles differ between libraries by 1e-4


class Graph(nn.Module):
    """What is exported: from the tokenizer's inputs to the head's outputs, which `outputs` names.

    Args:
        modules: of a SentenceTransformer, those that make a `sentence_embedding` of its transformer's states.
    """

    def __init__(
        self, model: LongBertPreTrainedModel, tokenizer: PreTrainedTokenizerBase, modules: Sequence[nn.Module] = ()
    ):
        super().__init__()
        self.model = model.float().eval()
        self.sentence = nn.ModuleList(modules).eval()
        reads_a_question = type(model).__name__ in READ_A_QUESTION and model.config.attention_window is not None
        self.question_ends = tokenizer.sep_token_id if reads_a_question else None
        self.inputs = ["input_ids", "attention_mask"]
        if "token_type_ids" in tokenizer.model_input_names:
            self.inputs.append("token_type_ids")
        self.outputs = OUTPUTS.get(type(model).__name__, ["logits"]) + ["sentence_embedding"] * bool(modules)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if self.question_ends is not None:
            inputs["global_attention_mask"] = self._question(input_ids)
        said = {RENAMED.get(name, name): each for name, each in self.model(**inputs).items()}
        if self.sentence:
            features = {"token_embeddings": said["last_hidden_state"], "attention_mask": attention_mask}
            for module in self.sentence:
                features = module(features)
            said["sentence_embedding"] = features["sentence_embedding"]
        return tuple(said[name] for name in self.outputs)

    def _question(self, input_ids: torch.Tensor) -> torch.Tensor:
        """1 up to the first [SEP]: the question's tokens, which are global in training too."""
        ends = (input_ids == self.question_ends).long()
        return (ends.cumsum(-1) - ends == 0).long()

    def sample(self, length: int) -> dict[str, torch.Tensor]:
        """Two texts, `[2, length]`, the second one half padding; two choices of them for a multiple-choice head."""
        choices = (2,) if type(self.model).__name__ == "LongBertForMultipleChoice" else ()
        generator = torch.Generator().manual_seed(length)
        shape = (2, *choices, length)
        input_ids = torch.randint(self.model.config.vocab_size, shape, generator=generator)
        if self.question_ends is not None:
            input_ids[..., length // 4] = self.question_ends
        attention_mask = torch.ones_like(input_ids)
        attention_mask[1, ..., length // 2 :] = 0
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return {**inputs, "token_type_ids": torch.zeros_like(input_ids)} if len(self.inputs) == 3 else inputs

    @property
    def axes(self) -> list[str]:
        """The names of the inputs' axes, all of which may have any size."""
        choices = ["num_choices"] if type(self.model).__name__ == "LongBertForMultipleChoice" else []
        return ["batch_size", *choices, "sequence_length"]


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Hide what torch and ONNX Runtime warn of on every export: packages that are not there, axes named as told."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def to_onnx(graph: Graph) -> onnx_ir.Model:
    """One graph for every batch size and every length up to the model's reach."""
    reach = graph.model.config.max_position_embeddings
    sample = graph.sample(min(8, reach))
    sizes = {axis: torch.export.Dim(name, min=1) for axis, name in enumerate(graph.axes)}
    sizes[len(sizes) - 1] = torch.export.Dim("sequence_length", min=1, max=reach)
    with without_chatter():
        program = torch.onnx.export(
            graph,
            (),
            kwargs=sample,
            dynamic_shapes=dict.fromkeys(sample, sizes),
            input_names=graph.inputs,
            output_names=graph.outputs,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    split_heads(program.model, graph.model.config.num_attention_heads)
    without_places(program.model)
    return program.model


def without_places(model: onnx_ir.Model) -> None:
    """Take out torch's notes on every node, which name files on this disk."""
    graphs: list[onnx_ir.Graph | onnx_ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for each in (graph, *graph.all_nodes()):
            each.metadata_props.clear()
            each.doc_string = None


def save_graph(model: onnx_ir.Model, file: Path) -> bool:
    """Write a graph; the weights go into `file_data` beside it, as Optimum and Transformers.js look for them, where
    one file cannot hold them.

    Returns:
        Whether they did.
    """
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    apart = sum(weight.nbytes for weight in weights) > LARGEST
    file.parent.mkdir(exist_ok=True)
    onnx_ir.save(model, file, external_data=f"{file.name}_data" if apart else None)
    return apart


@torch.no_grad()
def farthest(graph: Graph, file: Path, length: int) -> float:
    """How far a graph's outputs are from PyTorch's for two texts of a length, the second one half padding."""
    sample = graph.sample(length)
    session = onnxruntime.InferenceSession(file)
    said = session.run(graph.outputs, {name: tensor.numpy() for name, tensor in sample.items()})
    real = sample["attention_mask"].bool()
    distances = []
    for theirs, ours in zip(map(torch.from_numpy, said), graph(**sample), strict=True):
        own = real if ours.shape[: real.dim()] == real.shape else slice(None)  # what stands at padding means nothing
        distances.append((theirs - ours)[own].abs().max())
    return float(torch.stack(distances).max())  # which is NaN where one is


def check(graph: Graph, file: Path) -> str:
    """Compare a graph with PyTorch on both sides of the source's length, where a window begins.

    Raises:
        MendableError: they differ.
    """
    config = graph.model.config
    lengths = {min(length, config.max_position_embeddings) for length in (64, config.pretrained_positions + 64)}
    found = {length: farthest(graph, file, length) for length in sorted(lengths)}
    said = ", ".join(f"{distance:.1e} at {length:,} tokens" for length, distance in found.items())
    if not all(distance <= TOLERANCE for distance in found.values()):
        raise MendableError(
            f"the graph that torch {torch.__version__} wrote does not say what the model says: outputs differ by "
            f"{said}. Another version of torch may write a right one"
        )
    return said


def quantize(file: Path, out: Path) -> None:
    """Write a graph with weights of 8 bits, and activations that are rounded to 8 bits as they come (ONNX Runtime's
    dynamic quantization).

    One scale for a whole matrix costs far more than one for each of its columns. A column's weights fill 7 bits, as
    sums of 8 overflow on processors without VNNI.
    """
    with without_chatter():
        quantize_dynamic(file, out, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


def save_config(model: LongBertPreTrainedModel, folder: Path, apart: bool = False) -> None:
    """Write config.json: BERT's, with the graph's reach; what BERT has no word for is under `longbert`.

    Args:
        apart: weights lie beside the graph, which Transformers.js has to be told.
    """
    config, name = model.config, type(model).__name__.removeprefix("Long")
    plain = plain_config(config, config.max_position_embeddings)
    plain.architectures = [{"BertForPreTraining": "BertForMaskedLM"}.get(name, name)]
    plain.dtype = "float32"
    ours = ("position_type", "pretrained_positions", "attention_window", "global_tokens", "classifier_pooling")
    plain.longbert = {each: getattr(config, each) for each in ours}
    if apart:
        setattr(plain, "transformers.js_config", {"use_external_data_format": {Path(GRAPH).name: 1}})
    plain.save_pretrained(folder)


def sentence_modules(path: str) -> list[nn.Module]:
    """Of a SentenceTransformer's folder, the modules after its transformer; of another checkpoint none.

    Raises:
        ValueError: what they do depends on more than the tokens.
    """
    if find_file(path, MODULES) is None:
        return []
    from sentence_transformers import SentenceTransformer

    modules = list(SentenceTransformer(path, device="cpu"))[1:]
    if not all(getattr(module, "include_prompt", True) for module in modules):
        raise ValueError(
            f"{path} pools a text without its prompt, and a graph is not told where that ends: export the encoder "
            f"alone, from a copy of the folder without {MODULES}"
        )
    return modules


def name_modules_as_before(folder: Path) -> None:
    """Name a SentenceTransformer's modules by the places that they had before version 6, at which every version finds
    them: Optimum does not work with version 6 yet."""
    library, modules = "sentence_transformers", read_json(folder / MODULES, list)
    for module in modules:
        if module["type"].startswith(f"{library}."):
            module["type"] = f"{library}.models.{module['type'].rpartition('.')[2]}"
    (folder / MODULES).write_text(strict_json(modules), "utf-8")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer that cuts and pads nothing by itself: tools that read tokenizer.json alone would do as its last
    user told it."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)


def refuse_unexportable(path: str) -> None:
    """Raise `ValueError`, before weights are read, for what is no model, or one that has no such graph."""
    refuse_what_is_no_model(path)
    if stated_config(path).get("is_decoder"):
        raise ValueError(
            f"{path} is a decoder (is_decoder), which predicts from a cache that these graphs do not have: export an "
            "encoder"
        )


def write_exported(path: str, out: str | Path, int8: bool = False) -> list[str]:
    """Export a checkpoint into a new or empty folder with its tokenizer, in fp32, and compare it with PyTorch.

    A SentenceTransformer's folder stays one, and its graph gives a `sentence_embedding` too.

    Args:
        int8: write a second graph whose weights have 8 bits.

    Returns:
        What was written, a line each.

    Raises:
        ValueError: it is a decoder, no long model, not whole, or pools in a way that no graph can.
        MendableError: the model's outputs are no numbers, or not the graph's.
    """
    refuse_occupied(out)
    source = find_source(path)
    refuse_unexportable(source)
    model, tokenizer = load_whole(path)
    graph = Graph(model, tokenizer, sentence_modules(source))
    length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    tokenizer.model_max_length = length
    with torch.no_grad():
        refuse_no_number(graph(**graph.sample(64)), "two texts")
    with written_aside(out) as folder:
        file = folder / GRAPH
        apart = save_graph(to_onnx(graph), file)
        same = check(graph, file)
        lines = [f"{GRAPH}: {', '.join(graph.inputs)} -> {', '.join(graph.outputs)}; from PyTorch's by at most {same}"]
        if int8:
            quantize(file, folder / INT8_GRAPH)
            sizes = [f"{each.stat().st_size / 1e6:,.1f} MB" for each in (folder / INT8_GRAPH, file)]
            lines.append(f"{INT8_GRAPH}: {' instead of '.join(sizes)}; measure what 8 bits cost you")
        save_config(model, folder, apart)
        save_tokenizer(tokenizer, folder)
        copy_sentence_modules(source, folder, length)
        if graph.sentence:
            name_modules_as_before(folder)
    return lines
