"""Names of groups: after the module that makes their units, with the block for those inside one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebasin_cli.trace.graph import Trace

if TYPE_CHECKING:
    from rebasin_cli.symmetry.readout import FibreSite
    from rebasin_cli.symmetry.solver import Closure


def group_names(
    trace: Trace, closure: Closure, found: dict[tuple[int, int], list[FibreSite]]
) -> dict[tuple[int, int], str]:
    """A name for every (family, fibre), unique in the model."""
    names: dict[tuple[int, int], str] = {}
    used: dict[str, int] = {}
    makers = {key: _maker(trace, placed) for key, placed in found.items()}
    stems: dict[int, str] = {}
    for (family, fibre), maker in makers.items():
        if family not in stems:
            used[maker] = used.get(maker, 0) + 1
            stems[family] = maker if used[maker] == 1 else f"{maker}#{used[maker]}"
        nested = bool(closure.families[family].parents)
        names[family, fibre] = f"{stems[family]}[{fibre}]" if nested else stems[family]
    return names


def _maker(trace: Trace, placed: list[FibreSite]) -> str:
    """The module whose parameter gives these units their first values: a weight whose rows they are, if there is
    one.
    """
    trained = [item.site for item in placed if item.site.key in trace.trainable] or [item.site for item in placed]
    rows = [site for site in trained if site.axis == 0 and trace.values[trace.state[site.key]].shape[1:]]
    site = (rows or trained)[0]
    return trace.owners.get(site.key) or site.key
