"""torchvision is served also where its compiled operators do not load."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import rebasin_cli
from rebasin_cli.errors import ResourceError
from rebasin_cli.model.torchvision_import import declare_missing_operators, import_torchvision

ROOT = Path(rebasin_cli.__file__).parent

SCRIPT = """
from rebasin_cli.model.torchvision_import import declare_missing_operators, import_torchvision
import torch
declared = declare_missing_operators()
assert declare_missing_operators() == ()
models = import_torchvision("models")
from torchvision.extension import _has_ops
assert bool(declared) != _has_ops(), (declared, _has_ops())
assert len(models.list_models()) > 100
if declared:
    import torchvision
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    for call in (torchvision.ops.nms, torch.ops.torchvision.nms):
        try:
            call(boxes, torch.ones(1), 0.5)
        except (RuntimeError, NotImplementedError) as error:
            assert "nms" in str(error) or "custom C++ ops" in str(error), error
        else:
            raise SystemExit("an operator without a kernel answered")
print("fine")
"""


def test_in_a_fresh_process_models_are_there_and_missing_operators_refuse() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert done.stdout.strip() == "fine", done.stderr


def test_an_import_that_is_done_is_left_alone() -> None:
    import_torchvision()
    assert declare_missing_operators() == ()


def test_what_cannot_be_imported_is_a_resource_error() -> None:
    with pytest.raises(ResourceError, match=r"torchvision\.no_such_part cannot be imported"):
        import_torchvision("no_such_part")


def test_nothing_in_the_package_imports_torchvision_directly() -> None:
    direct = re.compile(r"^\s*(import torchvision\b|from torchvision\b)", re.MULTILINE)
    assert [str(file) for file in ROOT.rglob("*.py") if direct.search(file.read_text(encoding="utf-8"))] == []
