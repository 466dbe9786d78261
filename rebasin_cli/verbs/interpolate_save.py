"""Networks from the line, written as checkpoints in the format and dtypes of the file they lead to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rebasin_cli import __version__
from rebasin_cli.checkpoint import split_name
from rebasin_cli.checkpoint.write import write_like
from rebasin_cli.errors import NumericalError
from rebasin_cli.execution.weights import Weights
from rebasin_cli.interpolation.adjustment import NOTHING, Adjustment
from rebasin_cli.interpolation.path import Point, grid
from rebasin_cli.interpolation.places import Place
from rebasin_cli.interpolation.sweep import Sweep
from rebasin_cli.verbs.interpolate_models import LoadedModels

if TYPE_CHECKING:
    from rebasin_cli.verbs.interpolate_run import InterpolateRequest


def planned_files(request: InterpolateRequest) -> dict[str, Path]:
    """Every checkpoint that will be written, by what it is for."""
    files = {} if request.save_best is None else {"best network": request.save_best}
    return files | {f"network {path.name}": path for _, _, path in _between(request)}


def _between(request: InterpolateRequest) -> list[tuple[str, Point, Path]]:
    """Curve, point and file of everything between the checkpoints, where all are saved."""
    if request.save_all is None:
        return []
    points = [point for point in grid(request.steps, len(request.checkpoints)) if point.end is None]
    suffix = split_name(request.checkpoints[-1])[1]
    many = len(request.checkpoints) > 2
    return [
        (curve, point, request.save_all / f"{curve}-{f'{point.segment}-' if many else ''}{point.lam:.4f}{suffix}")
        for curve in request.curves
        for point in points
    ]


def save_networks(
    request: InterpolateRequest, models: LoadedModels, sweep: Sweep, adjustments: Mapping[str, Adjustment]
) -> tuple[Path, ...]:
    """Write the best network and all others that were asked for; returns the files.

    Raises:
        OutputError: one cannot be written.
        NumericalError: a value does not fit the file's dtype.
    """
    written: list[Path] = []
    names = {
        (curve, point.segment, point.lam): name for curve, row in models.places.curves.items() for point, name in row
    }
    jobs = _between(request)
    if request.save_best is not None and sweep.best is not None:
        best = sweep.best
        jobs = [(best.curve, Point(best.segment, best.lam), request.save_best), *jobs]
    for curve, point, path in jobs:
        name = names[(curve, point.segment, point.lam)]
        _write(request, models, models.places.by_name[name], adjustments.get(name, NOTHING), curve, path)
        written.append(path)
    return tuple(written)


def _write(
    request: InterpolateRequest, models: LoadedModels, place: Place, adjustment: Adjustment, curve: str, path: Path
) -> None:
    """An end is that end's own file; anything between takes the layout of the file at the end of its segment."""
    point = place.point
    number = point.end if point.end is not None else point.segment + 1
    source = place.line.checkpoints[number]
    assert isinstance(source, Weights)

    def transform(file_key: str, tensor: Tensor) -> Tensor:
        key = source.model_key(file_key)
        if key is None or key not in place.line.keys or point.end is not None:
            return tensor
        return _cast(adjustment.apply(key, place.line.tensor(key, point)), tensor.dtype, f"{path}: {file_key}")

    provenance = {
        "version": __version__,
        "method": "REPAIR" if adjustment.affine else "recalibrated" if adjustment.replaced else request.mode,
        "curve": curve,
        "segment": str(point.segment),
        "lam": repr(point.lam),
        "seed": str(request.seed),
    }
    ends = request.curves[curve][point.segment : point.segment + 2]
    provenance |= {f"sha256.{name}": models.sha256[str(end)] for name, end in zip("ab", ends, strict=True)}
    write_like(source.checkpoint, path, transform, provenance=provenance, force=request.force, mkdir=request.mkdir)


def _cast(value: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """In the file's dtype; what overflows there is an error and not an infinity."""
    cast = value.to(dtype)
    if dtype.is_floating_point and dtype.itemsize < value.dtype.itemsize and not bool(cast.isfinite().all()):
        raise NumericalError(f"{what}: a value between the checkpoints does not fit {dtype}")
    return cast
