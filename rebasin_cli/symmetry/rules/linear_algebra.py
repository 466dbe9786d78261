"""Matrix factorisations, solvers, cross products, Fourier transforms: the axes that they work along are pinned."""

from __future__ import annotations

from dataclasses import replace

from rebasin_cli.symmetry.algebra import combine, elementwise, reduce
from rebasin_cli.symmetry.positions import AxisLayout, dimension
from rebasin_cli.symmetry.registry import Op, hold, resized, rule

MATRIX = "rows and columns of a factorised matrix"
FREQUENCY = "axis of a Fourier transform"
COORDINATES = "coordinates of a cross product"


def _of_batches(op: Op, matrix: AxisLayout) -> list[AxisLayout]:
    """Results over the leading dimensions of the matrix, with their own last dimensions pinned."""
    lead = len(matrix.dims) - 2
    batch = reduce(op.relations, replace(op.relations.released(matrix), dims=matrix.dims[:-2]))
    results = []
    for shape in op.result_shapes:
        own = [dimension(size) for size in shape[lead:]]
        fixed = {**batch.fixed, **{factor: MATRIX for dim in own for factor in dim}}
        results.append(replace(batch, dims=(*batch.dims, *own), fixed=fixed))
    return results


@rule(
    "aten._linalg_det",
    "aten._linalg_eigh",
    "aten._linalg_slogdet",
    "aten._linalg_svd",
    "aten.cholesky",
    "aten.cholesky_inverse",
    "aten.geqrf",
    "aten.linalg_cholesky_ex",
    "aten.linalg_eig",
    "aten.linalg_inv_ex",
    "aten.linalg_lu_factor_ex",
    "aten.linalg_matrix_exp",
    "aten.linalg_qr",
)
def factorised(op: Op) -> list[AxisLayout]:
    matrix = op.layout("self" if op.has("self") else "A")
    rank = len(matrix.dims)
    return _of_batches(op, hold(op.relations, matrix, [rank - 2, rank - 1], MATRIX))


@rule("aten.linalg_pinv")
def pseudoinverse(op: Op) -> AxisLayout:
    """`pinv(A) = lim (A^T A + eps)^-1 A^T`: rows become columns, and both may be permuted."""
    matrix = op.relations.released(op.layout("self" if op.has("self") else "A"))
    lead = [("lead", place) for place in range(len(matrix.dims) - 2)]
    gram = combine(op.relations, [(matrix, [*lead, "m", "n"]), (matrix, [*lead, "m", "k"])], [*lead, "n", "k"])
    return combine(op.relations, [(gram, [*lead, "n", "k"]), (matrix, [*lead, "m", "k"])], [*lead, "n", "m"])


@rule("aten._linalg_solve_ex", "aten.linalg_solve_triangular", "aten.triangular_solve")
def solved(op: Op) -> list[AxisLayout]:
    """`A X = B` (or `X A = B`): as a product with the inverse, whose rows and columns are pinned."""
    first, second = ("self", "B") if op.call.name == "aten.linalg_solve_triangular" else ("A", "B")
    if op.call.name == "aten.triangular_solve":
        first, second = "A", "self"
    matrix, given = op.layout(first), op.layout(second)
    rank = len(matrix.dims)
    matrix = hold(op.relations, matrix, [rank - 2, rank - 1], MATRIX)
    lead = [("lead", place) for place in range(rank - 2)]
    if len(given.dims) != rank:
        labels, wanted = [*lead, "m"], [*lead, "n"]
    elif op.get("left", True):
        labels, wanted = [*lead, "m", "k"], [*lead, "n", "k"]
    else:
        labels, wanted = [*lead, "k", "m"], [*lead, "k", "n"]
    solution = combine(op.relations, [(matrix, [*lead, "n", "m"]), (given, labels)], wanted)
    return [solution, *_of_batches(op, matrix)[1:]]


@rule("aten.linalg_cross")
def cross(op: Op) -> AxisLayout:
    """Each coordinate depends on the two others, so the other dimensions are permuted alike at all three."""
    place = op.dim("dim", len(op.result_shape))
    held = [hold(op.relations, op.layout(name), [place], COORDINATES) for name in ("self", "other")]
    product = elementwise(op.relations, held, op.result_shape)
    return resized(op.relations, product, [place], op.result_shape, COORDINATES)


@rule("aten._fft_c2c", "aten._fft_c2r", "aten._fft_r2c")
def fourier_transform(op: Op) -> AxisLayout:
    layout = op.layout("self")
    places = op.dims("dim", len(layout.dims))
    held = hold(op.relations, layout, places, FREQUENCY)
    return resized(op.relations, held, places, op.result_shape, FREQUENCY)
