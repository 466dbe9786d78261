"""Files as their libraries write them: aligned, written, and loaded again by the library.

    python -m tests.benchmarks.library_files [--only PATTERN …] [--rows FILE] [--row-limit 600]
    python -m tests.benchmarks.library_files --rows FILE --summary

Two networks of each type are built small with different seeds and saved by the library (transformers: `save_pretrained`
of every model type). They are aligned at effort `fast`, and the library loads the written file: it must have B's keys,
and compute B's function, and units must have moved. A row says `same`, or why not. With `--rows` every row is added to
a file, one JSON object a line, and a later run continues after the rows that it has.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rebasin_cli.model.names import is_installed
from tests.loading.library_pairs import Outcome, Pair, round_trip, transformers_pairs
from tests.loading.other_libraries import diffusers_pairs, open_clip_pairs, timm_pairs, torchvision_pairs

LIBRARIES = {
    "torchvision": torchvision_pairs,
    "timm": timm_pairs,
    "open_clip": open_clip_pairs,
    "diffusers": diffusers_pairs,
    "transformers": transformers_pairs,
}
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="align files as their libraries write them")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names, for example 'transformers:m*'")
    parser.add_argument("--rows", type=Path, help="add the rows to this file, and continue after those that it has")
    parser.add_argument("--row-limit", type=int, default=600, metavar="SECONDS", help="for one row")
    parser.add_argument("--summary", action="store_true", help="count the rows of --rows and run none")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = _known(options.rows)
    _note_interrupted(rows, options.rows)
    for pair in () if options.summary else _pairs(options.only, {row["name"] for row in rows}):
        if options.rows:
            _running(options.rows).write_text(pair.name)
        row = _row(pair, options.row_limit)
        gc.collect()
        rows.append(row)
        if options.rows:
            _add(row, options.rows)
        moved = f"{row['moved']}/{row['units']}" if row["units"] else ""
        error = "" if row["error"] is None else f"{row['error']:.1e}"
        print(
            f"{row['name']:44} {row['kind']:12} {moved:>12} {error:>8} {row['layout']:9} {row['seconds']:4.0f} s "
            f"{row['reason']}",
            flush=True,
        )
    summary(rows)
    if any(row["kind"] == "failed" for row in rows):
        raise SystemExit(1)


def summary(rows: list[Row]) -> None:
    """Rows by library and outcome; those whose files have other keys than the module; the largest error."""
    print()
    for library in LIBRARIES:
        own = [row for row in rows if row["name"].startswith(f"{library}:")]
        kinds = Counter(row["kind"] for row in own)
        same = [row for row in own if row["kind"] == "same"]
        renamed = sum(row["layout"] == "renamed" for row in same)
        if own:
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            print(f"{library}: {len(own)} rows: {counts}; {renamed} of the same are renamed")
    errors = [row["error"] for row in rows if row["kind"] == "same" and row["error"] is not None]
    if errors:
        print(f"largest error of a row that is the same: {max(errors):.1e}")


def _known(path: Path | None) -> list[Row]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _add(row: Row, path: Path) -> None:
    with path.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    _running(path).unlink()


def _running(path: Path) -> Path:
    """Names the row that is being measured."""
    return path.with_suffix(".running")


def _note_interrupted(rows: list[Row], path: Path | None) -> None:
    """A row that ended an earlier process is not tried again."""
    if path is not None and _running(path).exists():
        name = _running(path).read_text()
        outcome = Outcome("not measured", "the process ended")
        rows.append({"name": name, **asdict(outcome), "seconds": 0.0})
        _add(rows[-1], path)


def _pairs(patterns: list[str], known: set[str]) -> Iterator[Pair]:
    wanted = [library for library in LIBRARIES if any(fnmatchcase(library, p.partition(":")[0]) for p in patterns)]
    for pair in (pair for library in wanted if is_installed(library) for pair in LIBRARIES[library]()):
        if pair.name not in known and any(fnmatchcase(pair.name, pattern) for pattern in patterns):
            yield pair


def _row(pair: Pair, limit: int) -> Row:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _at_most(limit):
                outcome = round_trip(pair, Path(folder))
        except _TooLong:
            outcome = Outcome("not measured", f"more than {limit} s")
    return {"name": pair.name, **asdict(outcome), "seconds": round(time.monotonic() - began, 1)}


class _TooLong(BaseException):
    """Not an `Exception`, so that no library catches it."""


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooLong

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    main()
