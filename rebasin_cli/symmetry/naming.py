"""Names of groups: after the module that makes their units, with the block for those inside one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebasin_cli.tracing.graph import Trace

if TYPE_CHECKING:
    from rebasin_cli.symmetry.readout import FibreSite
    from rebasin_cli.symmetry.solver import Closure


def group_names(
    trace: Trace, closure: Closure, found: dict[tuple[int, int], list[FibreSite]]
) -> dict[tuple[int, int], str]:
    """A name for every (family, fibre), unique in the model."""
    names: dict[tuple[int, int], str] = {}
    used: dict[tuple[str, bool], int] = {}
    makers = {key: _maker(trace, placed) for key, placed in found.items()}
    stems: dict[int, tuple[str, str]] = {}
    for (family, fibre), maker in makers.items():
        nested = bool(closure.families[family].parents)
        if family not in stems:
            count = used[maker, nested] = used.get((maker, nested), 0) + 1
            stems[family] = maker, "" if count == 1 else f"#{count}"
        stem, which = stems[family]
        names[family, fibre] = f"{stem}[{fibre}]{which}" if nested else f"{stem}{which}"
    return names


def _maker(trace: Trace, placed: list[FibreSite]) -> str:
    """The module whose parameter gives these units their first values: a weight whose rows they are, if there is
    one.
    """
    trained = [item.site for item in placed if item.site.key in trace.trainable] or [item.site for item in placed]
    rows = [site for site in trained if site.axis == 0 and trace.values[trace.state[site.key]].shape[1:]]
    site = (rows or trained)[0]
    return trace.owners.get(site.key) or site.key
