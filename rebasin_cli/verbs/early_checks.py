"""What a verb reads, checked before torch is imported: a wrong name is reported at once, not after seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rebasin_cli.checkpoint import check_present
from rebasin_cli.data.generated_kinds import is_generated
from rebasin_cli.errors import CheckpointError, DataError, RebasinError, UsageError
from rebasin_cli.model import check_model, parse_model_spec
from rebasin_cli.options import options_of
from rebasin_cli.verbs.shared_options import DataReading


def check_inputs(
    checkpoints: Iterable[Path] = (),
    *,
    model: str | None = None,
    data: Iterable[str | None] = (),
    input_file: Path | None = None,
    rules: Iterable[Path] = (),
    others: Iterable[Path | None] = (),
    class_map: Path | None = None,
) -> None:
    """Check that all inputs of a verb exist.

    Args:
        checkpoints: each is opened, but not read.
        model: a model spec; its file, or the name in its zoo, must exist.
        data: values of `--data` and its like; None and data of other kinds than files are not checked.
        input_file, rules, others: files of the options `--input-file`, `--rules` and of further ones.
        class_map: the file of `--class-map`.

    Raises:
        CheckpointError, ModelError, DataError, UsageError: for the first that does not exist.
    """
    check_present(checkpoints)
    for path in others:
        _check_file(path, CheckpointError)
    _check_file(input_file, DataError)
    _check_file(class_map, DataError)
    for path in rules:
        _check_file(path.expanduser(), UsageError)
    if model is not None:
        check_model(model)
    for text in data:
        _check_data(text)


def check_data_options(options: DataReading, data: str | None) -> None:
    """Refuse options of data that have no effect.

    Raises:
        UsageError: naming the option.
    """
    if options.class_map is not None and options.class_order is not None:
        raise UsageError("--class-map and --class-order cannot both be given: the file states the order")
    if data is not None:
        return
    for entry in options_of(DataReading):
        if getattr(options, entry.name) != entry.default:
            raise UsageError(f"{entry.flag} has no effect without data", hint="give --data")


def _check_file(path: Path | None, kind: type[RebasinError]) -> None:
    if path is not None and not path.exists():
        raise kind(f"{path}: no such file", path=path, slug="not-found")


def _check_data(text: str | None) -> None:
    """A file, a folder or `file.py:loader`; data sets of torchvision and packages are not looked up."""
    if text is None or is_generated(text) or text.startswith("torchvision:") or Path(text).exists():
        return
    if ":" not in text:
        raise DataError(f"{text}: no such file or directory", path=text)
    try:
        spec = parse_model_spec(text)
    except RebasinError:
        return  # reported where the data are opened
    if spec.kind == "file" and not Path(spec.target).expanduser().is_file():
        raise DataError(f"{spec.target}: no such file", path=spec.target)
