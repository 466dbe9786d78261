"""Maps that mix units: which part of a family they act on, and which diagonal parameters stand between it and others.

One part, the *core*, is mapped. Every other part that holds tensors must be a *leaf*: nothing limits it, and one
diagonal parameter stands between it and the core, so that this can be folded into the leaf's tensors. Where both sides
of a diagonal are limited, or are one part, a map would have to commute with it: permutations and signs are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rebasin_cli.freedom import Side
from rebasin_cli.symmetry.classes.ledger import Ledger, Limit, Node, Product


@dataclass(frozen=True, slots=True)
class Leaf:
    """A part behind a diagonal parameter.

    Args:
        part: its name; `parity`: of the value on its side, relative to that name.
        scale: state value of the diagonal parameter; `offset`: what is added to it.
    """

    part: Node
    parity: int
    side: Side
    scale: int
    offset: float


@dataclass(frozen=True, slots=True)
class Mixing:
    """What of a family maps beyond monomial act on.

    Args:
        limit, reason: the class of these maps, and why it is no larger.
        core: the part; `parity`: that of values that are written, relative to its name.
    """

    limit: Limit
    reason: str | None
    core: Node
    parity: int
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing beyond a diagonal is possible; `pointwise`: because each unit is acted on by itself."""

    reason: str
    pointwise: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """How far maps of one part are limited, and why."""

    limit: Limit = Limit.LINEAR
    reason: str | None = None


def limits_of(ledger: Ledger) -> dict[Node, Part]:
    """The meet of all limits of every part; of equal ones the first gives the reason."""
    found: dict[Node, Part] = {}
    for node, limit, reason in ledger.limits:
        part = ledger.find(node)[0]
        if limit < found.get(part, Part()).limit:
            found[part] = Part(limit, reason)
    return found


def votes_of(ledger: Ledger) -> dict[Node, int]:
    """By part, positive where the values that are read have the parity of its name."""
    found: dict[Node, int] = {}
    for node, vote in ledger.votes:
        part, parity = ledger.find(node)
        found[part] = found.get(part, 0) + (-vote if parity else vote)
    return found


def mixing(
    ledger: Ledger,
    limits: Mapping[Node, Part],
    votes: Mapping[Node, int],
    products: Sequence[Product],
    tensors: Mapping[Node, int],
    tied: str | None,
    names: Mapping[int, Sequence[str]],
) -> Mixing | Refusal:
    """The maps of one family that mix units.

    Args:
        products: of the family.
        tensors: by part, how many tensors have units in it.
        tied: a tensor of the family that the model holds under several names.
        names: of state values.
    """
    plain = [product for product in products if product.scale is None or product.power != 1]
    scales = [product for product in products if product not in plain]
    diagonals = {ledger.find(product.right)[0] for product in scales}
    ends = {ledger.find(node)[0] for product in scales for node in (product.left, product.out)}
    parts = sorted(({part for part in tensors if part not in diagonals}) | ends)
    limited = [part for part in parts if part in limits]
    normalised = [part for part in limited if limits[part].limit is not Limit.DIAGONAL]
    if len(normalised) < 2:
        for part in parts:
            if limits.get(part, Part()).limit is Limit.DIAGONAL:
                return Refusal(limits[part].reason or "", pointwise=True)
        if plain:
            return Refusal(plain[0].reason)
    for product in scales:
        if ledger.find(product.left)[0] == ledger.find(product.out)[0]:
            scale = names[product.scale or 0][0]
            what = (
                f"{tied} is tied: it writes, and reads behind the scale {scale}" if tied else f"both sides of {scale}"
            )
            return Refusal(what if tied else f"{what} are one: {_limit_said(limits, limited)}")
    if len(limited) > 1:
        between = next((p for p in scales if ledger.find(p.out)[0] in normalised), scales[0] if scales else None)
        where = names[between.scale or 0][0] if between is not None else "a diagonal"
        return Refusal(f"post-norm: {where} scales what is normalised again: {_limit_said(limits, normalised)}")
    core = limited[0] if limited else max(parts, key=lambda part: tensors.get(part, 0), default=None)
    if core is None:
        return Refusal("no tensor is multiplied")
    leaves = _leaves(ledger, scales, core, parts)
    if isinstance(leaves, Refusal):
        return leaves
    found = limits.get(core, Part())
    return Mixing(found.limit, found.reason, core, 0 if votes.get(core, 0) >= 0 else 1, leaves)


def _limit_said(limits: Mapping[Node, Part], limited: Sequence[Node]) -> str:
    return next((reason for part in limited if (reason := limits[part].reason)), "limited")


def _leaves(ledger: Ledger, scales: Sequence[Product], core: Node, parts: Sequence[Node]) -> tuple[Leaf, ...] | Refusal:
    leaves: dict[Node, Leaf] = {}
    for product in scales:
        (before, of_before), (after, of_after) = ledger.find(product.left), ledger.find(product.out)
        assert product.scale is not None
        if before == core:
            leaf = Leaf(after, of_after, "read", product.scale, product.offset)
        elif after == core:
            leaf = Leaf(before, of_before, "write", product.scale, product.offset)
        else:
            return Refusal(f"two scales in a row: {product.reason}")
        if leaves.setdefault(leaf.part, leaf) != leaf:
            return Refusal(f"several scales before one tensor: {product.reason}")
    apart = [part for part in parts if part != core and part not in leaves]
    return Refusal("units that are tied in another way than by their values") if apart else tuple(leaves.values())
