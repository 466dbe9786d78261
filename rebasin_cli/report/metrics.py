"""Metrics of task vectors as a report: which pairs are closest, and by which metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rebasin_cli.report.layout import Document, Rows, document, facts, rows, text
from rebasin_cli.report.text import counted, number, printable
from rebasin_cli.task_vectors.metric import Metric
from rebasin_cli.task_vectors.metrics import all_metrics
from rebasin_cli.verbs.metrics import MetricsResult

FEW_PAIRS = 3
MOST_PAIRS = 10
RANKED_BY = "task_vector_cosine_similarity"
SHOWN = (
    "task_vector_cosine_similarity",
    "weight_space_angle",
    "task_vector_l2_distance",
    "right_subspace_overlap_top_k",
)
CAUTION = (
    "No single metric of weights predicts how well two networks merge: evaluate the merged network on data before "
    "relying on a pair."
)


def metrics_table(result: MetricsResult, *, verbose: bool = False) -> Document:
    """The report: for few pairs every metric of each, for many the closest and the farthest pair of each metric.

    With `verbose`, all pairs are ranked, and every metric is explained.
    """
    metrics = [metric for metric in all_metrics() if metric.name in result.metrics]
    pairs = result.pairs
    entries: list[tuple[str, object]] = [
        ("task vectors", f"{len(result.datasets)} of {printable(result.base)}: {', '.join(result.datasets)}"),
        *((f"base of {label}", path) for label, path in result.bases.items() if path != result.base),
        ("tensors", counted(result.tensors, "tensor")),
        ("alignment", _alignment(result)),
        *((f"aligned {one.label}", _moved(one.moved_units, one.units, one.cosine)) for one in result.alignment),
    ]
    few = len(pairs) <= FEW_PAIRS
    return document(
        facts(entries),
        None if few else _ranking(result, metrics, len(pairs) if verbose else MOST_PAIRS),
        _all_values(result, metrics) if few else _extremes(result, metrics),
        facts([(metric.name, metric.help) for metric in metrics]) if verbose else None,
        text(CAUTION),
        facts([("written", result.out)]),
    )


def _alignment(result: MetricsResult) -> str:
    if result.fallback is not None:
        return f"none, as a fallback: {result.fallback}"
    if not result.perm_matching:
        return "none"
    if not result.alignment:
        return "nothing was permuted: all networks share one base, so their units correspond already"
    return f"by weights, to {result.reference}; each network was permuted with its base"


def _moved(moved: int, units: int, cosine: Mapping[str, float]) -> str:
    return (
        f"{moved:,} of {counted(units, 'unit')} moved, cosine with the reference's weights {number(cosine['before'])} "
        f"-> {number(cosine['after'])}; function unchanged"
    )


def _all_values(result: MetricsResult, metrics: Sequence[Metric]) -> Rows:
    """A row for each metric, a column for each pair."""
    return rows(
        ["metric", *map(_pair, result.pairs)],
        [[metric.name, *(number(result.value(metric.name, pair)) for pair in result.pairs)] for metric in metrics],
        numbers=range(1, len(result.pairs) + 1),
        exact=[
            [metric.name, *(_exact(result.value(metric.name, pair)) for pair in result.pairs)] for metric in metrics
        ],
    )


def _exact(value: float | None) -> object:
    return "" if value is None else value


def _pair(name: str) -> str:
    return name.replace("__", " / ", 1)


def _sorted_pairs(result: MetricsResult, metric: Metric) -> list[str]:
    """The pairs that have a value, the closest first; equal ones in their order."""
    sign = -1.0 if metric.closer == "higher" else 1.0
    known = [(sign * value, pair) for pair in result.pairs if (value := result.value(metric.name, pair)) is not None]
    return [pair for _, pair in sorted(known, key=lambda entry: entry[0])]


def _ranking(result: MetricsResult, metrics: Sequence[Metric], most: int) -> Rows:
    """The closest pairs by cosine, or by the first metric that was measured."""
    first = next((metric for metric in metrics if metric.name == RANKED_BY), metrics[0])
    ranked = _sorted_pairs(result, first) or list(result.pairs)
    shown = [metric for metric in metrics if metric.name in SHOWN] or [first]
    return rows(
        [f"closest pairs by {first.name}", *(metric.name for metric in shown)],
        [[_pair(pair), *(number(result.value(metric.name, pair)) for metric in shown)] for pair in ranked[:most]],
        numbers=range(1, len(shown) + 1),
        exact_headings=["pair", *(metric.name for metric in metrics)],
        exact=[[pair, *(_exact(result.value(metric.name, pair)) for metric in metrics)] for pair in ranked],
    )


def _extremes(result: MetricsResult, metrics: Sequence[Metric]) -> Rows:
    """For each metric its closest and its farthest pair."""
    lines = []
    for metric in metrics:
        ranked = _sorted_pairs(result, metric)
        if ranked:
            ends = [(_pair(pair), number(result.value(metric.name, pair))) for pair in (ranked[0], ranked[-1])]
            lines.append([metric.name, *ends[0], *ends[1]])
        else:
            lines.append([metric.name, "", number(None), "", number(None)])
    return rows(["metric", "closest", "value", "farthest", "value"], lines, numbers=(2, 4))
