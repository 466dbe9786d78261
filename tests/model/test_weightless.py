"""Weightless construction: no memory, the same structure, and nothing else changed."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.model.factory import load_factory
from rebasin_cli.model.state import load_state, state_shapes, state_tensors, ties
from rebasin_cli.model.weightless import leaked, weightless_construction, without_weights

HERE = Path(__file__).parent


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.embed(ids))
        return out


class OneParameterTwoSlots(nn.Module):
    """The object is made first, registered twice, initialised last."""

    def __init__(self) -> None:
        super().__init__()
        weight = nn.Parameter(torch.empty(3, 3))
        self.a = weight
        self.b = weight
        nn.init.orthogonal_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a @ self.b


class OneMemoryTwoParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        body = torch.randn(3, 3)
        self.a, self.b = nn.Parameter(body), nn.Parameter(body)
        self.part = nn.Parameter(body[1:])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a @ self.b @ self.part.T


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList()
        for _ in range(3):
            self.scales.append(torch.ones(4))
        self.table = nn.ParameterDict({"a": nn.Parameter(torch.zeros(4))})
        self.later = nn.Parameter(torch.zeros(2))
        self.later = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return sum((x * scale for scale in self.scales), x * self.table["a"]) + self.later


class ReadsItsWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = float(self.linear.weight.detach().numpy().std())
        self.register_buffer("norms", self.linear.weight.detach().norm(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) * self.scale / self.norms
        return out


class BufferFromWeights(nn.Module):
    """Nothing fails while it builds, but a buffer would be left without a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("norms", self.linear.weight.detach().norm(dim=1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) / self.norms
        return out


class AttributeFromWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.kept = [self.linear.weight.detach().sum()]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) + self.kept[0]
        return out


class LivingView(nn.Module):
    """A view and a weak reference forbid swapping the parameter's body."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
        row, reference = first[0], weakref.ref(second)
        self.first, self.second = first, second
        del row, reference

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.first @ self.second


class Initialised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        for init in (nn.init.xavier_uniform_, nn.init.kaiming_normal_, nn.init.orthogonal_, nn.init.eye_):
            init(self.linear.weight)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.sparse_(self.linear.weight, 0.5)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(6))
            self.linear.weight.data[0] = 1.0
            self.linear.bias.zero_().add_(1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


def lstm() -> nn.Module:
    return nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True)


def lstm_reassigned() -> nn.Module:
    made = nn.LSTM(4, 5)
    made.weight_hh_l0 = nn.Parameter(torch.zeros(20, 5))
    return made


def weight_normed() -> nn.Module:
    return nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))


@pytest.mark.filterwarnings("ignore")
def weight_normed_by_hook() -> nn.Module:
    return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 4)))


def spectral_normed() -> nn.Module:
    return nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)))


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)


def half() -> nn.Module:
    return nn.Linear(4, 4).double()


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "OneParameterTwoSlots": (OneParameterTwoSlots, (2, 3)),
    "OneMemoryTwoParameters": (OneMemoryTwoParameters, (2, 3)),
    "Lists": (Lists, (2, 4)),
    "ReadsItsWeights": (ReadsItsWeights, (2, 4)),
    "BufferFromWeights": (BufferFromWeights, (2, 4)),
    "AttributeFromWeights": (AttributeFromWeights, (2, 4)),
    "LivingView": (LivingView, (2, 4)),
    "Initialised": (Initialised, (2, 6)),
    "lstm": (lstm, (2, 3, 4)),
    "lstm_reassigned": (lstm_reassigned, (2, 3, 4)),
    "weight_normed": (weight_normed, (2, 4)),
    "weight_normed_by_hook": (weight_normed_by_hook, (2, 4)),
    "spectral_normed": (spectral_normed, (2, 4)),
    "encoder": (encoder, (2, 3, 4)),
    "half": (half, (2, 4)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_weightless_is_the_same_module_and_computes_the_same_with_its_state(name: str) -> None:
    _, shape = CASES[name]
    factory = load_factory(f"{HERE / 'test_weightless.py'}:{name}")
    weightless, real = factory.build_weightless(), factory.build()
    assert all(parameter.is_meta for parameter in weightless.parameters())
    assert not any(buffer.is_meta for buffer in weightless.buffers())
    assert not weightless.training
    assert state_shapes(weightless) == state_shapes(real)
    assert ties(weightless) == ties(real)
    assert [p.dtype for p in weightless.parameters()] == [p.dtype for p in real.parameters()]
    load_state(weightless, real.state_dict())
    assert ties(weightless) == ties(real)
    dtype = next(real.parameters()).dtype
    x = torch.randn(*shape, dtype=dtype)
    with torch.no_grad():
        ours, theirs = weightless(x), real(x)
    for mine, other in zip(*((out if isinstance(out, tuple) else (out,)) for out in (ours, theirs)), strict=True):
        if isinstance(mine, Tensor):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_ties_survive() -> None:
    with weightless_construction():
        tied, slots, memory = Tied(), OneParameterTwoSlots(), OneMemoryTwoParameters()
    assert tied.head.weight is tied.embed.weight
    assert ties(tied) == {"head.weight": "embed.weight"}
    assert slots.a is slots.b
    assert ties(memory) == {"b": "a"}
    assert memory.part.untyped_storage()._cdata == memory.a.untyped_storage()._cdata


def test_attributes_and_gradient_flags_stay() -> None:
    class Marked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = nn.Parameter(torch.zeros(2), requires_grad=False)
            weight.no_decay = True
            self.weight = weight

    with weightless_construction():
        module = Marked()
    assert module.weight.is_meta
    assert module.weight.no_decay
    assert not module.weight.requires_grad


def test_leaks_are_named() -> None:
    with weightless_construction():
        buffer, attribute, clean = BufferFromWeights(), AttributeFromWeights(), Lists()
        inside = nn.Sequential(BufferFromWeights())
    assert leaked(buffer) == "norms"
    assert leaked(attribute) == "kept"
    assert leaked(inside) == "0.norms"
    assert leaked(clean) is None


def test_construction_is_left_as_it_was_found() -> None:
    original = nn.Module.register_parameter
    with pytest.raises(ZeroDivisionError), weightless_construction():
        1 / 0  # noqa: B018
    assert nn.Module.register_parameter is original
    assert not nn.Linear(2, 2).weight.is_meta


def test_without_weights_copies_structure_and_leaves_the_original() -> None:
    module = nn.Sequential(Tied(), nn.BatchNorm1d(3))
    shadow = without_weights(module)
    assert all(parameter.is_meta for parameter in shadow.parameters())
    assert not any(parameter.is_meta for parameter in module.parameters())
    assert ties(shadow) == ties(module)
    torch.testing.assert_close(dict(shadow.named_buffers()), dict(module.named_buffers()))
    everything = without_weights(module, buffers=True)
    assert all(tensor.is_meta for tensor in state_tensors(everything).values())
    assert without_weights(shadow) is shadow


@functools.cache
def cached() -> nn.Module:
    return nn.Linear(3, 3)


def test_a_factory_that_hands_out_one_module_gives_each_caller_its_own() -> None:
    factory = load_factory(f"{HERE / 'test_weightless.py'}:cached")
    weightless, one, two = factory.build_weightless(), factory.build(), factory.build()
    assert len({id(weightless), id(one), id(two)}) == 3
    assert next(weightless.parameters()).is_meta
    assert not next(one.parameters()).is_meta
    assert next(one.parameters()) is not next(two.parameters())


ready = nn.Linear(3, 3)


def test_a_ready_module_is_copied_and_keeps_its_weights() -> None:
    factory = load_factory(f"{HERE / 'test_weightless.py'}:ready")
    weightless, real = factory.build_weightless(), factory.build()
    home: Any = factory.source.home
    assert next(weightless.parameters()).is_meta
    torch.testing.assert_close(real.state_dict(), home.ready.state_dict())
    assert real is not home.ready


def _anonymous_mebibytes() -> float:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("needs /proc/self/status")
    return sum(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("RssAnon")) / 1024


def test_the_largest_vision_transformer_costs_nothing() -> None:
    factory = load_factory("torchvision:vit_h_14")
    before = _anonymous_mebibytes()
    module = factory.build_weightless()
    assert sum(parameter.numel() for parameter in module.parameters()) > 630_000_000
    assert _anonymous_mebibytes() - before < 100
