"""Atomic writing: at every instant the output path holds the old file or the complete new one.

The new file is written to a temporary file beside the output (the same file system, so that the last step is a rename),
with the mode of the umask; then fsync, rename, fsync of the directory. A process that is killed leaves its temporary
file behind. The kernel releases its lock, so the next run that writes to the same output finds it unlocked and removes
it. A symlink is followed: its target is replaced and the link stays.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rebasin_cli.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: no locks, so leftovers stay
    fcntl = None  # type: ignore[assignment]

_LONGEST_NAME = 180
MARK = ".rebasin-"
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A temporary file; it becomes the output when it is committed, and is removed otherwise."""

    path: Path
    handle: BinaryIO


def real_output(out: Path) -> Path:
    """The path that will be replaced: symlinks are followed, so that a link to the output stays a link."""
    return Path(os.path.realpath(out))


@contextlib.contextmanager
def staged_file(out: Path, *, bytes_needed: int = 0, mkdir: bool = False) -> Iterator[StagedFile]:
    """A temporary file for `out`; `commit_file` inside the block moves it into place.

    Raises:
        OutputError: it cannot be created or written; the directory is then unchanged.
    """
    target = real_output(out)
    with os_errors_reported(out, target.parent, bytes_needed):
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
    """A temporary directory beside `out`; it is removed at the end with everything still in it."""
    target = real_output(out)
    with os_errors_reported(out, target.parent, bytes_needed):
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


def flush_to_disk(staged: StagedFile) -> None:
    """Flush and fsync, so that the bytes can be read back and survive a power loss."""
    staged.handle.flush()
    os.fsync(staged.handle.fileno())


def commit_file(staged: StagedFile, out: Path, *, force: bool) -> None:
    """Move a flushed temporary file into place.

    Raises:
        OutputError: without `force`, if a file has appeared there since the check.
    """
    put_in_place(staged.path, real_output(out), force=force)


def put_in_place(temporary: Path, target: Path, *, force: bool) -> None:
    """Rename a file; without `force`, refuse to replace a file that another process has written meanwhile."""
    if force:
        os.replace(temporary, target)
    else:
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise OutputError(f"{target}: exists", path=target, hint="--force overwrites it", slug="exists") from None
        except OSError:
            # No hard links (FAT, some network file systems): a rename, with a race between exists() and replace().
            if target.exists():
                raise OutputError(
                    f"{target}: exists", path=target, hint="--force overwrites it", slug="exists"
                ) from None
            os.replace(temporary, target)
        else:
            temporary.unlink()
    sync_directory(target.parent)


def put_directory_in_place(temporary: Path, target: Path) -> None:
    """Rename a complete directory; the target must be absent or an empty directory.

    Raises:
        OutputError: something has appeared there since the check.
    """
    try:
        os.replace(temporary, target)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise OutputError(f"{target}: exists", path=target, hint="name another -o", slug="exists") from None
        raise
    sync_directory(target.parent)


def write_new_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file inside a temporary directory, and flush it to disk."""
    with open(path, "xb") as handle:
        for chunk in chunks:
            handle.write(chunk)
        flush_to_disk(StagedFile(path, handle))


def write_text_atomically(path: str | Path, text: str, force: bool = False) -> None:
    """Write a UTF-8 text atomically.

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
        flush_to_disk(staged)
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
    """Remove temporary files of this output whose writer has ended: their lock is free."""
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


def sync_directory(directory: Path) -> None:
    """fsync a directory, where the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def os_errors_reported(out: Path, directory: Path, bytes_needed: int) -> Iterator[None]:
    """Convert an `OSError` into an `OutputError` that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise no_space(out, directory, bytes_needed) from error
        if error.errno == errno.EPIPE:
            raise  # standard output was closed by its reader: not about this file
        if error.errno in _FORBIDDEN:
            text = f"{out}: no permission to write in {directory}: {error.strerror}"
            raise OutputError(text, path=out, slug="permission") from error
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}", path=out) from error


def free_space(directory: Path) -> tuple[int, str]:
    """The largest size of a new file in a directory, and what limits it."""
    free = shutil.disk_usage(directory).free
    try:
        import resource
    except ImportError:
        return free, "free"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < free:
        return limit, "allowed by the file size limit (ulimit -f)"
    return free, "free"


def no_space(out: Path, directory: Path, bytes_needed: int) -> OutputError:
    """The error for a disk, quota or file size limit that is too small."""
    available, why = free_space(directory)
    text = f"{out}: no space: {bytes_needed:,} bytes needed, {available:,} {why} in {directory}"
    return OutputError(text, path=out, hint="free some space or choose another -o", slug="no-space")
