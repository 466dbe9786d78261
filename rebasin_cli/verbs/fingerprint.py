"""The model that a checkpoint looks like, from names and shapes alone.

The fingerprint of a state is a digest of its keys, each with the shape of one of its slices: every axis but the first.
A layer's width is part of the next layer's slices; the number of classes, which depends on the task, is in none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("torchvision_fingerprints.json")
WRAPPED = ("module", "_orig_mod")
OUTER = ("model", "net", "backbone", "network")


def fingerprint(shapes: Mapping[str, Sequence[int]]) -> str:
    """Digest of keys and slice shapes; counters that are used only in training are left out."""
    lines = sorted(
        f"{key}:{','.join(map(str, shape[1:]))}"
        for key, shape in shapes.items()
        if not key.endswith("num_batches_tracked")
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def looks_like(shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Names, as `--model` takes them, of the known models with this state; wrappers' prefixes are ignored."""
    known = _known()
    plain = {_unwrapped(key): shape for key, shape in shapes.items()}
    found = known.get(fingerprint(plain), ())
    if found:
        return found
    for outer in OUTER:
        inner = {key.removeprefix(f"{outer}."): s for key, s in plain.items() if key.startswith(f"{outer}.")}
        if inner and fingerprint(inner) in known:
            return known[fingerprint(inner)]
    return ()


def _unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPED)


@cache
def _known() -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {}
    for name, digest in json.loads(TABLE.read_text(encoding="utf-8")).items():
        names[digest] = (*names.get(digest, ()), name)
    return names
