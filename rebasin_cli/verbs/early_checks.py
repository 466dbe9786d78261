"""What a verb reads, checked before torch is imported: a wrong name is reported at once, not after seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rebasin_cli.checkpoint import check_present
from rebasin_cli.errors import CheckpointError, DataError, RebasinError, UsageError
from rebasin_cli.model import check_model, parse_model_spec


def check_inputs(
    checkpoints: Iterable[Path] = (),
    *,
    model: str | None = None,
    data: Iterable[str | None] = (),
    input_file: Path | None = None,
    rules: Iterable[Path] = (),
    others: Iterable[Path | None] = (),
) -> None:
    """Check that all inputs of a verb exist.

    Args:
        checkpoints: each is opened, but not read.
        model: a model spec; its file, or the name in its zoo, must exist.
        data: values of `--data` and its like; None and data of other kinds than files are not checked.
        input_file, rules, others: files of the options `--input-file`, `--rules` and of further ones.

    Raises:
        CheckpointError, ModelError, DataError, UsageError: for the first that does not exist.
    """
    check_present(checkpoints)
    for path in others:
        _check_file(path, CheckpointError)
    _check_file(input_file, DataError)
    for path in rules:
        _check_file(path.expanduser(), UsageError)
    if model is not None:
        check_model(model)
    for text in data:
        _check_data(text)


def _check_file(path: Path | None, kind: type[RebasinError]) -> None:
    if path is not None and not path.exists():
        raise kind(f"{path}: no such file", path=path, slug="not-found")


def _check_data(text: str | None) -> None:
    """A file, a folder or `file.py:loader`; data sets of torchvision and packages are not looked up."""
    if text is None or text.startswith("torchvision:") or Path(text).exists():
        return
    if ":" not in text:
        raise DataError(f"{text}: no such file or directory", path=text)
    try:
        spec = parse_model_spec(text)
    except RebasinError:
        return  # reported where the data are opened
    if spec.kind == "file" and not Path(spec.target).expanduser().is_file():
        raise DataError(f"{spec.target}: no such file", path=spec.target)
