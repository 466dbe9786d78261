"""The result file of a sweep: sums of this run are read from it and saved in it; that of another run is not touched.

The file holds the identity of the run (`run`) and the sums so far. The statistics of a recalibration are long, so they
are kept in a hidden file beside it until the sweep is complete.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rebasin_cli.checkpoint.atomic import write_text_atomically
from rebasin_cli.data.ranks import Ranks
from rebasin_cli.errors import OutputError
from rebasin_cli.execution.dataset_pass import RunningSums

SECONDS_BETWEEN_SAVES = 1.0
SAVE_SHARE = 20
"""Saving takes at most about one part in so many of the time; the statistics of REPAIR are long."""

Run = Mapping[str, Any]
"""Everything that decides the numbers of a run, by name; plain JSON data."""

Rendering = Callable[[Mapping[str, Any], Mapping[str, Any]], str]
"""The text of a result file from its data and the error that says why they are not complete."""


SCHEMA = "rebasin.interpolate/1"


def read_document(path: Path, schema: str = SCHEMA) -> Mapping[str, Any] | None:
    """The `data` of a result file of this schema that names its run; None for any other file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or document.get("schema") != schema:
        return None
    data = document.get("data")
    return data if isinstance(data, dict) and isinstance(data.get("run"), dict) else None


def check_result_file(path: Path, asked: Run, *, force: bool, schema: str = SCHEMA) -> None:
    """Refuse a file that cannot be the result of this run, before any input is read.

    Args:
        asked: the part of the run's identity that the command line gives.

    Raises:
        OutputError: the file exists and is no result, or that of another run.
    """
    if force or not path.exists():
        return
    found = read_document(path, schema) if path.is_file() else None
    if found is None:
        raise OutputError(f"{path}: exists", path=path, hint="choose another name with -o, or --force", slug="exists")
    refuse_other(path, found["run"], asked)


def refuse_other(path: Path, found: Run, wanted: Run) -> None:
    """Refuse a file of another run.

    Raises:
        OutputError: with the first difference.
    """
    for name, value in wanted.items():
        if found.get(name) != value:
            raise OutputError(
                f"{path}: exists and is the result of another run, with {_difference(name, found.get(name), value)}",
                path=path,
                hint="choose another name with -o, or --force to overwrite it",
                slug="exists",
            )


OTHER = {
    "evaluation": "other data",
    "statistics": "other data for its statistics",
    "sums": "another version of this program",
}
CONTENTS = ("files", "sha256")


def _difference(name: str, found: Any, wanted: Any) -> str:
    """What is not the same, in words for digests and with both values for all else."""
    if name in OTHER:
        return OTHER[name]
    if name in CONTENTS and isinstance(found, dict) and isinstance(wanted, dict):
        changed = [file for file in sorted({*found, *wanted}) if found.get(file) != wanted.get(file)]
        return f"another content of {', '.join(changed)}"
    if isinstance(found, dict) and isinstance(wanted, dict) and (odd := set(found) & set(wanted)):
        odd = {key for key in odd if found[key] != wanted[key]}
        if odd:  # a long mapping would be cut before the difference shows
            key = min(odd)
            return f"{name} of {key}: {_short(found[key])}, now {_short(wanted[key])}"
    return f"{name} {_short(found)}, now {_short(wanted)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


class ResultFile:
    """Keeps the running sums of one run in its result file.

    Args:
        render: makes the text of the file of an unfinished run.
        ranks: the processes of the run. Only the first one writes, and all continue from its sums.

    Attributes:
        resumed: sums of an earlier run are used.

    Raises:
        OutputError: the file is the result of another run, and `force` is off.
    """

    def __init__(self, path: Path, run: Run, *, render: Rendering, force: bool, ranks: Ranks) -> None:
        self.path = path
        self._render = render
        self._run = json.loads(json.dumps(run))
        self._writes = ranks.first
        self._due = time.monotonic() + SECONDS_BETWEEN_SAVES
        self._changes_saved = 0
        self._created_here = not path.exists()
        self.evaluation = RunningSums()
        self.statistics = RunningSums()
        if path.exists() and not force:
            self._resume()
        sums = ranks.shared((self.evaluation.to_json(), self.statistics.to_json(packed=True)))
        self.evaluation, self.statistics = map(RunningSums.from_json, sums)
        self.resumed = bool(self.evaluation.batches or self.statistics.batches)

    @property
    def _beside(self) -> Path:
        return self.path.with_name(f".{self.path.name}.statistics")

    def _resume(self) -> None:
        found = read_document(self.path)
        if found is None:
            raise OutputError(f"{self.path}: exists", path=self.path, hint="--force overwrites it", slug="exists")
        refuse_other(self.path, found["run"], self._run)
        with suppress(KeyError, TypeError, ValueError):
            self.evaluation = RunningSums.from_json(found["progress"]["evaluation"])
        with suppress(OSError, KeyError, TypeError, ValueError):
            beside = json.loads(self._beside.read_text(encoding="utf-8"))
            if beside["run"] == self._run:
                self.statistics = RunningSums.from_json(beside["statistics"])

    def save_regularly(self) -> None:
        """From now on, save the sums while they grow."""
        if self._writes:
            self.evaluation.save = self.statistics.save = lambda _: self._save_if_due()

    def progress(self) -> dict[str, Any]:
        return {"complete": self.evaluation.finished, "evaluation": self.evaluation.to_json()}

    def _save_if_due(self) -> None:
        began = time.monotonic()
        if began >= self._due:
            self.save()
            ended = time.monotonic()
            self._due = ended + max(SECONDS_BETWEEN_SAVES, SAVE_SHARE * (ended - began))

    def save(self) -> None:
        """Write the sums so far, as the result of a run that is not complete."""
        if not self._writes or not (self.evaluation.batches or self.statistics.batches):
            return
        if self.statistics.changes > self._changes_saved and not self.evaluation.finished:
            self._changes_saved = self.statistics.changes
            packed = {"run": self._run, "statistics": self.statistics.to_json(packed=True)}
            write_text_atomically(self._beside, json.dumps(packed), True)
        error = {
            "slug": "incomplete",
            "exit_code": 130,
            "message": "this run is not complete",
            "path": str(self.path),
            "hint": "run the same command again to resume it",
        }
        data = {"run": self._run, "progress": self.progress()}
        write_text_atomically(self.path, self._render(data, error), True)

    def complete(self, text: str) -> None:
        """Write the final result."""
        if self._writes:
            write_text_atomically(self.path, text, True)
            self._beside.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Delete the file of a run that cannot succeed, unless the file existed before this process started."""
        if self._writes and self._created_here:
            self.path.unlink(missing_ok=True)
            self._beside.unlink(missing_ok=True)
