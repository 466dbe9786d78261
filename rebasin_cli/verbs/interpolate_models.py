"""The checkpoints of a sweep, the module that becomes each network in turn, and the lines between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rebasin_cli.execution.closeness import check_finite
from rebasin_cli.execution.pair import Source, file_shapes
from rebasin_cli.execution.subject import Subject, open_subject
from rebasin_cli.execution.weights import Weights
from rebasin_cli.interpolation.body import Body
from rebasin_cli.interpolation.path import Line, grid
from rebasin_cli.interpolation.places import Places, lay_out
from rebasin_cli.progress import Progress

if TYPE_CHECKING:
    from rebasin_cli.verbs.interpolate_run import InterpolateRequest


@dataclass
class LoadedModels:
    """All checkpoints by path, each opened once."""

    weights: Mapping[Path, Weights]
    subject: Subject
    body: Body
    places: Places

    @staticmethod
    def open(request: InterpolateRequest, device: torch.device, progress: Progress) -> LoadedModels:
        """Open by headers, hold against the model, then check every tensor once.

        Raises:
            CheckpointError, ModelError: a file cannot be read, or does not fit the model.
            NumericalError: a tensor holds NaN or infinities.
        """
        files = dict.fromkeys(path for curve in request.curves.values() for path in curve)
        opened = {path: Source(path, request.key, request.ema).open() for path in files}
        subject = open_subject(request.choice, file_shapes(opened[request.checkpoints[-1]]))
        weights = {
            path: Weights.of(checkpoint, subject, ignore_extra=request.ignore_extra)
            for path, checkpoint in opened.items()
        }
        total = sum(len(held) for held in weights.values())
        done = 0
        for held in weights.values():
            for key in held:
                check_finite(held[key], held.keys_in_file.to_file[key], held.checkpoint.path)
                done += 1
                progress.step(done, total)
        body = Body(subject.factory.build(), device, amp=request.amp)
        lines = {
            curve: Line([weights[path] for path in row], mode=request.mode, parameters=subject.parameters)
            for curve, row in request.curves.items()
        }
        return LoadedModels(weights, subject, body, lay_out(lines, grid(request.steps, len(request.checkpoints))))

    @cached_property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of every file, by its path as it was named."""
        return {str(path): held.checkpoint.sha256() for path, held in self.weights.items()}

    def identity(self) -> dict[str, Any]:
        """What of the models decides the numbers."""
        args = {name: repr(value) for name, value in sorted(self.subject.factory.args.items())}
        return {"model_args": args, "sha256": self.sha256}

    def become_first(self) -> None:
        """Let the body be the first checkpoint."""
        place = self.places.ends[0]
        self.body.place(place.line, place.point)
