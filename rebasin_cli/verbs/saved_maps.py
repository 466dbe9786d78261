"""Maps in files: the JSON of the alignment has what is short, a safetensors file beside it matrices and A's gauge.

{"maps": {group: {"perm": [index, …] or null, "scales": [[factor, …], …], "matrix": bool}},
 "kept": {key: [index, …]}, "matrices": {"file": name, "sha256": text}}

Tensors of the other file: `map/<group>`, `gain/<key>`, `mean/<number>/<key>`, all float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rebasin_cli.checkpoint.atomic import commit_file, flush_to_disk, staged_file
from rebasin_cli.checkpoint.formats.safetensors import pack, unpack
from rebasin_cli.errors import CheckpointError, ModelError, NumericalError
from rebasin_cli.maps import Frame, GroupMap, Maps
from rebasin_cli.permutation import check_permutation
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.verbs.output_paths import matrices_path

MAP, GAIN, MEAN = "map/", "gain/", "mean/"


def packed(maps: Mapping[str, GroupMap], frame: Frame) -> bytes:
    """The file of matrices; equal maps give equal bytes."""
    tensors = {MAP + name: one.matrix for name, one in maps.items() if one.matrix is not None}
    tensors.update({GAIN + key: gain for key, gain in frame.gains.items()})
    for key, means in frame.means.items():
        tensors.update({f"{MEAN}{number}/{key}": mean for number, mean in enumerate(means)})
    return pack(tensors)


def write_matrices(path: Path, content: bytes, *, force: bool) -> None:
    """Write the file of matrices, atomically."""
    with staged_file(path, bytes_needed=len(content)) as staged:
        staged.path.write_bytes(content)
        flush_to_disk(staged)
        commit_file(staged, path, force=force)


def maps_to_json(maps: Mapping[str, GroupMap], frame: Frame, alignment: Path, content: bytes) -> dict[str, Any]:
    """What the alignment's own file holds of the maps."""
    return {
        "maps": {
            name: {
                "perm": None if one.perm is None else one.perm.tolist(),
                "scales": [scale.tolist() for scale in one.scales],
                "matrix": one.matrix is not None,
            }
            for name, one in maps.items()
        },
        "kept": {key: list(units) for key, units in frame.kept.items()},
        "matrices": {"file": matrices_path(alignment).name, "sha256": hashlib.sha256(content).hexdigest()},
    }


def maps_from_json(document: Mapping[str, Any], spec: PermutationSpec, alignment: Path) -> tuple[Maps, Frame]:
    """The maps of an alignment, and A's gauge.

    Raises:
        CheckpointError: the file of matrices is missing, damaged, or of another alignment.
        ModelError, NumericalError: a map does not fit its group.
        KeyError, TypeError, ValueError: the JSON is malformed.
    """
    tensors = _matrices(alignment.parent / Path(str(document["matrices"]["file"])).name, document["matrices"]["sha256"])
    maps: Maps = {}
    for name, entry in document["maps"].items():
        if name not in spec.by_name:
            raise ModelError(f"maps name a group {name!r} that the spec does not have")
        perm = None if entry["perm"] is None else torch.tensor([int(unit) for unit in entry["perm"]])
        scales = tuple(torch.tensor(scale, dtype=torch.float64) for scale in entry["scales"])
        maps[name] = GroupMap(perm, scales, tensors[MAP + name] if entry["matrix"] else None)
        _check(maps[name], name, spec)
    means: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(MEAN):
            number, _, key = name.removeprefix(MEAN).partition("/")
            means.setdefault(key, {})[int(number)] = tensor
    return maps, Frame(
        {name.removeprefix(GAIN): tensor for name, tensor in tensors.items() if name.startswith(GAIN)},
        {key: tuple(found[number] for number in sorted(found)) for key, found in means.items()},
        {str(key): tuple(int(unit) for unit in units) for key, units in document.get("kept", {}).items()},
    )


def _check(one: GroupMap, name: str, spec: PermutationSpec) -> None:
    group = spec.by_name[name]
    if one.perm is not None:
        check_permutation(one.perm, group.size, f"group {name!r}")
    if one.scales and len(one.scales) != len(group.scales):
        raise ModelError(f"group {name!r}: {len(one.scales)} scales for {len(group.scales)}")
    for numbers in (*one.scales, *(() if one.matrix is None else (one.matrix, one.matrix.T))):
        if numbers.shape[0] != group.size or not bool(torch.isfinite(numbers).all()):
            raise NumericalError(f"group {name!r}: not a map of {group.size} units")


def _matrices(path: Path, sha256: object) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}",
            path=path,
            hint="it holds the matrices of the alignment, and is kept beside it",
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointError(f"{path}: not the matrices of this alignment, or damaged", path=path)
    return unpack(content, path)
