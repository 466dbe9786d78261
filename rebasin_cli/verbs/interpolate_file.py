"""The result file of a sweep while it grows: what it holds of this run is used, what is another's is not touched.

The file holds who it is about (`run`) and the sums so far; the statistics of a recalibration, which are long, lie
beside it in a hidden file until the sweep is complete.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rebasin_cli.checkpoint.atomic import write_text_atomically
from rebasin_cli.errors import OutputError
from rebasin_cli.interpolation.ledger import Ledger
from rebasin_cli.verbs.document import envelope, pretty

SECONDS_BETWEEN_SAVES = 1.0
SAVE_SHARE = 20
"""After a save, at least so many times what it took is spent on the work itself: the statistics of REPAIR are long."""
Run = Mapping[str, Any]


def read_document(path: Path) -> Mapping[str, Any] | None:
    """The `data` of a sweep's file, None for anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or document.get("schema") != "rebasin.interpolate/1":
        return None
    data = document.get("data")
    return data if isinstance(data, dict) and isinstance(data.get("run"), dict) else None


def check_result_file(path: Path, asked: Run, *, force: bool) -> None:
    """Refuse at once a file that cannot be of this run, from what is known before anything is read.

    Args:
        asked: the part of the run's identity that the command line gives.

    Raises:
        OutputError: something else lies there.
    """
    if force or not path.exists():
        return
    found = read_document(path) if path.is_file() else None
    if found is None:
        raise OutputError(f"{path}: exists", path=path, hint="choose another name with -o, or --force", slug="exists")
    _refuse_other(path, found["run"], asked)


def _refuse_other(path: Path, found: Run, wanted: Run) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            raise OutputError(
                f"{path}: exists, and is the result of another run: its {name} is {_short(found.get(name))}, "
                f"now {_short(value)}",
                path=path,
                hint="choose another name with -o, or --force to overwrite it",
                slug="exists",
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


class ResultFile:
    """Keeps the ledgers of one run in its result file.

    Args:
        run: everything that decides the numbers; plain JSON data.
        writes: whether this process writes (the first of several).

    Raises:
        OutputError: the file is of another run, without `force`.
    """

    def __init__(self, path: Path, run: Run, *, force: bool, writes: bool) -> None:
        self.path = path
        self._run = json.loads(json.dumps(run))
        self._writes = writes
        self._due = time.monotonic() + SECONDS_BETWEEN_SAVES
        self._kept = 0
        self._began = not path.exists()
        self.evaluation = Ledger()
        self.statistics = Ledger()
        if path.exists() and not force:
            self._take_up()
        self.resumed = bool(self.evaluation.batches or self.statistics.batches)

    @property
    def _beside(self) -> Path:
        return self.path.with_name(f".{self.path.name}.statistics")

    def _take_up(self) -> None:
        found = read_document(self.path)
        if found is None:
            raise OutputError(f"{self.path}: exists", path=self.path, hint="--force overwrites it", slug="exists")
        _refuse_other(self.path, found["run"], self._run)
        with suppress(KeyError, TypeError, ValueError):
            self.evaluation = Ledger.from_json(found["progress"]["evaluation"])
        with suppress(OSError, KeyError, TypeError, ValueError):
            beside = json.loads(self._beside.read_text(encoding="utf-8"))
            if beside["run"] == self._run:
                self.statistics = Ledger.from_json(beside["statistics"])

    def listen(self) -> None:
        """From now on, keep the sums as they grow."""
        if self._writes:
            self.evaluation.save = self.statistics.save = lambda _: self._save_sometimes()

    def progress(self) -> dict[str, Any]:
        return {"complete": self.evaluation.finished, "evaluation": self.evaluation.to_json()}

    def _save_sometimes(self) -> None:
        began = time.monotonic()
        if began >= self._due:
            self.keep()
            ended = time.monotonic()
            self._due = ended + max(SECONDS_BETWEEN_SAVES, SAVE_SHARE * (ended - began))

    def keep(self) -> None:
        """Write what there is, as the file of a run that is not complete."""
        if not self._writes or not (self.evaluation.batches or self.statistics.batches):
            return
        if self.statistics.changes > self._kept and not self.evaluation.finished:
            self._kept = self.statistics.changes
            packed = {"run": self._run, "statistics": self.statistics.to_json(packed=True)}
            write_text_atomically(self._beside, json.dumps(packed), True)
        error = {
            "slug": "incomplete",
            "exit_code": 130,
            "message": "this run is not complete",
            "path": str(self.path),
            "hint": "the same command goes on where it stood",
        }
        data = {"run": self._run, "progress": self.progress()}
        write_text_atomically(self.path, pretty(envelope("interpolate", data, error=error)), True)

    def complete(self, text: str) -> None:
        """Write the result in its place."""
        if self._writes:
            write_text_atomically(self.path, text, True)
            self._beside.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Leave nothing behind of a run that began with this process and cannot succeed."""
        if self._writes and self._began:
            self.path.unlink(missing_ok=True)
            self._beside.unlink(missing_ok=True)
