"""The small zoo: results equal those worked out by hand and the golden file, and execution confirms them."""

from __future__ import annotations

import json

import pytest

from rebasin_cli.execution.soundness import verify_by_execution
from tests.symmetry.small_zoo import GOLDEN, counts, load, summary, zoo_names

_golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


@pytest.mark.parametrize("name", zoo_names())
def test_what_is_found(name: str) -> None:
    model = load(name)
    found = model.derive()
    assert counts(found) == dict(model.expected)
    assert summary(found) == _golden[name], "deliberate? then: python -m tests.symmetry.small_zoo --write"
    check = verify_by_execution(model.module.build, model.example(), found.spec, seed=3)
    assert check.ok, check
    assert check.max_relative_error < 1e-12


def test_the_golden_file_has_no_other_models() -> None:
    assert sorted(_golden) == zoo_names()
