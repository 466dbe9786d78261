"""Matrix factorisations and solvers, distances, Fourier transforms, writing through a mask."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.symmetry.rules.bench import Net, axes, found

X = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
EYE = torch.eye(4)


def gram(h: Tensor) -> Tensor:
    """(batch, 4, 4), well conditioned."""
    return h @ h.transpose(1, 2) + 3 * EYE


def masked(h: Tensor) -> Tensor:
    changed = h.clone()
    changed[changed < 0] = 0.25
    return changed


RUNS: dict[str, Callable[[Tensor], Tensor]] = {
    "cdist": lambda h: torch.cdist(h, h) @ h,
    "cholesky": lambda h: torch.linalg.cholesky(gram(h)) @ h,
    "det": lambda h: h * torch.linalg.det(gram(h))[:, None, None],
    "inverse": lambda h: torch.linalg.inv(gram(h)) @ h,
    "matrix exponential": lambda h: torch.matrix_exp(0.1 * gram(h)) @ h,
    "solve": lambda h: torch.linalg.solve(gram(h), h),
    "solve from the right": lambda h: torch.linalg.solve(gram(h), h.transpose(1, 2), left=False).transpose(1, 2),
    "triangular solve": lambda h: torch.linalg.solve_triangular(gram(h), h, upper=True),
    "complex transform along tokens": lambda h: torch.fft.fft(h, dim=1).abs(),
    "real transform along tokens": lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1) * 2.0, n=4, dim=1),
    "log sigmoid": F.logsigmoid,
    "bucketize": lambda h: h + torch.bucketize(h, torch.tensor([-0.5, 0.0, 0.5])),
    "mask": masked,
}


@pytest.mark.parametrize("name", RUNS)
def test_features_pass(name: str) -> None:
    net = Net(lambda m, x: m.two(RUNS[name](m.one(x))), one=nn.Linear(5, 6), two=nn.Linear(6, 2))
    derivation = found(net, X)
    assert axes(derivation) == [(6, ["one.bias/0", "one.weight/0", "two.weight/1"])]
    assert not derivation.unknown_ops


@pytest.mark.parametrize(
    "run",
    [
        lambda h: torch.fft.fft(h, dim=2).abs(),
        lambda h: torch.linalg.inv(h.transpose(1, 2) @ h + 3 * torch.eye(6)) @ h.transpose(1, 2),
    ],
)
def test_what_runs_along_the_features_holds_them(run: Callable[[Tensor], Tensor]) -> None:
    net = Net(lambda m, x: run(m.one(x)).flatten(1) @ m.two.weight, one=nn.Linear(5, 6), two=nn.Linear(2, 24))
    derivation = found(net, X)
    assert not [group for group in derivation.spec.groups if any("one" in site.key for site in group.sites)]
    assert not derivation.unknown_ops
