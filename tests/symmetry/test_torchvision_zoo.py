"""All torchvision classification models: compared with the golden table, a few confirmed by execution."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rebasin_cli.execution.noise import TOLERANCE
from tests.benchmarks.zoo_table import GOLDEN, classification_models, row

TABLE: dict[str, dict[str, Any]] = json.loads(GOLDEN.read_text())

MEASURED = ("max_relative_error", "max_in_noise_floors", "noise_floor", "seconds")

# Groups and units that an independent study found free; auxiliary heads are not read in eval mode.
INDEPENDENT = {
    "alexnet": (7, 9344),
    "vgg11_bn": (10, 10944),
    "resnet18": (12, 2880),
    "resnet50": (37, 11456),
    "resnext50_32x4d": (1045, 19520),
    "wide_resnet50_2": (37, 19008),
    "densenet121": (120, 10240),
    "squeezenet1_1": (25, 2944),
    "googlenet": (57, 7280),
    "inception_v3": (94, 17216),
    "mobilenet_v2": (25, 9128),
    "mobilenet_v3_small": (27, 4872),
    "mnasnet0_5": (25, 5744),
    "shufflenet_v2_x0_5": (80, 2938),
    "efficientnet_b0": (40, 11404),
    "efficientnet_v2_s": (75, 38784),
    "regnet_y_400mf": (1099, 10819),
    "convnext_tiny": (22, 27936),
    "vit_b_16": (313, 56208),
    "swin_t": (304, 28074),
    "swin_v2_t": (328, 34242),
    "maxvit_t": (409, 45448),
}


def test_the_table_is_whole() -> None:
    assert sorted(TABLE) == classification_models()
    assert len(TABLE) == 80


def test_every_row_was_sound_when_the_table_was_made() -> None:
    for name, kept in TABLE.items():
        assert kept["max_in_noise_floors"] <= TOLERANCE, name
        assert kept["unknown_ops"] == [], name


def test_nothing_that_an_independent_study_found_free_is_pinned() -> None:
    for name, (groups, units) in INDEPENDENT.items():
        assert (TABLE[name]["groups"], TABLE[name]["units"]) == (groups, units), name


def compare(name: str, *, verify: bool) -> None:
    found = row(name, verify=verify)
    for field, kept in TABLE[name].items():
        if field not in MEASURED:
            value = getattr(found, field)
            assert (list(value) if isinstance(value, tuple) else value) == kept, f"{name}: {field}"


@pytest.mark.parametrize("name", sorted(TABLE))
def test_derivation(name: str) -> None:
    compare(name, verify=False)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_execution(name: str) -> None:
    compare(name, verify=True)
