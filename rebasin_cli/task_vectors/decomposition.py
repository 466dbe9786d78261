"""The singular value decomposition of a matrix, as far as metrics read it.

From the Gram matrix of the shorter side where that is accurate: G = A^T A = V S^2 V^T costs a product and a symmetric
eigenproblem of the shorter side, a fraction of the decomposition of A. In float64 the eigenvalues have absolute errors
of about 1e-15 s1^2, and an eigenspace an error of about that over its distance from the next eigenvalue; where the
distance is too small for the tolerance, A itself is decomposed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from rebasin_cli.errors import NumericalError, one_line

K = 10
"""Singular vectors at each end of the spectrum that metrics read."""
SMALL = 32
"""Matrices whose shorter side is at most this are decomposed directly."""
GRAM_GAP = 1e-7
"""Least distance of the eigenvalues at a subspace's border, over the largest one, for the Gram matrix to be used."""
GRAM_CONDITION = 1e-5
"""Least ratio of singular values over which the other side's vectors are computed from the Gram matrix's."""
DETERMINED = 1e-10
"""Least distance of the singular values at the border of a subspace, over the largest, for it to be determined."""


@dataclass(frozen=True, slots=True)
class Decomposition:
    """What metrics read of a matrix (m, n) with r = min(m, n) and k = min(`K`, r); float64.

    Attributes:
        spectrum: (r,), descending.
        left_top: (m, k), the first left singular vectors; None where the matrix does not determine their space.
        right_top, right_bottom: (n, k), the first and the last of the r right ones, likewise.
    """

    spectrum: Tensor
    k: int
    left_top: Tensor | None = None
    right_top: Tensor | None = None
    right_bottom: Tensor | None = None

    @property
    def undetermined(self) -> bool:
        return self.left_top is None or self.right_top is None or self.right_bottom is None


def decompose(matrix: Tensor, *, vectors: bool = True) -> Decomposition | None:
    """Decompose a float64 matrix (m, n); None of a matrix that is zero or empty.

    Args:
        vectors: singular vectors are needed besides the spectrum.

    Raises:
        NumericalError: the decomposition does not converge.
    """
    if matrix.numel() == 0 or not bool(matrix.any()):
        return None
    k = min(K, *matrix.shape)
    if min(matrix.shape) <= SMALL:
        return _direct(matrix, k, vectors)
    wide = matrix.shape[0] < matrix.shape[1]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    if not vectors:
        return Decomposition(_roots(torch.linalg.eigvalsh(gram)), k)
    try:
        values, basis = torch.linalg.eigh(gram)
    except LinAlgError:
        return _direct(matrix, k, vectors)
    spectrum = _roots(values)
    if not _gram_is_accurate(spectrum, k):
        return _direct(matrix, k, vectors)
    top, bottom = basis[:, -k:].flip(1), basis[:, :k].flip(1)
    if wide:
        right_top, right_bottom = (
            _other_side(matrix.T, part, values) for part, values in ((top, spectrum[:k]), (bottom, spectrum[-k:]))
        )
        return Decomposition(spectrum, k, top, right_top, right_bottom)
    return Decomposition(spectrum, k, _other_side(matrix, top, spectrum[:k]), top, bottom)


def _roots(eigenvalues: Tensor) -> Tensor:
    """Singular values, descending."""
    return eigenvalues.clamp_min(0.0).sqrt().flip(0)


def _other_side(matrix: Tensor, vectors: Tensor, values: Tensor) -> Tensor:
    """The singular vectors of the other side, A v / s, orthonormal to rounding."""
    basis: Tensor = torch.linalg.qr(matrix @ (vectors / values)).Q
    return basis


def _gram_is_accurate(spectrum: Tensor, k: int) -> bool:
    squares = (spectrum / spectrum[0]).square()
    count = squares.numel()
    borders = {k, count - k} - {0, count}
    apart = all(float(squares[at - 1] - squares[at]) >= GRAM_GAP for at in borders)
    return apart and float(spectrum[-1] / spectrum[0]) >= GRAM_CONDITION


def _direct(matrix: Tensor, k: int, vectors: bool) -> Decomposition:
    if not vectors:
        return Decomposition(torch.linalg.svdvals(matrix), k)
    try:
        left, spectrum, right = torch.linalg.svd(matrix, full_matrices=False)
    except LinAlgError as error:
        raise NumericalError(f"the singular value decomposition of a matrix failed: {one_line(error)}") from error
    count, (rows, columns) = spectrum.numel(), matrix.shape

    def determined(first: int, stop: int, side: int) -> bool:
        """Whether the vectors first … stop - 1 span one space only, in a side of this length."""
        values = torch.cat([spectrum, spectrum.new_zeros(1 if side > count else 0)])
        borders = [at for at in (first, stop) if 0 < at < values.numel()]
        return all(float(values[at - 1] - values[at]) > DETERMINED * float(spectrum[0]) for at in borders)

    return Decomposition(
        spectrum,
        k,
        left[:, :k].clone() if determined(0, k, rows) else None,  # copies: views would keep the whole factor
        right[:k].T.clone() if determined(0, k, columns) else None,
        right[count - k :].T.clone() if determined(count - k, count, columns) else None,
    )
