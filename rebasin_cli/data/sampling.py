"""Which samples, in which order: all or a seeded choice, sorted or shuffled."""

from __future__ import annotations

import numpy as np


def choose(count: int, *, limit: int | None, seed: int, shuffle: bool) -> np.ndarray:
    """Indices into `count` samples, int64.

    With a `limit`, that many drawn without replacement from `seed`; the first k of a larger choice are not those of a
    smaller one, but the same arguments always choose the same. Unshuffled choices are sorted, which keeps reading from
    a disk sequential; statistics of batches need the order of chance, since a folder is sorted by class.
    """
    generator = np.random.default_rng(seed)
    if limit is not None and limit < count:
        chosen = generator.choice(count, size=limit, replace=False)
        return chosen if shuffle else np.sort(chosen)
    return generator.permutation(count) if shuffle else np.arange(count)
