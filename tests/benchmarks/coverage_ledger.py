"""The coverage ledger over all zoos: what is derived for each model, that it is sound, and what falls short and why.

`python -m tests.benchmarks.coverage_ledger` prints it, `--write` also keeps it as a golden file, `--only PATTERN` takes
some rows, `--no-execute` leaves the soundness check out. Rows of packages that are not installed are left as they were.
torchvision's classification models have a table of their own (`zoo_table`), shown here too.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from rebasin_cli.model.optional_package import is_installed
from tests.benchmarks import zoo_table
from tests.coverage.entries import Entry, entries
from tests.coverage.measure import GOLDEN, golden, measure

HEAD = (
    f"{'model':44} {'roots+families':>14} {'groups':>6} {'units':>7} {'free':>7} {'error':>8} {'seconds':>13}  unknown"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="derive every model of every zoo and print the ledger")
    parser.add_argument("--write", action="store_true", help=f"keep the rows in {GOLDEN.name}")
    parser.add_argument("--only", default="*", help="a pattern of names, for example 'timm:*'")
    parser.add_argument("--no-execute", dest="execute", action="store_false", help="leave the soundness check out")
    options = parser.parse_args()
    print(HEAD)
    failed: list[str] = []
    for name, fields in _classification().items():
        if fnmatchcase(name, options.only):
            print(_line(name, fields))
    kept = golden()
    for entry, fields in _rows(options.only, options.execute):
        if isinstance(fields, str):
            failed.append(f"{entry.name}: {fields}")
            continue
        print(_line(entry.name, fields), flush=True)
        kept[entry.name] = fields
        if options.write:
            GOLDEN.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    _tell(kept, failed)


def _rows(pattern: str, execute: bool) -> Iterator[tuple[Entry, dict[str, Any] | str]]:
    for entry in entries():
        if not fnmatchcase(entry.name, pattern):
            continue
        if entry.needs and not is_installed(entry.needs):
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


def _tell(rows: dict[str, dict[str, Any]], failed: list[str]) -> None:
    short = {name: row["shortfall"] for name, row in rows.items() if row["shortfall"]}
    if short:
        print("\nRows that fall short of what is possible, or could:")
        for name, reason in sorted(short.items()):
            print(f"  {name}: {reason}")
    if failed:
        print("\nRows that failed:")
        for line in failed:
            print(f"  {line}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
