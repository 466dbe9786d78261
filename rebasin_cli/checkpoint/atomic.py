"""Writing so that the output path holds, at every instant, what was there before or the complete new file.

A temporary beside the output (same file system, so the last step is a rename), the mode of the umask, fsync, one
rename, fsync of the directory. A run that is killed leaves its temporary behind; the kernel drops its lock, and the
next run to the same output, finding it unlocked, removes it. A symlink is followed: its target is replaced, the link
stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rebasin_cli.checkpoint.disk import reported, sync_directory
from rebasin_cli.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: no locks, so leftovers stay
    fcntl = None  # type: ignore[assignment]

_LONGEST_NAME = 180
MARK = ".rebasin-"


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A temporary that becomes the output when committed and vanishes otherwise."""

    path: Path
    handle: BinaryIO


def real_output(out: Path) -> Path:
    """Where the bytes will lie: symlinks followed, so that a link to the output stays a link."""
    return Path(os.path.realpath(out))


@contextlib.contextmanager
def staged_file(out: Path, *, bytes_needed: int = 0, mkdir: bool = False) -> Iterator[StagedFile]:
    """A temporary file for `out`; `commit_file` inside the block puts it into place.

    Raises:
        OutputError: it cannot be created or written; the directory is then as it was.
    """
    target = real_output(out)
    with reported(out, target.parent, bytes_needed):
        if mkdir:
            target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        path = _temporary_name(target)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            _lock(descriptor)
            with os.fdopen(descriptor, "r+b") as handle:
                yield StagedFile(path, handle)
        finally:
            # Runs for any exception, so for SIGINT and for SIGTERM where that is turned into one.
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_directory(out: Path, *, bytes_needed: int = 0, mkdir: bool = False) -> Iterator[Path]:
    """A temporary directory beside `out`, removed at the end with whatever is then still in it."""
    target = real_output(out)
    with reported(out, target.parent, bytes_needed):
        if mkdir:
            target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        path = _temporary_name(target)
        path.mkdir()
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _lock(descriptor)
            yield path
        finally:
            os.close(descriptor)
            shutil.rmtree(path, ignore_errors=True)


def settle(staged: StagedFile) -> None:
    """Bring a staged file's bytes to the disk, so that they can be read back and outlive a power loss."""
    staged.handle.flush()
    os.fsync(staged.handle.fileno())


def commit_file(staged: StagedFile, out: Path, *, force: bool) -> None:
    """Put a settled temporary into place.

    Raises:
        OutputError: without `force`, when something has appeared there since it was checked.
    """
    put_in_place(staged.path, real_output(out), force=force)


def put_in_place(temporary: Path, target: Path, *, force: bool) -> None:
    """Rename a file, refusing (without `force`) to replace what another process put there meanwhile."""
    if force:
        os.replace(temporary, target)
    else:
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise OutputError(f"{target}: exists", path=target, hint="--force overwrites it", slug="exists") from None
        except OSError:
            # No hard links here (FAT, some network file systems): a rename, with a moment between look and leap.
            if target.exists():
                raise OutputError(
                    f"{target}: exists", path=target, hint="--force overwrites it", slug="exists"
                ) from None
            os.replace(temporary, target)
        else:
            temporary.unlink()
    sync_directory(target.parent)


def write_text_atomically(path: str | Path, text: str, force: bool = False) -> None:
    """Write a small UTF-8 text the same way.

    Raises:
        OutputError: it exists and `force` is not given, or it cannot be written.
    """
    path = Path(path)
    data = text.encode("utf-8")
    target = real_output(path)
    if target.is_dir() or (target.exists() and not target.is_file()):
        raise OutputError(f"{path}: not a regular file", path=path)
    if target.exists() and not force:
        raise OutputError(f"{path}: exists", path=path, hint="--force overwrites it", slug="exists")
    with staged_file(path, bytes_needed=len(data)) as staged:
        staged.handle.write(data)
        settle(staged)
        commit_file(staged, path, force=force)


def _stem(target: Path) -> str:
    name = target.name
    short = name if len(os.fsencode(name)) <= _LONGEST_NAME else hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{short}{MARK}"


def _temporary_name(target: Path) -> Path:
    return target.with_name(f"{_stem(target)}{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _lock(descriptor: int) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_leftovers(target: Path) -> None:
    """Remove temporaries for this very output whose writer is gone, which the free lock proves."""
    if fcntl is None or not target.parent.is_dir():
        return
    stem = _stem(target)
    for entry in os.scandir(target.parent):
        if not (entry.name.startswith(stem) and entry.name.endswith(".tmp")) or entry.is_symlink():
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(entry.path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
            finally:
                os.close(descriptor)
