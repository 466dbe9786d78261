"""B's file written again with its units in another order, and verified before it gets its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.write import write_like
from rebasin_cli.execution.weights import Weights
from rebasin_cli.permutation import gathers, permute_tensor
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.verbs.verification import verify_loaded, verify_permuted


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """A spec and permutations, applied to the tensors of a file by the file's own keys.

    Tensors that the model does not have pass unchanged; tied ones follow the name that the spec knows.
    """

    spec: PermutationSpec
    permutations: Mapping[str, Tensor]
    source: Weights
    ties: Mapping[str, str]
    _in_file: Callable[[str, Tensor], Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_in_file", self.source.inverse_of(self.of_model_key))

    def __call__(self, file_key: str, tensor: Tensor) -> Tensor:
        return self._in_file(file_key, tensor)

    def of_model_key(self, key: str, tensor: Tensor) -> Tensor:
        known = key if key in self.spec.sites_by_key else self.ties.get(key, key)
        return permute_tensor(tensor, gathers(self.spec, self.permutations, known, tensor.shape))


class Rearranged(Mapping[str, Tensor]):
    """B as it will be, by model key, without a file: what a dry run is checked on. One tensor is made at a time."""

    def __init__(self, source: Weights, rearrangement: Rearrangement) -> None:
        self._source, self._rearrangement = source, rearrangement

    def __getitem__(self, key: str) -> Tensor:
        return self._rearrangement.of_model_key(key, self._source[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)


def write_permuted(
    source: Weights,
    rearrangement: Rearrangement,
    out: Path,
    *,
    provenance: Mapping[str, str],
    force: bool,
    mkdir: bool = False,
    check: Callable[[Weights], None] | None = None,
) -> str:
    """Write the source's file rearranged, in its own format and layout, and return the SHA-256 of the new file.

    Every tensor of the temporary file is compared with what it should be; then `check` may verify more. Whatever
    raises leaves no file behind.

    Raises:
        OutputError: it cannot be written there.
        NumericalError: a check failed.
    """

    def verify(temporary: Checkpoint) -> None:
        written = source.seen_in(temporary)
        verify_permuted(source, written, rearrangement)
        verify_loaded(source, written, rearrangement.of_model_key)
        if check is not None:
            check(written)

    return write_like(
        source.checkpoint, out, rearrangement, provenance=provenance, force=force, check=verify, mkdir=mkdir
    )
