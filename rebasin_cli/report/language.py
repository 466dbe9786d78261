"""What a sweep over text says of language models: perplexity and bits per byte, from the loss per token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rebasin_cli.report.layout import Rows, rows
from rebasin_cli.report.text import number, with_error
from rebasin_cli.verbs.interpolate_result import InterpolateResult

_SHORT = {"naive": "before", "matched": "after"}


def language_facts(result: InterpolateResult) -> list[tuple[str, object]]:
    """The text in figures, and the barriers in bits per byte."""
    if result.text is None:
        return []
    facts = result.text
    errors = facts["barrier_bits_per_byte_standard_error"]
    many = len(result.curves) > 1
    barriers = [
        with_error(height, errors[curve]) + (f" {_SHORT.get(curve, curve)} alignment" if many else "")
        for curve, height in facts["barrier_bits_per_byte"].items()
        if height is not None
    ]
    return [
        ("tokens", _tokens(facts)),
        ("barrier, bits per byte", ", ".join(barriers) or number(None)),
    ]


def _tokens(facts: Mapping[str, Any]) -> str:
    if facts["tokenizer"] == "bytes":
        return "bytes of the text"
    return f"{facts['bytes_per_token']:.3g} bytes each, by {facts['tokenizer']}"


def language_table(result: InterpolateResult) -> Rows | None:
    """One row for each value of lam, with perplexity and bits per byte of every curve."""
    if result.text is None:
        return None
    curves = result.text["curves"]
    names = list(curves)
    many = len(result.checkpoints) > 2
    headings = (["segment"] if many else []) + ["lam"]
    for field in ("perplexity", "bits/byte"):
        headings += [field if len(names) == 1 else f"{field} {_SHORT.get(name, name)}" for name in names]
    lines, exact = [], []
    for across in zip(*curves.values(), strict=True):
        lead: list[object] = [across[0]["segment"] + 1] if many else []
        values = [point[field] for field in ("perplexity", "bits_per_byte") for point in across]
        lines.append([*map(str, lead), f"{across[0]['lam']:.3g}", *map(number, values)])
        exact.append([*lead, across[0]["lam"], *("" if value is None else value for value in values)])
    return rows(headings, lines, numbers=range(len(headings)), exact=exact)
