"""The results of `verify`, `apply`, `trace` and `env` in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from rebasin_cli.report.align import function_in_words, siblings_in_words
from rebasin_cli.report.layout import Document, Part, document, facts, rows
from rebasin_cli.report.text import counted, number, seconds, share, size
from rebasin_cli.spec import AxisGroup
from rebasin_cli.verbs.apply import ApplyResult
from rebasin_cli.verbs.env import EnvResult
from rebasin_cli.verbs.trace import TraceResult
from rebasin_cli.verbs.verify import VerifyResult

_BLOCK = re.compile(r"\[\d+\](?=(#\w+)?$)")
"""The number of the block in the name of a group that lives in one."""


def verify_table(result: VerifyResult) -> Document:
    """Same function or not, and by how much."""
    return document(
        facts(
            [
                ("A", result.a),
                ("B", result.b),
                ("function", function_in_words(result.verified)),
                ("tensors", f"{result.identical_tensors:,} of {result.tensors:,} are equal bit for bit"),
                ("time", seconds(result.seconds["total"])),
            ]
        )
    )


def apply_table(result: ApplyResult) -> Document:
    """What was applied to what, and where it is."""
    return document(
        facts(
            [
                ("applied", f"{counted(result.moved_groups, 'permutation')} of {counted(result.groups, 'group')}"),
                ("to", result.checkpoint),
                ("state", (result.state or "the whole file") + siblings_in_words(result.siblings)),
                (
                    "checked",
                    f"{counted(result.tensors, 'tensor')}, each a permutation of the checkpoint's, bit for bit",
                ),
                ("written", result.out),
                ("time", seconds(result.seconds["total"])),
            ]
        )
    )


def trace_table(result: TraceResult, *, verbose: bool = False) -> Document:
    """The groups, the pinned axes with reasons, the verification; with `verbose`, every group, axis and operation."""
    movable = [group for group in result.spec.groups if group.size > 1]
    entries: list[tuple[str, object]] = [
        ("model", result.model),
        ("input", result.input),
        ("modules", counted(len(result.modules), "module")),
        (
            "groups",
            f"{counted(len(result.spec.groups), 'axis group')}, {counted(result.units, 'unit')}, in "
            f"{share(result.free_fraction)} of {counted(result.parameters, 'parameter')}",
        ),
        ("function", _soundness(result)),
        *([("classes", _class_soundness(result))] if result.verified_classes is not None else []),
        ("time", f"{seconds(result.seconds['total'])}, peak memory {size(result.peak_rss_bytes)}"),
    ]
    if result.out is not None:
        entries.append(("written", result.out))
    groups = rows(
        ("axis group", "units", "inside", "tensors", "class", "why no larger")
        if verbose
        else ("axis group", "units", "inside", "tensors", "class"),
        [
            (g.name, f"{g.size:,}", _parent(g), _tensors(g), _class(g), g.class_reason or "nothing limits it")
            for g in movable
        ]
        if verbose
        else list(_bundled(movable)),
        numbers=(1, 3),
    )
    return document(facts(entries), groups if movable else None, _pins(result, verbose), _operations(result, verbose))


def _parent(group: AxisGroup) -> str:
    return f"{group.parent.group}[{group.parent.block}]" if group.parent else ""


def _tensors(group: AxisGroup) -> int:
    return len({site.key for site in group.sites})


def _class(group: AxisGroup) -> str:
    return group.symmetry.value


def _bundled(groups: Sequence[AxisGroup]) -> Iterator[tuple[str, str, str, int, str]]:
    """Rows of the table, in which like groups in the blocks of one group are one row."""
    bundles: dict[tuple[object, ...], list[AxisGroup]] = {}
    for group in groups:
        shape: tuple[object, ...] = (group.name,)
        if group.parent is not None:
            shape = (_BLOCK.sub("[]", group.name), group.parent.group, group.size, _tensors(group), group.symmetry)
        bundles.setdefault(shape, []).append(group)
    for bundle in bundles.values():
        first = bundle[0]
        if len(bundle) == 1 or first.parent is None:
            yield first.name, f"{first.size:,}", _parent(first), _tensors(first), _class(first)
        else:
            name = _BLOCK.sub(f"[{len(bundle)} blocks]", first.name)
            yield name, f"{len(bundle)} x {first.size:,}", first.parent.group, _tensors(first), _class(first)


def _soundness(result: TraceResult) -> str:
    if result.verified is None:
        return "not checked (--no-verify)"
    if result.verified.silent:
        return "not verified: on random weights the model's outputs are empty or zero"
    if not result.spec.groups:
        return "nothing to verify: there is no axis group"
    error = number(result.verified.max_relative_error)
    return f"unchanged under random permutations of all groups: relative error {error}"


def _class_soundness(result: TraceResult) -> str:
    assert result.verified_classes is not None
    if result.verified_classes.silent:
        return "not verified: on random weights the model's outputs are empty or zero"
    error = number(result.verified_classes.max_relative_error)
    return f"function unchanged under random maps of each group's class: relative error {error}"


def _pins(result: TraceResult, verbose: bool) -> Part | None:
    pinned = result.spec.pinned
    if verbose and pinned:
        return rows(
            ("pinned tensor", "axis", "reason"), [(pin.key, pin.axis, pin.reason) for pin in pinned], numbers=(1,)
        )
    reasons = Counter(pin.reason for pin in pinned)
    if not reasons:
        return None
    return rows(("pinned axes", "reason"), [(count, reason) for reason, count in reasons.most_common()], numbers=(0,))


def _operations(result: TraceResult, verbose: bool) -> Part | None:
    if not verbose:
        return None
    return rows(("operation", "calls"), [(op, count) for op, count in result.ops.items()], numbers=(1,))


def env_table(result: EnvResult) -> Document:
    """What a bug report needs."""
    present = {**result.packages, **{name: found for name, found in result.optional.items() if found}}
    return document(
        facts(
            [
                ("rebasin", result.rebasin),
                ("python", result.python),
                ("platform", result.platform),
                ("processors", f"{result.cpus} ({result.threads} threads)"),
                ("memory", f"{size(result.available_memory_bytes)} available"),
                ("devices", ", ".join(result.devices)),
                *((name, found or "not installed") for name, found in present.items()),
                *(("problem", problem) for problem in result.problems),
            ]
        )
    )
