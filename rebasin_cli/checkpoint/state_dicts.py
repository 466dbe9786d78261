"""Finding the state dict inside a training checkpoint: `state_dict`, `model`, `ema.module`, …

A checkpoint may be any nested mapping. A state dict in it is a mapping from names to tensors. If there are several,
their names decide; if the names do not, the user has to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from rebasin_cli.errors import CheckpointError, UsageError, few, quoted

EMA_NAMES = (
    "state_dict_ema", "model_ema", "ema_state_dict", "model_state_dict_ema", "ema_model", "ema", "params_ema",
    "ema_params", "averaged_model", "swa_model", "teacher", "shadow",
)  # fmt: skip
PLAIN_NAMES = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params",
    "net_state_dict", "model_weights", "parameters", "student",
)  # fmt: skip
_NOT_WEIGHTS = ("optim", "sched", "scaler", "amp", "callback", "loop", "hyper", "rng", "sampler", "loss", "criterion")
_DEEPEST = 3

IsTensor = Callable[[Any], bool]

JOINED = "*"
"""The key that stands for all state dicts of equal rank together, each under its own name."""


class SeveralStateDicts(CheckpointError):
    """The names in a file do not decide which of its state dicts is the model's."""


class Part(dict[Any, Any]):
    """The entries of one flat state dict under a prefix, such as `model_ema.`; their keys keep it."""

    def __init__(self, whole: Mapping[Any, Any], prefix: str) -> None:
        super().__init__((name, value) for name, value in whole.items() if _is_under(name, prefix))
        self.whole, self.prefix = whole, prefix

    def others(self) -> tuple[str, ...]:
        """First components of the keys beside it."""
        beside = (name for name in self.whole if isinstance(name, str) and name not in self)
        return tuple(dict.fromkeys(name.split(".", 1)[0] for name in beside))


class Joined(dict[Any, Any]):
    """Several state dicts of one model as one: `encoder` and `decoder` as `encoder.…` and `decoder.…`."""

    def __init__(self, parts: Mapping[str, Mapping[Any, Any]]) -> None:
        every = ((top, name, value) for top, part in parts.items() for name, value in part.items())
        super().__init__((f"{top}.{name}", value) for top, name, value in every if isinstance(name, str))
        self.parts = tuple(parts.values())


def pieces_of(chosen: Mapping[Any, Any]) -> Iterable[object]:
    """The objects of a file that a chosen state dict consists of: its mapping, several, or some tensors of one."""
    if isinstance(chosen, Part):
        return chosen.values()
    return chosen.parts if isinstance(chosen, Joined) else (chosen,)


def find_state_dict(
    path: Path, root: Any, is_tensor: IsTensor, *, key: str | None, ema: bool
) -> tuple[tuple[str, ...] | None, Mapping[Any, Any]]:
    """The state dict inside `root` and the keys that lead to it (None when `root` itself is one).

    Raises:
        CheckpointError: there is none, none under `key`, no averaged one for `ema`, or several of equal rank.
        UsageError: both `key` and `ema`.
    """
    _not_both(key, ema)
    found = _Search(is_tensor).candidates(root) if key in (None, JOINED) else []
    if key is not None and key != JOINED:
        return _under_key(path, root, key, is_tensor)
    if ema:
        averaged = [one for one in found if any(part in EMA_NAMES for part in one)]
        if not averaged and (part := _averaged_part(root, found)) is not None:
            return part
        if not averaged:
            inner = [one for one in found if one]
            seen = f" (its state dicts: {_shown(inner)})" if inner else ""
            raise CheckpointError(
                f"{path}: no averaged (EMA) weights found{seen}",
                path=path,
                hint="name them with --key; --ema-a, --ema-b, --key-a and --key-b apply to one of two files",
            )
        return _walk(root, min(averaged, key=lambda one: (_rank(one, EMA_NAMES), len(one))))
    plain = [one for one in found if not any(part in EMA_NAMES for part in one)] or found
    if not plain:
        raise CheckpointError(
            f"{path}: no state_dict found: no mapping from names to tensors in a {_described(root)}",
            path=path,
            hint="save one with torch.save(model.state_dict(), path)",
        )
    best = min(_rank(one, PLAIN_NAMES) for one in plain)
    leading = [one for one in plain if _rank(one, PLAIN_NAMES) == best]
    if len(leading) > 1 and key == JOINED and len({one[:-1] for one in leading}) == 1:
        parts = {one[-1]: _walk(root, one)[1] for one in leading}
        return (leading[0][:-1] or None), Joined(parts)
    if len(leading) > 1:
        hint = f"choose one, for example --key {'.'.join(leading[0])}"
        raise SeveralStateDicts(f"{path}: holds several state dicts: {_shown(leading)}", path=path, hint=hint)
    return _walk(root, leading[0])


def other_entries(root: Any, chosen: Mapping[Any, Any], is_tensor: IsTensor) -> tuple[str, ...]:
    """The outermost entries of `root`, beside the chosen state dict, in which tensors are found."""
    if isinstance(chosen, Part):
        outside = other_entries(root, chosen.whole, is_tensor)
        return (*chosen.others(), *outside)
    if root is chosen or not isinstance(root, Mapping):
        return ()
    taken = {id(part) for part in chosen.parts} if isinstance(chosen, Joined) else set()
    found: list[str] = []
    for name, value in root.items():
        if value is chosen or id(value) in taken:
            continue
        if isinstance(value, Mapping) and any(inner is chosen or id(inner) in taken for inner in value.values()):
            within = other_entries(value, chosen, is_tensor)
            found += [f"{name}.{inner}" for inner in within]
        elif _has_tensor(value, is_tensor, chosen, set()):
            found.append(str(name))
    return tuple(found)


def _has_tensor(value: Any, is_tensor: IsTensor, chosen: object, seen: set[int]) -> bool:
    """Whether there is a tensor in it; shared parts are visited once, and nesting of any depth is no recursion."""
    pending = [value]
    while pending:
        one = pending.pop()
        if is_tensor(one):
            return True
        if one is chosen or id(one) in seen or not isinstance(one, (Mapping, list, tuple)):
            continue
        seen.add(id(one))
        pending.extend(one.values() if isinstance(one, Mapping) else one)
    return False


def chosen_prefix(path: Path, keys: Collection[str], *, key: str | None, ema: bool) -> str | None:
    """The same choice in a flat file, whose wrappers are prefixes: `model_ema` for `model_ema.conv.weight`."""
    _not_both(key, ema)
    if key is None and not ema:
        return None
    for prefix in (key,) if key is not None else EMA_NAMES:
        if any(name.startswith(f"{prefix}.") for name in keys):
            return prefix
    tops = sorted({name.split(".", 1)[0] for name in keys})
    wanted = f"no tensor under {quoted(key)}" if key is not None else "no averaged (EMA) weights found"
    raise CheckpointError(f"{path}: {wanted}; names begin with {few(tops, shown=6)}", path=path)


def _is_under(name: Any, prefix: str) -> bool:
    return isinstance(name, str) and name.startswith(f"{prefix}.")


def _averaged_part(root: Any, found: list[tuple[str, ...]]) -> tuple[tuple[str, ...], Mapping[Any, Any]] | None:
    """The averaged weights inside a flat state dict, where training code keeps both under prefixes."""
    for at in found:
        _, whole = _walk(root, at)
        for prefix in EMA_NAMES:
            if any(_is_under(name, prefix) for name in whole):
                return (*at, prefix), Part(whole, prefix)
    return None


def _part_under(
    root: Any, at: tuple[str, ...], prefix: str, is_tensor: IsTensor
) -> tuple[tuple[str, ...], Mapping[Any, Any]] | None:
    """The tensors under a prefix of a flat state dict: of the one at hand, or of the one found in it."""
    for inner in [()] if _holds_tensors(root, is_tensor) else _Search(is_tensor).candidates(root):
        _, whole = _walk(root, inner)
        if any(_is_under(name, prefix) for name in whole):
            return (*at, *inner, prefix), Part(whole, prefix)
    return None


def _not_both(key: str | None, ema: bool) -> None:
    if key is not None and ema:
        raise UsageError("--key and --ema both choose the state dict", hint="give one of them")


def _holds_tensors(value: Any, is_tensor: IsTensor) -> bool:
    return isinstance(value, Mapping) and any(isinstance(name, str) and is_tensor(item) for name, item in value.items())


class _Search:
    """Paths to mappings that hold tensors, outermost first; nothing inside a state dict is searched.

    A mapping that has, under one of the usual names, a mapping with tensors is a wrapper, even if it also has a single
    tensor (a step count, a loss). Mappings are remembered by identity: a small pickle can refer to one many times.
    """

    def __init__(self, is_tensor: IsTensor) -> None:
        self._is_tensor = is_tensor
        self._known: dict[int, bool] = {}
        self._entered: set[tuple[int, int]] = set()

    def candidates(self, value: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        if not isinstance(value, Mapping) or ("param_groups" in value and "state" in value):
            return []
        if self._holds(value) and not any(self._holds(value.get(name)) for name in (*PLAIN_NAMES, *EMA_NAMES)):
            return [at]
        if len(at) == _DEEPEST or (id(value), len(at)) in self._entered:
            return []
        self._entered.add((id(value), len(at)))
        found: list[tuple[str, ...]] = []
        for name, item in value.items():
            if isinstance(name, str) and not any(word in name.lower() for word in _NOT_WEIGHTS):
                found += self.candidates(item, (*at, name))
        return found

    def _holds(self, value: Any) -> bool:
        if not isinstance(value, Mapping):
            return False
        if id(value) not in self._known:
            self._known[id(value)] = _holds_tensors(value, self._is_tensor)
        return self._known[id(value)]


def _rank(path: tuple[str, ...], names: tuple[str, ...]) -> int:
    """The position of the outermost component in the list of usual names; all others share the last position."""
    ranks = [names.index(part) for part in path if part in names]
    return ranks[0] if ranks else (-1 if not path else len(names))


def _walk(root: Any, path: tuple[str, ...]) -> tuple[tuple[str, ...] | None, Mapping[Any, Any]]:
    for part in path:
        root = root[part]
    return (path or None), root


def _under_key(
    path: Path, root: Any, key: str, is_tensor: IsTensor
) -> tuple[tuple[str, ...] | None, Mapping[Any, Any]]:
    """Follow `a.b`; names with dots are tried first."""
    at: tuple[str, ...] = ()
    rest = key
    while rest and isinstance(root, Mapping):
        parts = rest.split(".")
        name = next((n for end in range(len(parts), 0, -1) if (n := ".".join(parts[:end])) in root), None)
        if name is None:
            break
        root, at, rest = root[name], (*at, name), rest[len(name) + 1 :]
    if rest and (part := _part_under(root, at, rest, is_tensor)) is not None:
        return part
    if rest or not _holds_tensors(root, is_tensor):
        names = few(root, shown=8) if isinstance(root, Mapping) and rest else _described(root)
        where = f"{quoted('.'.join(at))} holds" if at else "there are"
        raise CheckpointError(f"{path}: no state dict under --key {quoted(key)}; {where} {names}", path=path)
    return at, root


def _shown(paths: list[tuple[str, ...]]) -> str:
    return few([".".join(path) or "the file itself" for path in paths], shown=6)


def _described(root: Any) -> str:
    if isinstance(root, Mapping):
        return f"mapping with the entries {few(root, shown=6)}" if root else "mapping without entries"
    return f"{type(root).__name__}"
