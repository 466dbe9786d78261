"""Everything that can be known about an output before any work is done for it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from rebasin_cli.checkpoint.atomic import real_output
from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.disk import no_space, room
from rebasin_cli.checkpoint.read import SAFETENSORS_SUFFIX
from rebasin_cli.checkpoint.sharded import INDEX_SUFFIX
from rebasin_cli.errors import OutputError

_OTHER = {".pt", ".pth", ".bin", ".ckpt"}
_KINDS = (
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)
PROVENANCE_ROOM = 16 << 10
"""What provenance in the metadata may add to a file."""


def check_output(
    out: str | Path,
    inputs: Iterable[str | Path],
    *,
    force: bool,
    bytes_needed: int,
    mkdir: bool = False,
    like: Checkpoint | None = None,
) -> None:
    """Refuse an output that cannot or must not be written, before the first tensor is read.

    Args:
        out: where to write; a symlink is followed.
        inputs: files that are read (`Checkpoint.files`).
        force: overwrite an existing regular file, even an input.
        bytes_needed: size of the output (`Checkpoint.file_bytes`).
        mkdir: missing parent directories will be made by the writer.
        like: the checkpoint whose format the output gets, so that its name and layout can be checked too.

    Raises:
        OutputError: exists, is an input, not a regular file, wrong suffix, no parent, no permission or no space.
    """
    out = Path(out)
    target = real_output(out)
    directory = like is not None and writes_directory(like, out)
    if like is not None:
        _check_suffix(out, like)
    _check_target(out, target, [Path(path) for path in inputs], force=force, directory=directory)
    parent = _check_parent(out, target.parent, mkdir=mkdir)
    if bytes_needed > room(parent)[0]:
        raise no_space(out, parent, bytes_needed)


def writes_directory(like: Checkpoint, out: Path) -> bool:
    """Whether a sharded checkpoint goes into a directory of its own: its output does not name an index."""
    return like.kind == "sharded-safetensors" and not out.name.endswith(INDEX_SUFFIX)


def _check_suffix(out: Path, like: Checkpoint) -> None:
    """B's format is kept, so a name that promises another one would lie."""
    suffix = out.suffix.lower()
    index = out.name.endswith(INDEX_SUFFIX)
    if like.kind == "sharded-safetensors":
        wrong = not index and suffix in _OTHER | {SAFETENSORS_SUFFIX, ".json"}
        wanted = f"a directory or a *{INDEX_SUFFIX}"
    elif like.kind == "safetensors":
        wrong, wanted = index or suffix in _OTHER, f"a *{SAFETENSORS_SUFFIX}"
    else:
        wrong, wanted = index or suffix == SAFETENSORS_SUFFIX, f"a *{like.path.suffix or '.pt'}"
    if wrong:
        text = f"{out}: the output keeps the format of {like.path} ({like.kind}) and cannot have this suffix"
        raise OutputError(text, path=out, hint=f"name {wanted}", slug="suffix")


def _check_target(out: Path, target: Path, inputs: list[Path], *, force: bool, directory: bool) -> None:
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return
    except OSError as error:
        if isinstance(error, NotADirectoryError):
            return  # the parent is not a directory, which is said next
        raise OutputError(f"{out}: cannot be examined: {error.strerror}", path=out) from error
    if stat.S_ISDIR(status.st_mode):
        if directory and not any(target.iterdir()):
            return
        what = "a directory that is not empty" if directory else "a directory"
        raise OutputError(f"{out}: exists and is {what}, not a regular file; --force never replaces one", path=out)
    if directory or not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "a file where a directory is to be made")
        raise OutputError(
            f"{out}: exists and is {kind}, not {'a directory' if directory else 'a regular file'}", path=out
        )
    if force:
        return
    for given in inputs:
        if given.exists() and os.path.samefile(given, target):
            text = f"{out}: the output is the same file as the input {given}"
            raise OutputError(text, path=out, hint="name another -o; --force overwrites the input", slug="same-file")
    raise OutputError(f"{out}: exists", path=out, hint="--force overwrites it", slug="exists")


def _check_parent(out: Path, parent: Path, *, mkdir: bool) -> Path:
    """The directory that will take the output, or (with `mkdir`) the nearest that exists above it."""
    while not parent.exists() and mkdir and parent != parent.parent:
        parent = parent.parent
    if not parent.exists():
        hint = f"make it with --mkdir or mkdir -p {parent}"
        raise OutputError(f"{out}: the directory {parent} does not exist", path=out, hint=hint, slug="no-directory")
    if not parent.is_dir():
        raise OutputError(f"{out}: {parent} is not a directory", path=out)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: no permission to write in the directory {parent}", path=out, slug="permission")
    return parent
