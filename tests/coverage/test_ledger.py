"""The coverage ledger: whole, sound when it was made, and true of a quick subset derived and executed afresh."""

from __future__ import annotations

from typing import Any

import pytest

from rebasin_cli.model.optional_package import import_optional, is_installed
from rebasin_cli.symmetry.verify import FLOOR_FACTOR, TOLERANCE
from tests.coverage.configurations import TRANSFORMERS
from tests.coverage.entries import SHORTFALLS, Entry, entries
from tests.coverage.measure import golden, lasting, measure
from tests.coverage.timm_models import TIMM

LEDGER = golden()
ENTRIES = {entry.name: entry for entry in entries()}
QUICK = (
    *(
        name
        for name in ENTRIES
        if name.startswith(("modules:", "transformers:"))
        and "experts in a loop" not in name
        and name != "modules:nn.Transformer"
    ),
    "diffusers:U-Net of SD 1.5, small",
    "timm:botnet26t_256",
    "timm:coat_lite_tiny",
    "timm:levit_128s",
    "timm:res2net50_14w_8s",
    "torchvision:lraspp_mobilenet_v3_large",
    "torchvision:raft_small",
    "torchvision:ssdlite320_mobilenet_v3_large",
)

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
WANTED_TYPES = (
    "gpt2 bert roberta distilbert t5 bart opt llama qwen2 qwen3 gemma phi mixtral whisper clip vit swin wav2vec2 mamba"
)


def needs(entry: Entry) -> None:
    if entry.needs and not is_installed(entry.needs):
        pytest.skip(f"the optional package {entry.needs} is not installed")


def recorded(name: str) -> dict[str, Any]:
    """The row of a model, or a visible skip where it is not in the ledger yet."""
    if name not in LEDGER:
        pytest.skip(f"{name} is not in the ledger yet")
    row: dict[str, Any] = LEDGER[name]
    return row


@pytest.mark.parametrize("name", sorted(set(ENTRIES) - set(LEDGER)))
def test_the_ledger_is_whole(name: str) -> None:
    recorded(name)


def test_the_ledger_has_all_types_and_no_others() -> None:
    assert set(LEDGER) <= set(ENTRIES)
    assert set(WANTED_TYPES.split()) <= set(TRANSFORMERS)


def test_every_executed_row_was_sound() -> None:
    for name, row in LEDGER.items():
        if row["error"] is not None:
            assert row["error"] < max(TOLERANCE, FLOOR_FACTOR * (row["noise_floor"] or 0.0)), name


def test_rows_that_were_not_executed_have_a_sibling_that_was() -> None:
    """What is too large to execute in float64 runs the same code as a small one."""
    siblings = {
        "diffusers:U-Net of SD 1.5": "diffusers:U-Net of SD 1.5, small",
        "diffusers:U-Net of SDXL": "diffusers:U-Net of SDXL, small",
        "transformers:llama, 8 billion": "transformers:llama",
    }
    for large, small in siblings.items():
        assert LEDGER[small]["error"] is not None, large


def test_rows_without_a_reason_leave_nothing_unknown() -> None:
    for name, row in LEDGER.items():
        if name not in SHORTFALLS and row["error"] is not None:
            assert row["unknown_ops"] == [], name
            assert row["decisions"] == 0 or row["unread"] == 0, name


@pytest.mark.parametrize("name", sorted(INDEPENDENT))
def test_nothing_that_an_independent_study_found_is_lost(name: str) -> None:
    row = recorded(name)
    assert (row["roots"], row["families"]) == INDEPENDENT[name]


def test_large_models_take_seconds() -> None:
    for name in ("transformers:llama, 8 billion", "diffusers:U-Net of SDXL"):
        row: dict[str, Any] = LEDGER[name]
        assert row["weightless"]
        assert row["trace_seconds"] + row["derive_seconds"] < 60, name


def test_every_family_of_timm_is_in_it() -> None:
    if not is_installed("timm"):
        pytest.skip("the optional package timm is not installed")
    timm = import_optional("timm", "timm")
    missing = [family for family in timm.list_modules() if not set(timm.list_models(module=family)) & set(TIMM)]
    assert missing == []


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_row_comes_out_as_it_did(name: str) -> None:
    needs(ENTRIES[name])
    assert lasting(measure(ENTRIES[name])) == lasting(recorded(name))
