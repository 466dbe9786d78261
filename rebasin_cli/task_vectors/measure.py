"""All metrics of all pairs of task vectors: each tensor's part, and the metrics that the parts make up.

Each tensor of each task vector is decomposed at most once, and all metrics and pairs share the decomposition.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, nan, sqrt
from typing import Any

import torch

from rebasin_cli.execution.closeness import Closeness
from rebasin_cli.task_vectors.decomposition import Decomposition, decompose
from rebasin_cli.task_vectors.metric import Metric, Source
from rebasin_cli.task_vectors.vectors import TaskVector, pair_sums, pairs_of

LEAST_WEIGHT = 1e-10
"""Tensors whose two norms sum to less are left out of means over tensors."""
SPECTRUM_ALONE = "singular_value_overlap"
"""The only metric of matrices that needs no singular vectors."""

NetworkSums = Mapping[Source, Sequence[Closeness]]
"""For each source that is one vector for each network: the sums of every pair."""


@dataclass(frozen=True, slots=True)
class TensorPart:
    """What one tensor contributes to every pair.

    Attributes:
        sums: of every pair, in the order of `pairs_of`.
        matrices: by metric of matrices, the value of every pair; NaN where there is none.
        undetermined: task vectors of which this tensor has a subspace that is not determined.
    """

    key: str
    sums: tuple[Closeness, ...]
    matrices: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    undetermined: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "sums": _packed([x for s in self.sums for x in (s.dot, s.square_a, s.square_b, s.square_difference)]),
            "matrices": {name: _packed(values) for name, values in self.matrices.items()},
            "undetermined": self.undetermined,
        }

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> TensorPart:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the document is none.
        """
        numbers = _unpacked(found["sums"])
        sums = tuple(Closeness(*numbers[at : at + 4]) for at in range(0, len(numbers), 4))
        matrices = {str(name): tuple(_unpacked(text)) for name, text in found["matrices"].items()}
        return TensorPart(str(found["key"]), sums, matrices, int(found["undetermined"]))


def _packed(values: Sequence[float]) -> str:
    return base64.b64encode(torch.tensor(values, dtype=torch.float64).numpy().tobytes()).decode("ascii")


def _unpacked(text: str) -> list[float]:
    data = bytearray(base64.b64decode(text, validate=True))
    return torch.frombuffer(data, dtype=torch.float64).tolist() if data else []


def tensor_part(vectors: Sequence[TaskVector], key: str, metrics: Sequence[Metric]) -> TensorPart:
    """Read one tensor of every network and measure what it contributes to every pair."""
    sums = tuple(pair_sums(vectors, key))
    wanted = [metric for metric in metrics if metric.source == "matrices"]
    if not wanted or vectors[0].base[key].dim() != 2 or vectors[0].base[key].is_complex():
        return TensorPart(key, sums)
    needs_vectors = any(metric.name != SPECTRUM_ALONE for metric in wanted)
    found = [decompose(one.matrix(key), vectors=needs_vectors) for one in vectors]
    matrices = {metric.name: _over_pairs(metric, found) for metric in wanted}
    undetermined = sum(1 for one in found if one is not None and one.undetermined) if needs_vectors else 0
    return TensorPart(key, sums, matrices, undetermined)


def _over_pairs(metric: Metric, found: Sequence[Decomposition | None]) -> tuple[float, ...]:
    values = []
    for i, j in pairs_of(len(found)):
        one, other = found[i], found[j]
        value = None if one is None or other is None else metric.value(one, other)
        values.append(nan if value is None else value)
    return tuple(values)


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric of every pair, in the order of `pairs_of`, and of every tensor by key where it has layers."""

    metric: Metric
    values: tuple[float | None, ...]
    layers: tuple[Mapping[str, float | None], ...] = ()


def assemble(
    metrics: Sequence[Metric],
    parts: Sequence[TensorPart],
    pairs: int,
    networks: NetworkSums,
    *,
    per_layer: bool = False,
) -> list[Measured]:
    """The metrics of all pairs, from the parts of all tensors and the sums of networks' vectors."""
    total = [_added([part.sums[pair] for part in parts]) for pair in range(pairs)]
    found = []
    for metric in metrics:
        layers = [[_of_tensor(metric, part, pair) for part in parts] for pair in range(pairs)] if metric.layered else []
        if metric.source == "vectors":
            values = [metric.value(sums) for sums in total]
        elif metric.layered:
            values = [_mean(metric, row, parts, pair) for pair, row in enumerate(layers)]
        else:
            values = [metric.value(sums) for sums in networks.get(metric.source, ())] or [None] * pairs
        kept = [{part.key: v for part, v in zip(parts, row, strict=True) if v is not None} for row in layers]
        found.append(Measured(metric, tuple(values), tuple(kept) if per_layer else ()))
    return found


def _added(sums: Sequence[Closeness]) -> Closeness:
    return Closeness(
        sum(one.dot for one in sums),
        sum(one.square_a for one in sums),
        sum(one.square_b for one in sums),
        sum(one.square_difference for one in sums),
    )


def _weight(sums: Closeness) -> float:
    return sqrt(sums.square_a) + sqrt(sums.square_b)


def _of_tensor(metric: Metric, part: TensorPart, pair: int) -> float | None:
    """The metric of one tensor; None where it is not defined."""
    if metric.source == "matrices":
        values = part.matrices.get(metric.name)
        return None if values is None or isnan(values[pair]) else values[pair]
    if _weight(part.sums[pair]) < LEAST_WEIGHT:
        return None
    return metric.value(part.sums[pair])


def _mean(metric: Metric, row: Sequence[float | None], parts: Sequence[TensorPart], pair: int) -> float | None:
    """The mean over tensors that have a value: by norms for metrics of layers, plain for those of matrices."""
    weighted = metric.source == "layers"
    known = [(v, _weight(p.sums[pair]) if weighted else 1.0) for v, p in zip(row, parts, strict=True) if v is not None]
    weight = sum(w for _, w in known)
    return sum(v * w for v, w in known) / weight if weight > 0 else None


def undetermined_tensors(parts: Sequence[TensorPart]) -> list[str]:
    """The tensors of which some task vector has a singular subspace that is not determined."""
    return [part.key for part in parts if part.undetermined]
