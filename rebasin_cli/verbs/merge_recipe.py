"""The recipe of a merge: all that decides its bytes, as JSON beside the output, and how it is repeated.

Paths are relative to the recipe's directory, so that a directory with a recipe and its files can be moved.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rebasin_cli.checkpoint.atomic import write_text_atomically
from rebasin_cli.errors import CheckpointError, UsageError
from rebasin_cli.options import options_of
from rebasin_cli.verbs.align_reports import python_file
from rebasin_cli.verbs.document import pretty
from rebasin_cli.verbs.merge import OF_THE_FILES, MergeOptions, MergeResult
from rebasin_cli.verbs.output_paths import optional_path
from rebasin_cli.verbs.versions import versions

SCHEMA = "rebasin.recipe/1"
LARGEST = 16 * 2**20
OF_THE_RUN = (*OF_THE_FILES, "cache", "device", "workers")
"""Options that decide where a run happens, not what it makes; only these may be given beside a recipe."""
PATHS = (
    "base",
    "reference",
    "input_file",
    "spec",
    "class_map",
    "rules",
    "model",
    "data",
    "recalibrate",
    "loss",
    "transform",
)
"""Options that name files, or may."""
WITH_PATH = ("transformers:", "diffusers:")


def write_recipe(options: MergeOptions, result: MergeResult) -> None:
    """Write the recipe beside the output, atomically."""
    path = options.recipe_path
    if options.mkdir:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, pretty(recipe_of(options, result)), options.force)


def recipe_of(options: MergeOptions, result: MergeResult) -> dict[str, Any]:
    """The recipe as plain data."""
    here = os.path.abspath(options.recipe_path.parent)

    def relative(path: str) -> str:
        return os.path.relpath(os.path.abspath(os.path.expanduser(path)), here)

    changed = options.given(without=OF_THE_RUN)
    for name in PATHS:
        if name in changed:
            changed[name] = _each(changed[name], lambda text: located(text, relative))
    files = list(_read_files(options))
    return {
        "schema": SCHEMA,
        "verb": "merge",
        "versions": versions(),
        "inputs": [
            {"path": relative(str(one.path)), "sha256": one.sha256, "weight": one.weight} for one in result.inputs
        ],
        "base": None if result.base is None else {"path": relative(str(result.base)), "sha256": result.base_sha256},
        "method": result.method,
        "align": result.align,
        "reference": relative(str(result.reference)),
        "seed": options.seed,
        "options": changed,
        "files": {relative(str(file)): _digest(file) for file in dict.fromkeys(files)},
        "sha256": result.sha256,
    }


def located(text: str, move: Callable[[str], str]) -> str:
    """A value of an option with the path in it changed: `DIR`, `FILE.py:NAME`, `transformers:DIR`, `NAME@ROOT`."""
    for prefix in WITH_PATH:
        if text.startswith(prefix):
            return prefix + move(text.removeprefix(prefix))
    if text.startswith("torchvision:") and "@" in text:
        name, _, root = text.partition("@")
        return f"{name}@{move(root)}"
    file, sign, name = text.rpartition(":")
    if sign and file.endswith(".py"):
        return f"{move(file)}:{name}"
    return move(text) if os.path.lexists(os.path.expanduser(text)) or _is_relative(text, move) else text


def _is_relative(text: str, move: Callable[[str], str]) -> bool:
    """Whether the text is a path from the other place."""
    return os.path.lexists(move(text))


def _each(value: Any, change: Callable[[str], str]) -> Any:
    return [change(str(item)) for item in value] if isinstance(value, (tuple, list)) else change(str(value))


def _read_files(options: MergeOptions) -> Iterator[Path]:
    """The files that decide the bytes besides the checkpoints: Python files, and data that are one file."""
    for name in PATHS:
        for text in _listed(getattr(options, name)):
            file = python_file(text)
            if file is not None:
                yield file
    yield from (path for path in options.rules if path.is_file())
    chosen = options.data if options.method == "greedy-soup" or options.match_method != "weight" else None
    single = (options.spec, options.input_file, options.class_map, options.recalibrate, chosen)
    yield from (path for path in map(optional_path, single) if path is not None and path.is_file())


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, (tuple, list)) else [str(value)]


def from_recipe(options: MergeOptions) -> tuple[MergeOptions, dict[Path, str]]:
    """The options of the merge that a recipe describes, and the SHA-256 that its inputs must have.

    Raises:
        UsageError: other options are given too, or it is no recipe.
        CheckpointError: a file of code or data that it names has changed.
    """
    path = options.recipe
    assert path is not None
    for entry in options_of(MergeOptions):
        if entry.name not in OF_THE_RUN and getattr(options, entry.name) != entry.default:
            raise UsageError(f"{entry.flag} and --recipe cannot both be given: the recipe says how to merge")
    if options.checkpoints:
        raise UsageError("checkpoints and --recipe cannot both be given: the recipe names its own")
    document = read_recipe(path)

    def found(relative: str) -> str:
        return os.path.relpath(os.path.normpath(os.path.join(path.parent, relative)))

    for file, digest in document["files"].items():
        here = Path(found(file))
        if not here.is_file() or _digest(here) != digest:
            seen = "missing" if not here.is_file() else "changed since the recipe was written"
            raise CheckpointError(f"{here}: {seen}, and the merge depends on it", path=here, slug="changed")
    values = dict(document["options"])
    for name in PATHS:
        if values.get(name) is not None:
            values[name] = _each(values[name], lambda text: located(text, found))
    inputs = [(Path(found(one["path"])), str(one["sha256"])) for one in document["inputs"]]
    hashes = dict(inputs)
    base = document.get("base")
    if base is not None:
        hashes[Path(found(base["path"]))] = str(base["sha256"])
        values["base"] = found(base["path"])
    own = {name: getattr(options, name) for name in OF_THE_RUN if name not in ("checkpoints", "recipe")}
    known = {entry.name for entry in options_of(MergeOptions)}
    if unknown := sorted(set(values) - known):
        raise UsageError(f"{path}: a recipe with an unknown option {unknown[0]!r}, of another version of rebasin")
    return (
        MergeOptions(
            checkpoints=[file for file, _ in inputs], recipe=path, progress=options.progress, **{**values, **own}
        ),
        hashes,
    )


def read_recipe(path: Path) -> Mapping[str, Any]:
    """Read a recipe.

    Raises:
        UsageError: it is none.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path}: not a recipe of a merge")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path}: not a recipe of a merge") from error
    complete = (
        isinstance(document, dict)
        and document.get("schema") == SCHEMA
        and all(isinstance(document.get(name), dict) for name in ("options", "files"))
        and isinstance(document.get("inputs"), list)
        and all(isinstance(one, dict) and {"path", "sha256"} <= one.keys() for one in document["inputs"])
    )
    if not complete:
        raise UsageError(f"{path}: not a recipe of a merge", hint="merge writes one beside its output: OUT.json")
    return document  # type: ignore[no-any-return]
