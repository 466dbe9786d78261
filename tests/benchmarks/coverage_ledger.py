"""The coverage ledger over all zoos: what is derived for each model, that it is sound, and what falls short and why.

`python -m tests.benchmarks.coverage_ledger` prints it, `--write` also keeps it as a golden file, `--only PATTERN …`,
`--quick` and `--missing` take some rows, `--no-execute` leaves the soundness check out. What came out otherwise than
the golden file has it is listed at the end. Rows of packages that are not installed are left as they were.
torchvision's classification models have a table of their own (`zoo_table`), shown here too.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
from collections.abc import Callable, Iterator
from dataclasses import asdict
from fnmatch import fnmatchcase
from statistics import median
from typing import Any

from rebasin_cli.model.names import is_installed
from tests.benchmarks import zoo_table
from tests.coverage.entries import AS_TRACED, Entry, entries, is_quick
from tests.coverage.measure import GOLDEN, golden, lasting, measure
from tests.coverage.shortfalls import SHORTFALLS

HEAD = (
    f"{'model':44} {'roots+families':>14} {'groups':>6} {'units':>7} {'free':>7} {'error':>8} {'seconds':>13}  unknown"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="derive every model of every zoo and print the ledger")
    parser.add_argument("--write", action="store_true", help=f"keep the rows in {GOLDEN.name}")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names, for example 'timm:*'")
    parser.add_argument("--quick", action="store_true", help="only the rows that the tests derive afresh")
    parser.add_argument("--missing", action="store_true", help="only the rows that the golden file does not have")
    parser.add_argument("--no-execute", dest="execute", action="store_false", help="leave the soundness check out")
    options = parser.parse_args()
    if options.write and not options.execute:
        parser.error("the golden file keeps the errors of an execution: leave out --no-execute")
    kept = golden()

    def wanted(name: str) -> bool:
        taken = any(fnmatchcase(name, pattern) for pattern in options.only)
        return taken and (is_quick(name) or not options.quick) and not (options.missing and name in kept)

    print(HEAD)
    failed: list[str] = []
    changed: list[str] = []
    shown = {name: fields for name, fields in _classification().items() if wanted(name)}
    for name, kept_fields in shown.items():
        print(_line(name, kept_fields))
    for entry, fields in _rows(wanted, options.execute):
        if isinstance(fields, str):
            failed.append(f"{entry.name}: {fields}")
            continue
        print(_line(entry.name, fields), flush=True)
        if entry.name in kept:
            changed += _changes(entry.name, lasting(kept[entry.name]), lasting(fields))
        shown[entry.name] = fields
        if options.write:
            GOLDEN.write_text(json.dumps(dict(sorted({**golden(), entry.name: fields}.items())), indent=1) + "\n")
    _tell("Zoo: rows, executed, largest error, groups, units, median and least free share:", _summary(shown))
    _tell("Rows that fall short of what is possible, or could:", _shortfalls(shown))
    _tell("Rows that were executed one layer at a time, and their error with one tensor left behind:", _refuted(shown))
    _tell("Rows that came out otherwise than in the golden file:", changed)
    _tell("Rows that failed:", failed)
    print(f"\nPeak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")
    if failed:
        raise SystemExit(1)


def _rows(wanted: Callable[[str], bool], execute: bool) -> Iterator[tuple[Entry, dict[str, Any] | str]]:
    for entry in entries():
        if not wanted(entry.name) or (entry.needs and not is_installed(entry.needs)):
            continue
        try:
            yield entry, asdict(measure(entry, execute=execute))
        except Exception as error:  # one model must not end the ledger
            yield entry, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        gc.collect()


def _classification() -> dict[str, dict[str, Any]]:
    """The rows of torchvision's classification models from their own golden file."""
    table = json.loads(zoo_table.GOLDEN.read_text())
    return {
        f"torchvision:{name}": {
            **row,
            "error": row["max_relative_error"],
            "trace_seconds": row["seconds"],
            "derive_seconds": 0.0,
            "shortfall": SHORTFALLS.get(f"torchvision:{name}", ""),
            "held": {},
            "execution": AS_TRACED,
            "refuted": None,
        }
        for name, row in table.items()
    }


def _line(name: str, row: dict[str, Any]) -> str:
    error = "-" if row["error"] is None else f"{row['error']:.0e}"
    seconds = f"{row['trace_seconds']:.1f} + {row['derive_seconds']:.1f}"
    shape = f"{row['roots']} + {row['families']}"
    unknown = ", ".join(row["unknown_ops"])
    counts = f"{shape:>14} {row['groups']:6d} {row['units']:7d} {row['free_fraction']:7.4f}"
    return f"{name:44} {counts} {error:>8} {seconds:>13}  {unknown}"


def _summary(rows: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for zoo in dict.fromkeys(name.partition(":")[0] for name in rows):
        own = [row for name, row in rows.items() if name.startswith(f"{zoo}:")]
        errors = [row["error"] for row in own if row["error"] is not None]
        free = sorted(row["free_fraction"] for row in own)
        groups, units = (sum(row[field] for row in own) for field in ("groups", "units"))
        lines.append(
            f"{zoo:14} {len(own):4d} {len(errors):4d} {max(errors, default=0.0):8.0e} {groups:7d} {units:9d} "
            f"{median(free):8.4f} {free[0]:7.4f}"
        )
    return lines


def _shortfalls(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The reason of each, and what holds its numbers."""
    lines = []
    for name, row in sorted(rows.items()):
        if row["shortfall"]:
            held = "; ".join(f"{share:.2%} {reason}" for reason, share in row["held"].items())
            lines.append(f"{name}: {row['shortfall']}" + (f" [{held}]" if held else ""))
    return lines


def _refuted(rows: dict[str, dict[str, Any]]) -> list[str]:
    return [f"{name}: {row['refuted']:.0e}" for name, row in sorted(rows.items()) if row["refuted"] is not None]


def _changes(name: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {field} {before.get(field)!r} -> {value!r}"
        for field, value in after.items()
        if before.get(field) != value
    ]


def _tell(title: str, lines: list[str]) -> None:
    if lines:
        print(f"\n{title}")
    for line in lines:
        print(f"  {line}")


if __name__ == "__main__":
    main()
