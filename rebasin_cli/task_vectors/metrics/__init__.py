"""The registry of metrics: every file of this folder defines `METRICS`. Imports no torch: help lists the names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from rebasin_cli.errors import UsageError, did_you_mean
from rebasin_cli.task_vectors.metric import Metric

ORDER = ("geometry", "effective_rank", "subspaces", "activations", "gradients")
"""The order of the families in reports; others follow by name."""


def _place(family: str) -> tuple[int, str]:
    return (ORDER.index(family) if family in ORDER else len(ORDER), family)


@cache
def all_metrics() -> tuple[Metric, ...]:
    """Every metric, family by family."""
    families = sorted((found.name for found in iter_modules(__path__)), key=_place)
    return tuple(metric for family in families for metric in import_module(f"{__name__}.{family}").METRICS)


def names() -> tuple[str, ...]:
    return tuple(metric.name for metric in all_metrics())


def chosen_metrics(wanted: Sequence[str], *, data: bool) -> tuple[Metric, ...]:
    """The metrics with these names in the registry's order; without names, all that can be measured.

    Args:
        data: there are data, for the metrics that need some.

    Raises:
        UsageError: an unknown name, or a metric that needs data without data.
    """
    for name in wanted:
        if name not in names():
            raise UsageError(f"unknown metric {name!r}{did_you_mean(name, names())}", hint="see --help for the names")
    found = tuple(metric for metric in all_metrics() if not wanted or metric.name in wanted)
    if data:
        return found
    lacking = [metric.name for metric in found if metric.needs_data]
    if wanted and lacking:
        raise UsageError(f"{lacking[0]} needs data", hint="give --data DATA, or --data LABEL=DATA for each network")
    return tuple(metric for metric in found if not metric.needs_data)
