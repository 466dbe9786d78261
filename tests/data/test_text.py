"""Text becomes blocks of tokens by the model's own tokenizer, or bytes, and every token counts once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.data import Batch, BatchSource, DataOptions, open_data
from rebasin_cli.data.contract import IGNORED, Takes
from rebasin_cli.data.source import ModelView
from rebasin_cli.data.text import Language
from rebasin_cli.errors import DataError

TEXT = "Ein Haus, ein Baum: größer als zuvor.\nZweite Zeile.\n"


class Causal(nn.Module):
    """Scores of the next byte from a running mean."""

    def forward(self, ids: Tensor) -> Tensor:
        one_hot = nn.functional.one_hot(ids, 256).float()
        return one_hot.cumsum(1) / torch.arange(1, ids.shape[1] + 1).view(1, -1, 1)


class Masked(nn.Module):
    """Scores that depend on all tokens."""

    def forward(self, ids: Tensor) -> Tensor:
        one_hot = nn.functional.one_hot(ids, 256).float()
        return one_hot + one_hot.mean(1, keepdim=True)


def view(model: nn.Module | None = None, **language: Any) -> ModelView:
    known = Language(**{"vocabulary": 256, "context": 8, **language})
    module = model or Causal()

    def run(batch: Batch) -> Any:
        return module(*batch.args)

    takes = Takes(1, ("ids",), integers=True)
    return ModelView(lambda batch: None, input_shape=(1, 4), takes=takes, language=known, run=run)


def opened(path: Path, model: ModelView | None = None, **options: Any) -> BatchSource:
    return open_data(str(path), DataOptions(**options), model or view())


def test_a_text_file_is_taken_byte_by_byte_and_every_byte_after_the_first_is_predicted_once(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    source = opened(tmp_path / "text.txt", batch_size=3)
    data = TEXT.encode()
    batches = list(source.batches())
    inputs = torch.cat([batch.args[0] for batch in batches])
    target = torch.cat([batch.target for batch in batches])
    counted = target != IGNORED
    assert inputs.shape == (-(-(len(data) - 1) // 8), 8)
    assert bytes(inputs[counted].tolist()) == data[:-1]
    assert bytes(target[counted].tolist()) == data[1:]
    assert source.text is not None
    assert (source.text.tokens, source.text.bytes, source.text.tokenizer) == (len(data), len(data), "bytes")
    assert f"{len(data)} tokens, {len(data)} bytes, by bytes" in source.description


def test_a_folder_of_texts_and_json_lines_follow_each_other_sorted(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "first", "id": 3}) + "\n\n" + json.dumps({"text": "und"}))
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    batch = next(iter(opened(tmp_path, view(length=64)).batches()))
    count = int((batch.target != IGNORED).sum())
    assert bytes(batch.args[0][0, :count].tolist()) == b"first\nund\nsecon"


def test_the_length_of_the_stated_input_is_that_of_a_block(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    source = opened(tmp_path / "text.txt", view(length=5, context=512))
    assert next(iter(source.batches())).args[0].shape[1] == 5
    assert "blocks of 5 tokens (the model takes 512)" in source.description


def test_the_tokenizer_in_the_models_directory_is_used(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, "ein": 1, "haus": 2, "baum": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("ein haus ein baum")
    source = opened(tmp_path / "text.txt", view(vocabulary=4, folders=(tmp_path,)))
    batch = next(iter(source.batches()))
    assert batch.args[0][0, :3].tolist() == [1, 2, 1]
    assert batch.target[0, :4].tolist() == [2, 1, 3, IGNORED]
    assert source.text is not None
    assert source.text.bytes_per_token == pytest.approx(17 / 4)
    with pytest.raises(DataError, match="the model knows 3 tokens"):
        opened(tmp_path / "text.txt", view(vocabulary=3, folders=(tmp_path,)))


def test_a_vocabulary_too_small_for_bytes_needs_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(DataError, match="no tokenizer lies beside it"):
        opened(tmp_path / "text.txt", view(vocabulary=100))


def test_a_masked_language_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(DataError, match="not causal"):
        opened(tmp_path / "text.txt", view(Masked()))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", "0 tokens"),
        ("latin.txt", "größer".encode("latin-1"), "cannot be read as text"),
        ("bad.jsonl", b'{"text": "a"}\n{"body": "b"}', "line 2 has no field 'text'"),
        ("broken.jsonl", b'{"text": ', "line 1 is not JSON"),
    ],
)
def test_a_text_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        opened(tmp_path / name)
    assert name in str(caught.value)


def test_text_for_a_model_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(DataError, match="unrecognised"):
        open_data(str(tmp_path / "text.txt"), DataOptions(), ModelView(lambda batch: 3))
