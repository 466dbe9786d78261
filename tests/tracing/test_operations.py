"""The table of operation properties: execution and PyTorch's schemas confirm every claim, and none is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor

from rebasin_cli.tracing import operations as table
from rebasin_cli.tracing.dispatch import operator, plain_operations, tensors_in
from rebasin_cli.tracing.fake_tensors import FakeKernels, fake_like, fake_mode
from rebasin_cli.tracing.operations import TABLE, Property, has, named, properties

aten = torch.ops.aten


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


M, SQUARE, BATCH, IMAGE, ROW = (
    random(4, 6),
    random(6, 6, seed=1),
    random(2, 4, 6),
    random(2, 4, 6, 6),
    random(6, seed=2),
)
MATRICES, KERNEL, WEIGHT = random(2, 6, 3, seed=3), random(5, 4, 3, 3, seed=4), random(4, seed=5)
VOLUME = random(1, 2, 4, 4, 4, seed=6)

CALLS: dict[str, tuple[Tensor, Callable[[Any], Any]]] = {
    "_adaptive_avg_pool2d": (IMAGE, lambda x: aten._adaptive_avg_pool2d(x, [2, 2])),
    "_adaptive_avg_pool3d": (VOLUME, lambda x: aten._adaptive_avg_pool3d(x, [2, 2, 2])),
    "_fused_rms_norm": (M, lambda x: aten._fused_rms_norm(x, [6], ROW, 0.0)[0]),
    "_grouped_mm": (M, lambda x: x),  # bfloat16 on accelerators only; a sequence of `mm`
    "_neg_view": (M, aten._neg_view),
    "_prelu_kernel": (M, lambda x: aten._prelu_kernel(x, torch.full_like(x, 0.3))),
    "_softmax": (M, lambda x: aten._softmax(x, 1, False)),
    "_sparse_addmm": (M, lambda x: aten.mm(x, SQUARE)),  # `addmm` of sparse matrices
    "_trilinear": (M, lambda x: aten._trilinear(x, SQUARE, M, [1], [0], [1], [2])),
    "_weight_norm_interface": (M, lambda x: aten._weight_norm_interface(x, torch.ones(4, 1, dtype=x.dtype))[0]),
    "_unsafe_view": (M, lambda x: aten._unsafe_view(x, [6, 4])),
    "abs": (M, aten.abs),
    "add": (M, lambda x: aten.add(x, 2 * x)),
    "addbmm": (BATCH, lambda x: aten.addbmm(torch.zeros(4, 3, dtype=x.dtype), x, MATRICES)),
    "addmm": (M, lambda x: aten.addmm(torch.zeros(6, dtype=x.dtype), x, SQUARE)),
    "addmv": (M, lambda x: aten.addmv(torch.zeros(4, dtype=x.dtype), x, ROW)),
    "alias": (M, aten.alias),
    "amax": (M, lambda x: aten.amax(x, [1])),
    "amin": (M, lambda x: aten.amin(x, [1])),
    "asinh": (M, aten.asinh),
    "atan": (M, aten.atan),
    "avg_pool2d": (IMAGE, lambda x: aten.avg_pool2d(x, [2, 2])),
    "avg_pool3d": (VOLUME, lambda x: aten.avg_pool3d(x, [2, 2, 2])),
    "baddbmm": (BATCH, lambda x: aten.baddbmm(torch.zeros(2, 4, 3, dtype=x.dtype), x, MATRICES)),
    "bmm": (BATCH, lambda x: aten.bmm(x, MATRICES)),
    "broadcast_to": (M, lambda x: aten.broadcast_to(x, [3, 4, 6])),
    "cat": (M, lambda x: aten.cat([x, 2 * x], 1)),
    "chunk": (M, lambda x: aten.chunk(x, 4, 1)),
    "clone": (M, aten.clone),
    "concat": (M, lambda x: aten.concat([x, 2 * x], 1)),
    "constant_pad_nd": (M, lambda x: aten.constant_pad_nd(x, [1, 2], 1.0)),
    "contiguous": (M, aten.contiguous),
    "convolution": (IMAGE, lambda x: aten.convolution(x, KERNEL, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)),
    "cumsum": (M, lambda x: aten.cumsum(x, 1)),
    "detach": (M, aten.detach),
    "div": (M, lambda x: aten.div(x, 3.0)),
    "dot": (ROW, lambda x: aten.dot(x, SQUARE[0])),
    "embedding": (M, lambda x: aten.embedding(x, torch.tensor([2, 0]))),
    "erf": (M, aten.erf),
    "exp": (M, aten.exp),
    "expand": (M, lambda x: aten.expand(x, [3, 4, 6])),
    "expand_copy": (M, lambda x: aten.expand_copy(x, [3, 4, 6])),
    "flatten": (M, aten.flatten),
    "flip": (M, lambda x: aten.flip(x, [1])),
    "gelu": (M, aten.gelu),
    "hardsigmoid": (M, aten.hardsigmoid),
    "hardswish": (M, aten.hardswish),
    "hardtanh": (M, lambda x: aten.hardtanh(x, -1.0, 2.0)),
    "imag": (torch.complex(M, M + 1), aten.imag),
    "_unsafe_index": (M, lambda x: aten._unsafe_index(x, [torch.tensor([2, 0])])),
    "index": (M, lambda x: aten.index(x, [torch.tensor([2, 0])])),
    "index_add": (M, lambda x: aten.index_add(x, 0, torch.tensor([1, 1]), x[:2])),
    "index_select": (M, lambda x: aten.index_select(x, 1, torch.tensor([2, 0]))),
    "leaky_relu": (M, aten.leaky_relu),
    "lift": (M, aten.lift),
    "lift_fresh": (M, aten.lift_fresh),
    "lift_fresh_copy": (M, aten.lift_fresh_copy),
    "linalg_vector_norm": (M, lambda x: aten.linalg_vector_norm(x, 2, [1])),
    "linear": (M, lambda x: aten.linear(x, SQUARE)),
    "mT": (M, aten.mT),
    "max": (M, lambda x: aten.max(x, 1)[0]),
    "max_pool2d_with_indices": (IMAGE, lambda x: aten.max_pool2d_with_indices(x, [2, 2])[0]),
    "max_pool3d_with_indices": (VOLUME, lambda x: aten.max_pool3d_with_indices(x, [2, 2, 2])[0]),
    "maximum": (M, lambda x: aten.maximum(x, -0.5 * x)),
    "mean": (M, lambda x: aten.mean(x, [1])),
    "min": (M, lambda x: aten.min(x, 1)[0]),
    "minimum": (M, lambda x: aten.minimum(x, -0.5 * x)),
    "mm": (M, lambda x: aten.mm(x, SQUARE)),
    "mul": (M, lambda x: aten.mul(x, M)),
    "mv": (M, lambda x: aten.mv(x, ROW)),
    "narrow": (M, lambda x: aten.narrow(x, 1, 2, 3)),
    "native_group_norm": (IMAGE, lambda x: aten.native_group_norm(x, WEIGHT, None, 2, 4, 36, 2, 0.0)[0]),
    "native_layer_norm": (M, lambda x: aten.native_layer_norm(x, [6], ROW, None, 0.0)[0]),
    "neg": (M, aten.neg),
    "numpy_T": (M, aten.numpy_T),
    "permute": (BATCH, lambda x: aten.permute(x, [2, 0, 1])),
    "pixel_shuffle": (IMAGE, lambda x: aten.pixel_shuffle(x, 2)),
    "pixel_unshuffle": (IMAGE, lambda x: aten.pixel_unshuffle(x, 2)),
    "prelu": (M, lambda x: aten.prelu(x, torch.full((6,), 0.3, dtype=x.dtype))),
    "real": (torch.complex(M, M + 1), aten.real),
    "relu": (M, aten.relu),
    "repeat": (M, lambda x: aten.repeat(x, [2, 3])),
    "reshape": (M, lambda x: aten.reshape(x, [6, 4])),
    "_reshape_alias": (M, lambda x: aten._reshape_alias(x, [6, 4], [4, 1])),
    "rms_norm": (M, lambda x: aten.rms_norm(x, [6], ROW, 0.0)),
    "roll": (M, lambda x: aten.roll(x, [1], [1])),
    "scatter_add": (M, lambda x: aten.scatter_add(x, 0, torch.zeros(2, 6, dtype=torch.int64), x[:2])),
    "select": (M, lambda x: aten.select(x, 1, -2)),
    "sigmoid": (M, aten.sigmoid),
    "sign": (M, aten.sign),
    "silu": (M, aten.silu),
    "sin": (M, aten.sin),
    "sinh": (M, aten.sinh),
    "slice": (M, lambda x: aten.slice(x, 1, 1, -1, 2)),
    "sort": (M, lambda x: aten.sort(x, 1)[0]),
    "split": (M, lambda x: aten.split(x, 4, 1)),
    "split_copy": (M, lambda x: aten.split_copy(x, 4, 1)),
    "split_with_sizes": (M, lambda x: aten.split_with_sizes(x, [1, 3, 2], 1)),
    "split_with_sizes_copy": (M, lambda x: aten.split_with_sizes_copy(x, [1, 3, 2], 1)),
    "squeeze": (random(4, 1, 6), lambda x: aten.squeeze(x, 1)),
    "stack": (M, lambda x: aten.stack([x, 2 * x], 1)),
    "std": (M, lambda x: aten.std(x, [1])),
    "sub": (M, lambda x: aten.sub(x, 3 * x)),
    "sum": (M, lambda x: aten.sum(x, [1])),
    "swapaxes": (M, lambda x: aten.swapaxes(x, 0, 1)),
    "t": (M, aten.t),
    "tanh": (M, aten.tanh),
    "tensor_split": (M, lambda x: aten.tensor_split(x, 4, 1)),
    "_to_copy": (M, aten._to_copy),
    "topk": (M, lambda x: aten.topk(x, 3, 1)[0]),
    "transpose": (M, lambda x: aten.transpose(x, 0, 1)),
    "unbind": (M, lambda x: aten.unbind(x, 1)),
    "unflatten": (M, lambda x: aten.unflatten(x, 1, [2, 3])),
    "unsafe_chunk": (M, lambda x: aten.unsafe_chunk(x, 4, 1)),
    "unsafe_split": (M, lambda x: aten.unsafe_split(x, 4, 1)),
    "unsafe_split_with_sizes": (M, lambda x: aten.unsafe_split_with_sizes(x, [1, 3, 2], 1)),
    "unsqueeze": (M, lambda x: aten.unsqueeze(x, 1)),
    "upsample_bicubic2d": (IMAGE, lambda x: aten.upsample_bicubic2d(x, [8, 8], False)),
    "upsample_bilinear2d": (IMAGE, lambda x: aten.upsample_bilinear2d(x, [9, 9], False)),
    "upsample_linear1d": (BATCH, lambda x: aten.upsample_linear1d(x, [9], False)),
    "upsample_nearest1d": (BATCH, lambda x: aten.upsample_nearest1d(x, [9])),
    "upsample_nearest2d": (IMAGE, lambda x: aten.upsample_nearest2d(x, [9, 9])),
    "vdot": (ROW, lambda x: aten.vdot(x, SQUARE[0])),
    "view": (M, lambda x: aten.view(x, [6, 4])),
    "view_as_complex": (random(4, 2), aten.view_as_complex),
    "view_as_real": (torch.complex(M, M + 1), aten.view_as_real),
    "view_copy": (M, lambda x: aten.view_copy(x, [6, 4])),
}
"""One call of each operation: the data argument, and the operation as a function of it."""

ALGEBRAIC = Property.LINEAR | Property.HOMOGENEOUS | Property.ODD


def short(name: str) -> str:
    return name.removeprefix("aten.")


def values(out: Any) -> Tensor:
    return torch.cat([torch.view_as_real(t).flatten() if t.is_complex() else t.flatten() for t in tensors_in(out)])


def called(name: str) -> tuple[Tensor, Callable[[Any], Any]]:
    return CALLS[short(name)]


def obeys(name: str, law: Property) -> bool:
    """Whether one call of the operation obeys the law, on random numbers."""
    x, function = called(name)
    y = x.flip(0) * 0.7 + 0.1
    if law is Property.LINEAR:
        return torch.allclose(
            values(function(2.0 * x - 3.0 * y)), 2.0 * values(function(x)) - 3.0 * values(function(y))
        )
    factor = 2.5 if law is Property.HOMOGENEOUS else -1.0
    return torch.allclose(values(function(factor * x)), factor * values(function(x)))


def overloads(name: str) -> list[OpOverload]:
    packet = getattr(aten, short(name))
    return [getattr(packet, variant) for variant in packet.overloads() if "out" not in variant]


def test_every_row_names_an_operator_with_some_property() -> None:
    for name, row in TABLE.items():
        assert overloads(name), name
        assert row, name


@pytest.mark.parametrize("name", sorted(TABLE))
def test_views_are_those_of_the_schema(name: str) -> None:
    functional = [one for one in overloads(name) if not operator(one).mutable]
    assert has(name, table.VIEW) == any(operator(one).viewed is not None for one in functional)


@pytest.mark.parametrize("name", sorted(name for name in TABLE if properties(name) & ALGEBRAIC))
def test_algebraic_claims_hold(name: str) -> None:
    for law in (Property.LINEAR, Property.HOMOGENEOUS, Property.ODD):
        if properties(name) & law:
            assert obeys(name, law), law


@pytest.mark.parametrize("name", sorted(f"aten.{name}" for name in CALLS))
def test_no_algebraic_claim_is_missing(name: str) -> None:
    for law in (Property.LINEAR, Property.HOMOGENEOUS, Property.ODD):
        if not properties(name) & law:
            assert not obeys(name, law), law


@pytest.mark.parametrize("name", sorted(named(table.SAME, table.RESHAPE)))
def test_all_elements_stay_in_order(name: str) -> None:
    x, function = called(name)
    out = function(x)
    assert torch.equal(out.flatten(), x.flatten())
    assert (out.shape == x.shape) == has(name, table.SAME)


@pytest.mark.parametrize("name", sorted(named(table.TRANSPOSE)))
def test_transposed_elements_are_all_there(name: str) -> None:
    x, function = called(name)
    out = function(x)
    assert sorted(out.shape) == sorted(x.shape)
    assert torch.equal(out.flatten().sort().values, x.flatten().sort().values)
    assert not torch.equal(out.flatten(), x.flatten())


@pytest.mark.parametrize("name", sorted(named(table.SEGMENT)))
@pytest.mark.parametrize("size", [6, 7])
def test_segments_are_those_that_the_operation_takes(name: str, size: int) -> None:
    x, function = random(4, size), called(name)[1]
    if "with_sizes" in name and size == 7:
        pytest.skip("the sizes of this call add up to 6")
    seen: dict[str, Any] = {}

    class Binding(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen[operator(func).name] = operator(func).bind(args, kwargs or {})
            return func(*args, **(kwargs or {}))

    with Binding(), torch.inference_mode():  # in inference mode, composite operators arrive whole
        out = function(x)
    taken = table.segments(seen[name], size)
    expected = [x[:, segment] for segment in taken]
    if has(name, table.DROP):
        expected = [piece.squeeze(1) for piece in expected]
    assert [piece.tolist() for piece in tensors_in(out)] == [piece.tolist() for piece in expected]


@pytest.mark.parametrize("arguments", [{"sections": 4}, {"indices": [1, 3, 20]}, {"chunks": 3}, {"split_size": [2, 5]}])
def test_segments_lie_end_to_end(arguments: dict[str, Any]) -> None:
    if "indices" in arguments:
        expected = torch.arange(7).tensor_split([1, 3, 20])
    elif "split_size" in arguments:
        expected = torch.arange(7).split([2, 5])
    else:
        (count,) = arguments.values()
        expected = torch.arange(7).chunk(count) if "chunks" in arguments else torch.arange(7).tensor_split(count)
    assert [list(segment) for segment in table.segments(arguments, 7)] == [piece.tolist() for piece in expected]


@pytest.mark.parametrize("name", sorted(named(table.POINTWISE)))
def test_pointwise_rows_do_not_contradict_the_tags(name: str) -> None:
    assert all(table.is_pointwise(operator(one).overload) for one in overloads(name))
    assert not properties(name) & (table.CONTRACTION | table.NORM | table.SEGMENT)


@pytest.mark.parametrize("name", sorted(named(table.META)))
@pytest.mark.parametrize("channels_last", [False, True])
def test_direct_meta_kernels_give_what_the_fake_mode_gives(name: str, channels_last: bool) -> None:
    x, function = called(name)
    mode = fake_mode()
    kernels = FakeKernels(mode)
    real: list[tuple[OpOverload, Any, Any]] = []

    class Listening(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if operator(func).name == name:
                real.append((func, args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    if channels_last and x.dim() == 4 and name != "aten.view":
        x = x.contiguous(memory_format=torch.channels_last)
    with Listening(), plain_operations():
        function(x)
    func, args, kwargs = real[0]
    args = torch.utils._pytree.tree_map_only(Tensor, lambda tensor: fake_like(tensor, mode), args)
    with plain_operations():
        outs = kernels._directly(func, args, kwargs), kernels._by_mode(func, args, kwargs, [])
    described = [
        [(one.shape, one.stride(), one.dtype, one.storage_offset(), type(one)) for one in tensors_in(out)]
        for out in outs
    ]
    assert described[0] == described[1]
    assert all(kind is FakeTensor for *_, kind in described[0])


def test_what_follows_from_other_properties() -> None:
    assert properties("aten.slice") & Property.LINEAR
    assert properties("aten.mm") & Property.ODD
    assert not properties("aten.relu") & Property.LINEAR
    assert properties("mylib.unknown") == Property(0)
    assert set(named(table.VIEW | table.SEGMENT)) < set(named(table.SEGMENT))


def test_incidental_operations_are_not_counted() -> None:
    assert not table.is_counted("aten.view.default")
    assert not table.is_counted("prim.device.default")
    assert table.is_counted("aten.add_.Tensor")
