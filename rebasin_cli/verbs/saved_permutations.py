"""Permutations in a file: JSON that carries the spec and the shapes, so that applying them needs no model.

{"schema": "rebasin.permutations/1", "permutations": {group: [index, …]}, "spec": {…}, "shapes": {key: [n, …]},
 "ties": {key: key}, "provenance": {name: text}, "parameters": [key, …], "state": {"key": name or null, "ema": bool},
 "converted": true (only where a loader converts files),
 "model": {"spec": text, "args": {name: value}, "place": path or null, "sha256": text or null}}

With maps of larger classes the schema is "rebasin.maps/1" and there is more: see `saved_maps`; the spec is then the one
that was searched.

`parameters`, in the order of `model.parameters()`, and `model` are absent from files of earlier versions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rebasin_cli.checkpoint.atomic import write_text_atomically
from rebasin_cli.errors import CheckpointError, ModelError, NumericalError
from rebasin_cli.maps import Frame, Maps
from rebasin_cli.permutation import Permutations, check_permutation
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.verbs.align_reports import model_from_here, model_path, places, python_file, sha256_of
from rebasin_cli.verbs.document import plain
from rebasin_cli.verbs.output_paths import matrices_path
from rebasin_cli.verbs.saved_maps import maps_from_json, maps_to_json, packed, write_matrices

SCHEMA, MAPS_SCHEMA = "rebasin.permutations/1", "rebasin.maps/1"


@dataclass(frozen=True, slots=True)
class RecordedModel:
    """The model for which permutations were found, for files that only its loader can read.

    Args:
        spec, args: as the user gave them, with the number of classes of the checkpoints.
        place: the model's Python file or directory, relative to the file of permutations.
        sha256: of that Python file.
    """

    spec: str
    args: Mapping[str, Any]
    place: str | None = None
    sha256: str | None = None

    @staticmethod
    def of(spec: str, args: Mapping[str, Any], saved: Path) -> RecordedModel:
        """As it is recorded in the file `saved`."""
        code = python_file(spec)
        place = places(saved, model=model_path(spec)).get("model")
        return RecordedModel(spec, dict(args), place, None if code is None else sha256_of(code))

    def found_from(self, saved: Path) -> str:
        """The model spec, with its file as it is found from here.

        Raises:
            ModelError: its Python file is not the one with which the permutations were found.
        """
        spec = model_from_here(saved, self.spec, self.place)
        code = python_file(spec)
        if code is not None and self.sha256 is not None and sha256_of(code) != self.sha256:
            raise ModelError(f"{code} has changed since {saved} was made", path=code, slug="changed")
        return spec


@dataclass(frozen=True, slots=True)
class SavedPermutations:
    """All that applying needs: int64 index tensors by group, where they act, and the state they were made for.

    `converted`: the model's loader changes what files hold, so applying builds the model.
    """

    permutations: Permutations
    spec: PermutationSpec
    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str]
    provenance: Mapping[str, str]
    parameters: tuple[str, ...] = ()
    converted: bool = False
    state: tuple[str | None, bool] = (None, False)
    """Which state dict of the file was permuted: its key, and whether it was the moving average."""
    model: RecordedModel | None = None
    maps: Maps | None = None
    """What is applied instead of the permutations, and with which gauge."""
    frame: Frame = field(default_factory=Frame)

    def write(self, path: Path, *, force: bool) -> None:
        """Write the alignment; matrices beside it, and before it, so that it never names a file that is missing."""
        more: dict[str, Any] = {}
        if self.maps is not None:
            content = packed(self.maps, self.frame)
            write_matrices(matrices_path(path), content, force=force)
            more = maps_to_json(self.maps, self.frame, path, content)
        write_text_atomically(path, self.dumps(more) + "\n", force)

    def dumps(self, more: Mapping[str, Any] = MappingProxyType({})) -> str:
        return json.dumps(
            {
                "schema": SCHEMA if self.maps is None else MAPS_SCHEMA,
                "provenance": dict(self.provenance),
                "permutations": {name: perm.tolist() for name, perm in self.permutations.items()},
                "spec": self.spec.to_json(),
                "shapes": {key: list(shape) for key, shape in self.shapes.items()},
                "ties": dict(self.ties),
                "parameters": list(self.parameters),
                **({"converted": True} if self.converted else {}),
                "state": {"key": self.state[0], "ema": self.state[1]},
                **({} if self.model is None else {"model": plain(self.model)}),
                **more,
            },
            allow_nan=False,
        )

    @staticmethod
    def load(path: Path) -> SavedPermutations:
        """Read and check a file of permutations.

        Raises:
            CheckpointError: the file cannot be read, or is not such a file.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}", path=path) from error
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path}: not a saved alignment (expected JSON)",
                path=path,
                hint="such files are written by 'rebasin align --save-alignment FILE'",
            ) from error
        if not isinstance(document, dict) or document.get("schema") not in (SCHEMA, MAPS_SCHEMA):
            seen = document.get("schema") if isinstance(document, dict) else type(document).__name__
            raise CheckpointError(
                f"{path}: not a saved alignment: expected schema {SCHEMA!r}, found {seen!r}",
                path=path,
                hint="such files are written by 'rebasin align --save-alignment FILE'",
            )
        try:
            saved = SavedPermutations(
                {str(name): _index(perm) for name, perm in document["permutations"].items()},
                PermutationSpec.from_json(document["spec"]),
                {str(key): tuple(int(n) for n in shape) for key, shape in document["shapes"].items()},
                {str(key): str(canonical) for key, canonical in document.get("ties", {}).items()},
                {str(name): str(value) for name, value in document.get("provenance", {}).items()},
                tuple(str(key) for key in document.get("parameters", ())),
                document.get("converted") is True,
                _state(document.get("state") or {}),
                _model(document.get("model")),
            )
            if document["schema"] == MAPS_SCHEMA:
                maps, frame = maps_from_json(document, saved.spec, path)
                saved = replace(saved, maps=maps, frame=frame)
            saved.check()
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{path}: malformed: {type(error).__name__}: {error}", path=path) from error
        except (ModelError, NumericalError) as error:
            raise CheckpointError(f"{path}: malformed: {error.message}", path=path) from error
        return saved

    def check(self) -> None:
        """Check that the spec fits the shapes and that every index tensor is a permutation of its group."""
        self.spec.check(self.shapes)
        for key in self.parameters:
            if key not in self.shapes:
                raise ModelError(f"parameters name {key!r}, of which there is no shape")
        for name, perm in self.permutations.items():
            if name not in self.spec.by_name:
                raise ModelError(f"permutations name a group {name!r} that the spec does not have")
            check_permutation(perm, self.spec.by_name[name].size, f"group {name!r}")


def _state(found: Mapping[str, object]) -> tuple[str | None, bool]:
    key = found.get("key")
    return (None if key is None else str(key)), bool(found.get("ema"))


def _model(found: Mapping[str, Any] | None) -> RecordedModel | None:
    if not found:
        return None
    place, sha256 = (None if found.get(name) is None else str(found[name]) for name in ("place", "sha256"))
    return RecordedModel(str(found["spec"]), dict(found.get("args") or {}), place, sha256)


def _index(entries: list[int]) -> Tensor:
    """An int64 index tensor; numbers that are not whole are refused and not rounded."""
    if any(type(entry) is not int for entry in entries):
        raise TypeError("a permutation holds something else than whole numbers")
    return torch.tensor(entries, dtype=torch.int64)
