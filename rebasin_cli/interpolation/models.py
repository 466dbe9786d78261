"""The checkpoints of a sweep, the model that runs the networks, and the networks themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rebasin_cli.execution.lams import Lams
from rebasin_cli.execution.model_slot import ModelSlot
from rebasin_cli.execution.pair import Source
from rebasin_cli.execution.several import open_several
from rebasin_cli.execution.shared_weights import Mismatch, check_heads
from rebasin_cli.execution.spectral_norm import spectral_sites
from rebasin_cli.execution.subject import ModelChoice, Subject
from rebasin_cli.execution.understanding import understand
from rebasin_cli.execution.weights import Weights
from rebasin_cli.interpolation.line import Line, Mode, Point, SweepNetworks, grid, points_of, sweep_networks
from rebasin_cli.progress import Progress

Curves = Mapping[str, Sequence[Path]]
"""The checkpoints along each curve, by its name; all curves have the same number of checkpoints."""


@dataclass
class SweepModels:
    """All checkpoints of the curves, each opened once, and the networks on the lines through them."""

    curves: Curves
    weights: Mapping[Path, Weights]
    subject: Subject
    slot: ModelSlot
    lines: Mapping[str, Line]
    points: tuple[Point, ...]
    networks: SweepNetworks
    spectral_norms: int
    mismatches: Mapping[Path, Sequence[Mismatch]]
    """Tensors of other sizes than in the last checkpoint, by file; the networks have those of the last one."""

    def treat_ends(self) -> None:
        """From now on the curves end in the checkpoints treated like the networks between; see `sweep_networks`."""
        self.networks = sweep_networks(self.lines, self.points, treated=True)

    @staticmethod
    def open(
        curves: Curves,
        choice: ModelChoice,
        *,
        states: Mapping[Path, tuple[str | None, bool]],
        ignore_extra: bool,
        ignore_mismatched_sizes: bool = False,
        mode: Mode,
        steps: int,
        lams: Lams | None = None,
        device: torch.device,
        amp: bool,
        progress: Progress,
    ) -> SweepModels:
        """Open the files by their headers, match them with the model, then check every tensor once.

        Args:
            states: which state dict of each file is read, as (key, ema); see `Source`.
            steps: intervals on each segment, see `grid`.
            lams: the networks of one segment instead.

        Raises:
            CheckpointError, ModelError: a file cannot be read, or does not fit the model.
            NumericalError: a tensor holds NaN or infinities.
        """
        files = dict.fromkeys(path for row in curves.values() for path in row)
        sources = [Source(path, *states.get(path, (None, False))) for path in files]
        first_curve = next(iter(curves.values()))
        last = list(files).index(first_curve[-1])
        several = open_several(
            sources,
            choice,
            shaped_like=last,
            ignore_extra=ignore_extra,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        apart: dict[Path, list[Mismatch]] = {}
        for number, one in several.mismatches:
            apart.setdefault(sources[number].path, []).append(one)
        if apart:
            spec = understand(several.subject, choice).spec
            for number, one in several.mismatches:
                check_heads((one,), spec, several.weights[number].checkpoint)
        several.check(progress)
        subject, weights = several.subject, dict(zip(files, several.weights, strict=True))
        slot = ModelSlot(subject.factory.build(), device, amp=amp)
        spectral = spectral_sites(slot.module, tuple(weights.values()))
        by_key = {} if lams is None else lams.by_key(subject.shapes, subject.ties)
        lines = {
            curve: Line(
                [weights[path] for path in row],
                mode=mode,
                parameters=subject.parameters,
                spectral=spectral,
                lams=by_key,
            )
            for curve, row in curves.items()
        }
        points = grid(steps, len(first_curve)) if lams is None else points_of(lams)
        networks = sweep_networks(lines, points)
        return SweepModels(curves, weights, subject, slot, lines, points, networks, len(spectral), apart)

    @cached_property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of every file, by its path as the user named it."""
        return {str(path): held.checkpoint.sha256() for path, held in self.weights.items()}

    @property
    def files(self) -> list[Path]:
        """Every file that the checkpoints consist of."""
        return [file for held in self.weights.values() for file in held.checkpoint.files]

    def identity(self) -> dict[str, Any]:
        """Everything about the models that decides the numbers."""
        args = {name: repr(value) for name, value in sorted(self.subject.factory.args.items())}
        return {"model_args": args, "sha256": self.sha256}
