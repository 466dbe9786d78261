"""An alignment that is ended before it is done: where its method saves its state, and what more time could bring."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rebasin_cli.errors import OutputError, RebasinError, ResourceError
from rebasin_cli.matching.learning.journal import state_path
from rebasin_cli.matching.method import StateFile
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.verbs.align_reports import python_file, sha256_of
from rebasin_cli.verbs.versions import versions

if TYPE_CHECKING:
    from rebasin_cli.verbs.alignment import Alignment

FREE = ("time_limit", "workers")
"""Settings that a run may change when it continues: they decide no number."""


def state_file(run: Alignment) -> StateFile | None:
    """The state file, and all that decides the numbers of this run; None where nothing is saved."""
    options = run.options
    if options.dry_run or not run.method.resumes:
        return None
    decides = {
        "inputs": {name: run.sha256[name] for name in "ab"},
        "model": [options.model, run.pair.subject.factory.args],
        "code": [sha256_of(path) for path in filter(None, (python_file(options.model), *options.rules))],
        "spec": run.understood.spec.to_json(),
        **{name: value for name, value in asdict(run.matching).items() if name not in FREE},
        "device": str(run.device),
        "versions": versions(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(decides, default=str))
    return StateFile(state_path(options.files.out), plain, options.force)


def forget_state(run: Alignment) -> None:
    """Remove the state file: the run is done, or cannot succeed."""
    if run.method.resumes and not run.options.dry_run:
        state_path(run.options.files.out).unlink(missing_ok=True)


@contextmanager
def resumable(run: Alignment) -> Iterator[None]:
    """Keep the state only where another try could succeed: after an interruption, and where space was missing."""
    try:
        yield
    except (OutputError, ResourceError):
        raise
    except RebasinError:
        forget_state(run)
        raise
    forget_state(run)


def unfinished(match: MatchResult) -> list[str]:
    """That a matching could have gone on, and what to do about it."""
    learning = match.learning
    if match.timed_out:
        more = "; it was still improving" if learning is not None and learning.still_improving else ""
        return [f"the time limit ended the matching before it was done{more}"]
    if learning is not None and learning.given_up is not None:
        return [f"what was learned is given up for the matching of the weights: {learning.given_up}"]
    if learning is not None:
        steps = learning.steps
        pays = f"still improving when its {steps:,} steps ended: --learning-steps {2 * steps} pays"
        return [pays] if learning.still_improving else []
    if match.converged:
        return []
    passes = "1 pass" if match.passes == 1 else f"{match.passes} passes"
    return [f"the matching stopped after {passes} without converging"]
