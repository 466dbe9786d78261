"""Inputs without data among the options of a verb: what is refused before torch is imported, and saving the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rebasin_cli.data.generated_kinds import COUNT, WORD, check_no_file, is_generated
from rebasin_cli.errors import UsageError
from rebasin_cli.options import OptionalPath, option, options_class, options_of
from rebasin_cli.verbs.shared_options import DataReading

if TYPE_CHECKING:
    from rebasin_cli.execution.generated.maker import InputMaker

SUFFIXES = (".npz", ".png")
OF_DATA = ("transform", "class_map", "class_order", "workers", "skip_corrupt")
"""Options of data that have no effect on inputs that are none."""
CORRECTED = ", less the error that these inputs make of the checkpoints' own statistics"
"""How statistics on generated inputs are measured, after the method."""


@options_class
class GeneratedSaving:
    """What becomes of generated inputs."""

    save_generated: OptionalPath = option(
        "Save the inputs that --data generated or its like makes: .npz, or .png for a sheet of some images.",
        group="Output",
        metavar="FILE",
        default=None,
    )


class _Options(Protocol):
    """Of a verb that takes data."""

    @property
    def save_generated(self) -> Path | None: ...


def check_generated(options: _Options, *data: str | None) -> None:
    """Refuse what has no effect on generated inputs, or without them.

    Args:
        data: all values of `--data` and its like.

    Raises:
        UsageError: naming the option.
    """
    given = [one for one in data if one is not None]
    made = [one for one in given if is_generated(one)]
    for one in made:
        check_no_file(one)
    path = options.save_generated
    if path is not None and not made:
        raise UsageError(f"--save-generated has no effect without generated inputs: give --data {WORD}")
    if path is not None and path.suffix not in SUFFIXES:
        raise UsageError(f"--save-generated {path}: the name ends in .npz or .png")
    if not made or len(made) < len(given):
        return
    for entry in options_of(DataReading):
        if entry.name in OF_DATA and getattr(options, entry.name) != entry.default:
            raise UsageError(f"{entry.flag} has no effect on {made[0]}, which is no data")


def saved_output(path: Path | None) -> dict[str, Path]:
    """The file of `--save-generated` as an output to check."""
    return {} if path is None else {"generated inputs": path}


def statistics_count(limit: int | None, recalibrate_limit: int, default: int, data: str | None) -> int:
    """How many inputs `--recalibrate generated` makes: as `--recalibrate-limit` says, or else `--limit` of the same.

    Args:
        default: of `--recalibrate-limit`, which is meant for data.
        data: `--data`, which `--limit` is about where it is given.
    """
    if recalibrate_limit != default:
        return recalibrate_limit
    return limit if limit is not None and (data is None or is_generated(data)) else COUNT


def check_saving(maker: InputMaker, path: Path | None) -> None:
    """Refuse a picture of inputs that are no images, once they are known.

    Raises:
        DataError: naming their shape.
    """
    if path is not None and maker.last is not None:
        from rebasin_cli.execution.generated.saved import check_sheet

        check_sheet(maker.last, path)


def save_inputs(maker: InputMaker | None, path: Path | None, *, force: bool, mkdir: bool) -> None:
    """Write the inputs that were made, if that was asked for and there are some.

    Raises:
        OutputError: the file cannot be written.
        DataError: they are no images, and the file is one.
    """
    made = None if maker is None else maker.last
    if made is None or path is None:
        return
    from rebasin_cli.execution.generated.saved import write_inputs

    write_inputs(made, path, force=force, mkdir=mkdir)
