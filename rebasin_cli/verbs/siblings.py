"""What lies beside the weights in B's file, and which of it is permuted with them.

An EMA copy, an optimizer's moments, gradients: a tensor that has a parameter's axes must be permuted as the parameter
is, or resuming from the written file would combine states of different units. A plan says for each tensor beside the
state dict which weight it follows, and for each entry of the file whether it was understood.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from rebasin_cli.checkpoint.checkpoint import Checkpoint, TensorInfo
from rebasin_cli.checkpoint.contents import Leaf, Unreadable, leaves
from rebasin_cli.checkpoint.copies import find_copies, part_of, plain_name
from rebasin_cli.checkpoint.keys import KeyMap
from rebasin_cli.spec import PermutationSpec, Site
from rebasin_cli.verbs.optimizer_state import Axes, axes_of_entry, axes_of_tensor, is_large, is_optimizer
from rebasin_cli.verbs.parameter_order import Assigned, Candidate, assign

Shape = tuple[int, ...]

_KINDS = (
    ("optimizer", r"optim|^opt(_|$)"),
    ("gradients", r"grad"),
    ("master weights", r"master|fp32"),
    ("average", r"swa|averag|polyak"),
    ("ema", r"ema|shadow|teacher|momentum_encoder"),
)
_ROLES = re.compile(r"^(net)?_?(g|d|gen|disc|generator|discriminator|critic|actor|policy|value)(_?net(work)?)?$", re.I)
_ORDERED = re.compile(r"ema|shadow|param|grad|master|fp32|avg|averag|swa", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sibling:
    """An entry of B's file beside the weights that holds tensors.

    Args:
        path: where it is in the file.
        kind: `ema`, `average`, `optimizer`, `gradients`, `master weights`, `copy`, `network` or `tensors`.
        moved: whether its tensors are permuted with the weights.
        reason: why not, and what follows from that; None where nothing does.
        dropped: whether it was left out of the written file.
    """

    path: str
    kind: str
    moved: bool
    reason: str | None = None
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Follow:
    """A tensor that is permuted as a weight is.

    Args:
        key: of the weight, as the file names it (`in_file`: a copy, in the file's own layout) or as the model does.
        shape: of the weight.
        axes: the weight's axes that the tensor has; None for a tensor of the weight's own shape.
        copy: which of the plan's copies it belongs to; None for one that is not part of a copy.
    """

    key: str
    in_file: bool
    shape: Shape
    axes: Axes | None = None
    copy: int | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of the weights in the file's own layout: the name of its tensor by the weight's key.

    The names are paths, if it lies `beside` the state dict, and otherwise keys of it.
    """

    names: Mapping[str, str]
    beside: bool


@dataclass(frozen=True, slots=True)
class SiblingPlan:
    """Every entry beside the weights, and what each tensor that moves follows.

    Args:
        beside: by path; `extra`: by key of the file's state dict.
        copies: those in the file's own layout.
    """

    siblings: tuple[Sibling, ...] = ()
    beside: Mapping[str, Follow] = field(default_factory=dict)
    extra: Mapping[str, Follow] = field(default_factory=dict)
    copies: tuple[Copy, ...] = ()

    def without_any(self) -> SiblingPlan:
        """The plan of a file that is written without them."""
        left_out = (replace(one, moved=False, reason=None, dropped=True) for one in self.siblings)
        return SiblingPlan(tuple(left_out))

    def copies_only(self) -> SiblingPlan:
        """The plan where more than places change: copies of the weights follow, in their own gauge.

        What belongs to single numbers of the weights, such as an optimizer's moments, does not follow signs, scales and
        rotations.
        """
        beside = {path: follow for path, follow in self.beside.items() if follow.copy is not None}
        extra = {key: follow for key, follow in self.extra.items() if follow.copy is not None}
        kept = (*beside, *extra)
        told = [
            one
            if not one.moved or any(path == one.path or path.startswith(f"{one.path}.") for path in kept)
            else replace(one, moved=False, reason="it follows permutations only; training cannot be resumed with it")
            for one in self.siblings
        ]
        return replace(self, siblings=tuple(told), beside=beside, extra=extra)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for each entry that no longer fits the permuted weights."""
        return tuple(f"{one.path} ({one.kind}) is not permuted: {one.reason}" for one in self.siblings if one.reason)


@dataclass(frozen=True, slots=True)
class Network:
    """What a plan needs to know of the model.

    Args:
        shapes: by model key.
        ties: further name of a tensor -> its first name.
        parameters: keys of the parameters in the order of `model.parameters()`; empty where that is not known.
        moving: names of the spec's groups of which some unit moves.
    """

    shapes: Mapping[str, Shape]
    ties: Mapping[str, str]
    parameters: Sequence[str]
    spec: PermutationSpec
    moving: Collection[str]

    def rule(self, key: str) -> tuple[tuple[str, Site], ...]:
        """How a weight is moved, without its name: equal for weights that are moved alike."""
        known = key if key in self.spec.sites_by_key else self.ties.get(key, key)
        return tuple(
            (group.name, replace(site, key=""))
            for group, site in self.spec.sites_by_key.get(known, ())
            if group.name in self.moving
        )

    def follows(self, key: str, axes: Axes) -> bool:
        """Whether a tensor with these axes of the weight can be permuted: no site merges one of them with another."""
        present = set(axes)
        for _, site in self.rule(key):
            merged = set(range(site.axis, site.axis + site.span))
            if merged & present and not merged <= present:
                return False
        return True


def plan_siblings(checkpoint: Checkpoint, keys: KeyMap, network: Network, tree: Any = None) -> SiblingPlan:
    """Find what of a file follows the weights that were chosen from it.

    Args:
        keys: how the file's keys correspond to the model's.
        tree: another file's contents, such as the optimizer's in a trainer's directory; by default this file's own.
    """
    planner = _Planner(checkpoint, keys, network)
    planner.visit(checkpoint.beside if tree is None else tree, ())
    planner.settle()
    if tree is None:
        planner.copies_among_the_weights()
    return SiblingPlan(tuple(planner.siblings), planner.beside, planner.extra, tuple(planner.copies))


class _Planner:
    """Visits the contents of a file and notes what follows what."""

    def __init__(self, checkpoint: Checkpoint, keys: KeyMap, network: Network) -> None:
        self.checkpoint, self.keys, self.network = checkpoint, keys, network
        self.siblings: list[Sibling] = []
        self.beside: dict[str, Follow] = {}
        self.extra: dict[str, Follow] = {}
        self.copies: list[Copy] = []
        self._optimizers: list[tuple[str, Mapping[str, Any]]] = []
        self._networks: list[tuple[str, Mapping[str, Shape]]] = []
        self._twins: list[str] = []
        left_out = {*keys.extra, *keys.copies}
        self._file_shapes = {k: tuple(info.shape) for k, info in checkpoint.infos.items() if k not in left_out}
        first: dict[str, str] = {}
        for file_key, key in keys.to_model.items():
            first.setdefault(network.ties.get(key, key), file_key)
        self._file_ties = {file_key: first[network.ties.get(key, key)] for file_key, key in keys.to_model.items()}

    # --- the tree ---

    def visit(self, value: Any, path: tuple[str, ...]) -> None:
        """One part of the contents."""
        if not any(True for _ in leaves(value)):
            return
        if isinstance(value, (TensorInfo, Unreadable)):
            self._note_tensors(path, [value])
        elif is_optimizer(value):
            self._optimizers.append((".".join(path), value))
        elif isinstance(value, list):
            if not self._sequence(value, path):
                self._visit_all(enumerate(value), path)
        elif isinstance(value, Mapping):
            flat = {name: item for name, item in value.items() if isinstance(item, (TensorInfo, Unreadable))}
            if sum(map(is_large, flat.values())) and self._flat(flat, path):
                self._visit_all(((name, item) for name, item in value.items() if name not in flat), path)
            else:
                self._visit_all(value.items(), path)

    def _visit_all(self, items: Iterable[tuple[object, Any]], path: tuple[str, ...]) -> None:
        for name, item in items:
            self.visit(item, (*path, str(name)))

    def _note_tensors(self, path: tuple[str, ...], found: Sequence[Leaf]) -> None:
        """Tensors that are nothing known: of no consequence unless one has the size of something that moved."""
        if not any(is_large(leaf) for leaf in found):
            return
        kind = kind_of(path, "tensors")
        shared = [leaf for leaf in found if isinstance(leaf, TensorInfo) and leaf.key in self.checkpoint.beside_shared]
        if len(shared) == len(found):
            self.siblings.append(Sibling(".".join(path), kind, moved=True))
            return
        reason = None
        if any(isinstance(leaf, Unreadable) or self._could_follow(leaf) for leaf in found):
            reason = "it holds tensors of a weight's size in an unknown layout, and they keep B's order of units"
        self.siblings.append(Sibling(".".join(path), kind, moved=False, reason=reason))

    def _could_follow(self, info: TensorInfo) -> bool:
        """Whether it has as many elements as a weight that moved, or as all parameters together."""
        sizes = {prod(self.network.shapes[key]) for key in self._moved_keys()}
        total = sum(prod(self.network.shapes[key]) for key in self.network.parameters)
        return prod(info.shape) in sizes or (bool(sizes) and prod(info.shape) >= total > 0)

    def _moved_keys(self) -> Iterator[str]:
        return (key for key in self.network.shapes if self.network.rule(key))

    # --- mappings from names to tensors ---

    def _flat(self, flat: Mapping[Any, Leaf], path: tuple[str, ...]) -> bool:
        """A mapping of tensors: copies of the weights, part of one, another network; False if it is none of them."""
        shapes = {str(name): tuple(leaf.shape) for name, leaf in flat.items() if isinstance(leaf, TensorInfo)}
        infos = {str(name): leaf for name, leaf in flat.items() if isinstance(leaf, TensorInfo)}
        if self._is_other_role(path):
            self._twins.append(path[0])
            self._note_network(path, shapes)
            return True
        moved: dict[str, Follow] = {}
        other: set[str] = set()
        paths = {name: leaf.key for name, leaf in infos.items()}
        for copy in find_copies(shapes, self._file_shapes, self._file_ties):
            first = _first_part(copy)
            if not path and self._is_other_role(first):  # in one flat file, the first part of the names is the entry
                self._twins.append(first[0])
                self._note_network(first, {name: shapes[name] for name in copy})
                other.update(copy)
            else:
                moved |= self._copy(copy, paths)
        if other and not moved:
            return True
        if not moved:
            for copy in find_copies(shapes, self.network.shapes, self.network.ties):
                moved |= {name: Follow(key, False, self.network.shapes[key]) for name, key in copy.items()}
        part = None if moved else part_of(shapes, self._file_shapes)
        if part:
            moved = self._copy(part, paths)
        if moved:
            kind = kind_of((*path, *_first_part(moved)), "copy")
            self._move(path or _first_part(moved), kind, {infos[n].key: f for n, f in moved.items()})
            left = [leaf for name, leaf in flat.items() if str(name) not in moved and str(name) not in other]
            self._note_tensors((*path, "…") if path else ("…",), left)
            return True
        if len(shapes) < 2 or not any("." in name for name in shapes):
            return False
        self._note_network(path, shapes)
        return True

    def _is_other_role(self, path: tuple[str, ...]) -> bool:
        own = self.checkpoint.wrapper or ()
        return bool(own and path and own[0] != path[0] and _ROLES.match(own[0]) and _ROLES.match(path[0]))

    def _note_network(self, path: tuple[str, ...], shapes: Mapping[str, Shape]) -> None:
        self._networks.append((".".join(path), shapes))
        self.siblings.append(Sibling(".".join(path) or "…", "network", moved=False))

    def copies_among_the_weights(self) -> None:
        """Copies that lie in the same mapping as the weights, behind another prefix."""
        groups: list[tuple[str, dict[str, str]]] = []  # first part of the names, name by the key that it copies
        for name, key in self.keys.copies.items():
            first = name.split(".", 1)[0]
            group = next((names for part, names in groups if part == first and key not in names), None)
            if group is None:
                groups.append((first, group := {}))
            group[key] = name
        for first, names in groups:
            self.extra |= self._copy(
                {name: key for key, name in names.items()}, {name: name for name in names.values()}
            )
            self.siblings.append(Sibling(first, kind_of((first,), "copy"), moved=True))

    def _copy(self, copy: Mapping[str, str], paths: Mapping[str, str]) -> dict[str, Follow]:
        """The rules of a copy in the file's own layout, by name: all of it is read together, as the weights are."""
        which = len(self.copies)
        beside = not self.keys.copies.keys() >= copy.keys()
        self.copies.append(Copy({key: paths[name] for name, key in copy.items()}, beside))
        return {name: Follow(key, True, self._file_shapes[key], copy=which) for name, key in copy.items()}

    def _move(self, path: tuple[str, ...], kind: str, follows: Mapping[str, Follow]) -> None:
        self.beside |= follows
        self.siblings.append(Sibling(".".join(path) or "…", kind, moved=True))

    # --- lists of tensors in the order of the parameters ---

    def _sequence(self, value: list[Any], path: tuple[str, ...]) -> bool:
        """A list of tensors, or a list of such lists, one tensor for each parameter in their order."""
        groups: list[list[Any]] = value if all(isinstance(part, list) for part in value) else [value]
        if not all(isinstance(leaf, TensorInfo) for group in groups for leaf in group):
            return False

        def fits(info: TensorInfo, candidate: Candidate) -> bool:
            return tuple(info.shape) == candidate.shape

        found = self._assigned(groups, fits, some=bool(_ORDERED.search(".".join(path))))
        if found.parameters is None:
            return False
        follows = {
            info.key: self._follow_of(candidate, tuple(range(len(candidate.shape))))
            for group, row in zip(groups, found.parameters, strict=True)
            for info, candidate in zip(group, row, strict=True)
        }
        self._move(path, kind_of(path, "copy"), {name: rule for name, rule in follows.items() if rule is not None})
        return True

    def _follow_of(self, candidate: Candidate, axes: Axes) -> Follow | None:
        """The rule for a tensor that belongs to a candidate; None for a tensor that no permutation moves."""
        key = candidate.key
        if key in self.network.shapes:
            return Follow(key, False, candidate.shape, axes)
        return None if not candidate.rule else Follow(self._model_of(key), False, candidate.shape, axes)

    def _model_of(self, file_key: str) -> str:
        original = self.keys.copies.get(file_key, file_key)
        return self.keys.to_model[original]

    def _assigned(self, groups: Sequence[Sequence[Any]], fits: Any, *, some: bool) -> Assigned:
        """By the model's parameters, by all of the chosen state dict's, or (`some`) by some of either."""
        result = Assigned(None)
        wanted = sum(map(len, groups))
        own = [self._candidate(key) for key in self.network.parameters]
        whole = self._every_candidate()
        for candidates in (own, whole):
            if len(candidates) == wanted:
                result = assign(groups, candidates, fits, _matters)
            if result.parameters is not None or result.ambiguous:
                return result
        for _, shapes in self._networks:
            if len(shapes) == wanted and assign(groups, [Candidate(n, s) for n, s in shapes.items()], fits).parameters:
                return result
        for candidates in (own, whole) if some else ():
            result = assign(groups, candidates, fits, _matters)
            if result.parameters is not None or result.ambiguous:
                return result
        return result

    def _candidate(self, key: str) -> Candidate:
        return Candidate(key, tuple(self.network.shapes[key]), self.network.rule(key))

    def _every_candidate(self) -> list[Candidate]:
        """The chosen state dict's tensors in the file's order, without the model's buffers."""
        if not self.network.parameters:
            return []
        parameters = set(self.network.parameters)
        found: list[Candidate] = []
        for file_key, info in self.checkpoint.infos.items():
            original = self.keys.copies.get(file_key, file_key)
            key = self.keys.to_model.get(original)
            if key is None:
                found.append(Candidate(f"{file_key} (not the model's)", tuple(info.shape)))
            elif key in parameters:
                name = key if original == file_key else file_key
                found.append(Candidate(name, tuple(info.shape), self.network.rule(key)))
        return found

    # --- optimizers ---

    def settle(self) -> None:
        """The optimizers, once all networks of the file are known."""
        for path, state in self._optimizers:
            self._optimizer(path, state)

    def _optimizer(self, path: str, state: Mapping[str, Any]) -> None:
        entries = state["state"]
        groups = [[entries.get(one, {}) for one in group["params"]] for group in state["param_groups"]]
        if not any(is_large(leaf) for group in groups for entry in group for leaf in leaves(entry)):
            if any(is_large(leaf) for leaf in leaves(state)):
                self._leave(path, "its tensors belong to no parameter that it lists")
            return
        owner = self._other_owner(path)
        if owner is not None:
            self.siblings.append(Sibling(path, "optimizer", moved=False, reason=owner or None))
            return
        unknown = next((name for group in groups for entry in group for name in _unexplained(entry)), None)
        found = self._by_name(state, groups) or self._assigned(groups, _entry_fits, some=True)
        if found.parameters is None:
            if self._of_another_network(groups):
                self.siblings.append(Sibling(path, "optimizer", moved=False))
            elif found.ambiguous:
                self._leave(path, "its groups list the parameters in an order that shapes do not determine")
            elif unknown:
                self._leave(path, f"its {unknown} has not the axes of a parameter")
            elif not self.network.parameters:
                self._leave(path, "the alignment does not record the order of the model's parameters")
            else:
                self._leave(path, "its entries do not correspond to the model's parameters")
            return
        follows: dict[str, Follow] = {}
        for group, row in zip(groups, found.parameters, strict=True):
            for entry, candidate in zip(group, row, strict=True):
                for name, axes in (axes_of_entry(entry, candidate.shape) or {}).items():
                    rule = self._follow_of(candidate, axes)
                    if rule is not None and not self.network.follows(rule.key, axes):
                        self._leave(path, f"a factor of {candidate.key} spans axes that are permuted together")
                        return
                    if rule is not None:
                        follows[name] = rule
        self._move(tuple(path.split(".")), "optimizer", follows)

    def _leave(self, path: str, why: str) -> None:
        reason = f"{why}; resuming from it would give units the state of others"
        moves = any(True for _ in self._moved_keys())
        self.siblings.append(Sibling(path, "optimizer", moved=False, reason=reason if moves else None))

    def _by_name(self, state: Mapping[str, Any], groups: Sequence[Sequence[Any]]) -> Assigned | None:
        """By the names that the groups recorded; None where they did not, or a name is not the model's."""
        by_name = {plain_name(key): key for key in self.network.shapes}
        by_name |= {plain_name(key): model for key, model in self.keys.to_model.items()}
        rows: list[tuple[Candidate, ...]] = []
        for group, entries in zip(state["param_groups"], groups, strict=True):
            names = group.get("param_names", group["params"])
            if not isinstance(names, list) or len(names) != len(entries):
                return None
            row: list[Candidate] = []
            for name, entry in zip(names, entries, strict=True):
                key = by_name.get(plain_name(name)) if isinstance(name, str) else None
                candidate = None if key is None else self._candidate(key)
                if candidate is None or not _entry_fits(entry, candidate):
                    return None
                row.append(candidate)
            rows.append(tuple(row))
        return Assigned(tuple(rows))

    def _other_owner(self, path: str) -> str | None:
        """Where a network of the same names and shapes stays as it is: a reason if the optimizer may be that one's.

        An empty text says that it certainly is.
        """
        own = (self.checkpoint.wrapper or ("",))[0]
        if not self._twins:
            return None
        mine, theirs = (_names_role(path, role) for role in (own, self._twins[0]))
        if mine and not theirs:
            return None
        if theirs and not mine:
            return ""
        return f"it may belong to {own} or to {self._twins[0]}, which have the same shapes"

    def _of_another_network(self, groups: Sequence[Sequence[Any]]) -> bool:
        wanted = sum(map(len, groups))
        return any(
            len(shapes) >= wanted
            and assign(groups, [Candidate(n, s) for n, s in shapes.items()], _entry_fits).parameters is not None
            for _, shapes in self._networks
        )


def _matters(entry: Any) -> bool:
    return any(is_large(leaf) for leaf in leaves(entry))


def _entry_fits(entry: Any, candidate: Candidate) -> bool:
    return axes_of_entry(entry, candidate.shape) is not None


def _unexplained(entry: Any) -> Iterator[str]:
    """Names in an entry whose tensor has not the axes of a parameter; those certain to have none first."""
    infos = {name: leaf for name, leaf in _items(entry) if isinstance(leaf, TensorInfo) and is_large(leaf)}
    yield from (str(name) for name, info in infos.items() if axes_of_tensor(str(name), info.shape, info.shape) is None)
    if infos:
        shape = tuple(max(infos.values(), key=lambda info: (prod(info.shape), len(info.shape))).shape)
        yield from (str(name) for name, value in _items(entry) if axes_of_entry({name: value}, shape) is None)


def _items(entry: Any) -> Iterable[tuple[Any, Any]]:
    return entry.items() if isinstance(entry, Mapping) else ()


def kind_of(path: Sequence[str], otherwise: str) -> str:
    """The kind that the innermost telling name of a path announces."""
    for part in reversed(path):
        for kind, pattern in _KINDS:
            if re.search(pattern, part, re.IGNORECASE):
                return kind
    return otherwise


def _first_part(names: Iterable[str]) -> tuple[str, ...]:
    return (next(iter(names)).split(".", 1)[0],)


def _names_role(path: str, role: str) -> bool:
    """Whether an optimizer's path names a network: `opt_d` and `optimizer_disc` name `discriminator`."""
    plain = re.sub(r"^net_?|_?net(work)?$", "", role.lower()) or role.lower()
    words = [word for word in re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", path).lower()) if word]
    return any(plain.startswith(word) or word.startswith(plain) for word in words if word not in ("optimizer", "opt"))
