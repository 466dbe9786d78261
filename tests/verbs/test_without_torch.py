"""Small things answer without importing torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

ROOT = Path(__file__).resolve().parents[2]
CHECK = """
import sys
code = "none"
try:
    {statement}
except Exception as error:
    code = type(error).__name__
print(code, *sorted({{"torch", "numpy", "torchvision", "scipy"}} & set(sys.modules)))
"""


def ran(statement: str, tmp_path: Path) -> str:
    """The error's type (or `none`), and which heavy packages were imported."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(statement=statement)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    state = {"weight": torch.ones(3, 2)}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    (tmp_path / "net.py").write_text("import torch\n")
    return tmp_path


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("from rebasin_cli.cli.app import main; main(['--help'])", "none"),
        ("from rebasin_cli.cli.app import main; main(['--version'])", "none"),
        ("from rebasin_cli.cli.app import main; main(['align', 'a', 'b', '--no-such-option'])", "none"),
        ("from rebasin_cli.cli.app import main; main(['models', 'resnet1*'])", "none"),
        ("from rebasin_cli.cli.app import main; main(['inspect', 'a.safetensors'])", "none"),
        ("from rebasin_cli.cli.app import main; main(['align', 'a.pt', 'absent', '-m', 'net.py:f'])", "none"),
        ("from rebasin_cli.verbs.models import models; assert len(models().models) > 100", "none"),
        ("from rebasin_cli.verbs.models import models; models('resnat50')", "UsageError"),
        ("from rebasin_cli import inspect; inspect(['a.safetensors'])", "none"),
        ("from rebasin_cli import inspect; inspect(['a.pt'])", "none"),
        ("from rebasin_cli import inspect; inspect(['absent.pt'])", "CheckpointError"),
        ("from rebasin_cli import align; align('a.pt', 'absent.pt', model='torchvision:resnet18')", "CheckpointError"),
        ("from rebasin_cli import align; align('a.pt', 'a.pt', model='torchvision:resnt18')", "ModelError"),
        ("from rebasin_cli import align; align('a.pt', 'a.pt', model='absent.py:build')", "ModelError"),
        ("from rebasin_cli import align; align('a.pt', 'a.pt', model='net.py:build', data='absent')", "DataError"),
        ("from rebasin_cli import align; align('a.pt', 'a.pt', model='net.py:build', rules=['no.py'])", "UsageError"),
        ("from rebasin_cli import align; align('a.pt', 'a.pt', model='net.py:build', spec='no')", "CheckpointError"),
        ("from rebasin_cli import align; align('a.pt', 'a.pt', model='net.py:b', method='guess')", "UsageError"),
        ("from rebasin_cli import apply; apply('absent.json', 'a.pt', out='o.pt')", "CheckpointError"),
        ("from rebasin_cli import verify; verify('absent.pt', 'a.pt', model='net.py:build')", "CheckpointError"),
        ("from rebasin_cli import metrics; metrics('absent.pt', ['a.pt', 'a.safetensors'])", "CheckpointError"),
        ("from rebasin_cli import metrics; metrics('a.pt', ['a.pt', 'a.pt'], metrics=['guess'])", "UsageError"),
        ("from rebasin_cli import metrics; metrics('a.pt', ['b=a.pt'])", "UsageError"),
        ("from rebasin_cli.cli.app import main; main(['metrics', '--help'])", "none"),
        ("from rebasin_cli import trace; trace('net.py:build', input_file='absent.npz')", "DataError"),
        ("from rebasin_cli import interpolate; interpolate(['a.pt'], data='d')", "UsageError"),
        ("from rebasin_cli import interpolate as i; i(['a.pt', 'a.pt'], data='no', model='net.py:build')", "DataError"),
    ],
)
def test_torch_is_not_imported(files: Path, statement: str, error: str) -> None:
    assert ran(statement, files) == error
