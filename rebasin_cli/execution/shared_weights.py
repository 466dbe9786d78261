"""Two checkpoints with heads of different sizes on one backbone: what they share, and what they do not.

The model is built with B's head, because B is what is permuted and verified. A is read with its own head; its tensors
of other sizes do not take part: only axes that keep their order may differ, so every group still reaches both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.keys import match_keys
from rebasin_cli.checkpoint.vocabulary import different_tokens
from rebasin_cli.errors import ModelError, quoted
from rebasin_cli.execution.subject import ModelChoice, Subject, open_subject
from rebasin_cli.execution.weights import Weights
from rebasin_cli.model.adaptation import aligned_names, differences
from rebasin_cli.spec import PermutationSpec


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A tensor of the model, by its key there, that has another shape in A than in B."""

    key: str
    in_a: tuple[int, ...]
    in_b: tuple[int, ...]

    def __str__(self) -> str:
        return f"{quoted(self.key)} ({list(self.in_a)} in A, {list(self.in_b)} in B)"


class SharedWeights(Weights):
    """A's tensors of B's shapes. Where all of A is needed to run it, B's tensors stand in for those of other sizes."""

    def __init__(self, a: Weights, b: Weights, mismatches: tuple[Mismatch, ...]) -> None:
        super().__init__(a.checkpoint, a.keys_in_file, a._parts, a._made, a.note)
        self._a, self._b = a, b
        self._apart = frozenset(one.key for one in mismatches)

    def __getitem__(self, key: str) -> Tensor:
        return self._b[key] if key in self._apart else self._a[key]

    def __contains__(self, key: object) -> bool:
        return key in self._a or key in self._apart

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._a if key not in self._apart)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def mismatches_of(a: Checkpoint, b: Checkpoint, subject: Subject) -> tuple[Mismatch, ...]:
    """The tensors of the model that have other shapes in A than in B, in the model's order.

    Raises:
        ModelError: tables of tokens are among them.
    """
    named = aligned_names(subject.shapes, {key: tuple(info.shape) for key, info in a.infos.items()})
    found = tuple(Mismatch(key, in_a, in_b) for key, (in_b, in_a) in differences(subject.shapes, named).items())
    tables = {f"{name}.weight" for name, module in subject.module.named_modules() if isinstance(module, nn.Embedding)}
    for one in found:
        if one.key in tables and one.in_a[1:] == one.in_b[1:]:
            rows = (
                f"{a.path}: the table {quoted(one.key)} has {one.in_a[0]:,} rows, that of {b.path} has {one.in_b[0]:,}"
            )
            if "pos" in one.key.lower():
                hint = "the networks were trained on texts of different length: build both with the same number"
                raise ModelError(f"{rows}: the numbers of positions differ", path=a.path, hint=hint, slug="shapes")
            raise ModelError(
                f"{rows}: the vocabularies differ{different_tokens(a.path, b.path)}",
                path=a.path,
                hint="give both the same tokens first, for example with transformers' resize_token_embeddings",
                slug="vocabulary",
            )
    return found


def shared_weights(
    a: Checkpoint,
    b: Weights,
    choice: ModelChoice,
    mismatches: tuple[Mismatch, ...],
    subject: Subject,
    *,
    ignore_extra: bool,
) -> Weights:
    """A through the names of B's model, without the tensors of other sizes.

    Raises:
        ModelError: A does not fit the model in other ways too.
    """
    try:
        own = open_subject(choice, {key: tuple(info.shape) for key, info in a.infos.items()})
        found, apart_in_a = Weights.of(a, own, ignore_extra=ignore_extra), 0
    except ModelError:  # the model has no argument for the size of its head
        apart = {one.key for one in mismatches}
        shapes = {key: shape for key, shape in subject.shapes.items() if key not in apart}
        try:
            keys = match_keys(a, shapes, ties=subject.ties, ignore_extra=True)
        except ModelError as error:
            raise sizes_differ(a, mismatches, error.message) from error
        found, apart_in_a = Weights(a, keys), len(mismatches)
    if len(found.keys_in_file.extra) > apart_in_a and not ignore_extra:
        raise sizes_differ(a, mismatches, "the networks differ in more than their heads")
    return SharedWeights(found, b, mismatches)


def named(mismatches: Sequence[Mismatch], shown: int = 4) -> str:
    """The first of them, with their sizes."""
    rest = len(mismatches) - shown
    return ", ".join(map(str, mismatches[:shown])) + (f" and {rest} more" if rest > 0 else "")


def sizes_differ(a: Checkpoint, mismatches: tuple[Mismatch, ...], hint: str) -> ModelError:
    """The error for tensors of other sizes; it names the first in the model's order."""
    first, rest = mismatches[0], len(mismatches) - 1
    more = f", and {rest:,} more" if rest else ""
    text = (
        f"{a.path}: shape mismatch: {quoted(first.key)} has shape {list(first.in_a)}, B's has {list(first.in_b)}{more}"
    )
    return ModelError(text, path=a.path, hint=hint, slug="shapes")


def check_heads(mismatches: tuple[Mismatch, ...], spec: PermutationSpec, a: Checkpoint) -> None:
    """Check that tensors of other sizes differ along axes without groups only.

    Raises:
        ModelError: naming the first one whose permuted axis differs: the networks have different widths.
    """
    for one in mismatches:
        moved = {
            axis for _, site in spec.sites_by_key.get(one.key, ()) for axis in range(site.axis, site.axis + site.span)
        }
        differ = {axis for axis, (left, right) in enumerate(zip(one.in_a, one.in_b, strict=False)) if left != right}
        if len(one.in_a) != len(one.in_b) or differ & moved:
            raise sizes_differ(a, (one,), "the networks differ in width, not only in their heads")
