"""From two directories of a language model to the curve of bits per byte, in one command."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")

from rebasin_cli.cli.app import main
from rebasin_cli.model.source import import_optional
from tests.benchmarks.language_model import command, make_pair

CONTEXT = 32


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("language")
    return make_pair(place, "llama", width=16, layers=1, context=CONTEXT, steps=12, batch=8, most=16384)


def run(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(words))
    return code, out.getvalue(), err.getvalue()


def loss_by_transformers(place: Path, directory: str) -> float:
    """Nats per byte, by the package's own model, block by block."""
    module = import_optional("transformers", "transformers")
    model = module.AutoModelForCausalLM.from_pretrained(place / directory).eval()
    data = np.frombuffer((place / "held.txt").read_bytes(), dtype=np.uint8).astype(np.int64)
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(data) - 1, CONTEXT):
            part = torch.from_numpy(data[start : start + CONTEXT + 1])
            logits = model(input_ids=part[None, :-1]).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum"))
    return total / (len(data) - 1)


def ratio_error(sums: list[float], weights: list[int]) -> float:
    """The standard error of sum(sums) / sum(weights) over blocks."""
    x, w = np.array(sums), np.array(weights)
    apart = x - w * x.sum() / w.sum()
    return float(np.sqrt(len(x) / (len(x) - 1) * (apart**2).sum()) / w.sum())


def losses_by_transformers(place: Path, state: str) -> tuple[list[float], list[int]]:
    """Nats and tokens of each block; `state` is the directory, or `middle` for the average of A and B."""
    module = import_optional("transformers", "transformers")
    a, b = (module.AutoModelForCausalLM.from_pretrained(place / letter).eval() for letter in "ab")
    model = b if state == "b" else a
    if state == "middle":
        other = b.state_dict()
        model.load_state_dict({key: (value + other[key]) / 2 for key, value in a.state_dict().items()})
    data = np.frombuffer((place / "held.txt").read_bytes(), dtype=np.uint8).astype(np.int64)
    sums, tokens = [], []
    with torch.no_grad():
        for start in range(0, len(data) - 1, CONTEXT):
            part = torch.from_numpy(data[start : start + CONTEXT + 1])
            logits = model(input_ids=part[None, :-1]).logits[0]
            sums.append(float(torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum")))
            tokens.append(len(part) - 1)
    return sums, tokens


def test_errors_of_text_are_those_over_blocks_weighted_by_tokens_and_paired(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pair)
    words = ("interpolate", "a", "b", "--model", "transformers:a", "--data", "held.txt", "--steps", "2", "--force")
    code, _, err = run(*words, "-o", "errors.json")
    assert code == 0, err
    data = json.loads((pair / "errors.json").read_text())["data"]
    points, barrier = data["curves"]["naive"], data["barrier"]["naive"]
    (a, tokens), (middle, _), (b, _) = (losses_by_transformers(pair, state) for state in ("a", "middle", "b"))
    assert points[0]["loss_standard_error"] == pytest.approx(ratio_error(a, tokens), rel=1e-3)
    rise = [m - (x + y) / 2 for m, x, y in zip(middle, a, b, strict=True)]
    assert barrier["loss_standard_error"] == pytest.approx(ratio_error(rise, tokens), rel=1e-3)
    in_bits = data["text"]["barrier_bits_per_byte_standard_error"]["naive"]
    assert in_bits == pytest.approx(barrier["loss_standard_error"] / math.log(2))


def test_two_directories_and_a_text_file_give_a_curve_of_bits_per_byte(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pair)
    code, out, err = run(*command(pair, "--steps", "2", "--effort", "fast", "--force"))
    assert code == 0, err
    data = json.loads((pair / "b-aligned-interpolation.json").read_text())["data"]
    ends = [loss_by_transformers(pair, letter) for letter in "ab"]
    for curve in ("naive", "matched"):
        points, figures = data["curves"][curve], data["text"]["curves"][curve]
        for point, figure, end in ((points[0], figures[0], ends[0]), (points[2], figures[2], ends[1])):
            assert point["loss"] == pytest.approx(end, rel=1e-5)
            assert figure["bits_per_byte"] == pytest.approx(end / math.log(2), rel=1e-5)
            assert figure["perplexity"] == pytest.approx(math.exp(point["loss"]))
    barrier = data["barrier"]["naive"]["loss"] / math.log(2)
    assert data["text"]["barrier_bits_per_byte"]["naive"] == pytest.approx(barrier)
    assert "bits/byte after" in out
    assert f"blocks of {CONTEXT} tokens" in out
    assert "by bytes" in out


def test_text_is_learned_from_and_matched_by_activations(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair)
    words = ("align", "a", "b", "--model", "transformers:a", "--data", "held.txt", "--limit", "16", "--dry-run")
    code, out, err = run(*words, "--method", "learned", "--learning-steps", "10", "--effort", "fast")
    assert code == 0, err
    assert "learned by  cross-entropy" in out
    code, out, err = run(*words, "--method", "activation")
    assert code == 0, err
    assert "16 of" in out


def test_a_masked_language_model_on_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_optional("transformers", "transformers")
    config = module.BertConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    monkeypatch.chdir(tmp_path)
    for seed, letter in enumerate("ab"):
        torch.manual_seed(seed)
        module.BertForMaskedLM(config).save_pretrained(tmp_path / letter)
    (tmp_path / "text.txt").write_text("some text that is long enough for a block of tokens\n" * 3)
    words = ("interpolate", "a", "b", "--model", "transformers:a", "--data", "text.txt", "--steps", "1")
    code, _, err = run(*words)
    assert code == 5
    assert "not causal" in err


def test_a_model_without_a_head_is_told_which_class_to_choose(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pair)
    words = ("interpolate", "a", "b", "--model", "transformers:a", "--model-arg", "architecture=LlamaModel")
    code, _, err = run(*words, "--data", "held.txt", "--ignore-extra", "--steps", "1", "-o", str(tmp_path / "o.json"))
    assert code == 5
    assert "architecture=" in err
