"""What norms, sums, extremes, pointwise functions and rearrangements mean for the units that they touch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

from rebasin_cli.freedom import Pairing
from rebasin_cli.symmetry.classes.contractions import MATRIX_PRODUCTS, attention, convolution, linear, matrix_product
from rebasin_cli.symmetry.classes.ledger import Limit
from rebasin_cli.symmetry.classes.walk import Handler, Walk, value_of
from rebasin_cli.tracing.graph import SCATTER, Call
from rebasin_cli.tracing.operations import (
    ARRANGEMENT,
    CONTRACTION,
    COPY,
    DROP,
    HOMOGENEOUS,
    LINEAR,
    MOVES,
    NORM,
    ODD,
    PICK,
    SEGMENT,
    SHAPE_ONLY,
    TRANSPOSE,
    VIEW,
    has,
    is_pointwise,
    properties,
)


def unknown(walk: Walk, call: Call) -> None:
    """Nothing is known that would let more through than permutations."""
    walk.fix_all(call)


def arranged(walk: Walk, call: Call) -> None:
    """The same elements elsewhere. Positions that hold other numbers, equal along the units, keep the ones."""
    _no_complex_numbers(walk, call)
    _taken_apart(walk, call)
    terms = list(dict.fromkeys(call.inputs))
    for result in (value for value in call.results if value is not None):
        dims = _order(call, len(walk.shape(result))) if has(call.name, TRANSPOSE) else None
        for value in terms:
            walk.alike(call, value, result, dims)
        if len(terms) > 1:
            joined = call.name in ("aten.cat", "aten.concat")
            along = int(call.arguments["dim"]) % len(walk.shape(result)) if joined else None
            walk.uniform_terms(call, terms, result, apart=along)
    filled = call.arguments.get("value")
    if isinstance(filled, (int, float)) and filled:
        walk.uniform_terms(call, (), _result(call), float(filled))


def _no_complex_numbers(walk: Walk, call: Call) -> bool:
    """Complex values are permuted and no more; whether that is so here."""
    values = (*call.inputs, *(value for value in call.results if value is not None))
    if not any(walk.trace.values[value].dtype.is_complex for value in values):
        return False
    walk.fix_all(call, walk.where(call, "complex numbers"))
    return True


def _taken_apart(walk: Walk, call: Call) -> None:
    """Values divided along their last dimension, in neighbours or in halves: a rotation may follow."""
    value = call.inputs[0]
    shape = walk.shape(value)
    if not shape:
        return
    last = len(shape) - 1
    dim = call.arguments.get("dim")
    along = isinstance(dim, int) and dim % len(shape) == last
    pairing: Pairing | None = None
    strided = along and call.arguments.get("step", 1) == 2
    if call.name == "aten.view_as_complex" or strided or (along and has(call.name, DROP) and shape[last] == 2):
        pairing = "adjacent"
    elif along and has(call.name, SEGMENT) and walk.shape(_result(call))[-1] < shape[last]:
        pairing = "halves"
    if pairing is not None:
        walk.taken_apart += [(walk.node(value, slot), pairing) for slot in walk.slots(value) if last not in slot.dims]


def shape_only(walk: Walk, call: Call) -> None:
    """Nothing of the argument but its shape is read."""


def _order(call: Call, rank: int) -> list[int]:
    """For each dimension of the argument, that of the result."""
    order = list(range(rank))
    given = call.arguments.get("dims")
    if given is not None:
        order = [int(dim) % rank for dim in given]
    elif rank > 1:
        names = next((n for n in (("dim0", "dim1"), ("axis0", "axis1")) if n[0] in call.arguments), None)
        one, other = (rank - 2, rank - 1) if names is None else (int(call.arguments[n]) % rank for n in names)
        order[one], order[other] = other, one
    return [order.index(dim) for dim in range(rank)]


def _result(call: Call) -> int:
    return next(value for value in call.results if value is not None)


def _identity(walk: Walk, value: int) -> list[int]:
    return list(range(len(walk.shape(value))))


def layer_norm(walk: Walk, call: Call) -> None:
    """Divided by its own size over the last dimensions, the mean taken away or not, then scaled and shifted."""
    given = value_of(call.arguments["input"])
    assert given is not None
    rank, last = len(walk.shape(given)), len(call.arguments["normalized_shape"])
    centred = call.name == "aten.native_layer_norm"
    _normalise(walk, call, given, set(range(rank - last, rank)), centred)
    _affine(walk, call, given, [rank - last + place for place in range(last)])


def group_norm(walk: Walk, call: Call) -> None:
    """Over the channels of each group and all positions."""
    given = value_of(call.arguments["input"])
    assert given is not None
    groups, channels = int(call.arguments["group"]), walk.shape(given)[1]
    for slot in walk.slots(given):
        if slot.dims == (1,) and slot.size != channels // groups and not (groups == 1 and slot.covers):
            walk.fix([walk.node(given, slot)], walk.where(call))
    _normalise(walk, call, given, {1, *range(2, len(walk.shape(given)))}, True)
    _affine(walk, call, given, [1])


def _normalise(walk: Walk, call: Call, given: int, dims: set[int], centred: bool) -> None:
    reason = walk.where(call, "LayerNorm" if centred else "RMS norm")
    for slot in walk.slots(given):
        node = walk.node(given, slot)
        if slot.dims and set(slot.dims) <= dims and slot.covers and slot.size > 1:
            walk.ledger.limit(node, Limit.ONES if centred else Limit.ORTHOGONAL, reason)
            if centred and slot.size == prod(walk.shape(given)[dim] for dim in dims):
                walk.mean_free.add(node)
        elif set(slot.dims) & dims:
            walk.fix([node], walk.where(call, "normalised together with others"))
        else:
            walk.ledger.diagonal(node, reason, still=True, unsigned=False)
            walk.normed.append(node)


def _affine(walk: Walk, call: Call, given: int, places: Sequence[int]) -> None:
    """`y = weight * bare + bias`, where the bare norm changes as what it was given."""
    result = _result(call)
    weight, bias = value_of(call.arguments.get("weight")), value_of(call.arguments.get("bias"))
    same = _identity(walk, given)
    if weight is None:
        walk.alike(call, given, result, same)
    else:
        walk.multiply(call, given, weight, result, (same, places))
    if bias is not None:
        walk.alike(call, bias, result, places)
        walk.uniform_terms(call, [bias], result)


def batch_norm(walk: Walk, call: Call) -> None:
    """`y = weight * (x - mean) / sqrt(variance + eps) + bias`, channel by channel, with running statistics."""
    given, result = value_of(call.arguments["input"]), _result(call)
    assert given is not None
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (value_of(call.arguments.get(name)) for name in names)
    reason = walk.where(call, "BatchNorm")
    own_statistics = bool(call.arguments.get("training")) or mean is None
    for value in (given, mean):
        if value is not None:
            for node in walk.nodes(value):
                walk.ledger.diagonal(node, reason, still=own_statistics, unsigned=False)
    if variance is not None:
        walk.fix(walk.nodes(variance), reason)
    if mean is not None and not own_statistics:
        walk.alike(call, mean, given, [1])
    same = _identity(walk, given)
    if weight is None:
        walk.alike(call, given, result, same)
    else:
        walk.multiply(call, given, weight, result, (same, [1]))
    if bias is not None:
        walk.alike(call, bias, result, [1])


def weight_norm(walk: Walk, call: Call) -> None:
    """`g v / |v|`, the length taken of each slice along one dimension."""
    given, factor, result = value_of(call.arguments["v"]), value_of(call.arguments["g"]), _result(call)
    assert given is not None
    assert factor is not None
    rank = len(walk.shape(given))
    kept = int(call.arguments["dim"]) % rank
    _normalise(walk, call, given, set(range(rank)) - {kept}, False)
    walk.multiply(call, given, factor, result, (list(range(rank)), list(range(rank))))


def total(walk: Walk, call: Call) -> None:
    """A sum or a mean over dimensions; over units it keeps the ones, and of their squares it keeps lengths."""
    given, result = value_of(call.arguments["self"]), _result(call)
    assert given is not None
    gone, dims = _reduced(walk, call, given)
    length = call.name == "aten.linalg_vector_norm" and call.arguments.get("ord", 2) == 2
    linear_in = bool(properties(call.name) & LINEAR)
    for slot in walk.slots(given):
        if not set(slot.dims) & gone:
            continue
        node = walk.node(given, slot)
        if not (set(slot.dims) <= gone and slot.covers):
            walk.fix([node], walk.where(call))
        elif linear_in and given in walk.squares:
            for squared in walk.squares[given]:
                if walk.ledger.family[squared] == slot.family:
                    walk.ledger.limit(squared, Limit.ORTHOGONAL, walk.where(call, "RMS norm"))
        elif linear_in or call.name in ("aten.var", "aten.var_mean", "aten.std", "aten.std_mean"):
            walk.ledger.limit(node, Limit.ONES, walk.where(call, f"{_word(call)} over the units"))
        elif length:
            walk.ledger.limit(node, Limit.ORTHOGONAL, walk.where(call, "length over the units"))
        else:
            walk.fix([node], walk.where(call))
    for one, other in walk.pairs_kept(call, given, result, gone, dims):
        of_squares = walk.squares.get(given, [])
        walk.normed += [node for node in of_squares if walk.ledger.family[node] == walk.ledger.family[one]]
        if linear_in:
            walk.ledger.join(one, other, False, walk.where(call))
        else:
            _one_by_one(walk, call, one, other)


def _word(call: Call) -> str:
    return call.name.partition(".")[2]


def _reduced(walk: Walk, call: Call, given: int) -> tuple[set[int], list[int | None]]:
    """The dimensions that are reduced, and for each dimension that of the result."""
    rank = len(walk.shape(given))
    asked: Any = call.arguments.get("dim")
    if asked is None or (isinstance(asked, (list, tuple)) and not asked):
        gone = set(range(rank))
    else:
        gone = {int(dim) % max(rank, 1) for dim in (asked if isinstance(asked, (list, tuple)) else [asked])}
    places = itertools.count()
    keep = bool(call.arguments.get("keepdim", False))
    return gone, [next(places) if keep or dim not in gone else None for dim in range(rank)]


def _one_by_one(walk: Walk, call: Call, one: int, other: int) -> None:
    """A function of every unit by itself, as far as the table knows it: odd, or positively homogeneous, or neither."""
    found = properties(call.name)
    still = not found & HOMOGENEOUS or _bounded(call)
    walk.ledger.join(one, other, False, walk.where(call))
    walk.ledger.diagonal(one, walk.where(call), still=still, unsigned=not found & ODD)


def _bounded(call: Call) -> bool:
    """Whether a function that is homogeneous by itself is given bounds other than zero."""
    return any(call.arguments.get(name) not in (None, 0, 0.0) for name in ("min", "max", "threshold"))


def extreme(walk: Walk, call: Call) -> None:
    """Something that is chosen, sorted or made a distribution along dimensions: along others, unit by unit."""
    given = value_of(call.arguments.get("self"))
    if given is None:
        walk.fix_all(call)
        return
    rank = len(walk.shape(given))
    results = [value for value in call.results if value is not None]
    gone, dims = _reduced(walk, call, given)
    for result in results:
        mapped = dims if len(walk.shape(result)) != rank else list(range(rank))
        for slot in walk.slots(given):
            if set(slot.dims) & gone:
                walk.fix([walk.node(given, slot)], walk.where(call))
        for one, other in walk.pairs_kept(call, given, result, gone, mapped):
            _one_by_one(walk, call, one, other)


def pointwise(walk: Walk, call: Call) -> None:
    """Every element by itself, with broadcasting."""
    result, name = _result(call), call.name
    if _no_complex_numbers(walk, call):
        for value in dict.fromkeys(call.inputs):
            walk.alike(call, value, result, _dims(walk, value, result))
    elif name in SUMS:
        SUMS[name](walk, call)
    elif name == "aten.mul":
        _multiplied(walk, call, result)
    elif name == "aten.div":
        _divided(walk, call, result)
    elif name == "aten.pow" and call.arguments.get("exponent") == 2 and value_of(call.arguments["self"]) is not None:
        _squared(walk, call, call.inputs[0], result)
    else:
        _function(walk, call, result)


def _dims(walk: Walk, value: int, result: int) -> list[int]:
    shift = len(walk.shape(result)) - len(walk.shape(value))
    return [dim + shift for dim in range(len(walk.shape(value)))]


def _terms(walk: Walk, call: Call, terms: Sequence[int], number: float = 0.0) -> None:
    result = _result(call)
    for value in terms:
        walk.alike(call, value, result, _dims(walk, value, result))
    walk.uniform_terms(call, terms, result, number)


def _sum(walk: Walk, call: Call) -> None:
    result = _result(call)
    terms = [value for name in ("self", "other") if (value := value_of(call.arguments.get(name))) is not None]
    number = next((a for n in ("other", "self") if isinstance(a := call.arguments.get(n), (int, float))), 0.0)
    _terms(walk, call, terms, float(number))
    if len(terms) == 2:
        walk.note_added(*terms)
    elif number and terms and terms[0] in walk.source and call.name == "aten.add" and terms[0] not in walk.added:
        walk.source[result], walk.added[result] = walk.source[terms[0]], float(number)


def _copied(walk: Walk, call: Call) -> None:
    source = value_of(call.arguments["src"])
    _terms(walk, call, [] if source is None else [source])


def _chosen(walk: Walk, call: Call) -> None:
    """`where`, `masked_fill`: one of two, by a mask that does not depend on the units."""
    mask = value_of(call.arguments.get("condition", call.arguments.get("mask")))
    if mask is not None and walk.slots(mask):
        walk.fix_all(call)
        return
    given = [call.arguments.get(name) for name in ("self", "other", "value")]
    terms = [value for argument in given if (value := value_of(argument)) is not None]
    numbers = [float(argument) for argument in given if isinstance(argument, (int, float))]
    _terms(walk, call, terms, next((number for number in numbers if number), 0.0))


SUMS: dict[str, Handler] = {
    "aten.add": _sum,
    "aten.sub": _sum,
    "aten.rsub": _sum,
    "aten.copy": _copied,
    "aten.where": _chosen,
    "aten.masked_fill": _chosen,
}


def _multiplied(walk: Walk, call: Call, result: int) -> None:
    left, right = value_of(call.arguments["self"]), value_of(call.arguments.get("other"))
    if left is None or right is None:
        walk.alike(call, call.inputs[0], result, _dims(walk, call.inputs[0], result))
    elif left == right:
        _squared(walk, call, left, result)
    else:
        walk.multiply(call, left, right, result, (_dims(walk, left, result), _dims(walk, right, result)))


def _divided(walk: Walk, call: Call, result: int) -> None:
    """Denominators that depend on the units are seldom: they are not followed."""
    over, below = value_of(call.arguments["self"]), value_of(call.arguments.get("other"))
    if call.arguments.get("rounding_mode") is not None or (below is not None and walk.slots(below)):
        walk.fix_all(call)
    elif over is not None:
        walk.alike(call, over, result, _dims(walk, over, result))


def _squared(walk: Walk, call: Call, given: int, result: int) -> None:
    """Squares may only be summed over all units; anything else that reads them is taken for a pointwise function."""
    pairs = walk.pairs(call, given, result, _dims(walk, given, result))
    for one, other in pairs:
        walk.ledger.even.append((one, other, 2))
    walk.squares[result] = [one for one, _ in pairs]


def _function(walk: Walk, call: Call, result: int) -> None:
    """A function of one value that holds units, or of several."""
    moved = [value for value in dict.fromkeys(call.inputs) if walk.slots(value)]
    others = [value for value in call.inputs if not walk.slots(value) and not walk.is_zero(value)]
    several = len(moved) > 1 and call.name not in ("aten.maximum", "aten.minimum")
    if several or (others and call.name in ("aten.maximum", "aten.minimum", "aten.clamp")):
        walk.fix_all(call)
        return
    for value in moved:
        for one, other in walk.pairs(call, value, result, _dims(walk, value, result)):
            if call.name == "aten.abs":
                walk.ledger.even.append((one, other, 1))
                walk.ledger.diagonal(one, walk.where(call), still=False, unsigned=False)
            elif bool(properties(call.name) & LINEAR):
                walk.ledger.join(one, other, False, walk.where(call))
            else:
                _one_by_one(walk, call, one, other)


def prelu(walk: Walk, call: Call) -> None:
    """Positively homogeneous in its argument; the slopes are what they are."""
    given, slopes, result = value_of(call.arguments["self"]), value_of(call.arguments["weight"]), _result(call)
    assert given is not None
    for one, other in walk.pairs(call, given, result, _identity(walk, given)):
        _one_by_one(walk, call, one, other)
    if slopes is not None:
        walk.fix(walk.nodes(slopes), walk.where(call, "slopes"))


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(MATRIX_PRODUCTS, matrix_product),
    "aten.linear": linear,
    **dict.fromkeys(
        ("aten.convolution", "aten._convolution", "aten.convolution_overrideable", "aten.mkldnn_convolution"),
        convolution,
    ),
    **dict.fromkeys(
        (
            "aten._scaled_dot_product_flash_attention_for_cpu",
            "aten._scaled_dot_product_flash_attention",
            "aten._scaled_dot_product_efficient_attention",
            "aten._scaled_dot_product_cudnn_attention",
            "aten._scaled_dot_product_fused_attention_overrideable",
            "aten._scaled_dot_product_attention_math",
            "aten.scaled_dot_product_attention",
        ),
        attention,
    ),
    **dict.fromkeys(("aten.native_layer_norm", "aten._fused_rms_norm", "aten.rms_norm"), layer_norm),
    "aten.native_group_norm": group_norm,
    **dict.fromkeys(
        (
            "aten.native_batch_norm",
            "aten._native_batch_norm_legit",
            "aten._native_batch_norm_legit_no_training",
            "aten._batch_norm_impl_index",
            "aten.cudnn_batch_norm",
            "aten._batch_norm_with_update",
            "aten._batch_norm_no_update",
        ),
        batch_norm,
    ),
    "aten._weight_norm_interface": weight_norm,
    **dict.fromkeys(
        (
            "aten.sum",
            "aten.mean",
            "aten.linalg_vector_norm",
            "aten.std",
            "aten.std_mean",
            "aten.var",
            "aten.var_mean",
        ),
        total,
    ),
    **dict.fromkeys(
        ("aten.amax", "aten.amin", "aten.max", "aten.min", "aten._softmax", "aten._log_softmax", "aten._safe_softmax"),
        extreme,
    ),
    **dict.fromkeys(("aten.prelu", "aten._prelu_kernel"), prelu),
    SCATTER: arranged,
    "aten.sort": unknown,
    "aten.topk": unknown,
}


def handler_of(call: Call) -> Handler:
    """What to do with an operation, by its name or by its kind."""
    return _handler(call.name, call.overload, len(call.inputs) == 1)


@lru_cache(maxsize=1024)
def _handler(name: str, overload: str, alone: bool) -> Handler:
    if name in HANDLERS:
        return HANDLERS[name]
    if has(name, SHAPE_ONLY):
        return shape_only
    if has(name, CONTRACTION | NORM):
        return unknown
    if is_pointwise(overload) and not has(name, ARRANGEMENT | VIEW):
        return pointwise
    if has(name, ARRANGEMENT | PICK | MOVES | COPY | VIEW):
        return arranged
    if properties(name) & LINEAR:
        return arranged
    if properties(name) & HOMOGENEOUS and alone:
        return homogeneous
    return unknown


def homogeneous(walk: Walk, call: Call) -> None:
    """Largest values of neighbourhoods: unit by unit, and positively homogeneous."""
    given = call.inputs[0]
    for result in (value for value in call.results if value is not None):
        for one, other in walk.pairs(call, given, result):
            _one_by_one(walk, call, one, other)
