"""Where a run writes, decided and checked before anything is read; it needs no torch, so a refusal comes at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rebasin_cli.checkpoint import split_name
from rebasin_cli.errors import OutputError, UsageError

NAMED_BY_OPTION = ("spec", "page", "plot")
"""Outputs that an option of their own names, and not -o."""


def default_output(b: Path) -> Path:
    """`<B's stem>-aligned<suffix>` beside B."""
    if not b.name or b.is_dir():
        real = b.resolve()
        return (b / ".." if not b.name else b.parent) / f"{real.name}-aligned"
    stem, suffix = split_name(b)
    return b.parent / f"{stem}-aligned{suffix}"


def report_path(out: Path) -> Path:
    """`<OUT's stem>.json` beside the output."""
    return out.parent / f"{split_name(out)[0]}.json"


def optional_path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def matrices_path(alignment: Path) -> Path:
    """The file of matrices beside a saved alignment."""
    return alignment.with_name(f"{alignment.name}.safetensors")


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """All files that one alignment writes."""

    out: Path
    report: Path
    permutations: Path | None
    spec: Path | None
    generated: Path | None = None
    matrices: Path | None = None

    @staticmethod
    def plan(
        b: Path,
        out: str | Path | None,
        *,
        permutations: str | Path | None,
        spec: str | Path | None,
        generated: Path | None = None,
        maps: bool = False,
    ) -> OutputFiles:
        """The files as asked for; the checkpoint's default name comes from B's, the report's from the checkpoint's."""
        chosen = default_output(b) if out is None else Path(out)
        saved = optional_path(permutations)
        beside = matrices_path(saved) if maps and saved is not None else None
        return OutputFiles(chosen, report_path(chosen), saved, optional_path(spec), generated, beside)

    def named(self) -> dict[str, Path]:
        """Path by what it is for."""
        files = {
            "output": self.out,
            "report": self.report,
            "file of permutations": self.permutations,
            "spec": self.spec,
            "generated inputs": self.generated,
            "file of matrices": self.matrices,
        }
        return {what: path for what, path in files.items() if path is not None}


def check_outputs(
    outputs: Mapping[str, Path], inputs: Iterable[Path], *, force: bool, mkdir: bool, replaceable: Path | None = None
) -> None:
    """Refuse outputs that coincide, exist, are inputs, or lie where nothing can be written.

    Args:
        outputs: path by what it is for ("output", "report", …).
        mkdir: a missing directory is not refused, the writer will make it.
        replaceable: the only input that `force` lets be overwritten, and only by the "output".

    Raises:
        UsageError: two outputs are one file.
        OutputError: anything else. `force` lets existing files be overwritten.
    """
    seen: dict[str, str] = {}
    for what, path in outputs.items():
        where = os.path.realpath(path)
        if where in seen:
            raise UsageError(f"{path}: the {what} and the {seen[where]} would be the same file")
        seen[where] = what
        _check_input(what, path, inputs, replaceable if what == "output" else None, force=force)
        _check_output(what, path, force=force, mkdir=mkdir)


def _check_input(what: str, path: Path, inputs: Iterable[Path], replaceable: Path | None, *, force: bool) -> None:
    """Refuse an output that is an input: B may be replaced by B permuted, all else would be lost."""
    for source in inputs:
        if _same_file(path, source):
            may = source == replaceable
            if may and force:
                continue
            raise OutputError(
                f"{path}: the {what} is the same file as the input {source}",
                path=path,
                hint="choose another name" + (" with -o, or --force to replace the input" if may else ""),
                slug="same-file",
            )


def _check_output(what: str, path: Path, *, force: bool, mkdir: bool) -> None:
    if os.path.lexists(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise OutputError(f"{path}: the {what} is not a regular file, and is not overwritten", path=path)
        if not force:
            other = "name" if what in NAMED_BY_OPTION else "output with -o"
            raise OutputError(
                f"{path}: the {what} exists",
                path=path,
                hint=f"choose another {other}, or --force to overwrite it",
                slug="exists",
            )
    _check_directory(what, path.parent, mkdir=mkdir)


def _check_directory(what: str, parent: Path, *, mkdir: bool) -> None:
    while mkdir and not parent.exists() and parent != parent.parent:
        parent = parent.parent  # the missing part will be made by the writer
    if not parent.exists():
        raise OutputError(
            f"{parent}: the directory for the {what} does not exist",
            path=parent,
            hint=f"make it with --mkdir or mkdir -p {parent}",
            slug="no-directory",
        )
    if not parent.is_dir():
        raise OutputError(f"{parent}: not a directory, so the {what} cannot be written there", path=parent)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{parent}: no permission to write the {what} in this directory", path=parent, slug="permission"
        )


def _same_file(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)
