"""Opening a checkpoint: its format is found by its first bytes; the name of the file must not contradict them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.directory import open_directory
from rebasin_cli.checkpoint.foreign import foreign_file
from rebasin_cli.checkpoint.formats import Format, all_formats, announced_formats
from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.errors import CheckpointError, size

_HEAD = 512


def open_checkpoint(path: str | Path, *, key: str | None = None, ema: bool = False) -> Checkpoint:
    """Open a checkpoint; only its header is read and checked.

    Args:
        path: a `.safetensors` file; a file of torch.save; the index of a sharded checkpoint; or a directory.
        key: which state dict of several, as the keys that lead to it joined by dots; for safetensors a key prefix.
        ema: the averaged weights (`state_dict_ema`, `model_ema`, `ema`, …).

    Raises:
        CheckpointError: it cannot be read safely; the message says what it is instead.
        UsageError: both `key` and `ema`.
    """
    path = Path(path)
    if path.is_dir():
        return open_directory(path, lambda weights: open_checkpoint(weights, key=key, ema=ema))
    head, nbytes = _start_of(path)
    announced = announced_formats(path)
    other = foreign_file(path, head)
    if other is not None:
        raise _refused(path, announced, other.what, other.hint)
    found = next((form for form in all_formats() if form.recognises(path, head)), None)
    if found is None:
        raise _unrecognised(path, announced, head, nbytes)
    if announced and found not in announced:
        raise _refused(path, announced, found.help, f"rename it to *{found.suffixes[0]}")
    return found.open(path, key=key, ema=ema)


def check_present(paths: Iterable[str | Path]) -> None:
    """Check that files can be opened, before anything that takes time.

    Raises:
        CheckpointError: one is absent, not a regular file, or not readable.
    """
    for path in paths:
        _start_of(Path(path))


def _start_of(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file and its size; nothing of a directory."""
    if path.is_dir():
        return b"", 0
    file = MappedFile(path)
    return file.read(0, _HEAD), file.size


def _refused(path: Path, announced: tuple[Format, ...], seen: str, hint: str | None) -> CheckpointError:
    wanted = announced[0].help if announced else "a checkpoint"
    return CheckpointError(f"{path}: not {wanted}: it is {seen}", path=path, hint=hint)


def _unrecognised(path: Path, announced: tuple[Format, ...], head: bytes, nbytes: int) -> CheckpointError:
    """The error for a file that no format recognises."""
    hint = None if announced else f"a checkpoint is {', '.join(form.help for form in all_formats())}"
    if nbytes and not head.strip(b"\0"):
        return _refused(path, announced, "zeros only: an incomplete download, or a hole in the file system", None)
    if announced:
        return CheckpointError(f"{path}: {announced[0].misfit(head, nbytes)}", path=path)
    if not nbytes:
        return CheckpointError(f"{path}: empty file (0 bytes), not a checkpoint", path=path)
    if head.lstrip().startswith((b"{", b"[")):
        return _refused(path, announced, "a JSON text", hint)
    return CheckpointError(
        f"{path}: not a checkpoint: {size(nbytes)} that begin with {head[:8]!r}", path=path, hint=hint
    )
