"""From closed relations to sites: where in which tensor every symmetric group acts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from rebasin_cli.spec import Site
from rebasin_cli.symmetry.fibres import Moved, moved_by_fibres
from rebasin_cli.symmetry.movements import Rows, movements
from rebasin_cli.symmetry.placing import Frame, Seen
from rebasin_cli.symmetry.positions import Factor, Ids, Layout
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.symmetry.solver import Closure


@dataclass(frozen=True, slots=True)
class FibreSite:
    """A site of one fibre of one family."""

    family: int
    fibre: int
    site: Site
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Readout:
    """Reads the sites of tensors off a solution.

    Many tensors hold the same ids (a norm's four, layer after layer the same shapes): what was found is kept.
    """

    closure: Closure
    relations: Relations
    _moved: dict[bytes, list[Moved]] = field(default_factory=dict)
    _seen: Seen = field(default_factory=dict)

    def sites(self, key: str, layout: Layout) -> Iterator[FibreSite]:
        """All sites of the moving families in one tensor.

        Raises:
            Irregular: what overlapping entries say of a family is no single movement of the tensor.
        """
        found: dict[tuple[int, int], list[Rows]] = {}
        for entry in layout.entries:
            others = [other for other in layout.entries if other is not entry]
            shared = tuple(f for f in entry.factors if any(f in other.factors for other in others))
            ids = self.relations.ids(entry).ravel()
            for moved in self._moved_among(ids):
                said = Rows(entry.factors, shared, moved.rows, ids, moved.run)
                found.setdefault((moved.family, moved.fibre), []).append(said)
        frames: dict[tuple[Factor, ...], Frame] = {}
        for (family, fibre), parts in found.items():
            for factors, rows, run in movements(parts):
                if factors not in frames:
                    frames[factors] = Frame.of(layout, factors)
                site, axes = frames[factors].site(key, rows, run, self._seen)
                yield FibreSite(family, fibre, site, axes)

    def _moved_among(self, ids: Ids) -> list[Moved]:
        key = blake2b(ids.tobytes()).digest()
        if key not in self._moved:
            self._moved[key] = moved_by_fibres(self.closure, ids)
        return self._moved[key]
