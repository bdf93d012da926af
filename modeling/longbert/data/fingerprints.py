"""What a run's data are, in a few numbers, so that it is noticed when a run is resumed on others."""

import json
from collections.abc import Iterable
from typing import Any

import datasets

from .documents import Documents, digest_of


Fingerprint = dict[str, Any]


def fingerprint(digests: Iterable[int]) -> Fingerprint:
    """How many texts there are, and which: in their order, and in any.

    Args:
        digests: of each text, as `digest_of` gives them.
    """
    number, in_order, in_any_order = 0, 0, 0
    for digest in digests:
        number += 1
        in_order = digest_of(f"{in_order} {digest}")
        in_any_order = (in_any_order + digest) % 2**63
    return {"number": number, "in_order": f"{in_order:x}", "in_any_order": f"{in_any_order:x}"}


def of_documents(documents: Documents) -> Fingerprint:
    """Of documents, part by part; a stream is read once more for it."""
    if isinstance(documents, datasets.IterableDataset):
        return fingerprint(row["digest"] for row in documents)
    batches = documents.select_columns(["digest"]).iter(batch_size=10_000)
    return fingerprint(digest for batch in batches for digest in batch["digest"])


def of_rows(rows: Iterable[Any]) -> Fingerprint:
    """Of rows of any columns."""
    return fingerprint(digest_of(json.dumps(row, sort_keys=True, default=str)) for row in rows)


def difference(before: Fingerprint | None, now: Fingerprint | None) -> str | None:
    """What is other, in words; None where nothing is."""
    if before == now:
        return None
    if before is None or now is None:
        return f"{0 if before is None else before['number']:,} -> {0 if now is None else now['number']:,}"
    if before["number"] != now["number"]:
        return f"{before['number']:,} -> {now['number']:,}"
    if before["in_any_order"] == now["in_any_order"]:
        return f"the same {now['number']:,} in another order"
    return f"{now['number']:,} as before, but not the same"
