"""The merged network as a file: the first checkpoint's format, layout, key order and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.relaid import Layout
from rebasin_cli.checkpoint.write import AS_IT_IS, write_like
from rebasin_cli.execution.model_slot import Adjustment
from rebasin_cli.execution.weight_arithmetic import rounded
from rebasin_cli.execution.weights import Weights
from rebasin_cli.merging.merged import Merged


def save_merged(
    merged: Merged,
    adjustment: Adjustment,
    like: Weights,
    out: Path,
    *,
    provenance: Mapping[str, str],
    force: bool,
    mkdir: bool,
    check: Callable[[Weights], None],
    layout: Layout = AS_IT_IS,
) -> str:
    """Write the merged network in the place of the tensors of another file; returns its SHA-256.

    Tensors of that file that the model does not have, or that another checkpoint lacks, are copied.

    Args:
        adjustment: measured statistics, and the corrections of REPAIR.
        check: called with the written file before it gets its name.

    Raises:
        OutputError: it cannot be written there.
        NumericalError: a value does not fit the file's dtype.
    """

    keys = frozenset(merged.keys)

    def transform(key: str, tensor: Tensor) -> Tensor:
        if key not in keys:
            return tensor
        return rounded(adjustment.apply(key, merged.tensor(key)), tensor.dtype, f"{out}: {like.file_name(key)}")

    def verify(written: Checkpoint) -> None:
        check(like.seen_in(written))

    return write_like(
        like.checkpoint,
        out,
        like.inverse_of(transform),
        provenance=provenance,
        force=force,
        mkdir=mkdir,
        check=verify,
        layout=layout,
    )
