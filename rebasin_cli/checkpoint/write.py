"""Writing a checkpoint like another one: same layout, key order and dtypes, every tensor transformed.

The output's suffix may announce another format; then the state dict alone is written, as a new file of that format.

Everything that can be checked about the output is checked first, before any tensor is read.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from rebasin_cli.checkpoint.atomic import commit_file, flush_to_disk, free_space, no_space, real_output, staged_file
from rebasin_cli.checkpoint.checkpoint import Checkpoint, Transform, WrittenCopy
from rebasin_cli.checkpoint.directory import DirectoryCheckpoint
from rebasin_cli.checkpoint.formats import Format, announced_formats
from rebasin_cli.checkpoint.formats._sharded import ShardedFormat, staged_index
from rebasin_cli.checkpoint.relaid import HEADER_BYTES, Layout, check_layout, relaid_bytes, staged_relaid
from rebasin_cli.errors import OutputError, few, quoted

_KINDS = (
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)

AS_IT_IS = Layout()

Check = Callable[[Checkpoint], None]


def write_like(
    source: Checkpoint,
    out: str | Path,
    transform: Transform,
    *,
    provenance: Mapping[str, str],
    force: bool,
    check: Check | None = None,
    mkdir: bool = False,
    layout: Layout = AS_IT_IS,
) -> str:
    """Write `source` with `transform(key, tensor)` in place of each tensor of its state dict.

    Args:
        source: the checkpoint whose format, layout, order, dtypes, metadata and other entries are kept.
        out: the output; for a sharded source an index or a directory to be made, for a directory one to be made or
            a file for the weights alone.
        transform: from a key of the file and its tensor to one of the same shape and dtype.
        provenance: entries of the metadata, under `rebasin.`; formats without metadata leave it out.
        force: overwrite an existing file.
        check: called with the written copy, opened; if it raises, nothing has changed on disk.
        mkdir: make missing parent directories.
        layout: another dtype, or other shards; the transform then gets and gives tensors of that dtype.

    Returns:
        SHA-256 of what was written, as `Checkpoint.sha256` defines it.

    Raises:
        OutputError: see `check_output`; or the disk fills up (the directory is then unchanged).
        CheckpointError: a checksum of `source` fails.
        ModelError: tensors that share memory in the file are transformed differently.
        NumericalError: another reader of the format finds other tensors in the copy.
    """
    out = Path(out)
    needed = bytes_needed(source, out, layout)
    check_output(out, source.files, force=force, bytes_needed=needed, mkdir=mkdir, like=source)
    check_layout(source, layout, out)
    with _staged(source, out, transform, provenance, mkdir=mkdir, layout=layout) as staged:
        if new_format(source, out) is None and not layout.changes:
            source.check_copy(staged.checkpoint)
        if check is not None:
            check(staged.checkpoint)
        digest = staged.checkpoint.sha256()
        staged.commit(force)
    return digest


def new_format(source: Checkpoint, out: Path) -> Format | None:
    """The format that the output's name announces, if it is not the source's own.

    An OutputError for a name that announces only formats that cannot be made from others comes from `check_output`.
    """
    announced = announced_formats(out)
    if not announced or source.format in announced:
        return None
    return next((form for form in announced if form.creates), None)


def keeps_siblings(source: Checkpoint, out: Path) -> bool:
    """Whether the output has what lies beside the source's weights: it is no other format, and no file for a folder."""
    folder = isinstance(source, DirectoryCheckpoint)
    return new_format(source, out) is None and (not folder or source.makes_directory(out))


def bytes_needed(source: Checkpoint, out: Path, layout: Layout = AS_IT_IS) -> int:
    """Bytes of the output, before it is written."""
    if layout.changes:
        return relaid_bytes(source, layout, out)
    if new_format(source, out) is None:
        return source.copy_bytes(out)
    return sum(info.nbytes for info in source.infos.values()) + HEADER_BYTES * (len(source.infos) + 16)


def notes_on_output(source: Checkpoint, out: Path) -> tuple[str, ...]:
    """What the output does not have, or has unchanged, one sentence each."""
    form = new_format(source, out)
    if form is None:
        return source.notes_on_copy(out)
    left = source.entries_beside()
    end = f"; left out: {few(left, shown=6)}" if left else ""
    return (f"{out}: the state dict alone is written, as {form.help}{end}",)


@contextlib.contextmanager
def _staged(
    source: Checkpoint, out: Path, transform: Transform, provenance: Mapping[str, str], *, mkdir: bool, layout: Layout
) -> Iterator[WrittenCopy]:
    """The temporary output, in the source's own layout or in the format that the name announces."""
    if layout.changes:
        with staged_relaid(source, layout, out, transform, provenance, mkdir=mkdir) as staged:
            yield staged
        return
    form = new_format(source, out)
    if form is None:
        with source.staged_copy(out, transform, provenance, mkdir=mkdir) as staged:
            yield staged
        return
    source.verify()
    needed = bytes_needed(source, out)
    if isinstance(form, ShardedFormat):
        with staged_index(form, [source], out, transform, provenance, mkdir=mkdir, bytes_needed=needed) as staged:
            yield staged
        return
    with staged_file(out, bytes_needed=needed, mkdir=mkdir) as temporary:
        form.write_new(temporary.handle, source, transform, provenance)
        flush_to_disk(temporary)
        yield WrittenCopy(form.open(temporary.path), lambda force: commit_file(temporary, out, force=force))


def check_output(
    out: str | Path,
    inputs: Iterable[str | Path],
    *,
    force: bool,
    bytes_needed: int,
    mkdir: bool = False,
    like: Checkpoint | None = None,
    kept: Iterable[str | Path] = (),
) -> None:
    """Refuse an output that cannot or must not be written, before the first tensor is read.

    Args:
        out: where to write; a symlink is followed.
        inputs: files that are read (`Checkpoint.files`).
        force: overwrite an existing regular file, even an input.
        bytes_needed: size of the output (the function of this name).
        mkdir: missing parent directories will be made by the writer.
        kept: files that are read and are not overwritten even with `force`.
        like: the checkpoint whose format the output gets, so that its name and layout can be checked too.

    Raises:
        OutputError: exists, is an input, not a regular file, wrong suffix, no parent, no permission or no space.
    """
    out = Path(out)
    target = real_output(out)
    directory = like is not None and new_format(like, out) is None and like.makes_directory(out)
    if like is not None:
        _check_suffix(out, like)
    for given in map(Path, kept):
        if target.exists() and given.exists() and os.path.samefile(given, target):
            text = f"{out}: the output is the same file as the input {given}, which is never overwritten"
            raise OutputError(text, path=out, hint="name another -o", slug="same-file")
    _check_target(out, target, [Path(path) for path in inputs], force=force, directory=directory)
    parent = _check_parent(out, target.parent, mkdir=mkdir)
    if bytes_needed > free_space(parent)[0]:
        raise no_space(out, parent, bytes_needed)


def _check_suffix(out: Path, like: Checkpoint) -> None:
    """The name must announce the format of the source, or one that can be made from it."""
    form = new_format(like, out)
    announced = announced_formats(out)
    if form is None and ((announced and like.format not in announced) or not like.format.suits(out)):
        text = f"{out}: an output with this suffix cannot be made from {like.path} ({like.kind})"
        hint = f"name {like.format.output_name(like.path)}"
        raise OutputError(text, path=out, hint=hint, slug="suffix")
    lost = [] if form is None else [info for info in like.infos.values() if form.cannot_hold(info)]
    if lost:
        text = f"{out}: the format has no dtype {lost[0].dtype_name}, which {quoted(lost[0].key)} of {like.path} has"
        raise OutputError(text, path=out, hint=f"name {like.format.output_name(like.path)}", slug="suffix")


def _check_target(out: Path, target: Path, inputs: list[Path], *, force: bool, directory: bool) -> None:
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return
    except OSError as error:
        if isinstance(error, NotADirectoryError):
            return  # the parent is not a directory, which is reported next
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
    """The directory of the output, or (with `mkdir`) the nearest existing one above it."""
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
