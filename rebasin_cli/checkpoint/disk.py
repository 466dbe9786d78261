"""The disk a file is written to: how much room there is, and what its errors mean to the user."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rebasin_cli.errors import OutputError

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def sync_directory(directory: Path) -> None:
    """Bring a directory's entries to the disk; not every system lets one."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def reported(out: Path, directory: Path, bytes_needed: int) -> Iterator[None]:
    """Turn what the operating system says into an error with the file's name."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise no_space(out, directory, bytes_needed) from error
        if error.errno == errno.EPIPE:
            raise  # a reader of our standard output has gone: nothing to do with this file
        if error.errno in _FORBIDDEN:
            text = f"{out}: no permission to write in {directory}: {error.strerror}"
            raise OutputError(text, path=out, slug="permission") from error
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}", path=out) from error


def room(directory: Path) -> tuple[int, str]:
    """Bytes that one new file in a directory may have, and what sets that bound."""
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
    """The error for a disk, quota or file size limit that does not suffice."""
    available, why = room(directory)
    text = f"{out}: no space: {bytes_needed:,} bytes needed, {available:,} {why} in {directory}"
    return OutputError(text, path=out, hint="free some space or choose another -o", slug="no-space")
