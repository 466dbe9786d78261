"""B's file written again with its units in another order, and verified before it gets its name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from torch import Tensor

from rebasin_cli.checkpoint.atomic import staged_directory
from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.directory import DirectoryCheckpoint
from rebasin_cli.checkpoint.write import keeps_siblings, write_like
from rebasin_cli.execution.weights import Weights
from rebasin_cli.maps import Frame, Mapped, Maps
from rebasin_cli.permutation import Gather, Permuted, gathers, is_identity, permute_tensor
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.verbs.siblings import Copy, Follow, SiblingPlan
from rebasin_cli.verbs.verification import verify_beside, verify_loaded, verify_permuted


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """A spec and permutations, or maps of larger classes, applied to the tensors of a file by the file's own keys.

    Tensors that the model does not have pass unchanged; tied ones follow the name that the spec knows.

    Args:
        maps: instead of the permutations, with the gauge that the result is given.
    """

    spec: PermutationSpec
    permutations: Mapping[str, Tensor]
    source: Weights
    ties: Mapping[str, str]
    maps: Maps | None = None
    frame: Frame = field(default_factory=Frame)
    _in_file: Callable[[str, Tensor], Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_in_file", self.source.inverse_of(self.of_model_key))

    def __call__(self, file_key: str, tensor: Tensor) -> Tensor:
        return self._in_file(file_key, tensor)

    def of_model_key(self, key: str, tensor: Tensor) -> Tensor:
        if self.maps is not None:
            return self._mapped(self.source).of(key, tensor)
        return permute_tensor(tensor, self.steps(key, tensor.shape))

    def all_of(self, tensors: Mapping[str, Tensor], *, rounded: bool = True) -> Mapping[str, Tensor]:
        """A network by model key, rearranged.

        Args:
            rounded: to the types of the tensors; otherwise what is not moved bit by bit is float64.
        """
        if self.maps is None:
            return Permuted(tensors, self.spec, self.permutations, self.ties)
        return self._mapped(tensors, rounded=rounded)

    def _mapped(self, tensors: Mapping[str, Tensor], *, rounded: bool = True) -> Mapped:
        assert self.maps is not None
        return Mapped(tensors, self.spec, self.maps, self.frame, self.ties, rounded=rounded)

    @property
    def moving(self) -> frozenset[str]:
        """Names of the groups of which some unit moves."""
        if self.maps is not None:
            return frozenset(name for name, one in self.maps.items() if one.moves)
        return frozenset(name for name, perm in self.permutations.items() if not is_identity(perm))

    @property
    def exact(self) -> bool:
        """Whether numbers only change their places and signs, so that nothing is rounded."""
        return self.maps is None or all(one.exact for one in self.maps.values())

    @property
    def permutes(self) -> bool:
        """Whether numbers only change their places."""
        scales = [scale for one in (self.maps or {}).values() for scale in one.scales]
        return self.exact and not any(bool((scale != 1).any()) for scale in scales)

    def steps(self, key: str, shape: Sequence[int]) -> list[Gather]:
        """The gathers that permute the model's tensor of this name and shape."""
        return gathers(self.spec, self.permutations, key, shape, self.ties)


class WithSiblings:
    """A rearrangement of the weights, and of what lies beside them in the file by the plan for it."""

    def __init__(self, weights: Rearrangement, plan: SiblingPlan) -> None:
        self._weights, self._plan = weights, plan
        source = weights.source
        self._copies = [
            replace(weights, source=source.seen_in(cast("Checkpoint", _CopyOfWeights(source.checkpoint, copy))))
            for copy in plan.copies
        ]

    @property
    def beside_paths(self) -> Collection[str]:
        return self._plan.beside

    def __call__(self, key: str, tensor: Tensor) -> Tensor:
        follow = self._plan.extra.get(key)
        return self._weights(key, tensor) if follow is None else self._following(follow, tensor)

    def beside(self, path: str, tensor: Tensor) -> Tensor:
        return self._following(self._plan.beside[path], tensor)

    def _following(self, follow: Follow, tensor: Tensor) -> Tensor:
        if follow.in_file:
            weights = self._weights if follow.copy is None else self._copies[follow.copy]
            return weights(follow.key, tensor)
        if tuple(tensor.shape) == follow.shape:
            return self._weights.of_model_key(follow.key, tensor)
        return permute_tensor(tensor, _on_axes(self._weights.steps(follow.key, follow.shape), follow, tensor))


class _CopyOfWeights:
    """A checkpoint whose weights are those of a copy in its file; what the copy lacks is the file's own."""

    def __init__(self, checkpoint: Checkpoint, copy: Copy) -> None:
        self._checkpoint, self._copy = checkpoint, copy
        self.path = checkpoint.path
        infos = checkpoint.beside_infos if copy.beside else checkpoint.infos
        self.infos = {**checkpoint.infos, **{key: infos[name] for key, name in copy.names.items()}}

    def tensor(self, key: str) -> Tensor:
        name = self._copy.names.get(key)
        if name is not None and self._copy.beside:
            return self._checkpoint.beside_tensor(name)
        return self._checkpoint.tensor(key if name is None else name)


def _on_axes(steps: Iterable[Gather], follow: Follow, tensor: Tensor) -> list[Gather]:
    """The gathers of a weight that act on the axes that a tensor has of it, as gathers of that tensor's axes."""
    axes = follow.axes or ()
    place = {axis: at for at, axis in enumerate(axes) if tensor.shape[at] == follow.shape[axis]}
    return [Gather(place[step.axis], step.span, step.index) for step in steps if step.axis in place]


@contextmanager
def weights_alone(source: Weights, out: Path, *, mkdir: bool) -> Iterator[Weights]:
    """The source as a temporary checkpoint that holds the chosen state dict alone, without further copies in it."""
    checkpoint, copies = source.checkpoint, source.keys_in_file.copies
    folder = checkpoint if isinstance(checkpoint, DirectoryCheckpoint) and checkpoint.makes_directory(out) else None
    if folder is not None and not copies and not checkpoint.others:
        yield source.seen_in(folder.without_states())
        return
    kept = frozenset(key for key in checkpoint.infos if key not in copies)
    with staged_directory(out, bytes_needed=checkpoint.file_bytes, mkdir=mkdir) as stage:
        path = stage / checkpoint.files[-1].name
        checkpoint.write_alone(path, kept)
        alone = checkpoint.format.open(path)
        yield source.seen_in(alone if folder is None else folder.without_states(alone))


def write_permuted(
    source: Weights,
    rearrangement: Rearrangement,
    out: Path,
    *,
    provenance: Mapping[str, str],
    force: bool,
    mkdir: bool = False,
    check: Callable[[Weights], None] | None = None,
    siblings: SiblingPlan | None = None,
    alone: bool = False,
) -> str:
    """Write the source's file rearranged, in its own format and layout, and return the SHA-256 of the new file.

    Every tensor of the temporary file is compared with what it should be; then `check` may verify more. Whatever
    raises leaves no file behind.

    Args:
        siblings: what lies beside the weights in the file and moves with them; without a plan it is copied.
        alone: write the weights alone.

    Raises:
        OutputError: it cannot be written there.
        NumericalError: a check failed.
    """

    if alone:
        with weights_alone(source, out, mkdir=mkdir) as weights:
            return write_permuted(
                weights,
                replace(rearrangement, source=weights),
                out,
                provenance=provenance,
                force=force,
                mkdir=mkdir,
                check=check,
            )
    kept = keeps_siblings(source.checkpoint, out)
    transform = WithSiblings(rearrangement, siblings if siblings and kept else SiblingPlan())

    def verify(temporary: Checkpoint) -> None:
        written = source.seen_in(temporary)
        verify_permuted(source, written, transform, exact=rearrangement.exact)
        verify_loaded(source, written, rearrangement.of_model_key, exact=rearrangement.exact)
        if kept:
            verify_beside(source.checkpoint, temporary, transform)
        if check is not None:
            check(written)

    return write_like(source.checkpoint, out, transform, provenance=provenance, force=force, check=verify, mkdir=mkdir)
