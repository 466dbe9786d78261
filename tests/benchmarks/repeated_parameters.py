"""Operations that are given one parameter more than once: what is derived of them survives execution.

    python -m tests.benchmarks.repeated_parameters [--patterns N] [--seed S] [--show]

A pattern is a small network `head(f(tanh(stem(x))))`, where f combines operations on two square matrices W, V and two
vectors v, u at random: `x @ (W @ W.T)`, `x * cdist(W, V).sum(0)`. Each is derived once and verified under several
seeds. It is *free* (at least one group), *pinned* (none), *refused* (deriving or running it raised an error), or
*unsound* (verification failed).
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rebasin_cli.execution.soundness import verify_by_execution
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model

SIZE = 6
SEEDS = (5, 6, 8)
DEPTH = 3
PATTERNS = 400


class Shared(nn.Module):
    """A network whose middle is a function of parameters that it may use as often as it likes."""

    def __init__(self, middle: Callable[[Shared, Tensor], Tensor]) -> None:
        super().__init__()
        self.middle = middle
        self.stem = nn.Linear(4, SIZE, bias=False)
        self.W = nn.Parameter(torch.randn(SIZE, SIZE))
        self.V = nn.Parameter(torch.randn(SIZE, SIZE))
        self.v = nn.Parameter(torch.randn(SIZE))
        self.u = nn.Parameter(torch.randn(SIZE))
        self.head = nn.Linear(SIZE, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.middle(self, torch.tanh(self.stem(x))))
        return out


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: kinds of its arguments and of its result (`m` a matrix, `v` a vector), how it reads, what it
    does.
    """

    takes: str
    gives: str
    text: str
    run: Callable[..., Tensor]


def _written(base: Tensor, row: Tensor) -> Tensor:
    changed = base.clone()
    changed[0] = row
    return changed


def _normed(matrix: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(matrix, (SIZE,), weight, bias)


def _heads(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (part.view(SIZE, 2, SIZE // 2).transpose(0, 1)[None] for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).reshape(SIZE, SIZE)


def _grouped(matrix: Tensor, kernel: Tensor) -> Tensor:
    return F.conv1d(matrix[None], kernel[:, : SIZE // 2, None], groups=2)[0]


def _kronecker(left: Tensor, right: Tensor) -> Tensor:
    return torch.kron(left[:2, :2].contiguous(), right[:3, :3].contiguous())  # PyTorch refuses some strides


ORDER = torch.tensor([2, 0, 1, 5, 3, 4])

OPERATIONS = (
    Operation("mm", "m", "{} @ {}", torch.matmul),
    Operation("mm", "m", "bmm({}, {})", lambda a, b: torch.bmm(a[None], b[None])[0]),
    Operation("mm", "m", "einsum('ij,kj->ik', {}, {})", lambda a, b: torch.einsum("ij,kj->ik", a, b)),
    Operation("mm", "m", "({} + {})", torch.add),
    Operation("mm", "m", "({} - {})", torch.sub),
    Operation("mm", "m", "({} * {})", torch.mul),
    Operation("mm", "m", "maximum({}, {})", torch.maximum),
    Operation("mm", "m", "cdist({}, {})", torch.cdist),
    Operation("mm", "m", "cat({}[:3], {}[3:])", lambda a, b: torch.cat([a[:3], b[3:]])),
    Operation("mm", "m", "stack({}, {}).amax(0)", lambda a, b: torch.stack([a, b]).amax(0)),
    Operation("mm", "m", "glu(cat({}, {}))", lambda a, b: F.glu(torch.cat([a, b], 1), 1)),
    Operation("mm", "m", "conv1d({}, {}, groups=2)", _grouped),
    Operation("mm", "m", "kron({}[:2, :2], {}[:3, :3])", _kronecker),
    Operation("mmm", "m", "addmm({}, {}, {})", torch.addmm),
    Operation("mmm", "m", "where({} > {}, {}, 0.5)", lambda a, b, c: torch.where(a > b, c, 0.5)),
    Operation("mmm", "m", "lerp({}, {}, {})", torch.lerp),
    Operation("mmm", "m", "attention({}, {}, {})", lambda q, k, v: F.scaled_dot_product_attention(q, k, v)),
    Operation("mmm", "m", "attention in heads({}, {}, {})", _heads),
    Operation("mmv", "m", "linear({}, {}, {})", F.linear),
    Operation("mv", "m", "({} * {})", torch.mul),
    Operation("vm", "m", "({}[:, None] * {})", lambda v, a: v[:, None] * a),
    Operation("mvv", "m", "layer_norm({}, {}, {})", _normed),
    Operation("mv", "m", "({} with row 0 = {})", _written),
    Operation("vv", "m", "outer({}, {})", torch.outer),
    Operation("m", "m", "{}.T", torch.t),
    Operation("m", "m", "{}.softmax(0)", lambda a: a.softmax(0)),
    Operation("m", "m", "{}.softmax(1)", lambda a: a.softmax(1)),
    Operation("m", "m", "{}.tanh()", torch.tanh),
    Operation("m", "m", "{}.flip(0)", lambda a: a.flip(0)),
    Operation("m", "m", "{}.roll(1, 1)", lambda a: a.roll(1, 1)),
    Operation("m", "m", "{}[ORDER]", lambda a: a[ORDER]),
    Operation("m", "m", "{}.tril()", torch.tril),
    Operation("m", "m", "{}.cumsum(0)", lambda a: a.cumsum(0)),
    Operation("m", "m", "{} shuffled", lambda a: a.view(2, 3, SIZE).transpose(0, 1).reshape(SIZE, SIZE)),
    Operation("m", "m", "{}.chunk(2)[1] twice", lambda a: a.chunk(2)[1].repeat(2, 1)),
    Operation("mv", "v", "({} @ {})", torch.mv),
    Operation("vv", "v", "({} + {})", torch.add),
    Operation("vv", "v", "({} * {})", torch.mul),
    Operation("vv", "v", "({0} * ({0} @ {1}))", lambda a, b: a * (a @ b)),
    Operation("vv", "v", "cat({}[:3], {}[3:])", lambda a, b: torch.cat([a[:3], b[3:]])),
    Operation("m", "v", "{}.sum(0)", lambda a: a.sum(0)),
    Operation("m", "v", "{}.mean(1)", lambda a: a.mean(1)),
    Operation("m", "v", "{}.norm(dim=0)", lambda a: a.norm(dim=0)),
    Operation("m", "v", "{}.amax(1)", lambda a: a.amax(1)),
    Operation("m", "v", "{}.diagonal()", torch.diagonal),
    Operation("v", "v", "{}.softmax(0)", lambda a: a.softmax(0)),
    Operation("v", "v", "{}.flip(0)", lambda a: a.flip(0)),
    Operation("v", "v", "{}.sort().values", lambda a: a.sort().values),
)

ENDINGS = (
    ("m", "x @ {}", lambda x, a: x @ a),
    ("m", "tanh(x @ {})", lambda x, a: torch.tanh(x @ a)),
    ("m", "linear(x, {})", F.linear),
    ("m", "softmax(x @ {0}) @ {0}.T", lambda x, a: (x @ a).softmax(-1) @ a.t()),
    ("m", "x @ {0} @ {0}", lambda x, a: x @ a @ a),
    ("v", "x * {}", lambda x, a: x * a),
    ("v", "tanh(x + {})", lambda x, a: torch.tanh(x + a)),
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """What the middle of a network computes, as text and as a function."""

    text: str
    run: Callable[[Shared, Tensor], Tensor]


def named_patterns() -> tuple[Pattern, ...]:
    """Patterns worked out by hand."""
    return (
        Pattern("mm(W, W)", lambda m, x: x @ (m.W @ m.W)),
        Pattern("mm(W.T, W)", lambda m, x: x @ (m.W.t() @ m.W)),
        Pattern("W + W.T", lambda m, x: x @ (m.W + m.W.t())),
        Pattern("addmm(W, W, W)", lambda m, x: x @ torch.addmm(m.W, m.W, m.W)),
        Pattern("cat(W, W)", lambda m, x: torch.tanh(x @ torch.cat([m.W, m.W], 1)).view(len(x), 2, -1).sum(1)),
        Pattern("stack(W, W.T)", lambda m, x: torch.tanh(torch.stack([m.W, m.W.t()]) @ x.t()).sum(0).t()),
        Pattern("v * W * v", lambda m, x: x @ (m.v[:, None] * m.W * m.v)),
        Pattern("softmax(W @ W)", lambda m, x: x @ (m.W @ m.W).softmax(-1)),
        Pattern("bmm(W, W)", lambda m, x: x @ torch.bmm(m.W[None], m.W[None])[0]),
        Pattern("W.flip(0) @ W", lambda m, x: x @ (m.W.flip(0) @ m.W)),
        Pattern("W in a view and summed", lambda m, x: x @ (m.W.view(6, 2, 3).sum(2).repeat(1, 3)) * m.W.sum(0)),
        Pattern("cdist(W, W)", lambda m, x: x @ torch.cdist(m.W, m.W)),
        Pattern("softmax of a Gram matrix", lambda m, x: torch.softmax((x @ m.W) @ (x @ m.W).t(), -1) @ (x @ m.W)),
        Pattern("W.sum(0) + W.sum(1)", lambda m, x: x * (m.W.sum(0) + m.W.sum(1))),
        Pattern("bilinear(W * V)", lambda m, x: F.bilinear(x, x, m.W[None].expand(6, 6, 6) * m.V[:, None, :])),
        Pattern("W @ v + v", lambda m, x: x * (m.W @ m.v) + m.v),
        Pattern("kron(W, V)", lambda m, x: x @ torch.kron(m.W[:2, :2], m.V[:3, :3])),
    )


def random_patterns(count: int, seed: int = 0) -> Iterator[Pattern]:
    """Different patterns that use some parameter at least twice."""
    draw, seen = random.Random(seed), set[str]()
    while len(seen) < count:
        kind, text, ending = draw.choice(ENDINGS)
        favourite = draw.choice(("W", "v"))
        pattern = _ended(text, ending, _expression(draw, kind, draw.randint(1, DEPTH), favourite))
        repeated = any(pattern.text.count(name) > 1 for name in ("W", "V", "v", "u"))
        if repeated and pattern.text not in seen:
            seen.add(pattern.text)
            yield pattern


@dataclass(frozen=True, slots=True)
class Expression:
    """A matrix or a vector made of the parameters."""

    text: str
    value: Callable[[Shared], Tensor]


def _ended(text: str, ending: Callable[[Tensor, Tensor], Tensor], inner: Expression) -> Pattern:
    return Pattern(text.format(inner.text), lambda m, x: ending(x, inner.value(m)))


def _expression(draw: random.Random, kind: str, depth: int, favourite: str) -> Expression:
    """A random expression; at the bottom mostly the favourite parameter, so that it meets itself."""
    if depth == 0:
        names = ("W", "V") if kind == "m" else ("v", "u")
        name = favourite if favourite in names and draw.random() < 0.8 else draw.choice(names)
        if kind == "m" and draw.random() < 0.3:
            return Expression(f"{name}.T", lambda m: getattr(m, name).t())
        return Expression(name, lambda m: getattr(m, name))
    operation = draw.choice([operation for operation in OPERATIONS if operation.gives == kind])
    parts = [_expression(draw, taken, draw.randint(0, depth - 1), favourite) for taken in operation.takes]
    text = operation.text.format(*(part.text for part in parts))
    return Expression(text, lambda m: operation.run(*(part.value(m) for part in parts)))


FREE, PINNED, REFUSED, UNSOUND = "free", "pinned", "refused", "unsound"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a pattern, with the error's text where there was one."""

    kind: str
    text: str
    detail: str = ""


def outcome(pattern: Pattern) -> Outcome:
    """Derive a pattern and verify what was derived."""
    torch.manual_seed(0)
    net, example = Shared(pattern.run).eval(), ExampleInput((torch.randn(5, 4),))
    try:
        derivation = derive(trace_model(net, example))
        checks = [verify_by_execution(lambda: net, example, derivation.spec, seed) for seed in SEEDS]
    except Exception as error:
        return Outcome(REFUSED, pattern.text, f"{type(error).__name__}: {error}")
    if not all(check.ok for check in checks):
        return Outcome(UNSOUND, pattern.text, f"{max(check.max_relative_error for check in checks):.0e}")
    groups = " | ".join(
        f"{group.size}: " + " ".join(f"{site.key}/{site.axis}" for site in group.sites)
        for group in derivation.spec.groups
    )
    not_covered = "".join(f" [{unknown.op}: {unknown.reason}]" for unknown in derivation.unknown_ops)
    return Outcome(FREE if groups else PINNED, pattern.text, groups + not_covered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patterns", type=int, default=PATTERNS, help="random patterns beside the named ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every pattern, not only those with an error")
    asked = parser.parse_args()
    counts: Counter[str] = Counter()
    for pattern in (*named_patterns(), *random_patterns(asked.patterns, asked.seed)):
        found = outcome(pattern)
        counts[found.kind] += 1
        if asked.show or found.kind in (REFUSED, UNSOUND):
            print(f"{found.kind:8} {found.text}   {found.detail}", flush=True)
    total = sum(counts.values())
    print(f"{total} patterns: " + ", ".join(f"{counts[kind]} {kind}" for kind in (FREE, PINNED, REFUSED, UNSOUND)))


if __name__ == "__main__":
    main()
