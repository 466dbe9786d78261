"""The tokens in which two models' tokenizers differ, read from the files beside their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rebasin_cli.errors import few

_LARGEST = 256 << 20


def different_tokens(a: Path, b: Path) -> str:
    """`; 3 tokens differ: …`, or nothing where one of the two has no tokenizer beside its weights."""
    first, second = (_tokens(path if path.is_dir() else path.parent) for path in (a, b))
    if first is None or second is None:
        return ""
    differ = sorted(
        (token for token in first.keys() | second.keys() if first.get(token) != second.get(token)),
        key=lambda token: (first.get(token, len(first)), second.get(token, len(second)), token),
    )
    count = "1 token differs" if len(differ) == 1 else f"{len(differ):,} tokens differ"
    return f"; {count}: {few(differ, shown=5)}" if differ else "; their tokenizers have the same tokens"


def _tokens(directory: Path) -> dict[str, int] | None:
    """Token -> id."""
    for name, read in (("tokenizer.json", _of_tokenizer), ("vocab.json", _of_mapping), ("vocab.txt", _of_lines)):
        path = directory / name
        try:
            if path.is_file() and path.stat().st_size <= _LARGEST:
                return read(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return None


def _of_tokenizer(text: str) -> dict[str, int]:
    document: Mapping[str, Any] = json.loads(text)
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, dict):
        found = {str(token): int(number) for token, number in vocabulary.items()}
    else:  # a unigram model lists tokens with their scores
        found = {str(entry[0]): number for number, entry in enumerate(vocabulary)}
    return found | {str(one["content"]): int(one["id"]) for one in document.get("added_tokens") or ()}


def _of_mapping(text: str) -> dict[str, int]:
    return {str(token): int(number) for token, number in json.loads(text).items()}


def _of_lines(text: str) -> dict[str, int]:
    return {token: number for number, token in enumerate(text.splitlines())}
