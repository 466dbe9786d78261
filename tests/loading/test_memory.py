"""A file whose experts are stacked by the loader is read and written one layer at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("RLIMIT_DATA counts mappings on Linux only", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]

NET = """
import torch
from torch import nn

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.zeros(4, 256, 512))
        self._register_load_state_dict_pre_hook(self._stack)

    def _stack(self, tensors, prefix, *_):
        rows = [tensors.pop(f"{prefix}{i}.weight") for i in range(4)]
        tensors[prefix + "experts"] = torch.stack([row.t() for row in rows])

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(*(Layer() for _ in range(24)))
"""

RUN = """
import resource, sys, torch
from pathlib import Path
from rebasin_cli.checkpoint import open_checkpoint
from rebasin_cli.checkpoint.write import write_like
from rebasin_cli.execution.subject import ModelChoice, open_subject
from rebasin_cli.execution.weights import Weights
folder, share = Path(sys.argv[1]), float(sys.argv[2])
opened = open_checkpoint(folder / "a.safetensors")
weights = Weights.of(opened, open_subject(ModelChoice(f"{folder / 'net.py'}:Net")))
Weights.of(opened, open_subject(ModelChoice(f"{folder / 'net.py'}:Net")))["0.experts"].flip(0)  # kernels, thread pools
limit = [line for line in open("/proc/self/status") if line.startswith("VmData:")][0].split()[1]
resource.setrlimit(resource.RLIMIT_DATA, (int(limit) * 1024 + int(share * opened.file_bytes),) * 2)
print(sum(float(weights[key].double().sum()) for key in weights), len(weights.rearranged))
turned = weights.inverse_of(lambda key, tensor: tensor.flip(1))
write_like(opened, folder / "out.safetensors", turned, provenance={}, force=False)
"""


def test_stacked_experts_are_read_and_written_in_less_memory_than_the_file_has(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    state = {f"{layer}.{expert}.weight": torch.randn(512, 256) for layer in range(24) for expert in range(4)}
    save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "net.py").write_text(NET)
    command = [sys.executable, "-c", RUN, str(tmp_path), "0.75"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    total, stacked = done.stdout.split()
    assert int(stacked) == 24
    assert float(total) == pytest.approx(float(sum(value.double().sum() for value in state.values())), rel=1e-9)
    written = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(written[key], value.flip(1)) for key, value in state.items())
