"""Law 9 for graphs: an exported graph says what the model says, at every length, in every runtime that is here.

Two of the runtimes are looked for elsewhere (docs/serving.md): Transformers.js where Node finds it (NODE_PATH), and
Optimum, which does not install beside transformers 5, in the environment of OPTIMUM_PYTHON.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import TYPES, assert_close, every_head, long_class, real, table, tiny_config
from peft import LoraConfig, get_peft_model
from processes import ROOT
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    MPNetConfig,
    MPNetModel,
)

from longbert import LongBertForMaskedLM
from longbert.cli import main
from longbert.errors import MendableError
from longbert.exporting import GRAPH, INT8_GRAPH, Graph, check, save_graph, to_onnx, write_exported
from longbert.extending import extend


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.onnx's own
REACH, SOURCE = 2048, 512
LENGTHS = (1, 64, 600, 1500)
BATCHES = (1, 3)
ATTENTION = {
    "full": {},
    "window": {"attention_window": 64},
    "window, closed and full layers": {
        "attention_window": 64,
        "num_hidden_layers": 3,
        "full_attention_layers": [0],
        "closed_attention_layers": [2],
    },
}
NAMES = {"Model": ["last_hidden_state"], "ForQuestionAnswering": ["start_logits", "end_logits"]}
SEPARATOR = 3


class Tokens:
    """What a graph asks of a tokenizer."""

    sep_token_id = SEPARATOR

    def __init__(self, segments: bool = True):
        self.model_input_names = ["input_ids", *["token_type_ids"] * segments, "attention_mask"]


def tiny_model(head: str = "Model", **settings):
    settings = {"num_hidden_layers": 1, "pretrained_positions": SOURCE, "max_position_embeddings": REACH, **settings}
    return long_class(head)(tiny_config(**settings)).eval()


def session_of(model, folder: Path, tokens: Tokens | None = None) -> onnxruntime.InferenceSession:
    save_graph(to_onnx(Graph(model, tokens or Tokens())), folder / "model.onnx")
    return onnxruntime.InferenceSession(folder / "model.onnx")


def pairs(length: int, batch_size: int, head: str) -> dict[str, torch.Tensor]:
    """Two texts with [SEP] between them, of which the last row is half padding."""
    shape = (batch_size, 2, length) if head == "ForMultipleChoice" else (batch_size, length)
    input_ids = torch.randint(SEPARATOR + 1, 100, shape)
    input_ids[..., length // 3] = SEPARATOR
    inputs = {"input_ids": input_ids, "token_type_ids": torch.randint(2, shape), "attention_mask": input_ids * 0 + 1}
    if batch_size > 1:
        inputs["attention_mask"][-1, ..., length // 2 + 1 :] = 0
    return inputs


def said_by_pytorch(model, head: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the model says; a question's tokens, up to [SEP], are global, as in training."""
    if head in ("ForQuestionAnswering", "ForMultipleChoice"):
        length = inputs["input_ids"].shape[-1]
        question = torch.arange(length) <= length // 3
        inputs = {**inputs, "global_attention_mask": question.expand_as(inputs["input_ids"]).long()}
    with torch.no_grad():
        said = dict(model(**inputs))
    return {**said, "logits": said.get("logits", said.get("prediction_logits"))}


def assert_says_the_same(session: onnxruntime.InferenceSession, model, head: str = "Model") -> None:
    names = NAMES.get(head, ["logits"])
    assert [each.name for each in session.get_outputs()] == names
    given = {each.name for each in session.get_inputs()}
    for length in LENGTHS:
        for batch_size in BATCHES:
            inputs = {name: tensor for name, tensor in pairs(length, batch_size, head).items() if name in given}
            expected, own = said_by_pytorch(model, head, inputs), inputs["attention_mask"].bool()
            arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
            for name, said in zip(names, session.run(names, arrays), strict=True):
                chosen = own if expected[name].shape[: own.dim()] == own.shape else slice(None)
                assert_close(torch.from_numpy(said)[chosen], expected[name][chosen], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@every_head
@table("attention", ATTENTION)
def test_a_graph_says_what_its_model_says(attention, head, tmp_path):
    model = tiny_model(head, **attention)
    assert_says_the_same(session_of(model, tmp_path), model, head)


@pytest.mark.slow
@table("settings", {name: each for name, each in TYPES.items() if name != "learned"})
def test_a_graph_has_every_type_of_positions(settings, tmp_path):
    model = tiny_model(**{**settings, "max_position_embeddings": REACH, "attention_window": 64})
    assert_says_the_same(session_of(model, tmp_path), model)


@pytest.mark.slow
def test_a_graph_never_holds_the_scores_of_two_heads(tmp_path):
    """ONNX Runtime says itself how large each node's output was."""
    length = 1024
    model = tiny_model(num_attention_heads=4, hidden_size=32, intermediate_size=32, attention_window=64)
    save_graph(to_onnx(Graph(model, Tokens())), tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options)
    session.run(None, {name: each.numpy() for name, each in pairs(length, 1, "Model").items()})
    nodes = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    sizes = [int(each["args"]["output_size"]) for each in nodes if "output_size" in each.get("args", {})]
    assert len(sizes) > 100
    assert max(sizes) < 1.1 * 4 * length * 3 * SOURCE  # bytes: a query sees three blocks, and its row's global tokens


@pytest.mark.slow
def test_a_graph_of_one_segment_takes_no_token_types(tmp_path):
    model = tiny_model(type_vocab_size=1, position_type="sinusoidal", zero_padding_positions=True)
    session = session_of(model, tmp_path, Tokens(segments=False))
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert_says_the_same(session, model)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_graph_computes_in_32_bits_what_fewer_hold(dtype, tmp_path):
    model = tiny_model(**ATTENTION["window"]).to(dtype)
    session = session_of(model, tmp_path)
    assert_says_the_same(session, model.float())


@pytest.mark.slow
def test_a_graph_of_another_model_is_noticed(tmp_path):
    session_of(tiny_model(), tmp_path)
    with pytest.raises(MendableError, match="outputs differ by"):
        check(Graph(tiny_model(), Tokens()), tmp_path / "model.onnx")


# ---- folders


@pytest.fixture(scope="module")
def encoder(tiny_source, tmp_path_factory) -> Path:
    """A tiny long SentenceTransformer with a window, saved by this version of the library."""
    folder = tmp_path_factory.mktemp("encoder")
    extend(str(tiny_source), folder / "bert", max_positions=1024, attention_window=32, encoder_only=True)
    dense = Dense(32, 8, activation_function=torch.nn.Tanh())
    modules = [Transformer(str(folder / "bert")), Pooling(32), dense, Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "long"))
    return folder / "long"


@pytest.fixture(scope="module")
def served(encoder) -> Path:
    """What `longbert export --int8` makes of it."""
    assert main(["export", str(encoder), str(encoder.parent / "served"), "--int8"]) == 0
    return encoder.parent / "served"


TEXTS = ["people", "the state of the union " * 150, "war and peace " * 20]


def sentence_vectors(folder: Path, graph: str) -> np.ndarray:
    """As a tool does it that knows tokenizers, and names of inputs and outputs."""
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="np")
    return onnxruntime.InferenceSession(folder / graph).run(["sentence_embedding"], dict(inputs))[0]


@pytest.mark.slow
def test_an_exported_encoder_gives_the_encoders_vectors(encoder, served):
    expected = SentenceTransformer(str(encoder), device="cpu").encode(TEXTS)
    assert expected.shape == (3, 8)
    assert_close(sentence_vectors(served, GRAPH), expected, rtol=1e-4, atol=1e-4)
    cosines = (sentence_vectors(served, INT8_GRAPH) * expected).sum(-1)
    assert (cosines > 0.99).all() and (cosines < 1).any()
    assert (served / INT8_GRAPH).stat().st_size < 0.5 * (served / GRAPH).stat().st_size


def test_an_exported_folder_is_one_that_other_tools_know(encoder, served):
    config = AutoConfig.from_pretrained(served)
    assert (config.model_type, config.architectures, config.max_position_embeddings) == ("bert", ["BertModel"], 1024)
    assert config.longbert["attention_window"] == 32
    assert AutoTokenizer.from_pretrained(served).model_max_length == 1024
    tokenizer = json.loads((served / "tokenizer.json").read_text())
    assert tokenizer["truncation"] is None and tokenizer["padding"] is None
    modules = [module["type"] for module in json.loads((served / "modules.json").read_text())]
    assert modules == [
        f"sentence_transformers.models.{each}" for each in ("Transformer", "Pooling", "Dense", "Normalize")
    ]
    assert not list(served.glob("*.py")) and not list(served.glob("*.safetensors"))


def test_what_is_exported_names_no_place(encoder, served):
    places = [str(place).encode() for place in (ROOT, encoder.parent, Path(torch.__file__).parent)]
    for file in (file for file in served.rglob("*") if file.is_file()):
        assert not [place for place in places if place in file.read_bytes()], file


@pytest.mark.slow
def test_weights_that_one_file_cannot_hold_lie_beside_it(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("longbert.exporting.LARGEST", 1000)
    write_exported(str(encoder), tmp_path / "served", int8=True)
    assert (tmp_path / "served" / f"{GRAPH}_data").exists()
    config = json.loads((tmp_path / "served" / "config.json").read_text())
    assert config["transformers.js_config"] == {"use_external_data_format": {"model.onnx": 1}}
    expected = SentenceTransformer(str(encoder), device="cpu").encode(TEXTS)
    assert_close(sentence_vectors(tmp_path / "served", GRAPH), expected, rtol=1e-4, atol=1e-4)
    assert ((sentence_vectors(tmp_path / "served", INT8_GRAPH) * expected).sum(-1) > 0.99).all()


# ---- what is refused, and leaves nothing


def a_decoder(folder: Path, tiny_source: Path) -> None:
    BertLMHeadModel(BertConfig(vocab_size=9, hidden_size=4, num_attention_heads=1, is_decoder=True)).save_pretrained(
        folder
    )


def another_architecture(folder: Path, tiny_source: Path) -> None:
    MPNetModel(MPNetConfig(vocab_size=9, hidden_size=4, num_attention_heads=1)).save_pretrained(folder)


def another_head(folder: Path, tiny_source: Path) -> None:
    extend(str(tiny_source), folder, max_positions=128, encoder_only=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForWhoKnows"]}))


def a_part(folder: Path, tiny_source: Path) -> None:
    extend(str(tiny_source), folder, max_positions=128, encoder_only=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LongBertForMaskedLM"]}))


def an_adapter(folder: Path, tiny_source: Path) -> None:
    get_peft_model(BertModel.from_pretrained(tiny_source), LoraConfig(target_modules=["query"])).save_pretrained(
        folder
    )


def an_encoder_that_leaves_prompts_out(folder: Path, tiny_source: Path) -> None:
    extend(str(tiny_source), folder / "bert", max_positions=128, encoder_only=True)
    modules = [Transformer(str(folder / "bert")), Pooling(32, include_prompt=False)]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))


def without_a_number(folder: Path, tiny_source: Path) -> None:
    extend(str(tiny_source), folder, max_positions=128)
    model = LongBertForMaskedLM.from_pretrained(folder)
    model.bert.encoder.layer[0].output.dense.bias.data[0] = float("nan")
    model.save_pretrained(folder)


REFUSED = {
    "what says no number": (without_a_number, "is no number: its weights are damaged"),
    "a decoder": (a_decoder, "is a decoder"),
    "another architecture": (another_architecture, "mpnet"),
    "another head": (another_head, "BertForWhoKnows"),
    "a part": (a_part, "is not whole"),
    "an adapter": (an_adapter, "is an adapter"),
    "nothing": (lambda folder, tiny_source: None, "no such folder"),
    "pools without prompts": (an_encoder_that_leaves_prompts_out, "pools a text without its prompt"),
}


@table("refused", REFUSED)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(refused, tiny_source, tmp_path, capsys):
    make, message = refused
    make(tmp_path / "source", tiny_source)
    before = {*tmp_path.rglob("*")}
    assert main(["export", str(tmp_path / "source"), str(tmp_path / "out")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longbert: ")]
    assert len(said) == 1 and message in said[0]
    assert {*tmp_path.rglob("*")} == before


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["export", "nowhere", str(tmp_path)]) == 2
    assert "already holds something" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]


# ---- other runtimes, in processes that cannot import longbert


@pytest.fixture(scope="module")
def long_texts(tmp_path_factory) -> tuple[Path, Path]:
    """A real encoder's exported folder, and a file of texts of 100 to 3,000 tokens with its vectors."""
    folder = tmp_path_factory.mktemp("minilm")
    extend(str(real("minilm")), folder / "long", max_positions=8192)
    write_exported(str(folder / "long"), folder / "served", int8=True)
    model = SentenceTransformer(str(folder / "long"), device="cpu")
    texts = ["the state of the union is strong . " * (length // 8) for length in (100, 600, 3000)]
    lines = [{"text": text, "vector": model.encode(text).tolist()} for text in texts]
    (folder / "texts.json").write_text(json.dumps(lines))
    return folder / "served", folder / "texts.json"


IN_NODE = """
const fs = require('fs'), path = require('path');
const { AutoModel, AutoTokenizer, env } = require('@huggingface/transformers');
(async () => {
  const [folder, file] = process.argv.slice(-2);
  [env.allowRemoteModels, env.localModelPath] = [false, path.dirname(folder)];
  const name = path.basename(folder), tokenizer = await AutoTokenizer.from_pretrained(name);
  for (const [dtype, tolerance] of [['fp32', 1e-4], ['q8', 0.1]]) {
    const model = await AutoModel.from_pretrained(name, { dtype });
    for (const { text, vector } of JSON.parse(fs.readFileSync(file))) {
      const { sentence_embedding } = await model(tokenizer(text, { truncation: true }));
      const distance = Math.max(...vector.map((x, i) => Math.abs(x - sentence_embedding.data[i])));
      console.log(dtype, text.length, distance);
      if (!(distance < tolerance)) process.exitCode = 1;
    }
  }
})();
"""


def node_has_transformers() -> bool:
    try:
        done = subprocess.run(["node", "-e", "require.resolve('@huggingface/transformers')"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not node_has_transformers(), reason="Node finds no @huggingface/transformers: set NODE_PATH")
def test_transformers_js_gives_the_same_vectors(long_texts):
    done = subprocess.run(["node", "-e", IN_NODE, *map(str, long_texts)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\n") == 6, done.stdout + done.stderr


IN_OPTIMUM = """
import json, sys

import numpy as np
from optimum.onnxruntime import ORTModelForFeatureExtraction
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

folder, file = sys.argv[1:]
encoder = SentenceTransformer(folder, backend="onnx")
assert encoder.max_seq_length == 8192
model, tokenizer = ORTModelForFeatureExtraction.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
for line in json.load(open(file)):
    np.testing.assert_allclose(encoder.encode(line["text"]), line["vector"], atol=1e-4)
    states = model(**tokenizer(line["text"], return_tensors="np")).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(states / np.linalg.norm(states), line["vector"], atol=1e-4)
"""


@pytest.mark.slow
@pytest.mark.skipif("OPTIMUM_PYTHON" not in os.environ, reason="OPTIMUM_PYTHON names no Python that has Optimum")
def test_sentence_transformers_and_optimum_give_the_same_vectors(long_texts):
    command = [os.environ["OPTIMUM_PYTHON"], "-c", IN_OPTIMUM, *map(str, long_texts)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
