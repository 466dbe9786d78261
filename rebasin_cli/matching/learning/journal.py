"""The state of a learning on the disk, so that a run that was ended goes on where it was.

One hidden file beside the output: an uncompressed zip of arrays, as numpy writes it, without pickles. It names the run
that it belongs to and is replaced atomically. Saving takes at most about a `SHARE`th of the time.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.checkpoint.atomic import commit_file, flush_to_disk, staged_file
from rebasin_cli.errors import OutputError

SECONDS_BETWEEN_SAVES = 1.0
SHARE = 20
_FACTS = "facts"

Run = Mapping[str, Any]
"""All that decides the numbers of a learning, by name; plain JSON data."""


def state_path(out: Path) -> Path:
    """The state file of the run that writes `out`."""
    return out.with_name(f".{out.name}.learning")


@dataclass
class Journal:
    """The state file of one run.

    Attributes:
        path: None where nothing is saved, as in a dry run.
        run: what it must agree with.
        force: the state of another run is overwritten, instead of refused.
        writes: this process saves.
    """

    path: Path | None
    run: Run = field(default_factory=dict)
    force: bool = False
    writes: bool = True
    _due: float = field(default_factory=lambda: time.monotonic() + SECONDS_BETWEEN_SAVES)

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The facts and the tensors that the run saved last; None where there is nothing to continue from.

        A file that is damaged is as good as none: it is replaced.

        Raises:
            OutputError: the file is the state of another run, and `force` is off.
        """
        if self.path is None or not self.path.is_file():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                facts = json.loads(arrays[_FACTS].tobytes())
                tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != _FACTS}
            run = facts.pop("run")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        wanted = json.loads(json.dumps(self.run))
        if run == wanted:
            return facts, tensors
        if self.force:
            return None
        other = sorted(name for name in {*run, *wanted} if run.get(name) != wanted.get(name))
        raise OutputError(
            f"{self.path}: the state of another run that was ended, with another {', '.join(other)}",
            path=self.path,
            hint="give the same options to resume it, another -o, or --force to start again",
            slug="exists",
        )

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.path is not None and self.writes and time.monotonic() >= self._due

    def save(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Replace the file.

        Raises:
            OutputError: it cannot be written.
        """
        if self.path is None or not self.writes:
            return
        began = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)  # missing only where --mkdir will make it
        text = json.dumps({**facts, "run": self.run}).encode()
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        size = len(text) + sum(array.nbytes for array in arrays.values())
        with staged_file(self.path, bytes_needed=size) as staged:
            with zipfile.ZipFile(staged.handle, "w", zipfile.ZIP_STORED) as archive:
                for name, array in {_FACTS: np.frombuffer(text, dtype=np.uint8), **arrays}.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)
            flush_to_disk(staged)
            commit_file(staged, self.path, force=True)
        ended = time.monotonic()
        self._due = ended + max(SECONDS_BETWEEN_SAVES, SHARE * (ended - began))
