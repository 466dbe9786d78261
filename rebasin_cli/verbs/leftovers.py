"""Tensors of B's file that the traced passes do not reach, and what becomes of them.

An auxiliary head that runs in training only, the head of another task, a layer that the model lacks: if it reads units
that were permuted, it no longer fits them. Whether it could is told from its shape: it has an axis of the length of one
that a group permutes. Counters, position ids and masks never do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from rebasin_cli.errors import ModelError, few
from rebasin_cli.spec import PermutationSpec

Shape = tuple[int, ...]

_NEVER_READS = re.compile(
    r"(^|[._])(total_ops|total_params|n_averaged|position_ids|num_batches_tracked|inv_freq|masked_bias|pos_weight"
    r"|relative_position_index|(causal|attn|attention)?_?mask|(loss|criterion)\w*\.weight)$"
)
FEW_LAYERS = 0.5
"""A file may have this many tensors more than the model, per tensor of the model, that could read permuted units."""


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Names of the file (`extra`: not the model's) and of the model (`unreached`), by whether they could read units."""

    extra: tuple[str, ...]
    unreached: tuple[str, ...]
    harmless: tuple[str, ...]

    def refuse(self, path: object, *, tensors: int, strict: bool, ignore_extra: bool) -> None:
        """Refuse what makes the written file wrong.

        Raises:
            ModelError: `strict`, and something could read permuted units; or so much of the file is not the model's
                that it is a file of another model.
        """
        if self.extra and not ignore_extra and len(self.extra) > FEW_LAYERS * tensors:
            raise ModelError(
                f"{path}: {len(self.extra):,} tensors that the model does not have, and that could read what is"
                f" permuted: {few(self.extra)}",
                path=str(path),
                hint="is this a checkpoint of this model? build the model with these layers",
                slug="keys",
            )
        if strict and (self.extra or self.unreached):
            raise ModelError(
                f"{path}: not reached by the traced passes, and could read what is permuted: "
                f"{few((*self.unreached, *self.extra))}",
                path=str(path),
                hint=REACH if self.unreached else BUILD,
                slug="unreached",
            )

    def warnings(self, path: object, *, ignore_extra: bool) -> tuple[str, ...]:
        """One sentence for each kind that could read permuted units."""
        said = []
        if self.unreached:
            said.append(
                f"{path}: not reached by the traced passes, and broken if they read permuted units: "
                f"{few(self.unreached, shown=6)}; {REACH}"
            )
        if self.extra and not ignore_extra:
            said.append(
                f"{path}: the model does not have {few(self.extra, shown=6)}: copied unchanged, and broken if they read"
                f" permuted units; {BUILD}"
            )
        return tuple(said)

    def note(self, path: object) -> str | None:
        """What was copied because it cannot matter."""
        if not self.harmless:
            return None
        return f"{path}: copied unchanged, because they read nothing that is permuted: {few(self.harmless, shown=8)}"


REACH = "trace what reads them with --trace-call METHOD or --also-input, or keep what they read in order with --pin"
BUILD = "build the model with these layers"


def find_leftovers(
    extra: Mapping[str, Shape], unreached: Mapping[str, Shape], spec: PermutationSpec, shapes: Mapping[str, Shape]
) -> Leftovers:
    """Sort what is not reached by whether it could read permuted units.

    Args:
        extra: tensors of the file that the model does not have.
        unreached: tensors of the model that no traced pass reads.
        shapes: the model's.
    """
    reader = _Reader(spec, shapes)
    return Leftovers(
        tuple(reader.readers(extra)),
        tuple(reader.readers(unreached)),
        tuple(name for name, shape in extra.items() if not reader.could_read(name, shape)),
    )


class _Reader:
    """The lengths of axes along which units are permuted."""

    def __init__(self, spec: PermutationSpec, shapes: Mapping[str, Shape]) -> None:
        sites = [site for group in spec.groups if group.size > 1 for site in group.sites if site.key in shapes]
        self.lengths = {site.extent(shapes[site.key]) for site in sites}
        # A feature map of so many channels may be flattened before a matrix reads it.
        self.channels = {
            site.extent(shapes[site.key]) for site in sites if site.axis == 0 and len(shapes[site.key]) > 2
        }

    def readers(self, tensors: Mapping[str, Shape]) -> Iterable[str]:
        return (name for name, shape in tensors.items() if self.could_read(name, shape))

    def could_read(self, name: str, shape: Shape) -> bool:
        if prod(shape) <= 1 or _NEVER_READS.search(name) or (len(shape) == 4 and shape[:2] == (1, 1)):
            return False
        if self.lengths & set(shape):
            return True
        return len(shape) == 2 and any(shape[1] % width == 0 for width in self.channels)
