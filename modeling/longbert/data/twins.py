"""Twins: places of a text where the same token, or the same word, stands."""

import numpy as np


def nearest_twins(
    tokens: np.ndarray, visible: np.ndarray | None = None, places: np.ndarray | None = None
) -> np.ndarray:
    """How far each token's nearest twin is, before it or after it, `[tokens]`; 0 where it has none.

    Args:
        tokens: ids `[tokens]`, not negative.
        visible: which tokens count as another's twin, `[tokens]`; by default all.
        places: where each token stands, rising, `[tokens]`; by default side by side.
    """
    places = np.arange(len(tokens)) if places is None else places
    visible = np.ones(len(tokens), bool) if visible is None else visible
    reach = int(places.max(initial=0)) + 1
    order = np.argsort(tokens, kind="stable")
    key = tokens[order].astype(np.int64) * 4 * reach + places[order]  # tokens apart are further than any distance
    seen, nowhere = visible[order], 1 << 60
    before = np.maximum.accumulate(np.where(seen, key, -nowhere))
    after = np.minimum.accumulate(np.where(seen, key, nowhere)[::-1])[::-1]
    behind = key - np.concatenate(([-nowhere], before))[:-1]
    ahead = np.concatenate((after, [nowhere]))[1:] - key
    nearest = np.minimum(ahead, behind)
    distances = np.zeros(len(tokens), np.int64)
    distances[order] = np.where(nearest < reach, nearest, 0)
    return distances


def leave_one_of_each(chosen: np.ndarray, drawn: np.ndarray, tokens: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """What is chosen, less one place of each token that would be chosen wherever it stands: that of the highest draw.

    Args:
        chosen: `[tokens]`.
        drawn: a number for each place, `[tokens]`.
        tokens: ids `[tokens]`.
        asked: places whose tokens must be left somewhere, `[tokens]`.
    """
    _, group = np.unique(tokens, return_inverse=True)
    left = np.bincount(group, ~chosen) > 0
    missed = np.bincount(group, asked) > 0
    highest = np.zeros(len(left), np.int64)
    order = np.argsort(drawn, kind="stable")
    highest[group[order]] = order  # the last one that is written stays
    kept = chosen.copy()
    kept[highest[missed & ~left]] = False
    return kept
