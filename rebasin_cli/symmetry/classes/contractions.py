"""What products summed over an axis mean: values and weights summed over change dually, others alike."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

from rebasin_cli.symmetry.classes.ledger import Limit, Node
from rebasin_cli.symmetry.classes.slots import Slot, paired
from rebasin_cli.symmetry.classes.walk import Walk, value_of
from rebasin_cli.tracing.graph import Call

Label = Hashable
Operand = tuple[int, Sequence[Label]]
"""A value, and a label for each of its dimensions."""

NONE: frozenset[int] = frozenset()

MATRIX_PRODUCTS: dict[str, tuple[str, str, str, str, str, str | None]] = {
    "aten.mm": ("self", "mk", "mat2", "kn", "mn", None),
    "aten.bmm": ("self", "bmk", "mat2", "bkn", "bmn", None),
    "aten.addmm": ("mat1", "mk", "mat2", "kn", "mn", "self"),
    "aten._sparse_addmm": ("mat1", "mk", "mat2", "kn", "mn", "self"),
    "aten.baddbmm": ("batch1", "bmk", "batch2", "bkn", "bmn", "self"),
    "aten.addbmm": ("batch1", "bmk", "batch2", "bkn", "mn", "self"),
    "aten.mv": ("self", "mk", "vec", "k", "m", None),
    "aten.addmv": ("mat", "mk", "vec", "k", "m", "self"),
    "aten.dot": ("self", "k", "tensor", "k", "", None),
    "aten._grouped_mm": ("self", "sk", "mat2", "ekn", "sn", "bias"),
    "transformers.grouped_mm_fallback": ("input", "sk", "weight", "ekn", "sn", "bias"),
}
"""Both factors with the labels of their dimensions, those of the result, and what is added to it."""


def matrix_product(walk: Walk, call: Call) -> None:
    first, of_first, second, of_second, of_result, added = MATRIX_PRODUCTS[call.name]
    left, right, result = value_of(call.arguments[first]), value_of(call.arguments[second]), call.results[0]
    if left is None or right is None or result is None or len(walk.shape(left)) != len(of_first):
        walk.fix_all(call)
        return
    contract(walk, call, (left, of_first), (right, of_second), (result, of_result))
    addend(walk, call, None if added is None else value_of(call.arguments.get(added)), (left, right), result)


def linear(walk: Walk, call: Call) -> None:
    left, right, result = value_of(call.arguments["input"]), value_of(call.arguments["weight"]), call.results[0]
    assert left is not None
    assert right is not None
    assert result is not None
    lead = tuple(range(len(walk.shape(left)) - 1))
    contract(walk, call, (left, (*lead, "k")), (right, ("n", "k")), (result, (*lead, "n")))
    addend(walk, call, value_of(call.arguments.get("bias")), (left, right), result)


def addend(walk: Walk, call: Call, bias: int | None, factors: Sequence[int], result: int) -> None:
    """What is added to a product, and the parameter among its factors that reads values."""
    for weight in factors:
        walk.note_reading(call, weight, bias, True, result)
    if bias is None:
        return
    shift = len(walk.shape(result)) - len(walk.shape(bias))
    walk.alike(call, bias, result, [dim + shift for dim in range(len(walk.shape(bias)))])
    walk.uniform_terms(call, [bias], result)


def contract(
    walk: Walk,
    call: Call,
    left: Operand,
    right: Operand,
    result: Operand,
    skip: Collection[int] = NONE,
) -> None:
    """A product of two values, summed over the labels that the result lacks; families in `skip` are left out."""
    of_result = {label: dim for dim, label in enumerate(result[1])}
    kept = [[of_result.get(label) for label in labels] for _, labels in (left, right)]
    summed = _summed(walk, call, left, right, set(of_result), skip)
    for (value, labels), (partner, others), own in ((left, right, kept[0]), (right, left, kept[1])):
        there = {(slot.family, frozenset(others[dim] for dim in slot.dims)) for slot in walk.slots(partner)}
        for slot in _slots(walk, value, skip):
            along = frozenset(labels[dim] for dim in slot.dims)
            if not along & set(of_result) and (slot.family, along) not in there and not walk.is_zero(partner):
                what = walk.where(call, "summed over its units")
                walk.ledger.limit(walk.node(value, slot), Limit.ONES, what)
            elif along & set(of_result) and not along <= set(of_result):
                walk.fix([walk.node(value, slot)], walk.where(call))
        _carried(walk, call, (value, labels), own, set(others), result[0], skip)
    _batched(walk, call, left, right, kept, result[0], summed, skip)


def _slots(walk: Walk, value: int, skip: Collection[int]) -> list[Slot]:
    return [slot for slot in walk.slots(value) if slot.family not in skip and slot.dims]


def _summed(
    walk: Walk,
    call: Call,
    left: Operand,
    right: Operand,
    kept: set[Label],
    skip: Collection[int],
) -> int:
    """Join what is summed over, dually; and over how many positions is summed that no family moves."""
    moved: set[Label] = set()
    mine: dict[tuple[int, frozenset[Label]], list[Node]] = {}
    for slot in _slots(walk, left[0], skip):
        along = frozenset(left[1][dim] for dim in slot.dims)
        moved |= along
        if not along & kept:
            own = [s for s in walk.slots(left[0]) if (s.family, s.dims) == (slot.family, slot.dims)]
            other = [
                s
                for s in walk.slots(right[0])
                if s.family == slot.family and frozenset(right[1][dim] for dim in s.dims) == along
            ]
            if other and (slot.family, along) not in mine:
                mine[slot.family, along] = []
                for one, partner in paired(own, other):
                    nodes = walk.node(left[0], one), walk.node(right[0], partner)
                    walk.ledger.join(*nodes, True, walk.where(call, "contracted with itself"))
                    walk.ledger.votes.append((nodes[0], 1 if left[0] not in walk.source else -1))
    sizes = [walk.shape(left[0])[dim] for dim, label in enumerate(left[1]) if label not in kept and label not in moved]
    return max(sizes, default=0)


def _carried(
    walk: Walk,
    call: Call,
    own: Operand,
    dims: Sequence[int | None],
    others: set[Label],
    result: int,
    skip: Collection[int],
) -> None:
    """Units along a dimension that the partner lacks are those of the result."""
    value, labels = own
    for family in {slot.family for slot in _slots(walk, value, skip)}:
        mine = [
            slot
            for slot in _slots(walk, value, skip)
            if slot.family == family and all(dims[dim] is not None and labels[dim] not in others for dim in slot.dims)
        ]
        for wanted in {tuple(sorted(d for dim in slot.dims if (d := dims[dim]) is not None)) for slot in mine}:
            here = [s for s in mine if tuple(sorted(d for dim in s.dims if (d := dims[dim]) is not None)) == wanted]
            there = [slot for slot in walk.slots(result) if slot.family == family and slot.dims == wanted]
            if not there:
                walk.fix([walk.node(value, slot) for slot in here], walk.where(call))
            for one, other in paired(here, there):
                walk.ledger.join(walk.node(value, one), walk.node(result, other), False, walk.where(call))


def _batched(
    walk: Walk,
    call: Call,
    left: Operand,
    right: Operand,
    dims: Sequence[Sequence[int | None]],
    result: int,
    summed: int,
    skip: Collection[int],
) -> None:
    """Units along a dimension of both factors and of the result: a product, unit by unit."""
    shared = {label for label in left[1] if label in right[1] and _place(label, left, right, dims) >= 0}
    mine, theirs = (_by_labels(walk, value, labels, shared, skip) for value, labels in (left, right))
    for (family, along), node in {**theirs, **mine}.items():
        places = sorted({_place(label, left, right, dims) for label in along})
        out = [s for s in walk.slots(result) if s.family == family and list(s.dims) == places]
        both = [nodes[family, along] for nodes in (mine, theirs) if (family, along) in nodes]
        if not out:
            walk.fix(both, walk.where(call))
        elif len(both) == 1:
            walk.ledger.join(node, walk.unite(call, result, out), False, walk.where(call))
        else:
            walk.note_product(call, both[0], both[1], walk.unite(call, result, out), left[0], right[0])
            if summed:
                walk.crossed.append((both[0], both[1], summed))


def _by_labels(
    walk: Walk, value: int, labels: Sequence[Label], shared: Collection[Label], skip: Collection[int]
) -> dict[tuple[int, tuple[Label, ...]], Node]:
    """By family and the labels of its dimensions, which are all shared, its node in one factor of a product."""
    slots: dict[tuple[int, tuple[Label, ...]], list[Slot]] = {}
    for slot in _slots(walk, value, skip):
        if all(labels[dim] in shared for dim in slot.dims):
            slots.setdefault((slot.family, tuple(labels[dim] for dim in slot.dims)), []).append(slot)
    return {key: walk.unite(None, value, own) for key, own in slots.items()}


def _place(label: Label, left: Operand, right: Operand, dims: Sequence[Sequence[int | None]]) -> int:
    """The dimension of the result with this label; -1 where it has none."""
    for (_, labels), places in zip((left, right), dims, strict=True):
        if label in labels:
            place = places[list(labels).index(label)]
            return -1 if place is None else place
    return -1


def convolution(walk: Walk, call: Call) -> None:
    """Channels are dimension 1 of the input, 0 and 1 of the weight, 1 of the result."""
    given, weight, result = value_of(call.arguments["input"]), value_of(call.arguments["weight"]), call.results[0]
    assert given is not None
    assert weight is not None
    assert result is not None
    inward, outward = (0, 1) if call.arguments.get("transposed") else (1, 0)
    rank = len(walk.shape(weight))
    read = {s.family for s in walk.slots(weight) if s.dims == (inward,)}
    written = {s.family for s in walk.slots(weight) if s.dims == (outward,)}
    entering = {s.family for s in walk.slots(given) if s.dims == (1,)}
    leaving = {s.family for s in walk.slots(result) if s.dims == (1,)}
    alone = (
        (entering & leaving & (read | written)) - (read & written) if call.arguments.get("groups", 1) != 1 else set()
    )
    alone -= read if inward == 1 else written
    points: list[Label] = [("space", axis) for axis in range(rank - 2)]
    kernel: list[Label] = [("kernel", axis) for axis in range(rank - 2)]
    of_weight: list[Label] = ["i", "o", *kernel] if inward == 0 else ["o", "i", *kernel]
    known = {(1,), (inward,), (outward,)}
    for value in (given, weight, result):
        odd = [slot for slot in walk.slots(value) if slot.dims not in known and slot.dims]
        walk.fix([walk.node(value, slot) for slot in odd], walk.where(call))
    contract(walk, call, (given, ["n", "i", *points]), (weight, of_weight), (result, ["n", "o", *points]), alone)
    _depthwise(walk, call, (given, weight, result), alone)
    bias = value_of(call.arguments.get("bias"))
    padded = any(call.arguments.get("padding") or ())
    walk.note_reading(call, weight, bias, not padded and inward == 1, result)
    if bias is not None:
        walk.alike(call, bias, result, [1])
        walk.uniform_terms(call, [bias], result)


def _depthwise(walk: Walk, call: Call, values: tuple[int, int, int], families: set[int]) -> None:
    """Every channel has a kernel of its own: a product of both, channel by channel."""
    for family in families:
        own = [[slot for slot in walk.slots(value) if slot.family == family and slot.dims] for value in values]
        if any(len(slots) != 1 for slots in own):
            for value, slots in zip(values, own, strict=True):
                walk.fix([walk.node(value, slot) for slot in slots], walk.where(call))
            continue
        left, right, out = (walk.node(value, slots[0]) for value, slots in zip(values, own, strict=True))
        walk.note_product(call, left, right, out, values[0], values[0])


def attention(walk: Walk, call: Call) -> None:
    """`softmax(q k) v`: inner axes of q and k are summed over, those of v carried; along all others nothing mixes."""
    query, key, value = (value_of(call.arguments[name]) for name in ("query", "key", "value"))
    result = call.results[0]
    assert query is not None
    assert key is not None
    assert value is not None
    assert result is not None
    last = len(walk.shape(query)) - 1
    inner = {family for given in (query, key) for family, dims in _along(walk, given) if dims == (last,)}
    carried = {family for family, dims in _along(walk, value) if dims == (last,)}
    for family in inner:
        own = [[s for s in walk.slots(given) if s.family == family and s.dims == (last,)] for given in (key, query)]
        for one, other in paired(*own):
            nodes = walk.node(key, one), walk.node(query, other)
            walk.ledger.join(*nodes, True, walk.where(call, "contracted with itself"))
            walk.ledger.votes.append((nodes[0], 1))
        if not all(own):
            for given, slots in zip((key, query), own, strict=True):
                walk.fix([walk.node(given, slot) for slot in slots], walk.where(call))
    for family in carried:
        own = [[s for s in walk.slots(given) if s.family == family and s.dims == (last,)] for given in (value, result)]
        for one, other in paired(*own):
            walk.ledger.join(walk.node(value, one), walk.node(result, other), False, walk.where(call))
    _other_axes(walk, call, (query, key, value, result), last)


def _along(walk: Walk, value: int) -> list[tuple[int, tuple[int, ...]]]:
    return [(slot.family, slot.dims) for slot in walk.slots(value)]


def _other_axes(walk: Walk, call: Call, values: tuple[int, int, int, int], last: int) -> None:
    """Units along other axes (heads): scores are still, so q and k are, and v is carried."""
    query, key, value, result = values
    here: dict[int, dict[int, list[Slot]]] = {}
    for given in values:
        for slot in walk.slots(given):
            if slot.dims != (last,) and slot.dims:
                here.setdefault(slot.family, {}).setdefault(given, []).append(slot)
    reason = walk.where(call)
    for slots in here.values():
        matched = paired(slots[value], slots[result]) if value in slots and result in slots else None
        still = [query, key] if matched is not None else list(values)
        walk.fix([walk.node(given, slot) for given in still for slot in slots.get(given, ())], reason)
        for one, other in matched or ():
            walk.ledger.join(walk.node(value, one), walk.node(result, other), False, reason)
            walk.ledger.diagonal(walk.node(value, one), reason, still=False, unsigned=False)
        if query in slots and key in slots:
            of_query, of_key = (walk.unite(call, given, slots[given]) for given in (query, key))
            walk.crossed.append((of_query, of_key, walk.shape(query)[last]))
