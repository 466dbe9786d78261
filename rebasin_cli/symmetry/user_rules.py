"""Rules from the user's own files (`--rules FILE.py`), written with `rebasin_cli.rules`.

A file runs because the user named it. Its rules are valid while the context is open, override built-in rules for the
same operations, and are removed afterwards, so one model's rules never affect another's. Mistakes in them are reported
with file and line.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path

from rebasin_cli.errors import ModelError, RebasinError, UsageError, one_line
from rebasin_cli.model.foreign_code import failed, foreign_code, importable, load_file, place_in
from rebasin_cli.symmetry import rules as _rules  # noqa: F401  (loaded first: otherwise they would count as the user's)
from rebasin_cli.symmetry.positions import AxisLayout
from rebasin_cli.symmetry.registry import INDEX_RULES, RULES, Op, Result, Rule, temporary_rules

_NAME = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class UserRules:
    """What the files registered: the file by operator name, the names used so far, and the errors."""

    files: dict[str, Path] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    faults: list[ModelError] = field(default_factory=list)

    @property
    def unused(self) -> tuple[str, ...]:
        """One sentence for each rule that no operation of the model used."""
        missed = [(name, file) for name, file in self.files.items() if name not in self.used]
        return tuple(f"{file}: the model never calls {name}, so its rule was not used" for name, file in missed)


@contextmanager
def user_rules(files: Sequence[Path]) -> Iterator[UserRules]:
    """Load the files; their rules are valid inside the context.

    Args:
        files: Python files that register rules by `rebasin_cli.rules.rule("mylib.myop")`.

    Raises:
        UsageError: a file is absent.
        ModelError: a file fails, registers nothing, registers an operator that it or another of the files has
            registered, or gives a rule a name that no operator can have; and, while the rules are used, a rule that
            fails or gives what is no layout of the results.
    """
    found = UserRules()
    with temporary_rules():
        try:
            for file in dict.fromkeys(files):
                _load(file, found)
            yield found
            _raise_fault(found)
        except Exception:
            _raise_fault(found)
            raise


def _raise_fault(found: UserRules) -> None:
    """Raise the first error of a rule: otherwise it would only pin what the operation touches."""
    if found.faults:
        raise found.faults[0]


def _load(file: Path, found: UserRules) -> None:
    path = file.expanduser()
    if not path.is_file():
        seen = "is a directory" if path.is_dir() else "no such file"
        raise UsageError(f"{file}: {seen}", path=file, hint="--rules takes a Python file that registers rules")
    before, picking = dict(RULES), dict(INDEX_RULES)
    root = path.resolve()
    try:
        with importable(root.parent), foreign_code():
            load_file(root)
    except (Exception, SystemExit) as error:
        raise failed(f"--rules {file}", error, root) from error
    mine = {name: given for name, given in RULES.items() if before.get(name) is not given}
    if not mine:
        raise ModelError(
            f"{file}: registers no rule",
            path=file,
            hint='put @rule("namespace.operator") from rebasin_cli.rules above a function of one argument',
            slug="no-rule",
        )
    for name, given in mine.items():
        if not _NAME.fullmatch(name):
            meant = ".".join(re.split(r"::|\.", name)[:2])
            hint = f"write {meant!r}" if _NAME.fullmatch(meant) else "write 'namespace.operator'"
            raise ModelError(
                f"{_place(given, file)}: no operator can be named {name!r}", path=file, hint=hint, slug="rule-name"
            )
        RULES[name] = _guarded(name, given, file, found)
        if name in picking and INDEX_RULES[name] is picking[name]:
            del INDEX_RULES[name]  # it would be tried first, and take precedence over the user's rule
        found.files[name] = file


def _guarded(name: str, given: Rule, file: Path, found: UserRules) -> Rule:
    """The rule, its mistakes reported as the user's and not as a bug of this program."""

    @wraps(given)
    def guarded(op: Op) -> Result:
        found.used.add(name)
        try:
            result = given(op)
        except RebasinError:
            raise
        except Exception as error:
            place = place_in(error, file.expanduser().resolve()) or _place(given, file)
            raise _fault(found, f"{place}: {one_line(error)} (in the rule for {name})", op, file) from error
        wrong = _wrong(result, op)
        if wrong:
            raise _fault(found, f"{_place(given, file)}: the rule for {name} {wrong}", op, file)
        return result

    return guarded


def _wrong(result: object, op: Op) -> str | None:
    """What is wrong with the result of a rule; None if nothing is."""
    layouts = [result] if isinstance(result, AxisLayout) else result
    if not isinstance(layouts, (list, tuple)) or not all(
        item is None or isinstance(item, AxisLayout) for item in layouts
    ):
        return f"gave {type(result).__name__}, not an AxisLayout or a list of them"
    shapes = op.result_shapes
    if len(layouts) != len(shapes):
        return f"gave {len(layouts)} layouts for {len(shapes)} results"
    for place, (layout, shape) in enumerate(zip(layouts, shapes, strict=True)):
        if layout is not None and layout.shape != shape:
            return f"gave a layout of shape {layout.shape} for result {place} of shape {shape}"
    return None


def _place(given: Rule, file: Path) -> str:
    code = getattr(inspect.unwrap(given), "__code__", None)
    return f"{file}:{code.co_firstlineno}" if code is not None else str(file)


def _fault(found: UserRules, message: str, op: Op, file: Path) -> ModelError:
    where = f", called in module {op.call.scope!r}" if op.call.scope else ""
    found.faults.append(ModelError(f"{message}{where}", path=file, slug="user-rule"))
    return found.faults[-1]
