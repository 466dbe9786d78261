"""Execution one layer at a time: it says what execution at once says, and sees a single tensor that is left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.weightless import without_weights
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.symmetry.verify import TOLERANCE, relative_error, verify_by_execution
from rebasin_cli.trace.tracer import trace_model
from tests.coverage import streamed as streaming
from tests.coverage.streamed import Streamed, verify_streamed, with_one_site_less

IDS = ExampleInput((torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(3)),))


class Small(nn.Module):
    """A tied embedding, recurrence, a norm with running statistics, a parameter of its own, a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.recurrent = nn.LSTM(8, 6, batch_first=True)
        self.norm = nn.BatchNorm1d(6)
        self.shift = nn.Parameter(torch.zeros(6))
        self.twice = nn.Linear(6, 6)
        self.back = nn.Linear(6, 8)
        self.out = nn.Linear(8, 11)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.norm(self.recurrent(self.embed(ids))[0].transpose(1, 2)).transpose(1, 2) + self.shift
        hidden = self.twice(torch.relu(self.twice(torch.relu(hidden))))
        scores: Tensor = self.out(self.back(hidden))
        return scores


class Borrowing(nn.Module):
    """Reads the weight of a module that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x.clone().add_(self.inner.weight[0])


@pytest.fixture(name="spec")
def spec_of_the_small_one() -> PermutationSpec:
    return derive(trace_model(Small(), IDS)).spec


def weightless(module: nn.Module) -> nn.Module:
    return without_weights(module).eval()


def without_site(spec: PermutationSpec, key: str) -> PermutationSpec:
    groups = tuple(replace(g, sites=tuple(site for site in g.sites if site.key != key)) for g in spec.groups)
    return replace(spec, groups=groups)


def test_a_right_claim_is_kept_to_rounding_and_a_wrong_one_is_seen(spec: PermutationSpec) -> None:
    check, refuted = verify_streamed(Streamed(weightless(Small()), IDS), spec)
    assert check.ok
    assert 0 < check.max_relative_error < 1e-13
    assert check.noise_floor is None
    assert not check.silent
    assert refuted > 1e-3


def test_any_tensor_left_behind_is_seen(spec: PermutationSpec) -> None:
    streamed = Streamed(weightless(Small()), IDS)
    before = streamed.original()
    moved = {site.key for group in spec.groups for site in group.sites}
    assert {"embed.weight", "recurrent.weight_hh_l0", "norm.running_var", "shift", "twice.weight"} <= moved
    for key in moved - {"out.weight"}:  # another name of embed.weight
        assert relative_error(before, streamed.permuted(without_site(spec, key))) > 1e-3, key


def test_a_wrong_claim_is_not_ok_here_nor_there(spec: PermutationSpec) -> None:
    wrong = with_one_site_less(spec, 0)
    assert sum(len(group.sites) for group in wrong.groups) == sum(len(group.sites) for group in spec.groups) - 1
    check, _ = verify_streamed(Streamed(weightless(Small()), IDS), wrong)
    assert not check.ok
    assert check.noise_floor is not None
    assert check.noise_floor < TOLERANCE
    assert not verify_by_execution(Small, IDS, wrong).ok


def test_outputs_are_those_of_the_same_numbers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn in runs of rows, tied by the first key, the same for both uses; the module is left as it was."""
    monkeypatch.setattr(streaming, "CHUNK", 20)
    module = weightless(Small())
    numbers: dict[str, Tensor] = {}

    def note(key: str, drawn: Tensor) -> Tensor:
        assert torch.equal(numbers.setdefault(key, drawn), drawn)
        return drawn

    [output] = Streamed(module, IDS).outputs(note)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert not module.norm._forward_hooks
    assert "out.weight" not in numbers
    whole = Small().double().eval()
    assert not whole.load_state_dict(numbers, strict=False).unexpected_keys
    with torch.no_grad():
        assert relative_error([output], [whole(*IDS.args)]) < 1e-14


def test_no_more_than_one_layer_is_held_at_a_time() -> None:
    module = weightless(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))))
    held: list[list[bool]] = []
    for layer in module:
        layer.register_forward_hook(lambda *_: held.append([not part.weight.is_meta for part in module]))
    Streamed(module, ExampleInput((torch.ones(1, 4),))).original()
    assert [sum(row) for row in held] == [1, 1, 1]


def test_code_that_reads_a_module_without_calling_it_fails() -> None:
    streamed = Streamed(weightless(Borrowing()), ExampleInput((torch.ones(2, 3),)))
    with pytest.raises(RuntimeError, match="a module that is not called"):
        streamed.original()
