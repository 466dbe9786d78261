"""Networks of a sweep, written as checkpoints in the format and dtypes of the file at the end of their segment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rebasin_cli import __version__
from rebasin_cli.checkpoint.write import write_like
from rebasin_cli.execution.lams import Lams
from rebasin_cli.execution.model_slot import NO_ADJUSTMENT, Adjustment
from rebasin_cli.execution.weight_arithmetic import narrow_dtypes, rounded
from rebasin_cli.execution.weights import Weights
from rebasin_cli.interpolation.line import Point, grid, points_of
from rebasin_cli.interpolation.models import Curves, SweepModels


@dataclass(frozen=True, slots=True)
class NetworkFile:
    """The network at a point of a curve, and the file that it is saved to."""

    curve: str
    point: Point
    path: Path


def files_of_all(
    curves: Curves, steps: int, directory: Path, suffix: str, lams: Lams | None = None
) -> list[NetworkFile]:
    """A file in `directory` for every interpolated network, such as `naive-0.5000.safetensors`.

    A curve through more than two checkpoints has the number of the segment in its names too.
    """
    files = []
    for curve, checkpoints in curves.items():
        for point in grid(steps, len(checkpoints)) if lams is None else points_of(lams):
            if point.end is None:
                segment = f"{point.segment}-" if len(checkpoints) > 2 else ""
                files.append(NetworkFile(curve, point, directory / f"{curve}-{segment}{point.lam:.4f}{suffix}"))
    return files


def save_networks(
    files: Iterable[NetworkFile],
    models: SweepModels,
    adjustments: Mapping[str, Adjustment],
    *,
    seed: int,
    force: bool,
    mkdir: bool,
) -> tuple[Path, ...]:
    """Write each network to its file; returns the files.

    Args:
        adjustments: changes of networks, by name.
        seed: recorded in the files.

    Raises:
        OutputError: one cannot be written.
        NumericalError: a value does not fit the file's dtype.
    """
    names = {(curve, point): name for curve, row in models.networks.curves.items() for point, name in row}
    written = []
    for file in files:
        name = names[(file.curve, file.point)]
        _save(file, models, name, adjustments.get(name, NO_ADJUSTMENT), seed=seed, force=force, mkdir=mkdir)
        written.append(file.path)
    return tuple(written)


def rounded_to(models: SweepModels, curves: Iterable[str]) -> tuple[str, ...]:
    """Names of the dtypes narrower than float32 that the files of interpolated networks on these curves have."""
    return narrow_dtypes(models.weights[path].checkpoint for curve in curves for path in models.curves[curve][1:])


def _save(
    file: NetworkFile, models: SweepModels, name: str, adjustment: Adjustment, *, seed: int, force: bool, mkdir: bool
) -> None:
    """A checkpoint has the layout of its own file; an interpolated network that of its segment's last file."""
    network = models.networks.by_name[name]
    point, line = network.point, network.line
    source = line.checkpoints[point.segment + 1 if point.end is None else point.end]
    assert isinstance(source, Weights)

    def transform(key: str, tensor: Tensor) -> Tensor:
        if key not in line.keys or not (network.changes(key) or adjustment.changes(key)):
            return tensor
        what = f"{file.path}: {source.file_name(key)}"
        return rounded(adjustment.apply(key, network.tensor(key)), tensor.dtype, what)

    provenance = {
        "version": __version__,
        "method": "REPAIR" if adjustment.affine else "recalibrated" if adjustment.replaced else line.mode,
        "curve": file.curve,
        "segment": str(point.segment),
        "lam": repr(point.lam) + (", and others for some tensors" if point.mixed else ""),
        "seed": str(seed),
    }
    ends = models.curves[file.curve][point.segment : point.segment + 2]
    provenance |= {f"sha256.{letter}": models.sha256[str(end)] for letter, end in zip("ab", ends, strict=True)}
    write_like(
        source.checkpoint, file.path, source.inverse_of(transform), provenance=provenance, force=force, mkdir=mkdir
    )
