"""Every axis of every operand of an operation, and of its result, is an axis of a parameter of its own.

So each relation that a rule states is tested: without it, an axis could be permuted alone, and the outputs would move.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.coverage.torchvision_kernels import provide_kernels
from tests.symmetry.rules.bench import found

X = torch.rand(2, generator=torch.Generator().manual_seed(0)) + 0.5
INDEX = torch.tensor([1, 0, 1])
MASK = torch.tensor([True, False, True])
Operation = Callable[..., Tensor]


def index_of(values: Tensor, sizes: int) -> Tensor:
    """Integers computed from parameters, so that their order can be followed."""
    return (values.abs() * 7).long() % sizes


class Operands(nn.Module):
    """The operation on parameters, scaled by the input, and the result weighed by one more parameter."""

    def __init__(self, run: Operation, shapes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.run = run
        self.operands = nn.ParameterList(torch.randn(shape, generator=generator) for shape in shapes)
        with torch.no_grad():
            result = run(*(operand.detach() for operand in self.operands))
        self.reader = nn.Parameter(torch.randn(result.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.weighed(scale) for scale in x])

    def weighed(self, scale: Tensor) -> Tensor:
        result = self.run(*((operand * scale).tanh() for operand in self.operands))
        return (result * self.reader).sum()


def boxes(points: Tensor) -> Tensor:
    """Two boxes in a map of 6 by 6 from four numbers each."""
    near = points[:, :2].sigmoid() * 2
    return torch.cat([torch.zeros(len(points), 1), near, near + 2 + points[:, 2:].sigmoid()], 1)


def aligned(features: Tensor, points: Tensor) -> Tensor:
    provide_kernels()
    result: Tensor = torch.ops.torchvision.roi_align(features, boxes(points), 1.0, 2, 2, 2, False)
    return result


def convolved_back(gradient: Tensor, x: Tensor, weight: Tensor, groups: int = 1, transposed: bool = False) -> Tensor:
    """All three gradients of a convolution, in one row."""
    ones = [1] * (x.dim() - 2)
    zeros = [0] * len(ones)
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    parts = torch.ops.aten.convolution_backward(
        gradient, x, weight, [channels], ones, zeros, ones, transposed, zeros, groups, [True, True, True]
    )
    return torch.cat([part.flatten() for part in parts])


OPERATIONS: dict[str, tuple[Operation, tuple[tuple[int, ...], ...]]] = {
    "fft": (lambda a: torch.fft.fft(a, dim=1).real, ((2, 3, 2),)),
    "rfft of two": (lambda a: torch.fft.rfft2(a, dim=(0, 1)).abs(), ((3, 4, 2),)),
    "select": (lambda a: a.select(1, 1), ((2, 3, 2),)),
    "index": (lambda a: a[:, INDEX], ((2, 2, 3),)),
    "index of two": (lambda a: a[INDEX, :, INDEX], ((2, 3, 2),)),
    "index by numbers": (lambda a, b: a[index_of(b, 2)], ((2, 3), (2, 2))),
    "index of two by numbers": (lambda a, b, c: a[index_of(b, 2), index_of(c, 3)], ((2, 3, 2), (2, 2), (2, 1))),
    "masked": (lambda a: a[MASK], ((3, 2),)),
    "masked by numbers": (lambda a, b: torch.where(b > 0, a, -a), ((3, 2), (3, 1))),
    "gather": (lambda a, b: a.gather(1, index_of(b, 3)), ((2, 3), (2, 2))),
    "take along dim": (lambda a, b: a.take_along_dim(index_of(b, 3), 1), ((2, 3, 2), (2, 2, 2))),
    "index_select": (lambda a, b: a.index_select(1, index_of(b, 3)), ((2, 3), (2,))),
    "index_add": (lambda a, b: a.index_add(1, INDEX, b), ((2, 2, 2), (2, 3, 2))),
    "index_add by numbers": (lambda a, b, c: a.index_add(0, index_of(c, 2), b), ((2, 3), (3, 3), (3,))),
    "index_copy": (lambda a, b: a.index_copy(0, torch.tensor([2, 0]), b), ((3, 2), (2, 2))),
    "index_fill": (lambda a: a.index_fill(0, torch.tensor([2, 0]), 0.5), ((3, 2),)),
    "index_put": (lambda a, b: a.index_put((torch.tensor([1, 0]),), b), ((3, 2), (2, 2))),
    "index_put by numbers": (lambda a, b, c: a.index_put((index_of(c, 3),), b, True), ((3, 2), (2, 2), (2,))),
    "index_put a mask": (lambda a, b: a.index_put((MASK,), b), ((3, 2), (2, 2))),
    "scatter": (lambda a, b: a.scatter(1, torch.tensor([[1, 0], [0, 2]]), b), ((2, 3), (2, 2))),
    "scatter_add by numbers": (lambda a, b, c: a.scatter_add(1, index_of(c, 3), b), ((2, 3), (2, 2), (2, 2))),
    "masked_fill": (lambda a, b: a.masked_fill(b > 0, 0.5), ((2, 3), (2, 3))),
    "masked_scatter": (lambda a, b: a.masked_scatter(MASK, b), ((2, 3), (2, 3))),
    "put": (lambda a, b: a.put(torch.tensor([1, 3]), b), ((2, 3), (2,))),
    "take": (lambda a, b: a.take(index_of(b, 6)), ((2, 3), (2, 2))),
    "embedding": (lambda a, b: F.embedding(index_of(b, 3), a), ((3, 2), (2, 3))),
    "embedding_bag": (lambda a, b: F.embedding_bag(index_of(b, 3), a, mode="mean"), ((3, 2), (2, 3))),
    "stack": (lambda a, b: torch.stack([a, b], 1), ((2, 3), (2, 3))),
    "slice_scatter": (lambda a, b: a.slice_scatter(b, 1, 1, 3), ((2, 3), (2, 2))),
    "select_scatter": (lambda a, b: a.select_scatter(b, 1, 1), ((2, 3, 2), (2, 2))),
    "solve": (lambda a, b: torch.linalg.solve(a + 4 * torch.eye(3), b), ((3, 3), (3, 2))),
    "triangular solve": (
        lambda a, b: torch.linalg.solve_triangular(a + 4 * torch.eye(3), b, upper=True),
        ((3, 3), (3, 2)),
    ),
    "least squares": (lambda a, b: torch.linalg.pinv(a) @ b, ((3, 2), (3, 2))),
    "cross": (lambda a, b: torch.linalg.cross(a, b), ((2, 3), (2, 3))),
    "max pooling": (lambda a: F.max_pool2d(a, 2, 1), ((1, 2, 3, 3),)),
    "average pooling": (lambda a: F.avg_pool1d(a, 2, 1), ((1, 2, 3),)),
    "adaptive pooling": (lambda a: F.adaptive_avg_pool2d(a, (2, 1)), ((1, 2, 3, 2),)),
    "unfold": (lambda a: F.unfold(a, 2), ((1, 2, 3, 2),)),
    "fold": (lambda a: F.fold(a, (3, 2), 2), ((1, 8, 2),)),
    "grid_sample": (lambda a, b: F.grid_sample(a, b, align_corners=False), ((1, 2, 3, 3), (1, 2, 2, 2))),
    "interpolate": (lambda a: F.interpolate(a, scale_factor=2, mode="bilinear"), ((1, 2, 2, 3),)),
    "pixel_shuffle": (lambda a: F.pixel_shuffle(a, 2), ((1, 4, 2, 2),)),
    "pixel_unshuffle": (lambda a: F.pixel_unshuffle(a, 2), ((1, 2, 2, 4),)),
    "channel_shuffle": (lambda a: F.channel_shuffle(a, 2), ((1, 4, 2),)),
    "cumulative sum": (lambda a: a.cumsum(1), ((2, 3, 2),)),
    "sort": (lambda a: a.sort(1)[0], ((2, 3),)),
    "median": (lambda a: a.median(1)[0], ((2, 3, 2),)),
    "softmax": (lambda a: a.softmax(1), ((2, 3, 2),)),
    "log of a sum": (lambda a: a.logsumexp(0), ((3, 2),)),
    "argmax": (lambda a: a * a.argmax(1, keepdim=True), ((2, 3),)),
    "windows": (lambda a: a.unfold(1, 2, 1), ((2, 3, 2),)),
    "diagonal": (lambda a: a.diagonal(dim1=0, dim2=1), ((3, 3, 2),)),
    "diagonal matrix": (lambda a: torch.diag_embed(a), ((2, 3),)),
    "triangle": (lambda a: a.tril(), ((2, 3, 3),)),
    "repeat": (lambda a: a.repeat(2, 1), ((2, 3),)),
    "repeat_interleave": (lambda a: a.repeat_interleave(2, 0), ((2, 3),)),
    "roll": (lambda a: a.roll(1, 1), ((2, 3),)),
    "rotate": (lambda a: torch.rot90(a, 1, (0, 1)), ((2, 3, 2),)),
    "matrix product": (lambda a, b: a @ b, ((2, 2, 3), (2, 3, 2))),
    "outer product": (torch.outer, ((2,), (3,))),
    "einsum": (lambda a, b: torch.einsum("ij,jk->ik", a, b), ((2, 3), (3, 2))),
    "bilinear": (F.bilinear, ((1, 2), (1, 3), (2, 2, 3))),
    "distances": (torch.cdist, ((2, 3), (3, 3))),
    "prelu": (F.prelu, ((2, 3, 2), (3,))),
    "roi_align": (aligned, ((1, 2, 6, 6), (2, 4))),
    "mean square error": (lambda a, b: F.mse_loss(a, b, reduction="none"), ((2, 3), (2, 3))),
    "huber loss": (lambda a, b: F.huber_loss(a, b), ((2, 3), (2, 3))),
    "smooth absolute error": (lambda a, b: F.smooth_l1_loss(a, b, reduction="none"), ((2, 3), (2, 3))),
    "binary cross-entropy": (lambda a, b: F.binary_cross_entropy(a.sigmoid(), b.sigmoid()), ((2, 3), (2, 3))),
    "of logits": (
        lambda a, b, c: F.binary_cross_entropy_with_logits(a, b.sigmoid(), c.exp(), reduction="none"),
        ((2, 3), (2, 3), (3,)),
    ),
    "margin loss": (lambda a, b: F.multi_margin_loss(a, index_of(b, 3)), ((2, 3), (2,))),
    "ctc loss": (
        lambda a: F.ctc_loss(a.log_softmax(2), torch.tensor([[1, 2], [2, 1]]), [4, 4], [2, 2]),
        ((4, 2, 3),),
    ),
    "renormalised": (lambda a: torch.renorm(a, 2, 0, 0.5), ((3, 2),)),
    "pseudoinverse": (lambda a: torch.linalg.pinv(a), ((2, 3, 2),)),
    "packed": (lambda a: torch._pack_padded_sequence(a, torch.tensor([3, 2]), True)[0], ((2, 3, 2),)),
    "rounded": (lambda a: a + torch.fake_quantize_per_tensor_affine(a, 0.1, 0, -9, 9), ((2, 3),)),
    "gradient of a convolution": (convolved_back, ((1, 2, 3, 2), (1, 3, 4, 3), (2, 3, 2, 2))),
    "gradient of a grouped convolution": (
        lambda g, x, w: convolved_back(g, x, w, groups=2),
        ((1, 4, 3), (1, 4, 4), (4, 2, 2)),
    ),
    "gradient of a transposed convolution": (
        lambda g, x, w: convolved_back(g, x, w, transposed=True),
        ((1, 3, 4), (1, 2, 3), (2, 3, 2)),
    ),
    "gradient of average pooling": (
        lambda g, x: torch.ops.aten.avg_pool2d_backward(g, x, [2, 2], [1, 1], [0, 0], False, True, None),
        ((1, 2, 2, 3), (1, 2, 3, 4)),
    ),
    "gradient of max pooling": (
        lambda g, x: torch.ops.aten.max_pool2d_with_indices_backward(
            g, x, [2, 2], [2, 2], [0, 0], [1, 1], False, F.max_pool2d(x, 2, return_indices=True)[1]
        ),
        ((1, 2, 1, 2), (1, 2, 2, 4)),
    ),
    "gradient of resizing": (
        lambda g: torch.ops.aten.upsample_nearest2d_backward(g, [4, 4], [1, 2, 2, 2], None, None),
        ((1, 2, 4, 4),),
    ),
    "gradient of replication": (
        lambda g, x: torch.ops.aten.replication_pad1d_backward(g, x, [1, 1]),
        ((1, 2, 5), (1, 2, 3)),
    ),
    "gradient of distances": (
        lambda a, b, c: torch.ops.aten._cdist_backward(c, a, b, 2.0, torch.cdist(a, b)),
        ((2, 3), (4, 3), (2, 4)),
    ),
    "gradient of a norm": (
        lambda g, x, w: torch.ops.aten.native_layer_norm_backward(
            g, x, [3], x.mean(1, True), x.std(1, keepdim=True).reciprocal(), w, w, [True, False, False]
        )[0],
        ((2, 3), (2, 3), (3,)),
    ),
    "gradient of softmax": (
        lambda g, x: torch.ops.aten._softmax_backward_data(g, x.softmax(1), 1, x.dtype),
        ((2, 3, 2), (2, 3, 2)),
    ),
}


LIKE_THEIR_FORWARD = [
    "gradient of a convolution",
    "gradient of average pooling",
    "gradient of softmax",
    "mean square error",
]


@pytest.mark.parametrize("name", [*LIKE_THEIR_FORWARD, "pseudoinverse", "packed"])
def test_these_operations_leave_units_free(name: str) -> None:
    derivation = found(Operands(*OPERATIONS[name]).double().eval(), X.double())
    assert not derivation.unknown_ops
    assert derivation.spec.groups


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_derived_for_every_axis_of_every_operand_is_confirmed(name: str) -> None:
    found(Operands(*OPERATIONS[name]).double().eval(), X.double())
