"""The coverage ledger: whole, sound when it was made, and true of a quick subset derived and executed afresh."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rebasin_cli.errors import ModelError
from rebasin_cli.model.factory import load_factory
from rebasin_cli.model.names import is_installed
from rebasin_cli.model.source import import_optional
from rebasin_cli.model.torchvision_import import import_torchvision
from tests.benchmarks.zoo_table import GOLDEN as TORCHVISION_GOLDEN
from tests.coverage.configurations import TRANSFORMERS
from tests.coverage.entries import HEADS_ONLY, ONE_BY_ONE, Entry, entries, is_quick
from tests.coverage.measure import LARGE, golden, lasting, measure
from tests.coverage.shortfalls import SHORTFALLS
from tests.coverage.timm_models import TIMM

LEDGER = golden()
ROUNDING, FLOOR_FACTOR = 1e-9, 300.0
"""The limits of a row, relative to an output's largest magnitude and to its noise floor where that was measured."""

ENTRIES = {entry.name: entry for entry in entries()}
CLASSIFICATION: dict[str, dict[str, Any]] = json.loads(TORCHVISION_GOLDEN.read_text())

# Roots and families that an independent study found in two layers of each.
INDEPENDENT = {
    "transformers:gpt2": (5, 4),
    "transformers:bert": (6, 4),
    "transformers:t5": (9, 12),
    "transformers:llama": (5, 4),
    "transformers:qwen3": (5, 4),
    "modules:nn.TransformerEncoder": (5, 4),
    "open_clip:ViT-B-32": (50, 48),
    "torchvision:fcn_resnet50": (39, 0),
    "torchvision:deeplabv3_resnet50": (45, 0),
    "torchvision:lraspp_mobilenet_v3_large": (30, 0),
    "torchvision:r3d_18": (12, 0),
    "torchvision:s3d": (77, 0),
    "torchvision:mvit_v2_s": (51, 0),
    "torchvision:swin3d_t": (28, 24),
    "torchvision:raft_small": (38, 0),
}
LARGEST = ("diffusers:U-Net of SD 1.5", "diffusers:U-Net of SDXL", "transformers:llama, 8 billion")
WANTED_TYPES = (
    "gpt2 bert roberta distilbert t5 bart opt llama qwen2 qwen3 gemma phi mixtral whisper clip vit swin wav2vec2 mamba"
)


def needs(entry: Entry) -> None:
    if entry.needs and not is_installed(entry.needs):
        pytest.skip(f"the optional package {entry.needs} is not installed")


def test_the_ledger_is_whole() -> None:
    assert sorted(set(ENTRIES) - set(LEDGER)) == [], "run: python -m tests.benchmarks.coverage_ledger --missing --write"
    assert sorted(set(LEDGER) - set(ENTRIES)) == []
    assert set(WANTED_TYPES.split()) <= set(TRANSFORMERS)


def test_all_that_torchvision_registers_is_in_it_or_refused() -> None:
    known = {f"torchvision:{name}" for name in CLASSIFICATION} | set(LEDGER)
    for name in import_torchvision("models").list_models():
        if name.startswith("quantized_"):
            with pytest.raises(ModelError, match=f"torchvision:{name} is quantized: its packed integer weights cannot"):
                load_factory(f"torchvision:{name}")
        else:
            assert f"torchvision:{name}" in known


def test_every_row_was_executed_and_sound() -> None:
    """And that had to be shown: an error of nought with groups to permute is the sign of an empty output."""
    for name, row in LEDGER.items():
        assert row["error"] > 0 or row["groups"] == 0, name
        assert row["error"] < max(ROUNDING, FLOOR_FACTOR * (row["noise_floor"] or 0.0)), name


def test_the_largest_were_executed_one_layer_at_a_time() -> None:
    """Where one tensor out of thousands was left behind, the outputs said so."""
    for name, row in LEDGER.items():
        large = row["parameters"] > LARGE
        assert row["execution"] == (ONE_BY_ONE if large else ENTRIES[name].execution), name
        assert row["execution"] != HEADS_ONLY or name.startswith("torchvision:"), name
        assert (row["refuted"] is not None) == large, name
        assert not large or row["refuted"] > 1e6 * row["error"], name
    assert {name for name, row in LEDGER.items() if row["parameters"] > LARGE} == set(LARGEST)


def test_rows_that_fall_short_say_why() -> None:
    """More than a hundredth of the elements held, operations without a rule, parts that other inputs would read."""
    for name, row in LEDGER.items():
        short = row["free_fraction"] < 0.99 or row["unknown_ops"] or (row["decisions"] and row["unread"])
        assert row["shortfall"] == SHORTFALLS.get(name, ""), name
        assert row["shortfall"] or not short, name
        assert row["held"] or row["free_fraction"] > 0.998, name
    for name, row in CLASSIFICATION.items():
        assert row["free_fraction"] > 0.99 or f"torchvision:{name}" in SHORTFALLS, name


def test_reasons_belong_to_rows() -> None:
    assert sorted(set(SHORTFALLS) - set(LEDGER) - {f"torchvision:{name}" for name in CLASSIFICATION}) == []


@pytest.mark.parametrize("name", sorted(INDEPENDENT))
def test_nothing_that_an_independent_study_found_is_lost(name: str) -> None:
    row = LEDGER[name]
    assert (row["roots"], row["families"]) == INDEPENDENT[name]


def test_large_models_take_seconds() -> None:
    for name in LARGEST:
        row = LEDGER[name]
        assert row["weightless"]
        assert row["trace_seconds"] + row["derive_seconds"] < 60, name


def test_every_family_of_timm_is_in_it() -> None:
    if not is_installed("timm"):
        pytest.skip("the optional package timm is not installed")
    timm = import_optional("timm", "timm")
    missing = [family for family in timm.list_modules() if not set(timm.list_models(module=family)) & set(TIMM)]
    assert missing == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENTRIES if is_quick(name)])
def test_a_row_comes_out_as_it_did(name: str) -> None:
    needs(ENTRIES[name])
    assert lasting(measure(ENTRIES[name])) == lasting(LEDGER[name])
