"""Maps of every class keep the function, also in another network's frame; they compose, and can be undone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.freedom import SymmetryClass
from rebasin_cli.maps import (
    Gauges,
    GroupMap,
    Mapped,
    composed,
    frame_of,
    from_permutations,
    inverse,
    limited_spec,
    plane_matrix,
    plane_numbers,
    random_maps,
)
from rebasin_cli.permutation import apply, random
from rebasin_cli.spec import PermutationSpec
from tests.maps_nets import filled, nets

NAMES = sorted(nets())


def pair(name: str) -> tuple[nn.Module, nn.Module, PermutationSpec, Tensor]:
    make, spec_of, sample = nets()[name]
    a, b = filled(make, 1), filled(make, 2)
    spec = spec_of(b)
    spec.check({key: tuple(tensor.shape) for key, tensor in b.state_dict().items()})
    torch.manual_seed(3)
    return a, b, spec, sample()


def output(net: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.func.functional_call(net, tensors, (x,))


@pytest.mark.parametrize("name", NAMES)
def test_random_maps_of_all_classes_at_once_keep_the_function(name: str) -> None:
    a, b, spec, x = pair(name)
    own = b.state_dict()
    maps = random_maps(spec, 4)
    gauges = Gauges(spec, [group for group, one in maps.items() if one.matrix is not None])
    frame = frame_of(gauges, a.state_dict().__getitem__, own.__getitem__)
    for used in (None, frame):
        moved = dict(Mapped(own, spec, maps, used))
        assert all(tensor.shape == own[key].shape and tensor.dtype == own[key].dtype for key, tensor in moved.items())
        expected = output(b, own, x)
        assert torch.allclose(output(b, moved, x), expected, rtol=0, atol=1e-11 * float(expected.abs().max()))
        assert not torch.allclose(moved[next(iter(own))], own[next(iter(own))])


@pytest.mark.parametrize("name", ["pre", "layer scale", "llama"])
def test_the_result_has_the_gains_of_the_frame(name: str) -> None:
    a, b, spec, _ = pair(name)
    maps = random_maps(spec, 4)
    gauges = Gauges(spec, [group for group, one in maps.items() if one.matrix is not None])
    frame = frame_of(gauges, a.state_dict().__getitem__, b.state_dict().__getitem__)
    moved = Mapped(b.state_dict(), spec, maps, frame)
    assert gauges.gains
    for key in gauges.gains:
        assert torch.equal(moved[key], a.state_dict()[key])


@pytest.mark.parametrize("name", NAMES)
def test_a_mapped_network_is_mapped_back_in_its_own_frame(name: str) -> None:
    a, b, spec, _ = pair(name)
    maps = {group: one for group, one in random_maps(spec, 4).items() if one.matrix is not None}
    gauges = Gauges(spec, maps)
    own = b.state_dict()
    there = dict(Mapped(own, spec, maps, frame_of(gauges, a.state_dict().__getitem__)))
    back = Mapped(there, spec, {group: inverse(one) for group, one in maps.items()}, frame_of(gauges, own.__getitem__))
    for key, tensor in own.items():
        assert torch.allclose(back[key], tensor, atol=1e-10), key


def test_index_maps_compose_and_are_undone() -> None:
    perm = torch.tensor([2, 0, 1])
    one = GroupMap(perm, (torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64),))
    two = GroupMap(torch.tensor([1, 2, 0]), (torch.tensor([-1.0, 4.0, 0.5], dtype=torch.float64),))
    x = torch.tensor([5.0, 7.0, 11.0], dtype=torch.float64)
    act = lambda m, v: m.scales[0] * v[m.perm]  # noqa: E731
    assert torch.allclose(act(composed(one, two), x), act(two, act(one, x)))
    assert torch.allclose(act(inverse(one), act(one, x)), x)
    assert one.condition == 3.0
    assert not one.exact


def test_permutations_are_moved_bit_for_bit_as_before() -> None:
    _, b, spec, _ = pair("pre")
    plain = spec.permutable
    own = {key: tensor.to(torch.bfloat16) for key, tensor in b.state_dict().items()}
    perms = random(plain, 5)
    moved = Mapped(own, plain, from_permutations(perms))
    for key, tensor in apply(plain, perms, own).items():
        assert torch.equal(moved[key], tensor)


@pytest.mark.parametrize("name", ["llama", "pre"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_signed_permutations_lose_no_bit(name: str, dtype: torch.dtype) -> None:
    _, b, spec, x = pair(name)
    signed = limited_spec(spec, SymmetryClass.SIGNED)
    maps = random_maps(signed, 6)
    own = {key: tensor.to(dtype) for key, tensor in b.state_dict().items()}
    moved = dict(Mapped(own, signed, maps))
    flat = lambda t: t.abs().flatten().sort().values  # noqa: E731
    assert any(bool((one.scales[0] < 0).any()) for one in maps.values() if one.scales)
    for key, tensor in own.items():
        assert torch.equal(flat(moved[key]), flat(tensor)), key
    wide = {key: tensor.double() for key, tensor in moved.items()}
    expected = output(b, {key: tensor.double() for key, tensor in own.items()}, x)
    assert torch.allclose(output(b, wide, x), expected, atol=1e-11)


def test_a_nearly_zero_gain_of_a_is_not_divided_by() -> None:
    a, b, spec, x = pair("pre")
    theirs, own = a.state_dict(), b.state_dict()
    theirs["norm.weight"][3] = 0.0
    theirs["norm.weight"][5] = 1e-9
    maps = random_maps(spec, 4)
    gauges = Gauges(spec, [group for group, one in maps.items() if one.matrix is not None])
    frame = frame_of(gauges, theirs.__getitem__, own.__getitem__)
    assert frame.kept == {"norm.weight": (3, 5)}
    moved = dict(Mapped(own, spec, maps, frame))
    assert moved["norm.weight"][3] == own["norm.weight"][3]
    assert torch.allclose(output(b, moved, x), output(b, own, x), atol=1e-10)


def test_a_shift_that_no_bias_can_take_needs_gains_that_are_not_zero() -> None:
    _, b, spec, _ = pair("no bias")
    own = b.state_dict()
    gauges = Gauges(spec, ["stream"])
    assert set(gauges.moving) == {"blocks.0.norm1.bias", "blocks.1.norm1.bias"}
    assert gauges.undivided(own.__getitem__) == {}
    own["blocks.1.norm1.weight"][2] = 0.0
    assert list(gauges.undivided(own.__getitem__)) == ["stream"]


def test_planes_are_complex_numbers() -> None:
    _, _, spec, _ = pair("llama")
    group = spec.by_name["layers.0.planes1"]
    numbers = torch.randn(group.size // 2, dtype=torch.complex128)
    assert torch.allclose(plane_numbers(plane_matrix(numbers, group), group), numbers)
    one, two = plane_matrix(numbers, group), plane_matrix(numbers.conj(), group)
    assert torch.allclose(one @ two, plane_matrix(numbers * numbers.conj(), group))


def test_float16_weights_are_rounded_once() -> None:
    a, b, spec, x = pair("pre")
    own = {key: tensor.half() for key, tensor in b.state_dict().items()}
    maps = random_maps(spec, 4)
    gauges = Gauges(spec, [group for group, one in maps.items() if one.matrix is not None])
    frame = frame_of(gauges, {k: v.half() for k, v in a.state_dict().items()}.__getitem__, own.__getitem__)
    exact = dict(Mapped(own, spec, maps, frame, rounded=False))
    assert torch.allclose(output(b, exact, x), output(b, {k: v.double() for k, v in own.items()}, x), atol=1e-11)
    halves = Mapped(own, spec, maps, frame)
    weights = [key for key in own if key not in gauges.shifted]
    assert all(torch.equal(halves[key], exact[key].half()) for key in weights)


def test_a_frame_is_the_other_networks() -> None:
    a, _, spec, _ = pair("pre")
    gauges = Gauges(spec, ["stream"])
    own = a.state_dict()
    same = dict(
        Mapped(
            own,
            spec,
            {"stream": GroupMap(matrix=torch.eye(12, dtype=torch.float64))},
            frame_of(gauges, own.__getitem__),
        )
    )
    assert all(torch.allclose(same[key], own[key], atol=1e-12) for key in own)
