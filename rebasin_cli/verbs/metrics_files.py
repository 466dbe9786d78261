"""The files of a run of `metrics`: the results, what of them is done, and results that are merged.

While a run works, each tensor's part is appended to a hidden journal beside the results file, and the mean vectors of
networks on data are kept in a hidden directory; both go when the results are written. A journal of another run, told by
the SHA-256 of its files among other things, is begun anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli.checkpoint import write_text_atomically
from rebasin_cli.errors import OutputError

if TYPE_CHECKING:
    from torch import Tensor

    from rebasin_cli.task_vectors.measure import TensorPart

SCHEMA = "rebasin.metrics/1"


class Journal:
    """What of a run is done, kept in the file system; only the process that writes has one.

    Args:
        out: the results file.
        run: everything that decides the numbers; plain JSON data.

    Attributes:
        parts: the parts of tensors that are done, by key.
    """

    def __init__(self, out: Path, run: Mapping[str, Any]) -> None:
        self.path = out.with_name(f".{out.name}.progress")
        self.vectors = out.with_name(f".{out.name}.vectors")
        self.parts: dict[str, TensorPart] = {}
        lines = self._lines()
        if lines and lines[0] == {"run": json.loads(json.dumps(run))}:
            self._resume(lines[1:])
        else:
            self.remove()
        kept = [{"run": run}, *(part.to_json() for part in self.parts.values())]
        write_text_atomically(self.path, "".join(f"{json.dumps(line)}\n" for line in kept), True)
        self._handle = self.path.open("a", encoding="utf-8")

    def _lines(self) -> list[Any]:
        """The complete lines: a run that was killed may have left half of one."""
        found: list[Any] = []
        with suppress(OSError, ValueError):
            for line in self.path.read_text(encoding="utf-8").splitlines():
                found.append(json.loads(line))  # noqa: PERF401 - what comes before a broken line counts
        return found

    def _resume(self, lines: list[Any]) -> None:
        from rebasin_cli.task_vectors.measure import TensorPart

        with suppress(KeyError, TypeError, ValueError):
            for line in lines:
                part = TensorPart.from_json(line)
                self.parts[part.key] = part

    def add(self, part: TensorPart) -> None:
        """Keep a tensor's part."""
        self.parts[part.key] = part
        self._handle.write(f"{json.dumps(part.to_json())}\n")
        self._handle.flush()

    def has_vectors(self, names: Iterable[str]) -> bool:
        """Whether all of these vectors are kept."""
        return all((self.vectors / name).is_file() for name in names)

    def vector(self, name: str) -> Tensor | None:
        """A kept float64 vector, mapped from its file; None for one that a network does not have."""
        import torch

        path = self.vectors / name
        count = path.stat().st_size // 8
        return torch.from_file(str(path), shared=False, size=count, dtype=torch.float64) if count else None

    def keep_vector(self, name: str, vector: Tensor | None) -> None:
        """Write a vector, or that a network has none, whole or not at all."""
        from rebasin_cli.checkpoint.atomic import commit_file, flush_to_disk, staged_file

        self.vectors.mkdir(exist_ok=True)
        size, path = 0 if vector is None else 8 * vector.numel(), self.vectors / name
        with staged_file(path, bytes_needed=size) as staged:
            if vector is not None:
                staged.handle.write(vector.double().contiguous().numpy().data)
            flush_to_disk(staged)
            commit_file(staged, path, force=True)

    def close(self) -> None:
        self._handle.close()

    def remove(self) -> None:
        """Delete what is kept."""
        self.path.unlink(missing_ok=True)
        shutil.rmtree(self.vectors, ignore_errors=True)


def read_pairwise(path: Path) -> dict[str, Any]:
    """The object in a file of `--layout pairwise`.

    Raises:
        OutputError: the file is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("metrics"), dict):
        raise OutputError(
            f"{path}: exists and holds no pairwise metrics",
            path=path,
            hint="choose another -o, or --force",
            slug="exists",
        )
    return found


AGREEING = ("model_name", "datasets", "perm_matching")


def merged(path: Path, new: Mapping[str, Any]) -> dict[str, Any]:
    """The new object with the metrics of the file that it lacks.

    Raises:
        OutputError: the file is of another model, of other checkpoints, or holds no pairwise metrics.
    """
    old = read_pairwise(path)
    for name in AGREEING:
        theirs, ours = old.get(name), new[name]
        if (list(theirs) if isinstance(theirs, list) else theirs) != (list(ours) if name == "datasets" else ours):
            raise OutputError(
                f"{path}: exists and is of another {name.replace('_', ' ')}: {_short(theirs)}, now {_short(ours)}",
                path=path,
                hint="choose another -o, or --force to overwrite it",
                slug="exists",
            )
    theirs, ours = old.get("sha256"), new["sha256"]
    changed = [name for name in ours if isinstance(theirs, dict) and theirs.get(name) != ours[name]]
    if changed:
        raise OutputError(
            f"{path}: exists and is of another content of {changed[0]}",
            path=path,
            hint="choose another -o, or --force to overwrite it",
            slug="exists",
        )
    return {**new, "metrics": {**old["metrics"], **new["metrics"]}}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
