"""Do the tests notice a rule that leaves a relation out? Each rule of `symmetry/rules` is weakened in turn.

    python -m tests.benchmarks.mutated_rules [--only PATTERN] [--tests PATHS] [--most 40] [--json FILE]
    python -m tests.benchmarks.mutated_rules --operands

A *place* is a line of a file in `symmetry/rules` and one kind of what is said from there:

- `operand N`: that the dimensions of one operand of a combination run together with those of the others;
- `same`, `child`, `within`: that positions move alike, follow others, stay within a class (said outside combinations);
- `held`: that positions or dimensions keep their order; `fixed`: dimensions that a rule's result has fixed.

What changes nothing, because it was said before, is no place. First the tests run once, and for every place it is noted
which tests reach it. Then, for one place after the other, nothing is said from there, and the tests that reach it run,
shortest first, until one fails. A place that no test notices is listed.

Every run is a process forked from one that has imported everything, with one thread.

With `--operands`, the models of `tests/symmetry/rules/test_every_operand.py` alone are derived with each relation that
they reach left out: noticed are a different spec, or one that changes the function. This takes minutes, not hours.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from rebasin_cli.symmetry import algebra, registry
from rebasin_cli.symmetry.algebra import Operand
from rebasin_cli.symmetry.positions import AxisLayout
from rebasin_cli.symmetry.registry import INDEX_RULES, RULES, Op
from rebasin_cli.symmetry.relations import Relations

ROOT = Path(__file__).resolve().parents[2]
RULE_FILES = str(ROOT / "rebasin_cli" / "symmetry" / "rules") + os.sep
TESTS = ("tests/symmetry", "tests/execution/test_soundness.py", "tests/coverage/test_ledger.py")
SECONDS = 120
"""Spent on one place at most; a test that does not end counts as failed."""

Place = tuple[str, int, str]
"""File name, line, kind of relation."""

KINDS = {
    "link": "same", "same": "same", "function": "child", "finer": "child", "colour": "within", "pin": "held",
    "hold_axis": "held",
}  # fmt: skip


class Watch:
    """Knows from which place of the rules a relation comes, notes it, and drops it where asked."""

    def __init__(self) -> None:
        self.dropped: Place | None = None
        self.test = ""
        self.reached: dict[Place, set[str]] = {}
        self.spent: dict[str, float] = {}
        self.combining = 0

    def drops(self, kind: str) -> bool:
        """Whether what is said now, of this kind, is left out."""
        return self.dropped is not None and _line_of_a_rule(kind) == self.dropped

    def note(self, kind: str) -> None:
        """Something of this kind was said, and it was new."""
        place = _line_of_a_rule(kind) if self.dropped is None else None
        if place is not None:
            self.reached.setdefault(place, set()).add(self.test)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.test = item.nodeid
        began = time.perf_counter()
        try:
            return (yield)
        finally:
            self.spent[item.nodeid] = time.perf_counter() - began


def _amount(relations: Relations) -> tuple[int, ...]:
    """How much has been said: what is said again adds nothing."""
    said = relations.links, relations.functions, relations.colours, relations.claims
    pinned = {array.tobytes() for array, _ in relations.pins}
    held = sum(len(axes) for axes in relations.held.values())
    return (*(len(found) for found in said), len(pinned), held, relations.size)


def _line_of_a_rule(kind: str) -> Place | None:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(RULE_FILES):
            return Path(name).name, frame.f_lineno, kind
        frame = frame.f_back  # type: ignore[assignment]
    return None


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Relations are said through `watch` within this context."""
    originals: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, made: Any) -> None:
        originals.append((owner, name, getattr(owner, name)))
        setattr(owner, name, made)

    def silent(name: str, kind: str) -> Callable[..., None]:
        original = getattr(Relations, name)

        def said(self: Relations, *args: Any) -> None:
            if watch.combining and kind in ("same", "child"):
                original(self, *args)
            elif not watch.drops(kind):
                before = _amount(self)
                original(self, *args)
                if _amount(self) != before:
                    watch.note(kind)

        return said

    for name, kind in KINDS.items():
        put(Relations, name, silent(name, kind))
    hold, combine = registry.hold, algebra.combine

    def held(relations: Relations, layout: AxisLayout, dims: Any, reason: str) -> AxisLayout:
        if watch.drops("held"):
            return relations.released(layout)
        if any(factor not in layout.fixed for place in dims for factor in layout.dims[place]):
            watch.note("held")
        return hold(relations, layout, dims, reason)

    def combined(relations: Relations, operands: Sequence[Operand], result: Sequence[Hashable]) -> AxisLayout:
        given = [(layout, list(labels)) for layout, labels in operands]
        for number, (layout, labels) in enumerate(given):
            elsewhere = {
                label
                for other, (partner, names) in enumerate(given)
                for label, dim in zip(names, partner.dims, strict=True)
                if other != number and dim
            }
            if any(label in elsewhere and dim for label, dim in zip(labels, layout.dims, strict=True)):
                watch.note(f"operand {number}")
                if watch.drops(f"operand {number}"):
                    given[number] = (layout, [(number, label) if label in elsewhere else label for label in labels])
        watch.combining += 1
        try:
            return combine(relations, given, list(result))
        finally:
            watch.combining -= 1

    for module in [module for name, module in sys.modules.items() if name.startswith("rebasin_cli.symmetry")]:
        for name, own, made in (("hold", hold, held), ("combine", combine, combined)):
            if getattr(module, name, None) is own:
                put(module, name, made)
    for table in (RULES, INDEX_RULES):
        for name, rule in list(table.items()):
            put_in(table, name, _freed(rule, watch), originals)
    try:
        yield
    finally:
        for owner, name, original in reversed(originals):
            if isinstance(owner, dict):
                owner[name] = original
            else:
                setattr(owner, name, original)


def put_in(table: dict[str, Any], name: str, made: Any, originals: list[tuple[Any, str, Any]]) -> None:
    originals.append((table, name, table[name]))
    table[name] = made


def _freed(rule: Any, watch: Watch) -> Any:
    """The rule; where its result is the place, dimensions that it fixes are free instead."""
    file, line = Path(rule.__code__.co_filename).name, rule.__code__.co_firstlineno

    def weakened(op: Op) -> Any:
        found = rule(op)
        if not rule.__code__.co_filename.startswith(RULE_FILES):
            return found
        given = {factor for name in op.call.arguments for factor in _fixed_of(op, name)}
        place = (file, line, "fixed")
        layouts = found if isinstance(found, list) else [found]
        if not any(isinstance(layout, AxisLayout) and layout.fixed.keys() - given for layout in layouts):
            return found
        if watch.dropped is None:
            watch.reached.setdefault(place, set()).add(watch.test)
        if watch.dropped != place:
            return found
        loose = [
            replace(layout, fixed={factor: why for factor, why in layout.fixed.items() if factor in given})
            if isinstance(layout, AxisLayout)
            else layout
            for layout in layouts
        ]
        return loose if isinstance(found, list) else loose[0]

    return weakened


def _fixed_of(op: Op, name: str) -> set[Any]:
    try:
        layout = op.layout(name)
    except Exception:  # no tensor
        return set()
    return set(layout.fixed)


def in_a_fork(work: Callable[[], Any], seconds: float) -> Any:
    """What `work` gives in a forked process, as JSON; None where it does not end."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            with os.fdopen(write, "w") as pipe:
                json.dump(work(), pipe)
        finally:
            os._exit(0)
    os.close(write)
    os.set_blocking(read, False)
    ends, text = time.monotonic() + seconds, b""
    while time.monotonic() < ends:
        try:
            piece = os.read(read, 1 << 16)
        except BlockingIOError:
            time.sleep(0.02)
            continue
        if not piece:
            break
        text += piece
    else:
        os.kill(child, 9)
        text = b""
    os.close(read)
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def run_tests(watch: Watch, tests: list[str], *more: str) -> int:
    with watched(watch):
        return int(pytest.main(["-q", "-n0", "-p", "no:randomly", *more, *tests], plugins=[watch]))


def record(tests: list[str]) -> tuple[dict[Place, set[str]], dict[str, float]]:
    """Which tests reach each place, and what each test takes in seconds."""

    def work() -> Any:
        watch = Watch()
        run_tests(watch, tests)
        return [[list(place), sorted(names)] for place, names in watch.reached.items()], watch.spent

    reached, spent = in_a_fork(work, 3600.0)
    return {(place[0], place[1], place[2]): set(names) for place, names in reached}, spent


def noticed(place: Place, tests: list[str]) -> bool:
    """Whether one of these tests fails when nothing is said from this place."""

    def work() -> Any:
        watch = Watch()
        watch.dropped = place
        return run_tests(watch, tests, "-x")

    code = in_a_fork(work, SECONDS)
    return code is None or code == 1


def operands() -> None:
    """Print how many of the relations that the models of every operand reach are noticed when left out."""
    from rebasin_cli.model.example_input import ExampleInput
    from rebasin_cli.symmetry.derive import derive
    from rebasin_cli.tracing.tracer import trace_model
    from tests.symmetry.rules.bench import holds
    from tests.symmetry.rules.test_every_operand import OPERATIONS, Operands, X

    reached: set[Place] = set()
    found: set[Place] = set()
    for run, shapes in OPERATIONS.values():
        net, x = Operands(run, shapes).double().eval(), X.double()
        watch = Watch()
        with watched(watch):
            right = derive(trace_model(net, ExampleInput((x,)))).spec
        for place in sorted(set(watch.reached) - found):
            reached.add(place)
            other = Watch()
            other.dropped = place
            try:
                with watched(other):
                    spec = derive(trace_model(net, ExampleInput((x,)))).spec
            except Exception:  # a rule that fails without it is noticed
                found.add(place)
                continue
            if spec != right or not holds(net, spec, x):
                found.add(place)
    for place in sorted(reached - found):
        print(f"not noticed: {place[0]}:{place[1]} {place[2]}")
    print(f"{len(found)} of {len(reached)} relations left out are noticed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="a pattern of rule files")
    parser.add_argument("--tests", nargs="*", default=list(TESTS))
    parser.add_argument("--most", type=int, default=40, help="tests that are tried for one place")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--operands", action="store_true", help="the models of every operand only")
    options = parser.parse_args()
    if options.operands:
        operands()
        return
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    reached, spent = record(options.tests)
    places = sorted(place for place in reached if fnmatchcase(place[0], options.only))
    missed: list[Place] = []
    for place in places:
        tests = sorted((test for test in reached[place] if test), key=lambda test: spent.get(test, 0.0))
        if not noticed(place, tests[: options.most]):
            missed.append(place)
            print(f"not noticed: {place[0]}:{place[1]} {place[2]} ({len(tests)} tests reach it)", flush=True)
    found = len(places) - len(missed)
    print(f"{found} of {len(places)} relations left out are noticed ({100 * found / max(len(places), 1):.1f} %)")
    if options.json:
        options.json.write_text(json.dumps({"places": places, "missed": missed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
