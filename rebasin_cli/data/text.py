"""Text for language models: files, folders and `.jsonl` as blocks of tokens, each predicting the token after it.

The tokenizer is the one that lies beside the model's configuration; where there is none, the bytes of the text are the
tokens. Documents follow each other, a new line between them; a block has as many tokens as the model's context, and the
last one is filled up with places that do not count.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.data.contract import IGNORED
from rebasin_cli.errors import DataError, one_line

SUFFIXES = (".txt", ".text", ".md", ".rst", ".py", ".jsonl")
BYTES = 256
LONGEST = 1024
"""Most tokens of a block where the user states no length: contexts of many thousands are seldom meant for a CPU."""
_TOKENIZER_FILES = ("tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


@dataclass(frozen=True, slots=True)
class Language:
    """A model of text.

    Attributes:
        vocabulary: number of tokens that it knows.
        context: most tokens that it takes; None where that is unknown.
        length: of the input that the user stated; None where none was.
        folders: where its tokenizer may lie.
    """

    vocabulary: int
    context: int | None
    length: int | None = None
    folders: tuple[Path, ...] = ()

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self.length or min(self.context or LONGEST, LONGEST)


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """From text to token ids; `name` in words."""

    name: str
    encode: Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What turns a loss per token into one per byte: the text's length in both, and the tokenizer."""

    tokens: int
    bytes: int
    tokenizer: str

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens


class Blocks:
    """Sample i is `(tokens, the token after each)`, int64 both; `IGNORED` where the text has ended."""

    def __init__(self, ids: np.ndarray, length: int) -> None:
        self._ids, self._length = ids, length

    def __len__(self) -> int:
        return -(-(len(self._ids) - 1) // self._length)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        part = torch.from_numpy(self._ids[index * self._length : (index + 1) * self._length + 1].astype(np.int64))
        inputs = torch.zeros(self._length, dtype=torch.int64)
        target = torch.full((self._length,), IGNORED, dtype=torch.int64)
        inputs[: len(part) - 1], target[: len(part) - 1] = part[:-1], part[1:]
        return inputs, target


def read_text(path: Path) -> str:
    """The text of a file, of the `text` fields of a `.jsonl` file, or of all such files in a folder, sorted.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise DataError(f"{path}: no text in this folder", path=path, hint=f"accepted: {', '.join(SUFFIXES)}")
    else:
        files = [path]
    *before, last = list(_documents(files)) or [""]
    return "".join(document if document.endswith("\n") else f"{document}\n" for document in before) + last


def _documents(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{file}: cannot be read as text: {one_line(error)}", path=file, hint="text is UTF-8"
            ) from error
        if file.suffix.lower() == ".jsonl":
            yield from _of_lines(text, file)
        elif text:
            yield text


def _of_lines(text: str, file: Path) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}: line {number} is not JSON: {error}", path=file) from error
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise DataError(
                f"{file}: line {number} has no field 'text'", path=file, hint='a line is {"text": "…"}', slug="jsonl"
            )
        yield entry["text"]


def find_tokenizer(language: Language) -> Tokenizer:
    """The tokenizer in the first of the folders that has one; bytes where none has.

    Raises:
        DataError: a tokenizer cannot be loaded, or there is none and the vocabulary is not one of bytes.
    """
    for folder in language.folders:
        file = folder / "tokenizer.json"
        try:
            if file.is_file() and (found := _by_tokenizers(file)) is not None:
                return found
            if file.is_file() or any((folder / name).is_file() for name in _TOKENIZER_FILES):
                return _by_transformers(folder)
        except Exception as error:  # whatever the package says of the file
            raise DataError(
                f"{folder}: its tokenizer cannot be loaded: {one_line(error)}", path=folder, slug="tokenizer"
            ) from error
    if language.vocabulary < BYTES:
        raise DataError(
            f"the model knows {language.vocabulary} tokens, and no tokenizer lies beside it",
            hint="put tokenizer.json into the model's directory, or give a loader of tokens, file.py:loader",
            slug="tokenizer",
        )
    return Tokenizer("bytes", lambda text: np.frombuffer(text.encode("utf-8"), dtype=np.uint8).tolist())


def _by_tokenizers(file: Path) -> Tokenizer | None:
    try:
        import tokenizers
    except ImportError:
        return None
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    return Tokenizer(str(file), lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids))


def _by_transformers(folder: Path) -> Tokenizer:
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    return Tokenizer(str(folder), lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]))


def blocks_of(path: Path, language: Language) -> tuple[Blocks, TextFacts]:
    """The text as blocks for this model.

    Raises:
        DataError: there is too little text, or a token that the model does not know.
    """
    text = read_text(path)
    tokenizer = find_tokenizer(language)
    ids = np.asarray(tokenizer.encode(text), dtype=np.int64)
    if len(ids) < 2:
        raise DataError(f"{path}: {len(ids)} tokens; at least two are needed", path=path)
    if int(ids.max()) >= language.vocabulary:
        raise DataError(
            f"{path}: token {int(ids.max())} of {tokenizer.name}, and the model knows {language.vocabulary} tokens",
            path=path,
            hint="the tokenizer is not that of the model",
            slug="tokenizer",
        )
    return Blocks(ids, language.block), TextFacts(len(ids), len(text.encode("utf-8")), tokenizer.name)
