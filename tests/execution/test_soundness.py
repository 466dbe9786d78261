"""Right specs pass and wrong ones do not, wherever a wrong claim could hide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.errors import ModelError
from rebasin_cli.execution.draws import derangement, telling_permutations
from rebasin_cli.execution.soundness import verify_by_execution
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site

VECTORS = ExampleInput((torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),))


def spec_of(*groups: tuple[str, int, list[tuple[str, int]]]) -> PermutationSpec:
    return PermutationSpec(
        tuple(AxisGroup(name, size, tuple(Site(key, axis) for key, axis in sites)) for name, size, sites in groups)
    )


class TwoUnits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 2), nn.Linear(2, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).tanh()).tanh())


B_AND_C = ("b", 16, [("b.weight", 0), ("b.bias", 0), ("c.weight", 1)])


@pytest.mark.parametrize("seed", range(8))
def test_a_group_of_two_units_cannot_hide(seed: int) -> None:
    wrong = spec_of(("a", 2, [("a.weight", 0), ("a.bias", 0)]), B_AND_C)
    assert not verify_by_execution(TwoUnits, VECTORS, wrong, seed).ok
    right = spec_of(("a", 2, [("a.weight", 0), ("a.bias", 0), ("b.weight", 1)]), B_AND_C)
    assert verify_by_execution(TwoUnits, VECTORS, right, seed).ok


def test_groups_of_two_units_that_must_move_alike_are_told_apart() -> None:
    apart = spec_of(
        ("a", 2, [("a.weight", 0), ("a.bias", 0)]), ("in", 2, [("b.weight", 1)]), B_AND_C
    )  # one axis in two groups
    assert not verify_by_execution(TwoUnits, VECTORS, apart).ok


class Scaled(nn.Module):
    """A branch behind a LayerScale of 1e-6, as ConvNeXt begins."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.head = nn.Linear(5, 8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)
        self.gamma = nn.Parameter(1e-6 * torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.gamma * self.down(self.up(x).relu()))


def test_a_wrong_claim_behind_a_tiny_scale_is_seen() -> None:
    assert not verify_by_execution(Scaled, VECTORS, spec_of(("up", 16, [("up.weight", 0), ("up.bias", 0)]))).ok
    right = spec_of(("up", 16, [("up.weight", 0), ("up.bias", 0), ("down.weight", 1)]))
    assert verify_by_execution(Scaled, VECTORS, right).ok


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.RNN(5, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


def test_what_holds_at_one_time_step_alone_is_refused() -> None:
    sites = [("layer.weight_ih_l0", 0), ("layer.bias_ih_l0", 0), ("layer.bias_hh_l0", 0), ("head.weight", 1)]
    one_step = ExampleInput((torch.randn(2, 1, 5),))
    wrong = spec_of(("hidden", 6, sites))  # the recurrent weights stay behind
    assert verify_by_execution(Recurrent, one_step, wrong).ok
    check = verify_by_execution(Recurrent, one_step, wrong, sizes=True)
    assert not check.ok
    assert check.only_traced is not None
    assert check.larger is not None
    right = spec_of(("hidden", 6, [*sites, ("layer.weight_hh_l0", 0), ("layer.weight_hh_l0", 1)]))
    check = verify_by_execution(Recurrent, one_step, right, sizes=True)
    assert check.ok
    assert check.one_step == ()  # the larger input has more steps


class OneSize(nn.Module):
    """Takes (2, 1, 5) and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Recurrent()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape != (2, 1, 5):
            raise ValueError("another size")
        return self.inner(x)


def test_one_time_step_is_told_where_no_larger_input_is_taken() -> None:
    check = verify_by_execution(OneSize, ExampleInput((torch.randn(2, 1, 5),)), spec_of(), sizes=True)
    assert check.larger is None
    assert check.one_step == ("inner.layer",)


class Reshaping(nn.Module):
    """Right at 2 x 2 only: the pixels are sorted by channel and read back by place."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.into(x)
        batch, channels, height, width = hidden.shape
        if height > 2:
            hidden = hidden.flatten(2).transpose(1, 2).reshape(batch, channels, height, width)
        return self.out(hidden)


def test_groups_that_hold_at_the_traced_size_only_are_refused() -> None:
    spec = spec_of(("into", 8, [("into.weight", 0), ("into.bias", 0), ("out.weight", 1)]))
    check = verify_by_execution(Reshaping, ExampleInput((torch.randn(1, 3, 2, 2),)), spec, sizes=True)
    assert not check.ok
    assert check.only_traced is not None


class Biased(nn.Module):
    """A softmax over keys does not see a shift of all scores, so the bias of the keys has no effect."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.q(x) @ self.k(x).t()).softmax(-1) @ self.v(x)


def test_a_tensor_without_effect_is_named() -> None:
    sites = [("q.weight", 0), ("q.bias", 0), ("k.weight", 0), ("k.bias", 0)]
    check = verify_by_execution(Biased, VECTORS, spec_of(("inner", 6, sites)), power=True)
    assert check.ok
    assert check.power.unseen == (("inner", "k.bias"),)
    assert check.power.groups == ("inner",)


class Normed(nn.Module):
    """Running statistics and a choice that has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)).relu())


class Rounded(Normed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sign()


@pytest.mark.parametrize("build", [Normed, Rounded])
def test_every_tensor_that_has_an_effect_is_seen_to_have_one(build: Callable[[], nn.Module]) -> None:
    keys = ["a.weight", "a.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    spec = spec_of(("a", 8, [*((key, 0) for key in keys), ("b.weight", 1)]))
    check = verify_by_execution(build, VECTORS, spec, power=True)
    assert check.ok
    assert check.power.unknown is None
    if build is Normed:
        assert check.power.unseen == ()


class Narrow(nn.Module):
    """Gives no numbers on random weights: its parameter must be a probability."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
        self.p = nn.Parameter(torch.full((8,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * torch.logit(1 - 0.9 * self.p.square()).log1p())


def test_a_model_that_gives_no_numbers_on_random_weights_is_verified_on_its_own_varied() -> None:
    spec = spec_of(("a", 8, [("a.weight", 0), ("a.bias", 0), ("p", 0), ("b.weight", 1)]))
    check = verify_by_execution(Narrow, VECTORS, spec, own=dict(Narrow().state_dict()))
    assert check.ok
    assert check.weights == "varied"
    wrong = spec_of(("a", 8, [("a.weight", 0), ("a.bias", 0), ("b.weight", 1)]))
    assert not verify_by_execution(Narrow, VECTORS, wrong, own=dict(Narrow().state_dict())).ok


@pytest.mark.parametrize("size", [2, 3, 4, 5, 17, 100])
def test_no_unit_stays_in_its_place(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    for _ in range(50):
        perm = derangement(size, generator)
        assert sorted(perm.tolist()) == list(range(size))
        assert not bool((perm == torch.arange(size)).any())


@pytest.mark.parametrize(("size", "count"), [(2, 1), (2, 2), (2, 9), (3, 7), (4, 40), (6, 30)])
def test_any_two_groups_move_differently_in_some_draw(size: int, count: int) -> None:
    spec = spec_of(*((f"g{place}", size, []) for place in range(count)))
    draws = telling_permutations(spec, 0)
    assert all(not bool((perm == torch.arange(size)).any()) for perm in draws[0].values())
    moves = {tuple(tuple(draw[f"g{place}"].tolist()) for draw in draws) for place in range(count)}
    assert len(moves) == count


class Mirrored(nn.Module):
    """A unit is added to its mirror image, or a cross product taken: some permutations keep the function, not all."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.one, self.two = nn.Linear(5, size), nn.Linear(size, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        if self.size == 3:
            return self.two(torch.linalg.cross(hidden, hidden.tanh()))
        return self.two(hidden + hidden.flip(-1).tanh())


@pytest.mark.parametrize("size", [3, 4, 5, 6, 8, 12])
@pytest.mark.parametrize("seed", range(4))
def test_a_claim_that_holds_for_a_subgroup_only_is_refused(size: int, seed: int) -> None:
    spec = spec_of(("one", size, [("one.weight", 0), ("one.bias", 0), ("two.weight", 1)]))
    assert not verify_by_execution(lambda: Mirrored(size), VECTORS, spec, seed).ok


class Maker(nn.Module):
    """A weight made by another network from one row of input, so that a ReLU is easily dead in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.maker, self.last = nn.Linear(2, 5), nn.Linear(5, 12), nn.Linear(4, 2)

    def forward(self, x: Tensor, about: Tensor) -> Tensor:
        weight = self.maker(torch.relu(self.first(about))).view(4, 3)
        return self.last(torch.relu(x @ weight.t()))


@pytest.mark.parametrize("pair", [(2, 4), (0, 1), (1, 3), (0, 4)])
def test_units_that_are_dead_on_one_input_do_not_hide_a_claim(pair: tuple[int, int]) -> None:
    torch.manual_seed(0)
    example = ExampleInput((torch.randn(6, 3), torch.randn(2)))
    order = list(range(5))
    order[pair[0]], order[pair[1]] = pair[1], pair[0]
    right = [("first.weight", 0), ("first.bias", 0), ("maker.weight", 1)]
    assert verify_by_execution(Maker, example, spec_of(("first", 5, right))).ok
    exchanged = Site("first.bias", 0, positions=tuple((place,) for place in order))
    wrong = AxisGroup("first", 5, (Site("first.weight", 0), exchanged, Site("maker.weight", 1)))
    for seed in range(5):
        assert not verify_by_execution(Maker, example, PermutationSpec((wrong,)), seed).ok


def test_names_of_one_tensor_must_move_alike() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids))

    example = ExampleInput((torch.tensor([[1, 2, 3]]),))
    both = spec_of(("stream", 4, [("table.weight", 1), ("head.weight", 1)]))
    assert verify_by_execution(Tied, example, both).ok
    with pytest.raises(ModelError, match=r"head\.weight and table\.weight are one tensor"):
        verify_by_execution(Tied, example, spec_of(("stream", 4, [("table.weight", 1)])))


class Opaque(torch.autograd.Function):
    """Computes without giving gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign() * (x.abs() - 0.1).clamp(min=0)


def test_power_without_gradients_is_found_by_leaving_behind() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.unused = nn.Linear(5, 12), nn.Linear(12, 3), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = Opaque.apply(self.first(x))
            return self.last(hidden) + 0.0 * self.unused(hidden)

    sites = [("first.weight", 0), ("first.bias", 0), ("last.weight", 1), ("unused.weight", 1)]
    check = verify_by_execution(Net, VECTORS, spec_of(("first", 12, sites)), power=True)
    assert check.ok
    assert check.power.unseen == (("first", "unused.weight"),)
    assert check.power.unknown is None


def test_power_is_found_where_a_model_insists_on_float64() -> None:
    """More tensors than may be tried one by one, so that only gradients can tell."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 6)) for _ in range(25)
            ).double()

        def forward(self, x: Tensor) -> Tensor:
            x = torch.ones(6, dtype=torch.float64) * x
            for block in self.blocks:
                x = x + block(x)
            return x

    spec = spec_of(
        *(
            (
                f"{place}",
                9,
                [(f"blocks.{place}.0.weight", 0), (f"blocks.{place}.0.bias", 0), (f"blocks.{place}.2.weight", 1)],
            )
            for place in range(25)
        )
    )
    example = ExampleInput((torch.randn(3, 6, dtype=torch.float64),))
    check = verify_by_execution(Net, example, spec, power=True)
    assert check.ok
    assert check.power.unseen == ()
    assert check.power.unknown is None


class TiedHead(nn.Module):
    """An embedding whose table is the head's, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(7, 6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.down(self.up(self.table(ids)).tanh()))  # type: ignore[no-any-return]


def test_the_second_name_of_a_tied_tensor_is_not_called_unseen() -> None:
    stream = [("table.weight", 1), ("head.weight", 1), ("up.weight", 1), ("down.weight", 0), ("down.bias", 0)]
    inner = [("up.weight", 0), ("up.bias", 0), ("down.weight", 1)]
    spec = spec_of(("stream", 6, stream), ("up", 9, inner))
    check = verify_by_execution(TiedHead, ExampleInput((torch.arange(7)[None],)), spec, power=True)
    assert check.ok
    assert check.power.unseen == ()
    assert check.power.unknown is None


class _Refusing(torch.autograd.Function):
    """As reversible layers do in eval mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        raise AssertionError("use model.train()")


def test_a_model_that_refuses_gradients_in_eval_mode_is_verified() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(_Refusing.apply(self.first(x)).relu())

    sites = [("first.weight", 0), ("first.bias", 0), ("second.weight", 1)]
    check = verify_by_execution(Net, VECTORS, spec_of(("first", 12, sites)), power=True)
    assert check.ok
    assert check.power.unseen == ()
    assert not verify_by_execution(Net, VECTORS, spec_of(("first", 12, sites[:2]))).ok
